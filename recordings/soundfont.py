"""Render composed melodies dry with FluidSynth and a sound font, then make each tone as bright as it is loud.

Only one pitch sounds at a time, and a rest is digital silence. The MIDI file stays beside each wav: it says what was
played, and of which settings.
"""

import hashlib
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import soundfile as sf
from tqdm import tqdm

from recordings import brightness as timbre
from recordings import composition
from recordings.composition import (
    FILE_SECONDS,
    GAP,
    INSTRUMENTS,
    SILENT,
    Instrument,
    Rng,
    Tone,
    compose_file,
    compute_curves,
    write_midi,
)

SAMPLE_RATE = 44_100  # Hz, that of the samples in the usual sound fonts
PEAK = -3.0  # dBFS of the loudest note of a set
SOUNDFONT = "FluidR3_GM.sf2"
SOUNDFONT_DIRS = (  # Debian, Fedora and Arch, Homebrew, NixOS, one's own
    "/usr/share/sounds/sf2",
    "/usr/share/soundfonts",
    "/opt/homebrew/share/soundfonts",
    "/usr/local/share/soundfonts",
    "/run/current-system/sw/share/soundfonts",
    "~/.local/share/soundfonts",
    "~/Library/Audio/Sounds/Banks",
)


def find_program() -> str:
    """Return the path of FluidSynth."""
    if program := shutil.which("fluidsynth"):
        return program
    raise FileNotFoundError(
        "the program fluidsynth is missing; install it with: apt install fluidsynth (macOS: brew install fluid-synth)"
    )


def find_soundfont(path: Path | None) -> Path:
    """Return `path` if given, else the first FluidR3 GM sound font in the usual places."""
    candidates = [path] if path else [Path(folder).expanduser() / SOUNDFONT for folder in SOUNDFONT_DIRS]
    if found := [candidate for candidate in candidates if candidate.is_file()]:
        return found[0]
    raise FileNotFoundError(
        f"the sound font {path or SOUNDFONT} is missing; install one with: apt install "
        "fluid-soundfont-gm (elsewhere: download FluidR3_GM.sf2 and name it with --soundfont)"
    )


def render_midi(midi: bytes, seconds: float, program: str, soundfont: Path) -> np.ndarray:
    """Return the dry sound [seconds * SAMPLE_RATE] of a MIDI file, float64, at FluidSynth's own level."""
    with tempfile.TemporaryDirectory() as folder:
        song, wav, shell = (Path(folder, name) for name in ("song.mid", "song.wav", "shell"))
        song.write_bytes(midi)
        shell.write_text("interp 7\n")  # the best interpolation; its being there shuts out the user's own settings
        command = [
            program,
            "-niq",
            "-f",
            shell,
            "-R",
            "0",
            "-C",
            "0",
            "-g",
            "0.5",
            "-r",
            str(SAMPLE_RATE),
            "-o",
            "synth.default-soundfont=",
            "-T",
            "wav",
            "-O",
            "float",
            "-F",
            wav,
            soundfont,
            song,
        ]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode or not wav.is_file():
            raise OSError(f"fluidsynth failed with {soundfont}: {' '.join(done.stderr.split()) or done.returncode}")
        audio, _ = sf.read(wav, frames=round(seconds * SAMPLE_RATE))  # it plays on for two seconds
    if len(audio) < round(seconds * SAMPLE_RATE):
        raise OSError(f"fluidsynth stopped after {len(audio) / SAMPLE_RATE:.1f} of {seconds:g} s; is the disk full?")
    return audio.mean(axis=1)


def shape_tones(audio: np.ndarray, tones: Sequence[Tone], ins: Instrument, rng: Rng) -> np.ndarray:
    """Return the sound of `tones`, [n] at SAMPLE_RATE, with the brightness and noises of a played instrument."""
    shaped = np.zeros_like(audio)
    for tone in tones:
        begin, end = (round(t * SAMPLE_RATE) for t in (tone.start, tone.start + tone.seconds + 0.9 * GAP))
        level = compute_curves(tone)[2] + 40 * math.log10(tone.velocity / 127) - tone.dark
        sound = timbre.shape_tone(audio[begin:end], level, tone.key, ins.brightness, SAMPLE_RATE)
        shaped[begin:end] = sound
        if tone.noise:
            start, seconds, noise_level = tone.noise
            burst = timbre.make_burst(rng, seconds, SAMPLE_RATE)
            at = begin + round(start * SAMPLE_RATE)
            shaped[at : at + len(burst)] += 10 ** (noise_level / 20) * np.abs(sound).max() * burst
    return shaped


def measure_gain(ins: Instrument, program: str, soundfont: Path) -> float:
    """Return the gain that puts the loudest note of the range at PEAK: one for all sets of an instrument."""
    held = [(0.0, 0.0), (0.4, 0.0), (0.44, SILENT)]
    tones = [
        Tone(0.5 * i, 0.44, ins.low + i, 127, 0.0, [], (0.0, 5.0, 0.0, 0.0), held)
        for i in range(ins.high - ins.low + 1)
    ]
    seconds = 0.5 * len(tones)
    audio = render_midi(write_midi(tones, ins.program, seconds, ""), seconds, program, soundfont)
    peak = np.abs(shape_tones(audio, tones, ins, np.random.default_rng(0))).max()
    if peak < 1e-4:
        raise OSError(f"{soundfont} makes no sound for program {ins.program}; name a General MIDI sound font")
    return float(10 ** (PEAK / 20) / peak)


def write_file(path: Path, midi: bytes, render: Callable[[bytes], np.ndarray]) -> bool:
    """Render `midi` to the wav `path` and keep it beside; False where both are there from the same MIDI already."""
    song = path.with_suffix(".mid")
    if path.is_file() and song.is_file() and song.read_bytes() == midi:
        return False
    audio = render(midi)
    assert np.abs(audio).max() < 1, f"{path} clips"
    with tempfile.TemporaryDirectory(prefix=".", suffix=".part", dir=path.parent) as folder:
        try:
            sf.write(Path(folder, "audio"), audio, SAMPLE_RATE, subtype="PCM_24", format="WAV")
        except sf.LibsndfileError as error:
            raise OSError(f"{path} could not be written; is the disk full?") from error
        Path(folder, "midi").write_bytes(midi)
        os.replace(Path(folder, "audio"), path)
        os.replace(Path(folder, "midi"), song)  # last: it vouches for the wav
    return True


def write_set(
    instrument: str,
    minutes: float,
    output_dir: Path,
    seed: int = 0,
    soundfont: Path | None = None,
    num_workers: int = 2,
) -> tuple[int, int]:
    """Write all files of a set; return how many were written and how many were there already."""
    ins, program, soundfont = INSTRUMENTS[instrument], find_program(), find_soundfont(soundfont)
    output_dir.mkdir(parents=True, exist_ok=True)
    gain, digest = measure_gain(ins, program, soundfont), hashlib.sha256(soundfont.read_bytes()).hexdigest()
    files = (__file__, composition.__file__, timbre.__file__)
    code = hashlib.sha256(b"".join(Path(file).read_bytes() for file in files)).hexdigest()
    settings = (
        f"seed {seed}, {soundfont.name} sha256 {digest[:16]}, gain {gain:.6f}, {SAMPLE_RATE} Hz, "
        f"scripts sha256 {code[:16]}"
    )  # the MIDI vouches for the wav, but does not say how it was shaped

    def write(index: int) -> bool:
        rng = np.random.default_rng((seed, index))
        tones = compose_file(rng, ins, index)
        midi = write_midi(tones, ins.program, FILE_SECONDS, settings)
        path = output_dir / f"rendered_{instrument}_{index:03d}.wav"
        return write_file(
            path,
            midi,
            lambda midi: gain * shape_tones(render_midi(midi, FILE_SECONDS, program, soundfont), tones, ins, rng),
        )

    pool = ThreadPoolExecutor(num_workers)  # each thread waits for a FluidSynth of its own
    try:
        jobs = [pool.submit(write, i) for i in range(math.ceil(minutes * 60 / FILE_SECONDS))]
        written = sum(job.result() for job in tqdm(as_completed(jobs), total=len(jobs), unit="file", disable=None))
    finally:
        pool.shutdown(cancel_futures=True)
    return written, len(jobs) - written
