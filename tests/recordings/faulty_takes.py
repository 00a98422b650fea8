"""Make two sets that no model should be trained on, to see what ``inspect_dataset.py`` says of them.

    ./venv/bin/python tests/recordings/faulty_takes.py --output_dir data/raw/faulty

``strummed`` holds six takes of plucked chords. ``broken`` holds clean takes of single notes, one take for each fault
that a recording can have, and a copy. All are synthetic, and the same for the same ``--seed``.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import soxr
from scipy import signal
from tqdm import tqdm

from sound.console import as_command

RATE = 16000
CHORDS = (  # MIDI pitches of six strings, or fewer
    (40, 47, 52, 56, 59, 64),  # E
    (45, 52, 57, 61, 64),  # A
    (50, 57, 62, 66),  # D
    (43, 47, 50, 55, 59, 67),  # G
    (48, 52, 55, 60, 64),  # C
    (40, 47, 52, 55, 59, 64),  # Em
)


def to_hertz(pitch: float) -> float:
    return 440 * 2 ** ((pitch - 69) / 12)


def blow(f0: float, seconds: float) -> np.ndarray:
    """Return a note of all partials under 7.9 kHz, faded in and out: [N]."""
    time = np.arange(round(seconds * RATE)) / RATE
    numbers = np.arange(1, int(7900 / f0) + 1)[:, None]
    note = (np.sin(2 * np.pi * f0 * numbers * time) / numbers).sum(axis=0)
    fade = np.clip(time / 0.02, 0, 1)
    return 0.3 * note * fade * fade[::-1]


def play(notes: list[float], rng: np.random.Generator) -> np.ndarray:
    """Return a clean take: notes (Hz) of half a second, soft and loud in turn, each followed by as long a rest."""
    levels = np.resize([1.0, 0.25], len(notes))
    take = np.concatenate([np.pad(level * blow(f0, 0.5), (0, RATE // 2)) for f0, level in zip(notes, levels)])
    return take + 1e-4 * rng.standard_normal(len(take))


def pluck(f0: float, seconds: float, rng: np.random.Generator) -> np.ndarray:
    """Return a plucked string by Karplus and Strong's delay line: [N]."""
    period = round(RATE / f0 - 0.5)
    burst = np.zeros(round(seconds * RATE))
    burst[:period] = rng.uniform(-1, 1, period)
    return signal.lfilter([1], [1, *np.zeros(period - 1), -0.498, -0.498], burst)


def strum(n_chords: int, rng: np.random.Generator) -> np.ndarray:
    """Return a take of plucked chords, one a second, the strings 15 ms after each other."""
    take = np.zeros((n_chords + 1) * RATE)
    for start in range(n_chords):
        for i, pitch in enumerate(CHORDS[rng.integers(len(CHORDS))]):
            string = pluck(to_hertz(pitch), 1.0, rng)
            begin = start * RATE + i * round(0.015 * RATE)
            take[begin : begin + len(string)] += 0.15 * string
    return take


def add_hum(take: np.ndarray, mains: float) -> np.ndarray:
    """Add the first seven multiples of the mains frequency."""
    time = np.arange(len(take)) / RATE
    return take + 0.003 * sum(np.sin(2 * np.pi * mains * k * time) / k for k in range(1, 8))


def add_bleed(take: np.ndarray) -> np.ndarray:
    """Add another player, 46 dB softer, who holds one note."""
    return take + 0.005 * blow(370.0, len(take) / RATE)


def add_room(take: np.ndarray) -> np.ndarray:
    """Put the take into a hall that rings for 1.5 s."""
    time = np.arange(2 * RATE) / RATE
    hall = np.random.default_rng(0).standard_normal(len(time)) * 10 ** (-3 * time / 1.5)
    return 0.3 * take + 0.7 * signal.fftconvolve(take, hall / np.sqrt(np.sum(hall**2)))[: len(take)]


def send_by_telephone(take: np.ndarray) -> np.ndarray:
    """Leave nothing over 4 kHz."""
    return soxr.resample(soxr.resample(take, RATE, 8000), 8000, RATE)


FAULTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {  # named as inspect_dataset.py calls them
    "silent": lambda take: 1e-5 * take,
    "several pitches at once": lambda take: 0.7 * strum(len(take) // RATE - 1, np.random.default_rng(0)),
    "clipped": lambda take: np.clip(12 * take, -1, 1),
    "50 Hz mains hum": lambda take: add_hum(take, 50),
    "60 Hz mains hum": lambda take: add_hum(take, 60),
    "bleed": add_bleed,
    "reverb": add_room,
    "nothing over 4 kHz": send_by_telephone,
}


def make_takes(rng: np.random.Generator, n_notes: int) -> dict[str, np.ndarray]:
    """Return the two sets as file name -> sound at RATE."""
    takes = {f"strummed/take_{i}.wav": strum(n_notes, rng) for i in range(6)}
    low, high = 52, 84  # MIDI, a trumpet's range
    for i in range(2):
        notes = [to_hertz(pitch) for pitch in rng.integers(low, high + 1, n_notes)]
        takes[f"broken/clean_{i}.wav"] = play(notes, rng)
    takes["broken/clean_1_softer.wav"] = 0.5 * takes["broken/clean_1.wav"]
    for fault, add_fault in FAULTS.items():
        notes = [to_hertz(pitch) for pitch in rng.integers(low, high + 1, n_notes)]
        takes[f"broken/{fault.replace(' ', '_')}.wav"] = add_fault(play(notes, rng))
    return takes


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Make recordings that inspect_dataset.py should warn of.")
    parser.add_argument("--output_dir", type=Path, required=True, help="where strummed/ and broken/ go")
    parser.add_argument("--notes", type=int, default=12, help="of each take, one a second (default 12)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.notes < 2:
        parser.error("--notes must be at least 2")
    return args


@as_command("stopped; what is written stays", errors=(soundfile.LibsndfileError,))
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    takes = make_takes(np.random.default_rng(args.seed), args.notes)
    for name, take in tqdm(takes.items(), unit="file", desc="write", leave=False, disable=None):
        path = args.output_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, take, RATE)
    print(f"{len(takes)} takes of {args.notes} notes or chords in {args.output_dir}, strummed and broken")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
