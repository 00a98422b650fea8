"""Synthesis: a bank of harmonic oscillators and filtered noise, differentiable and exact.

Both follow DDSP (Engel et al., ICLR 2020). Frame t is centred on sample ``t * hop_length``; between
frames every control is linear, and the last frame is held. The phase at sample n is 2 pi times the
inclusive cumulative sum of f0 / sample_rate.

A textbook bank stores about ten tensors of [B, N, H]. This one stores none. All harmonics of a
sample share one phase phi, and with k = q * P + p the angle-addition theorem splits sin(k phi) into
P + Q sines and cosines, so that the sum over harmonics becomes two small matrix products a frame.
The backward pass has the same form (see ``_HarmonicBank``).
"""

import math

import torch
from torch import Tensor, nn

# Harmonics are numbered k = q * _GROUP + p. 16 balances the P powers against the Q = H / 16 groups.
_GROUP = 16
# Frames rendered at once when no gradient is wanted: the powers of one block stay in the processor's cache.
_BLOCK_FRAMES = 64

_Powers = tuple[Tensor, Tensor]  # cosines and sines


def upsample_linear(frames: Tensor, hop_length: int) -> Tensor:
    """Interpolate frames linearly to samples, holding the last frame.

    Args:
        frames: [B, T, C].
        hop_length: samples a frame.

    Returns:
        [B, T * hop_length, C].
    """
    following = _next_frames(frames)
    ramp = _ramp(hop_length, frames)[:, None]  # (hop, 1)
    samples = torch.lerp(frames[:, :, None], following[:, :, None], ramp)  # (B, T, hop, C)
    return samples.flatten(1, 2)


def harmonics_below_nyquist(f0: Tensor, n_harmonics: int, sample_rate: int) -> Tensor:
    """Say which harmonics of each frame can sound.

    Args:
        f0: [B, T, 1] in Hz.
        n_harmonics: H.
        sample_rate: Hz.

    Returns:
        Boolean [B, T, H]; true where k * f0 is below sample_rate / 2.
    """
    numbers = torch.arange(1, n_harmonics + 1, device=f0.device, dtype=f0.dtype)
    return f0 * numbers < sample_rate / 2


def fundamental_phase(f0: Tensor, sample_rate: int, hop_length: int) -> Tensor:
    """Accumulate the phase of the fundamental in double precision and wrap it.

    In float32 a plain cumulative sum ruins high harmonics within a minute (harmonic 30 of a 220 Hz
    tone: 60 dB signal-to-jitter after 1 s, 21 dB after 60 s).

    Args:
        f0: [B, T, 1] in Hz.
        sample_rate: Hz.
        hop_length: samples a frame.

    Returns:
        [B, T, hop_length] in radians, 0 to 2 pi, in the type of ``f0``.
    """
    # Apple's MPS has no doubles: there the sum runs on the CPU.
    home = torch.device("cpu") if f0.device.type == "mps" else f0.device
    cycles = f0.squeeze(-1).to(home, torch.float64) / sample_rate  # (B, T) a sample
    rise = _next_frames(cycles) - cycles
    step = torch.arange(1, hop_length + 1, device=home, dtype=torch.float64)
    # Inclusive sums of a linear ramp: of ones, and of 0, 1/hop, 2/hop, ...
    within = cycles[..., None] * step + rise[..., None] * (step * (step - 1) / (2 * hop_length))  # (B, T, hop)
    before = torch.cumsum(within[..., -1], dim=1) - within[..., -1]
    return (2 * math.pi * torch.remainder(within + before[..., None], 1.0)).to(f0.device, f0.dtype)


def harmonic_bank(f0: Tensor, harmonic_amplitudes: Tensor, sample_rate: int, hop_length: int) -> Tensor:
    """Sum harmonics of f0; those at or above Nyquist are silent.

    Args:
        f0: [B, T, 1] in Hz.
        harmonic_amplitudes: [B, T, H], linear; entry k - 1 belongs to harmonic k.
        sample_rate: Hz.
        hop_length: samples a frame.

    Returns:
        Audio [B, T * hop_length].
    """
    n_batch, n_frames, n_harmonics = harmonic_amplitudes.shape
    assert f0.shape == (n_batch, n_frames, 1), f"f0 {tuple(f0.shape)}, amplitudes {tuple(harmonic_amplitudes.shape)}"
    audible = harmonics_below_nyquist(f0, n_harmonics, sample_rate)
    amplitudes = torch.where(audible, harmonic_amplitudes, 0.0)
    phase = fundamental_phase(f0, sample_rate, hop_length)
    if torch.is_grad_enabled() and (phase.requires_grad or amplitudes.requires_grad):
        return _HarmonicBank.apply(phase, amplitudes).flatten(1)
    return _render_in_blocks(phase, amplitudes).flatten(1)


def _render_in_blocks(phase: Tensor, amplitudes: Tensor) -> Tensor:
    grouped = _grouped(amplitudes)
    rows = phase.flatten(0, 1)  # (R, hop)
    audio = torch.empty_like(rows)
    block = _BLOCK_FRAMES if rows.device.type == "cpu" else len(rows)
    for start in range(0, len(rows), block):
        here = slice(start, start + block)
        low, high = _powers(rows[here], amplitudes.shape[-1])
        audio[here] = _weighted_sines(low, high, grouped[here])
    return audio.view_as(phase)


class _HarmonicBank(torch.autograd.Function):
    """[B, T, hop] phases and [B, T, H] amplitudes to [B, T, hop] audio.

    With z = exp(i phi) the sum over harmonics is Im sum_q z^(qP) sum_p a[q, p] z^p. Only the P + Q
    powers are kept for the backward pass, each made from the one before it by one multiplication.
    """

    @staticmethod
    def forward(ctx, phase: Tensor, amplitudes: Tensor) -> Tensor:
        low, high = _powers(phase.flatten(0, 1), amplitudes.shape[-1])
        ctx.save_for_backward(*low, *high, amplitudes)
        return _weighted_sines(low, high, _grouped(amplitudes)).view_as(phase)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        *powers, amplitudes = ctx.saved_tensors
        low, high = powers[:2], powers[2:]
        grad_phase = grad_amplitudes = None
        if ctx.needs_input_grad[0]:
            numbers = torch.arange(1, amplitudes.shape[-1] + 1, device=grad.device, dtype=grad.dtype)
            grad_phase = grad * _weighted_cosines(low, high, _grouped(amplitudes * numbers)).view_as(grad)
        if ctx.needs_input_grad[1]:
            grad_amplitudes = _correlate_sines(low, high, grad, amplitudes.shape[-1])
        return grad_phase, grad_amplitudes


def _powers(phase: Tensor, n_harmonics: int) -> tuple[_Powers, _Powers]:
    """Return (cos, sin) of p * phase, p < P, [R, hop, P], and of q * P * phase, q < Q, [R, hop, Q]; R = B * T rows."""
    n_groups = n_harmonics // _GROUP + 1
    low = _power_series(torch.cos(phase), torch.sin(phase), _GROUP)
    # P * phase from the last low power times the first: no wrapped angle is multiplied by P.
    first_cos, first_sin, last_cos, last_sin = low[0][..., 1], low[1][..., 1], low[0][..., -1], low[1][..., -1]
    group_cos = last_cos * first_cos - last_sin * first_sin
    group_sin = last_cos * first_sin + last_sin * first_cos
    return low, _power_series(group_cos, group_sin, n_groups)


def _power_series(cos: Tensor, sin: Tensor, count: int) -> _Powers:
    """Return cos and sin of 0, 1, ... count - 1 times an angle, by repeated complex multiplication: [..., count]."""
    cosines, sines = [torch.ones_like(cos)], [torch.zeros_like(sin)]
    for _ in range(count - 1):
        last_cos, last_sin = cosines[-1], sines[-1]
        cosines.append(last_cos * cos - last_sin * sin)
        sines.append(last_cos * sin + last_sin * cos)
    return torch.stack(cosines, dim=-1), torch.stack(sines, dim=-1)


def _grouped(amplitudes: Tensor) -> Tensor:
    """Lay [B, T, H] amplitudes of this frame and of the next side by side: [B*T, P, 2Q]."""
    n_groups = amplitudes.shape[-1] // _GROUP + 1
    padded = nn.functional.pad(amplitudes, (1, n_groups * _GROUP - amplitudes.shape[-1] - 1))  # harmonic 0 is silent
    both = torch.cat([padded, _next_frames(padded)], dim=-1).flatten(0, 1)  # (B*T, 2*Q*P)
    return both.unflatten(-1, (2 * n_groups, _GROUP)).transpose(1, 2)


def _group_sums(low: _Powers, grouped: Tensor) -> tuple[Tensor, Tensor]:
    """Return sum_p a[q, p] cos(p phi) and the same of sines, with amplitudes linear in time: [R, hop, Q] each."""
    ramp = _ramp(low[0].shape[1], grouped)[:, None]
    sums = []
    for powers in low:
        here, there = torch.bmm(powers, grouped).chunk(2, dim=-1)
        sums.append(torch.lerp(here, there, ramp))
    return sums[0], sums[1]


def _weighted_sines(low: _Powers, high: _Powers, grouped: Tensor) -> Tensor:
    cos_sum, sin_sum = _group_sums(low, grouped)
    return torch.sum(high[1] * cos_sum + high[0] * sin_sum, dim=-1)  # (R, hop)


def _weighted_cosines(low: _Powers, high: _Powers, grouped: Tensor) -> Tensor:
    cos_sum, sin_sum = _group_sums(low, grouped)
    return torch.sum(high[0] * cos_sum - high[1] * sin_sum, dim=-1)


def _correlate_sines(low: _Powers, high: _Powers, grad: Tensor, n_harmonics: int) -> Tensor:
    """Return the gradient of the amplitudes [B, T, H]: sums over time of grad times each harmonic."""
    n_batch, n_frames, hop_length = grad.shape
    ramp = _ramp(hop_length, grad)
    weighted = torch.stack([grad * (1 - ramp), grad * ramp], dim=-1).flatten(0, 1)  # (B*T, hop, 2)
    n_groups = high[0].shape[-1]
    against_cos = (weighted[..., None] * high[1][:, :, None]).flatten(2)  # (B*T, hop, 2Q)
    against_sin = (weighted[..., None] * high[0][:, :, None]).flatten(2)
    sums = torch.bmm(low[0].transpose(1, 2), against_cos) + torch.bmm(low[1].transpose(1, 2), against_sin)
    sums = sums.transpose(1, 2).reshape(n_batch, n_frames, 2, n_groups * _GROUP)[..., 1 : n_harmonics + 1]
    here, there = sums.unbind(2)
    result = here.clone()
    result[:, 1:] += there[:, :-1]
    result[:, -1] += there[:, -1]  # the last frame is held
    return result


def _next_frames(frames: Tensor) -> Tensor:
    return torch.cat([frames[:, 1:], frames[:, -1:]], dim=1)


def _ramp(hop_length: int, like: Tensor) -> Tensor:
    return torch.arange(hop_length, device=like.device, dtype=like.dtype) / hop_length


class HarmonicSynthesizer(nn.Module):
    """The harmonic oscillator bank as a module; ``n_harmonics`` is what its amplitudes must have."""

    def __init__(self, n_harmonics: int, sample_rate: int, hop_length: int) -> None:
        super().__init__()
        self.n_harmonics = n_harmonics
        self.sample_rate = sample_rate
        self.hop_length = hop_length

    def forward(self, f0: Tensor, harmonic_amplitudes: Tensor) -> Tensor:
        """Render f0 [B, T, 1] in Hz and linear amplitudes [B, T, H] to audio [B, N]."""
        assert harmonic_amplitudes.shape[-1] == self.n_harmonics, tuple(harmonic_amplitudes.shape)
        return harmonic_bank(f0, harmonic_amplitudes, self.sample_rate, self.hop_length)


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

    def __init__(self, n_noise_bands: int, hop_length: int) -> None:
        super().__init__()
        self.n_noise_bands = n_noise_bands
        self.hop_length = hop_length
        # A frame's filter fades in over one hop and out over the next: neighbours sum to one.
        fade = torch.arange(hop_length) / hop_length
        self.register_buffer("fades", torch.cat([fade, 1 - fade]), persistent=False)

    def forward(self, noise_magnitudes: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Render noise.

        Args:
            noise_magnitudes: [B, T, K], linear gain of each band; white noise of 1 is uniform in -1..1.
            generator: source of the noise, on the device of ``noise_magnitudes``.

        Returns:
            Audio [B, T * hop_length].
        """
        n_batch, n_frames, n_bands = noise_magnitudes.shape
        assert n_bands == self.n_noise_bands, tuple(noise_magnitudes.shape)
        n_samples = n_frames * self.hop_length
        noise = torch.rand(
            n_batch, n_samples, generator=generator, device=noise_magnitudes.device, dtype=noise_magnitudes.dtype
        )
        return self.filter(2 * noise - 1, noise_magnitudes)

    def filter(self, noise: Tensor, noise_magnitudes: Tensor) -> Tensor:
        """Filter given noise [B, N] by magnitudes [B, T, K] into audio [B, N]."""
        n_samples, hop_length = noise.shape[-1], self.hop_length
        # One frame more, a copy of the last, so that it is held over the last hop.
        filters = noise_filters(torch.cat([noise_magnitudes, noise_magnitudes[:, -1:]], dim=1))  # (B, T+1, taps)
        padded = nn.functional.pad(noise, (hop_length, hop_length))
        grains = padded.unfold(-1, 2 * hop_length, hop_length) * self.fades  # (B, T+1, 2*hop)
        delay = self.n_noise_bands - 1
        filtered = _convolve(grains, filters)
        return _overlap_add(filtered, hop_length)[:, hop_length + delay : hop_length + delay + n_samples]


def _convolve(grains: Tensor, filters: Tensor) -> Tensor:
    """Convolve along the last axis in the frequency domain; returns the full length."""
    n_full = grains.shape[-1] + filters.shape[-1] - 1
    n_fft = 64 * math.ceil(n_full / 64)  # only small prime factors nearby, and a fast transform
    spectrum = torch.fft.rfft(grains, n=n_fft) * torch.fft.rfft(filters, n=n_fft)
    return torch.fft.irfft(spectrum, n=n_fft)


def _overlap_add(grains: Tensor, hop_length: int) -> Tensor:
    """Add grains [B, T, L], each hop_length after the one before: [B, (T - 1) * hop_length + L]."""
    n_frames, length = grains.shape[1:]
    n_samples = (n_frames - 1) * hop_length + length
    columns = grains.transpose(1, 2)
    return nn.functional.fold(columns, (1, n_samples), (1, length), stride=(1, hop_length))[:, 0, 0]
