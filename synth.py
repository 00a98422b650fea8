"""Synthesis: a bank of harmonic oscillators and filtered noise, differentiable and exact.

Both follow DDSP (Engel et al., ICLR 2020). Frame t is centred on sample ``t * hop_length``; between
frames every control is linear, and the last frame is held. The phase at sample n is 2 pi times the
inclusive cumulative sum of f0 / sample_rate.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

# Harmonics are numbered k = q * _GROUP + p. 16, a power of two, balances the P powers against the Q = H / 16 groups.
_GROUP = 16
# Frames rendered at once: on a CPU as many as fit the cache, on a GPU enough to fill it.
_BLOCK_FRAMES = 200
_BLOCK_FRAMES_GPU = 8192


class HarmonicBank(torch.autograd.Function):
    """[B, T, hop] phases, [B, T, H] amplitudes and the number that sound, [B, T], to [B, T, hop] audio.

    Only the inputs are saved for the backward pass: computing the powers again costs less than storing them.
    """

    @staticmethod
    def forward(ctx, phase: Tensor, amplitudes: Tensor, n_sounding: Tensor) -> Tensor:
        ctx.save_for_backward(phase, amplitudes, n_sounding)
        return _sum_harmonics(phase, amplitudes, n_sounding, torch.imag)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        phase, amplitudes, n_sounding = ctx.saved_tensors
        grad_phase = grad_amplitudes = None
        if ctx.needs_input_grad[0]:
            numbers = torch.arange(1, amplitudes.shape[-1] + 1, device=grad.device, dtype=grad.dtype)
            grad_phase = grad * _sum_harmonics(phase, amplitudes * numbers, n_sounding, torch.real)
        if ctx.needs_input_grad[1]:
            grad_amplitudes = _correlate_harmonics(phase, grad, n_sounding, amplitudes.shape[-1])
        return grad_phase, grad_amplitudes, None


def _sum_harmonics(phase: Tensor, amplitudes: Tensor, n_sounding: Tensor, part: Callable[[Tensor], Tensor]) -> Tensor:
    """Return a part, ``torch.imag`` or ``torch.real``, of sum_k a[k] z^k for z = exp(i phase): [B, T, hop].

    The amplitudes are linear in time. With k = q * P + p the sum is sum_q (z^P)^q S[q], a polynomial in z^P,
    where S[q] = sum_p a[q, p] z^p is a matrix product: a real one, since the amplitudes are real.
    """
    grouped = _grouped(amplitudes)
    ramp = _ramp(phase.shape[-1], phase).repeat_interleave(2)  # (2*hop) for real and imaginary parts
    rows, total = phase.flatten(0, 1), torch.empty_like(phase)

    for block in _blocks(n_sounding, amplitudes.shape[-1]):
        powers, step = _powers(rows[block.rows])
        weights = grouped[block.rows, :, : block.n_groups].flatten(1, 2)  # (R, 2Q, P)
        here, there = torch.bmm(weights, torch.view_as_real(powers).flatten(2)).chunk(2, dim=1)  # (R, Q, 2*hop)
        sums = torch.view_as_complex(torch.lerp(here, there, ramp).unflatten(-1, (-1, 2)))
        total.view_as(rows)[block.rows] = part(_polynomial(sums, step))
    return total


def _correlate_harmonics(phase: Tensor, grad: Tensor, n_sounding: Tensor, n_harmonics: int) -> Tensor:
    """Return the gradient of the amplitudes [B, T, H]: sums over time of grad times each harmonic that sounds.

    The harmonic, Im(z^(qP) z^p), is the product of the row (Im z^(qP), Re z^(qP)) and the column
    (Re z^p, Im z^p); the row is i times the conjugate of z^(qP), as real and imaginary part.
    """
    n_batch, n_frames, hop_length = grad.shape
    ramp = _ramp(hop_length, grad)
    ramps = torch.stack([1 - ramp, ramp])  # (2, hop)
    angles, slopes = phase.flatten(0, 1), grad.flatten(0, 1)
    sums = grad.new_zeros(n_batch * n_frames, n_harmonics // _GROUP + 1, 2, _GROUP)

    for block in _blocks(n_sounding, n_harmonics):
        powers, step = _powers(angles[block.rows])
        weighted = slopes[block.rows, None] * ramps  # (R, 2, hop)
        rows = step.new_empty(len(step), block.n_groups, 2, hop_length)
        torch.complex(torch.zeros_like(weighted), weighted, out=rows[:, 0])
        _fill_powers(rows, torch.conj_physical(step)[:, None, None])
        rows = torch.view_as_real(rows).flatten(3).flatten(1, 2)  # (R, 2Q, 2*hop)
        columns = torch.view_as_real(powers).flatten(2).transpose(1, 2)  # (R, 2*hop, P)
        sums[block.rows, : block.n_groups] = torch.bmm(rows, columns).unflatten(1, (block.n_groups, 2))
    sums = sums.transpose(1, 2).flatten(2)[..., 1 : n_harmonics + 1]
    here, there = sums.unflatten(0, (n_batch, n_frames)).unbind(dim=2)
    result = here.clone()
    result[:, 1:] += there[:, :-1]
    result[:, -1] += there[:, -1]  # the last frame is held
    return result


class _Block(NamedTuple):
    rows: slice  # of B * T
    n_groups: int  # that sound in them


def _blocks(n_sounding: Tensor, n_harmonics: int) -> list[_Block]:
    on_cpu = n_sounding.device.type == "cpu"
    size = _BLOCK_FRAMES if on_cpu else _BLOCK_FRAMES_GPU
    slices = [slice(start, start + size) for start in range(0, n_sounding.numel(), size)]
    if not on_cpu:  # reading the counts would synchronize with the GPU
        return [_Block(rows, n_harmonics // _GROUP + 1) for rows in slices]
    return [_Block(rows, int(n_sounding.flatten()[rows].max()) // _GROUP + 1) for rows in slices]


def _powers(phase: Tensor) -> tuple[Tensor, Tensor]:
    """Return z^p for p < P, [R, P, hop], and z^P, [R, hop], of z = exp(i phase) by repeated doubling."""
    powers = phase.new_empty(len(phase), _GROUP, phase.shape[-1], dtype=phase.dtype.to_complex())
    powers[:, 0] = 1
    step = torch.complex(torch.cos(phase), torch.sin(phase))
    return powers, _fill_powers(powers, step[:, None])[:, 0]


def _fill_powers(rows: Tensor, step: Tensor) -> Tensor:
    """Set rows[:, q] to rows[:, 0] * step ** q by repeated doubling.

    Returns:
        step to the power of the number of rows, rounded up to a power of two.
    """
    done, n_rows = 1, rows.shape[1]
    while done < n_rows:
        torch.mul(rows[:, : min(done, n_rows - done)], step, out=rows[:, done : 2 * done])
        step, done = step * step, 2 * done
    return step


def _polynomial(coefficients: Tensor, step: Tensor) -> Tensor:
    """Return sum_q coefficients[:, q] * step ** q of [R, Q, hop] and [R, hop] by pairs; overwrites the first."""
    while coefficients.shape[1] > 1:
        odd = coefficients[:, 1::2]
        coefficients[:, : 2 * odd.shape[1] : 2] += odd * step[:, None]
        coefficients, step = coefficients[:, ::2], step * step
    return coefficients[:, 0]


def _grouped(amplitudes: Tensor) -> Tensor:
    """Lay out [B, T, H] amplitudes of each frame and of the next by group: [B*T, 2, Q, P]."""
    n_groups = amplitudes.shape[-1] // _GROUP + 1
    padded = nn.functional.pad(amplitudes, (1, n_groups * _GROUP - amplitudes.shape[-1] - 1))  # harmonic 0 is silent
    both = torch.stack([padded, next_frames(padded)], dim=2).flatten(0, 1)
    return both.unflatten(-1, (n_groups, _GROUP))


def next_frames(frames: Tensor) -> Tensor:
    return torch.cat([frames[:, 1:], frames[:, -1:]], dim=1)


def _ramp(hop_length: int, like: Tensor) -> Tensor:
    return torch.arange(hop_length, device=like.device, dtype=like.dtype) / hop_length


def harmonics_below_nyquist(f0: Tensor, n_harmonics: int, sample_rate: int) -> Tensor:
    """Return which harmonics of each frame lie below Nyquist.

    Args:
        f0: [B, T, 1] in Hz.
        n_harmonics: H.
        sample_rate: Hz.

    Returns:
        Boolean [B, T, H]; true where k * f0 is below sample_rate / 2.
    """
    return harmonics_below(sample_rate / 2, f0, n_harmonics)


def harmonics_below(frequency: float, f0: Tensor, n_harmonics: int) -> Tensor:
    """Return which of ``n_harmonics`` harmonics of f0 [B, T, 1] lie below a frequency in Hz: boolean [B, T, H]."""
    numbers = torch.arange(1, n_harmonics + 1, device=f0.device, dtype=f0.dtype)
    return f0 * numbers < frequency


def count_noise_bands_within(frequency: float, n_noise_bands: int, sample_rate: int) -> int:
    """Return the number of noise bands that end, skirts included, at or below a frequency in Hz."""
    spacing = sample_rate / 2 / (n_noise_bands - 1)
    return min(int(frequency / spacing), n_noise_bands)


def a_weighting(frequency: Tensor) -> Tensor:
    """Return the linear gain of A-weighting (IEC 61672-1) at frequencies in Hz, 1 at 1 kHz, of the same shape."""
    squared = frequency**2
    low, first, second, high = (pole**2 for pole in (20.598997, 107.65265, 737.86223, 12194.217))
    gain = high * squared**2 / ((squared + low) * (squared + high))
    return 1.2589 * gain / torch.sqrt((squared + first) * (squared + second))  # 1.2589: 2 dB, to be 1 at 1 kHz


def measured_weighting(frequency: Tensor, feature_rate: int) -> Tensor:
    """Return the linear gain at frequencies in Hz with which loudness measures sound of a higher sample rate.

    It is A-weighting up to the cut-off of resampling to ``feature_rate``: between 0.925 and 0.975 times its Nyquist
    frequency, half of the power at 0.95 (soxr's HQ, see ``audio_files.py``).
    """
    beyond = (frequency / (feature_rate / 2) - 0.925) / 0.05
    return a_weighting(frequency) * torch.cos(beyond.clamp(0, 1) * (math.pi / 2))


def weighted_level(
    f0: Tensor,
    harmonic_amplitudes: Tensor,
    noise_magnitudes: Tensor,
    sample_rate: int,
    feature_rate: int | None = None,
) -> Tensor:
    """Return the A-weighted RMS, linear, of the synthesizers' sound for steady controls.

    Args:
        f0: [B, T, 1] in Hz.
        harmonic_amplitudes: [B, T, H], linear.
        noise_magnitudes: [B, T, K], linear gain of each band.
        sample_rate: Hz.
        feature_rate: Hz, at which loudness is measured; sound above half of it does not count (None: sample_rate).

    Returns:
        [B, T, 1].
    """
    is_full = feature_rate in (None, sample_rate)
    weigh = a_weighting if is_full else functools.partial(measured_weighting, feature_rate=feature_rate)
    n_harmonics, n_bands = harmonic_amplitudes.shape[-1], noise_magnitudes.shape[-1]
    numbers = torch.arange(1, n_harmonics + 1, device=f0.device, dtype=f0.dtype)
    harmonics = (weigh(f0 * numbers) * harmonic_amplitudes).square().sum(dim=-1, keepdim=True) / 2
    bands = torch.linspace(0, sample_rate / 2, n_bands, device=f0.device, dtype=f0.dtype)
    noise = (weigh(bands) * noise_magnitudes).square().mean(dim=-1, keepdim=True) / 3  # uniform noise: 1/3
    return torch.sqrt(harmonics + noise)


def elapsed_cycles(f0: Tensor, sample_rate: int, hop_length: int) -> Tensor:
    """Return the number of cycles of f0 [B, T, 1] in each frame: float64 [B, T]; the last frame is held."""
    cycles = _to_float64(f0.squeeze(-1)) / sample_rate
    return cycles * hop_length + (next_frames(cycles) - cycles) * ((hop_length - 1) / 2)


def _to_float64(values: Tensor) -> Tensor:
    """Return the values as float64 on their device, or on the CPU if that is Apple's MPS, which has no float64."""
    # Two calls: MPS cannot convert to float64 during the copy.
    return values.to("cpu" if values.device.type == "mps" else values.device).to(torch.float64)


def fundamental_phase(f0: Tensor, sample_rate: int, hop_length: int, start: Tensor | None = None) -> Tensor:
    """Accumulate the phase of the fundamental in double precision and wrap it.

    In float32 a plain cumulative sum degrades high harmonics within a minute (harmonic 30 of a 220 Hz
    tone: 60 dB signal-to-jitter after 1 s, 21 dB after 60 s).

    Args:
        f0: [B, T, 1] in Hz.
        sample_rate: Hz.
        hop_length: samples a frame.
        start: [B] float64, cycles before the first sample (None: 0).

    Returns:
        [B, T, hop_length] in radians, 0 to 2 pi, in the type of ``f0``.
    """
    cycles = _to_float64(f0.squeeze(-1)) / sample_rate  # (B, T) a sample
    rise = next_frames(cycles) - cycles
    step = torch.arange(1, hop_length + 1, device=cycles.device, dtype=torch.float64)
    # Inclusive sums of a linear ramp: of ones, and of 0, 1/hop, 2/hop, ...
    within = cycles[..., None] * step + rise[..., None] * (step * (step - 1) / (2 * hop_length))  # (B, T, hop)
    before = torch.cumsum(within[..., -1], dim=1) - within[..., -1]
    if start is not None:
        before += start[:, None]
    within += before[..., None]
    within -= within.floor()  # remainder() is slower
    return within.mul_(2 * math.pi).to(f0.device, f0.dtype)


def harmonic_bank(
    f0: Tensor, harmonic_amplitudes: Tensor, sample_rate: int, hop_length: int, start: Tensor | None = None
) -> Tensor:
    """Sum harmonics of f0; those at or above Nyquist are silent.

    Args:
        f0: [B, T, 1] in Hz.
        harmonic_amplitudes: [B, T, H], linear; entry k - 1 belongs to harmonic k.
        sample_rate: Hz.
        hop_length: samples a frame.
        start: [B] float64, cycles of the fundamental before the first sample (None: 0).

    Returns:
        Audio [B, T * hop_length].
    """
    n_batch, n_frames, n_harmonics = harmonic_amplitudes.shape
    assert f0.shape == (n_batch, n_frames, 1), f"f0 {tuple(f0.shape)}, amplitudes {tuple(harmonic_amplitudes.shape)}"
    audible = harmonics_below_nyquist(f0, n_harmonics, sample_rate)
    amplitudes = torch.where(audible, harmonic_amplitudes, 0.0)
    phase = fundamental_phase(f0, sample_rate, hop_length, start)
    n_sounding = audible.sum(dim=-1, keepdim=True)
    # Amplitudes are interpolated towards the next frame, where more harmonics may sound.
    n_sounding = torch.maximum(n_sounding, next_frames(n_sounding))
    return HarmonicBank.apply(phase, amplitudes, n_sounding).flatten(1)


class HarmonicSynthesizer(nn.Module):
    """The harmonic oscillator bank as a module; amplitudes must have ``n_harmonics`` entries."""

    def __init__(self, n_harmonics: int = 101, sample_rate: int = 16000, hop_length: int = 160) -> None:
        super().__init__()
        self.n_harmonics = n_harmonics
        self.sample_rate = sample_rate
        self.hop_length = hop_length

    def forward(self, f0: Tensor, harmonic_amplitudes: Tensor, start: Tensor | None = None) -> Tensor:
        """Render f0 [B, T, 1] in Hz and linear amplitudes [B, T, H] to audio [B, N]; see ``harmonic_bank``."""
        assert harmonic_amplitudes.shape[-1] == self.n_harmonics, tuple(harmonic_amplitudes.shape)
        return harmonic_bank(f0, harmonic_amplitudes, self.sample_rate, self.hop_length, start)


def noise_filters(noise_magnitudes: Tensor) -> Tensor:
    """Turn noise-band magnitudes into linear-phase FIR filters by the window method.

    Args:
        noise_magnitudes: [..., K], linear, bands evenly spaced from 0 Hz to Nyquist.

    Returns:
        Impulse responses [..., 2 * (K - 1)], delayed by K - 1 samples.
    """
    n_taps = 2 * (noise_magnitudes.shape[-1] - 1)
    responses = torch.fft.irfft(torch.complex(noise_magnitudes, torch.zeros_like(noise_magnitudes)), n=n_taps)
    window = torch.hann_window(n_taps, device=responses.device, dtype=responses.dtype)
    return torch.roll(responses, n_taps // 2, dims=-1) * window


class FilteredNoiseSynthesizer(nn.Module):
    """White noise through a time-varying FIR filter, linear between frames."""

    def __init__(self, n_noise_bands: int = 65, hop_length: int = 160) -> None:
        super().__init__()
        self.n_noise_bands = n_noise_bands
        self.hop_length = hop_length
        # Frames on either side that a frame's sound depends on: one of cross-fade, and the filter's length.
        self.context = 1 + math.ceil((n_noise_bands - 1) / hop_length)
        # A frame's filter fades in over one hop and out over the next: neighbours sum to one.
        fade = torch.arange(hop_length, device="cpu") / hop_length  # division is slow on the meta device
        self.register_buffer("fades", torch.cat([fade, 1 - fade]), persistent=False)
        # The filter is linear in the magnitudes, so it is a sum of K responses, one for each band. Without their
        # delay of K - 1 samples they are symmetric, so their transforms are real.
        n_taps, n_bands = 2 * (n_noise_bands - 1), n_noise_bands
        self.n_fft = 64 * math.ceil((2 * hop_length + n_taps) / 64)  # only small prime factors: a fast transform
        responses = nn.functional.pad(noise_filters(torch.eye(n_bands, device="cpu")), (0, self.n_fft - n_taps))
        spectra = torch.fft.rfft(torch.roll(responses, 1 - n_bands, dims=-1)).real.contiguous()
        self.register_buffer("band_spectra", spectra, persistent=False)  # (K, n_fft / 2 + 1)

    def forward(
        self, noise_magnitudes: Tensor, generator: torch.Generator | Sequence[torch.Generator] | None = None
    ) -> Tensor:
        """Render noise.

        Args:
            noise_magnitudes: [B, T, K], linear gain of each band; white noise of 1 is uniform in -1..1.
            generator: source of the noise, on the device of ``noise_magnitudes``; or one for each item, to make its
                noise independent of the batch.

        Returns:
            Audio [B, T * hop_length].
        """
        n_batch, n_frames, n_bands = noise_magnitudes.shape
        assert n_bands == self.n_noise_bands, tuple(noise_magnitudes.shape)
        noise = _uniform(n_batch, n_frames * self.hop_length, generator, noise_magnitudes)
        return self.filter(2 * noise - 1, noise_magnitudes)

    def filter(self, noise: Tensor, noise_magnitudes: Tensor) -> Tensor:
        """Filter given noise [B, N] by magnitudes [B, T, K] into audio [B, N]."""
        n_samples, hop_length, reach = noise.shape[-1], self.hop_length, self.n_noise_bands - 1
        # Repeat the last frame, which is held over the last hop.
        magnitudes = torch.cat([noise_magnitudes, noise_magnitudes[:, -1:]], dim=1)  # (B, T+1, K)
        padded = nn.functional.pad(noise, (hop_length, hop_length))
        grains = padded.unfold(-1, 2 * hop_length, hop_length) * self.fades  # (B, T+1, 2*hop)
        grains = nn.functional.pad(grains, (reach, self.n_fft - 2 * hop_length - reach))  # the filter is centred
        filtered = torch.fft.irfft(torch.fft.rfft(grains) * (magnitudes @ self.band_spectra), n=self.n_fft)
        start = hop_length + reach
        return overlap_add(filtered, hop_length)[:, start : start + n_samples]


def _uniform(
    n_batch: int, n_samples: int, generator: torch.Generator | Sequence[torch.Generator] | None, like: Tensor
) -> Tensor:
    if isinstance(generator, Sequence):
        assert len(generator) == n_batch, f"{len(generator)} generators for {n_batch} items"
        return torch.cat([_uniform(1, n_samples, each, like) for each in generator])
    return torch.rand(n_batch, n_samples, generator=generator, device=like.device, dtype=like.dtype)


def overlap_add(frames: Tensor, hop_length: int) -> Tensor:
    """Add frames [B, T, L], each a hop after the one before: [B, N], with zeros up to a whole number of hops."""
    n_batch, n_frames, length = frames.shape
    n_parts = -(-length // hop_length)
    if length % hop_length:
        frames = nn.functional.pad(frames, (0, n_parts * hop_length - length))
    total = frames.new_zeros(n_batch, n_frames + n_parts - 1, hop_length)
    for number, part in enumerate(frames.unflatten(-1, (n_parts, hop_length)).unbind(dim=2)):
        total[:, number : number + n_frames] += part
    return total.flatten(1)


class Reverb(nn.Module):
    """A learned room: the dry sound plus its convolution with an impulse response, which is initialised to zeros."""

    def __init__(self, n_taps: int) -> None:
        super().__init__()
        self.response = nn.Parameter(torch.zeros(n_taps))  # of the room, from one sample after the dry sound

    def forward(self, audio: Tensor) -> Tensor:
        """Return the sound [B, N] in the room, of the same length."""
        return self.step(audio, None)[0]

    def step(self, audio: Tensor, tail: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the sound [B, N] with the tail of the block before, and the tail [B, taps] that it leaves."""
        n_samples, n_taps = audio.shape[-1], len(self.response)
        n_fft = 1 << (n_samples + n_taps - 1).bit_length()
        echo = torch.fft.irfft(torch.fft.rfft(audio, n_fft) * torch.fft.rfft(self.response, n_fft), n_fft)
        ringing = nn.functional.pad(echo[..., : n_samples + n_taps - 1], (1, 0))
        if tail is not None:
            ringing = ringing + nn.functional.pad(tail, (0, n_samples))
        return audio + ringing[..., :n_samples], ringing[..., n_samples:]
