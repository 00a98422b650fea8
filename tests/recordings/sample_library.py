"""Recordings made of sines with known pitch, level, onset, decay and release, for the tests of the sampler."""

from pathlib import Path

import numpy as np
import soundfile as sf

RATE = 44_100
DECAY = 20.0  # dB/s
LAYER_PEAKS = {1: -15.0, 2: -8.0, 3: -4.0, 4: 0.0}  # dB re 0.3
SHINY = {"a3": 57, "c4": 60, "eb4": 63}
STEPS = ("C", "Cs", "D", "Ds", "E", "F", "Fs", "G", "Gs", "A", "As", "B")


def hz(midi: float) -> float:
    return 440.0 * 2 ** ((midi - 69) / 12)


def make_pluck(f0: float, seconds: float = 1.5, n_harmonics: int = 4, take: int = 0) -> np.ndarray:
    """Return a decaying tone [N] at RATE: its peak is near 0.3, its attack takes 5 ms; takes differ in their phases."""
    t = np.arange(round(seconds * RATE)) / RATE
    tone = sum(np.sin(2 * np.pi * k * f0 * t + take * k**2) / k for k in range(1, n_harmonics + 1))
    return 0.2 * tone * 10 ** (-DECAY * t / 20) * np.minimum(t / 0.005, 1)


def make_held(f0: float, seconds: float, n_harmonics: int, level: float = 0.1, take: int = 0) -> np.ndarray:
    """Return a steady tone [N] at RATE of RMS `level`: 0.1 s of silence, 30 ms of attack, 60 ms of release."""
    t = np.arange(round(seconds * RATE)) / RATE
    tone = sum(np.cos(2 * np.pi * k * f0 * t + take * k**2) / k for k in range(1, n_harmonics + 1))
    tone *= level / np.sqrt(np.mean(tone**2))
    envelope = np.clip(t / 0.03, 0, 1) * np.clip((seconds - t) / 0.06, 0, 1)
    return np.pad(tone * envelope, round(0.1 * RATE))


def write_guitar(folder: Path) -> None:
    """Write three pitches in four layers and four takes, named as Shinyguitar; takes differ in phase."""
    folder.mkdir(parents=True)
    for name, midi in SHINY.items():
        for layer, peak in LAYER_PEAKS.items():
            for take in range(1, 5):
                audio = 10 ** (peak / 20) * make_pluck(hz(midi), n_harmonics=1 + layer, take=take)
                sf.write(folder / f"{name}_vl{layer}_rr{take}_1.flac", audio, RATE)


def write_trumpet(folder: Path, cents: float = 12.0) -> None:
    """Write MIDI pitches 64 to 76 in two dynamics, as sharp as the player, all as loud in the file."""
    folder.mkdir(parents=True)
    for midi in range(64, 77):
        note = f"{STEPS[midi % 12]}{midi // 12 - 1}"
        for dynamic, n_harmonics in (("pianissimo", 2), ("fortissimo", 9)):
            audio = make_held(hz(midi + cents / 100), 1.0, n_harmonics, take=midi)
            sf.write(folder / f"trumpet_{note}_1_{dynamic}_normal.flac", audio, RATE)
