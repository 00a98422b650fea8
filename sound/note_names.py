"""Notes by their MIDI numbers and names: A4 is 440 Hz and number 69, a semitone is 1."""

import numpy as np

_NAMES = ("C", "C♯", "D", "D♯", "E", "F", "F♯", "G", "G♯", "A", "A♯", "B")


def hz_to_midi(f0: np.ndarray | float) -> np.ndarray | float:
    """Return the MIDI numbers of frequencies in Hz, fractional, of the same shape."""
    return 12 * np.log2(f0 / 440) + 69


def midi_to_hz(number: np.ndarray | float) -> np.ndarray | float:
    """Return the frequencies in Hz of MIDI numbers, of the same shape."""
    return 440 * 2 ** ((number - 69) / 12)


def note_name(f0: float) -> str:
    """Return the name of the nearest note: 440 Hz is "A4"."""
    number = round(hz_to_midi(f0))
    return f"{_NAMES[number % 12]}{number // 12 - 1}"
