"""Render training sound from real recordings: composed melodies on a sampler, and the recordings as they are.

Each file is 48 kHz mono FLAC with a JSON beside it: its notes (onset, end, pitch, level, source files) and f0 every
10 ms, 0 where nothing sounds. One gain for all files of an instrument keeps their levels true to each other.
"""

import hashlib
import json
import logging
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile as sf
from tqdm import tqdm

from recordings import sampler as sampler_module
from recordings import samples as samples_module
from recordings import score as score_module
from recordings.sampler import LAYERS, Sampler, Truth, loudest_peak
from recordings.samples import DYNAMICS, SAMPLE_RATE, Index, Sample, build_index, load_sample, measure_envelope
from recordings.score import FILE_SECONDS, PLAYING, compose_file

log = logging.getLogger(__name__)

REAL_SHARE = 0.4  # of the files, at most, are recordings as they are
LONG = 2.5  # s, a note of more goes in as it is
NOISE = -40.0  # dB under a recording's peak; before and after the note there is only the room
PEAK = -3.0  # dBFS, of the loudest recording at its full level


def render_samples(
    samples_dir: Path, instrument: str, minutes: float, output_dir: Path, seed: int = 0
) -> tuple[int, int]:
    """Render `minutes` of an instrument from the recordings in `samples_dir`, in files of up to 30 s.

    Files that are there from the same settings stay, so a run that was stopped can be run again.

    Args:
        samples_dir: a folder of recordings that ``recordings/samples.py`` knows; only the role model is used.
        instrument: a key of ``recordings.score.PLAYING``.
        minutes: of all files together.
        output_dir: gets ``rendered_<instrument>_<n>.flac``, the JSON files and ``index.json``.
        seed: another seed, other melodies.

    Returns:
        how many files were written, and how many were there already.

    Raises:
        FileNotFoundError: no recordings of the instrument in `samples_dir`.
        ValueError: the instrument is not known, or the recordings do not cover its range.
    """
    if instrument not in PLAYING:
        raise ValueError(f"{instrument!r} cannot be rendered from samples; choose one of {', '.join(sorted(PLAYING))}")
    index = build_index(samples_dir, instrument, output_dir / "index.json")
    n_all = len(index.samples) + len(index.left_out)
    log.info("%d of %d recordings are left out; %s says why", len(index.left_out), n_all, output_dir / "index.json")
    playing, sampler = PLAYING[instrument], Sampler(index, PLAYING[instrument])
    gain = 10 ** (PEAK / 20) / loudest_peak(sampler)
    settings = describe_settings(index, gain, seed)
    n_files = math.ceil(minutes * 60 / FILE_SECONDS)

    def compose(i: int) -> tuple[np.ndarray, Truth]:
        rng = np.random.default_rng((seed, i))
        return sampler.play(compose_file(rng, playing, i), FILE_SECONDS, rng)

    whole = [] if playing.plucked else list_whole(index, "model", playing.high)
    real = string_together(whole, np.random.default_rng(seed), gain)[: int(n_files * REAL_SHARE)]
    jobs = [(f"rendered_{instrument}_{i:03d}", lambda i=i: compose(i)) for i in range(n_files - len(real))]
    jobs += [
        (f"rendered_{instrument}_real_{i:03d}", lambda part=part: play_whole(index, part, gain))
        for i, part in enumerate(real)
    ]
    return write_files(jobs, output_dir, gain, settings)


# --- recordings as they are -----------------------------------------------------------------------


@dataclass(frozen=True)
class Whole:
    """A recording that goes in as it is: where, how loud, and how much of it."""

    sample: Sample
    onset: float  # s in the file
    seconds: float
    gain: float  # before the common gain


def list_whole(index: Index, role: str, high: int, notes: bool = False) -> list[Sample]:
    """Return the phrases of a role and its long notes, with `notes` all of its notes, named at most `high` (MIDI)."""
    held = [s for s in index.select(role, "note") if notes or s.seconds > LONG]
    return [s for s in (*index.select(role, "phrase"), *held) if s.midi <= high]


def string_together(
    samples: Sequence[Sample], rng: np.random.Generator, gain: float, longest: float = 15.0
) -> list[list[Whole]]:
    """Return the recordings in random order, strung to files of at most FILE_SECONDS with rests between them.

    Each is as loud as its dynamic says; a plucked one as it was recorded.
    """
    files: list[list[Whole]] = []
    now = FILE_SECONDS
    for i in rng.permutation(len(samples)):
        sample = samples[i]
        seconds = min(sample.seconds, longest)
        level = 1.0 if sample.dynamic in LAYERS else 10 ** ((DYNAMICS.get(sample.dynamic, -6.0) - sample.level) / 20)
        level = min(level, 0.95 / (gain * sample.peak))
        if now + seconds + 0.1 > FILE_SECONDS:
            files.append([])
            now = 0.2
        files[-1].append(Whole(sample, now, seconds, level))
        now += seconds + float(rng.uniform(0.3, 0.9))
    return files


def play_whole(index: Index, part: Sequence[Whole], gain: float) -> tuple[np.ndarray, Truth]:
    """Return the sound [N] of recordings as they are, and the truth about them; their f0 is not known."""
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
    """Return a recording [N] without what is softer than NOISE before its beginning and after its end."""
    envelope = measure_envelope(sound, 240, 960)
    loud = np.flatnonzero(envelope > envelope.max() * 10 ** (NOISE / 20))
    return sound[max(240 * int(loud[0]) - 1200, 0) : 240 * int(loud[-1]) + 2400]


def render_held_out(
    samples_dirs: Sequence[Path], instrument: str, minutes: float, output_dir: Path, gain: float = 1.0, seed: int = 0
) -> tuple[int, int]:
    """Write about `minutes` of held-out recordings as they are; for a plucked instrument a melody of them, too.

    Args:
        samples_dirs: folders of recordings; of each only the role held_out is used.
        instrument: a key of ``recordings.score.PLAYING``.
        minutes: of each folder at most.
        output_dir: gets ``held_out_<instrument>_<folder>_<n>.flac`` and the JSON files.
        gain: of all files, as of the training set.
        seed: of the order.
    """
    written = skipped = 0
    for folder in samples_dirs:
        index = build_index(folder, instrument, output_dir / f"index_{folder.name}.json")
        rng = np.random.default_rng(seed)
        samples = list_whole(index, "held_out", PLAYING[instrument].high, notes=True)
        longest = 4.0 if PLAYING[instrument].plucked else 15.0
        parts = string_together(samples, rng, gain, longest)[: max(1, round(minutes * 60 / FILE_SECONDS))]
        jobs = [
            (f"held_out_{instrument}_{folder.name}_{i:03d}", lambda p=p, x=index: play_whole(x, p, gain))
            for i, p in enumerate(parts)
        ]
        if PLAYING[instrument].plucked and {s.dynamic for s in samples} <= set(LAYERS):
            sampler = Sampler(index, PLAYING[instrument], "held_out")
            jobs += [
                (f"held_out_{instrument}_{folder.name}_melody_{i:03d}", lambda i=i, s=sampler: play_snapped(s, i, seed))
                for i in range(4)
            ]
        done = write_files(jobs, output_dir, gain, describe_settings(index, gain, seed))
        written, skipped = written + done[0], skipped + done[1]
    return written, skipped


def play_snapped(sampler: Sampler, i: int, seed: int) -> tuple[np.ndarray, Truth]:
    """Play composed file `i` with each note moved to the nearest recorded pitch, where few pitches are recorded."""
    rng = np.random.default_rng((seed, i))
    score = []
    for note in compose_file(rng, sampler.playing, i):
        nearest = sampler.pitches[int(np.argmin(np.abs(sampler.pitches - note.midi)))]
        score.append(replace(note, midi=float(nearest), moves=()))
    return sampler.play(score, FILE_SECONDS, rng)


def describe_settings(index: Index, gain: float, seed: int) -> str:
    """Return the text by which a file tells what it was rendered from."""
    files = "".join(f"{s.path} {s.role} {s.f0:.3f} {s.level:.2f}\n" for s in index.samples)
    code = b"".join(Path(m.__file__).read_bytes() for m in (samples_module, score_module, sampler_module))
    return (
        f"seed {seed}, {len(index.samples)} recordings sha256 {hashlib.sha256(files.encode()).hexdigest()[:16]}, "
        f"gain {gain:.6f}, {SAMPLE_RATE} Hz, code sha256 {hashlib.sha256(code).hexdigest()[:16]}"
    )


def write_files(
    jobs: list[tuple[str, Callable[[], tuple[np.ndarray, Truth]]]], output_dir: Path, gain: float, settings: str
) -> tuple[int, int]:
    """Write (name, how to make sound and truth) as FLAC and JSON; files of the same settings are left as they are."""
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
    """Return True if a sound file and its truth are there, and from these settings."""
    try:
        content = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return path.is_file() and content.get("settings") == settings


def write_file(path: Path, audio: np.ndarray, truth: Truth, settings: str) -> None:
    """Write audio [N] and its truth under temporary names, then rename them; the JSON last, it vouches for the FLAC."""
    peak = float(np.abs(audio).max(initial=0.0))
    if peak >= 1:
        raise ValueError(f"{path} would clip by {20 * math.log10(peak):.1f} dB, a defect of the sampler's levels")
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


def list_sources(output_dir: Path) -> Iterator[str]:
    """Yield the recordings that the files of a folder were made from, sorted, each once."""
    names = set()
    for path in output_dir.glob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        names.update(file for note in content.get("notes", ()) for file in note["files"])
    yield from sorted(names)
