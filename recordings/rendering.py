"""Render training sound: composed melodies played on recorded notes or a sound font, and unchanged recordings.

Each file is 48 kHz mono FLAC with a JSON file of the same name: its notes (onset, end, pitch, level, source files) and
f0 every 10 ms, 0 where nothing sounds. One gain for all files of an instrument preserves their relative levels.
"""

import hashlib
import json
import logging
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile as sf
from tqdm import tqdm

from recordings import sampler as sampler_module
from recordings import samples as samples_module
from recordings import score as score_module
from recordings import soundfont as font_module
from recordings.sampler import Sampler, Truth
from recordings.samples import DYNAMICS, SAMPLE_RATE, Index, Sample, build_index, load_sample, measure_envelope
from recordings.score import FILE_SECONDS, PLAYING, compose_file
from recordings.soundfont import SoundFont

log = logging.getLogger(__name__)
Job = tuple[str, Callable[[], tuple[np.ndarray, Truth]]]  # file name, function that returns sound and ground truth

REAL_SHARE = 0.4  # maximum share of files with unchanged recordings
LONG, LONGEST = 2.5, 15.0  # s: notes longer than LONG are also used unchanged, cut to LONGEST
NOISE = -40.0  # dB relative to a recording's peak; below it, there is only room noise before and after the note
PEAK = -3.0  # dBFS, of the loudest recording at full level


def render_samples(
    samples_dir: Path, instrument: str, minutes: float, output_dir: Path, seed: int = 0
) -> tuple[int, int]:
    """Render `minutes` of an instrument from the recordings in `samples_dir`, in files of up to 30 s.

    Existing files made with the same settings are skipped, so an interrupted run can be repeated.

    Args:
        samples_dir: folder of a collection that ``recordings/samples.py`` supports; only the role "model" is used.
        instrument: a key of ``recordings.score.PLAYING``.
        minutes: total duration.
        output_dir: gets ``rendered_<instrument>_<n>.flac``, the JSON files and ``index.json``.
        seed: seed of the melodies.

    Returns:
        (files written, files skipped).

    Raises:
        FileNotFoundError: `samples_dir` has no recordings of the instrument.
        ValueError: the instrument is unknown, or the recordings do not cover its range.
    """
    if instrument not in PLAYING:
        raise ValueError(f"{instrument!r} cannot be rendered from samples; choose one of {', '.join(sorted(PLAYING))}")
    index = build_index(samples_dir, instrument, output_dir / "index.json")
    n_all = len(index.samples) + len(index.left_out)
    log.info("%d of %d recordings are left out; reasons in %s", len(index.left_out), n_all, output_dir / "index.json")
    playing, sampler = PLAYING[instrument], Sampler(index, PLAYING[instrument])
    gain, n_files = 10 ** (PEAK / 20) / sampler.loudest_peak(), math.ceil(minutes * 60 / FILE_SECONDS)
    whole = [] if playing.plucked else list_whole(index, playing.high)
    real = string_together(whole, np.random.default_rng(seed), gain)[: int(n_files * REAL_SHARE)]
    jobs = compose_files(sampler, instrument, n_files - len(real), seed)
    jobs += [
        (f"rendered_{instrument}_real_{i:03d}", lambda part=part: play_whole(index, part, gain))
        for i, part in enumerate(real)
    ]
    files = "".join(f"{s.path} {s.role} {s.f0:.3f} {s.level:.2f}\n" for s in index.samples)
    origin = f"{len(index.samples)} recordings sha256 {hashlib.sha256(files.encode()).hexdigest()[:16]}"
    return write_files(jobs, output_dir, gain, describe_settings(origin, gain, seed))


def render_soundfont(
    instrument: str, minutes: float, output_dir: Path, seed: int = 0, soundfont: Path | None = None
) -> tuple[int, int]:
    """Render `minutes` of an instrument with FluidSynth and a sound font; arguments as in ``render_samples``.

    Raises:
        OSError: FluidSynth or the sound font is missing, or FluidSynth fails.
    """
    font = SoundFont(instrument, soundfont)
    gain = 10 ** (PEAK / 20) / font.loudest_peak()
    jobs = compose_files(font, instrument, math.ceil(minutes * 60 / FILE_SECONDS), seed)
    return write_files(jobs, output_dir, gain, describe_settings(font.describe(), gain, seed))


def compose_files(player: Sampler | SoundFont, instrument: str, n_files: int, seed: int) -> list[Job]:
    """Return the jobs that render composed files."""

    def play(i: int) -> tuple[np.ndarray, Truth]:
        rng = np.random.default_rng((seed, i))
        return player.play(compose_file(rng, player.playing, i), FILE_SECONDS, rng)

    return [(f"rendered_{instrument}_{i:03d}", lambda i=i: play(i)) for i in range(n_files)]


# --- unchanged recordings -------------------------------------------------------------------------


@dataclass(frozen=True)
class Whole:
    """Position, length and gain of an unchanged recording in a file."""

    sample: Sample
    onset: float  # s in the file
    seconds: float
    gain: float  # before the common gain


def list_whole(index: Index, high: int) -> list[Sample]:
    """Return the phrases and long notes with the role "model", up to the MIDI pitch `high`."""
    held = [s for s in index.select("model", "note") if s.seconds > LONG]
    return [s for s in (*index.select("model", "phrase"), *held) if s.midi <= high]


def string_together(samples: Sequence[Sample], rng: np.random.Generator, gain: float) -> list[list[Whole]]:
    """Arrange the recordings in random order, in files of at most FILE_SECONDS, with rests between them.

    The level of each follows its dynamic marking.
    """
    files: list[list[Whole]] = []
    now = FILE_SECONDS
    for i in rng.permutation(len(samples)):
        sample = samples[i]
        seconds = min(sample.seconds, LONGEST)
        level = 10 ** ((DYNAMICS.get(sample.dynamic, -6.0) - sample.level) / 20)
        level = min(level, 0.95 / (gain * sample.peak))
        if now + seconds + 0.1 > FILE_SECONDS:
            files.append([])
            now = 0.2
        files[-1].append(Whole(sample, now, seconds, level))
        now += seconds + float(rng.uniform(0.3, 0.9))
    return files


def play_whole(index: Index, part: Sequence[Whole], gain: float) -> tuple[np.ndarray, Truth]:
    """Return the sound [N] of unchanged recordings and its ground truth, which has no f0."""
    audio = np.zeros(round((part[-1].onset + part[-1].seconds + 0.1) * 100) * SAMPLE_RATE // 100, np.float32)
    notes = []
    for item in part:
        sound = trim_noise(load_sample(index.folder / item.sample.path))[: round(item.seconds * SAMPLE_RATE)]
        ramp = np.minimum(np.arange(len(sound)) / 240, np.arange(len(sound))[::-1] / 2400)
        sound = sound * (item.gain * np.clip(ramp, 0, 1)).astype(np.float32)
        at = round(item.onset * SAMPLE_RATE)
        audio[at : at + len(sound)] += sound[: len(audio) - at]
        notes.append(
            {
                "onset": round(item.onset, 4),
                "end": round(item.onset + len(sound) / SAMPLE_RATE, 4),
                "midi": item.sample.midi,
                "f0": round(item.sample.f0, 3),
                "kind": item.sample.kind,
                "level": round(20 * math.log10(item.gain) + item.sample.level, 2),
                "files": [item.sample.path],
            }
        )
    return audio, Truth(np.zeros(0), notes)


def trim_noise(sound: np.ndarray) -> np.ndarray:
    """Return a recording [N] without the sound below NOISE at its beginning and end."""
    envelope = measure_envelope(sound, 240, 960)
    loud = np.flatnonzero(envelope > envelope.max() * 10 ** (NOISE / 20))
    return sound[max(240 * int(loud[0]) - 1200, 0) : 240 * int(loud[-1]) + 2400]


def describe_settings(origin: str, gain: float, seed: int) -> str:
    """Return the text that identifies the sources, seed and code of a rendered file."""
    code = b"".join(Path(m.__file__).read_bytes() for m in (samples_module, score_module, sampler_module, font_module))
    return (
        f"seed {seed}, {origin}, gain {gain:.6f}, {SAMPLE_RATE} Hz, code sha256 {hashlib.sha256(code).hexdigest()[:16]}"
    )


def write_files(jobs: list[Job], output_dir: Path, gain: float, settings: str) -> tuple[int, int]:
    """Run the jobs and write FLAC and JSON files; skip files made with the same settings. Return (written, skipped)."""
    output_dir.mkdir(parents=True, exist_ok=True)
    written = 0
    for name, make in tqdm(jobs, unit="file", disable=None):
        path = output_dir / f"{name}.flac"
        if is_finished(path, settings):
            continue
        audio, truth = make()
        write_file(path, gain * audio, truth, settings)
        written += 1
    return written, len(jobs) - written


def is_finished(path: Path, settings: str) -> bool:
    """Return True if a sound file and its JSON file exist and were made with these settings."""
    try:
        content = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return path.is_file() and content.get("settings") == settings


def write_file(path: Path, audio: np.ndarray, truth: Truth, settings: str) -> None:
    """Write audio [N] and its ground truth under temporary names, then rename them; the JSON last marks completion."""
    peak = float(np.abs(audio).max(initial=0.0))
    if peak >= 1:
        raise ValueError(f"{path} would clip by {20 * math.log10(peak):.1f} dB: the sampler's levels are wrong")
    content = {
        "settings": settings,
        "sample_rate": SAMPLE_RATE,
        "frames_per_second": 100,
        "notes": truth.notes,
        "f0": [round(float(f), 2) for f in truth.f0],
    }
    with tempfile.TemporaryDirectory(prefix=".", suffix=".part", dir=path.parent) as folder:
        partial = Path(folder, "audio")
        try:
            sf.write(partial, audio, SAMPLE_RATE, subtype="PCM_16", format="FLAC")
        except sf.LibsndfileError as error:
            raise OSError(f"{path} could not be written; is the disk full?") from error
        Path(folder, "truth").write_text(json.dumps(content), encoding="utf-8")
        partial.replace(path)
        Path(folder, "truth").replace(path.with_suffix(".json"))
