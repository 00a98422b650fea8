"""The bank of harmonic oscillators that ``synth.py`` plays: what is summed, and its gradients.

A textbook bank stores several tensors of [B, N, H]. This one stores none. All harmonics of a sample
share one phase phi; with z = exp(i phi) and k = q * P + p they are powers z^k = (z^P)^q z^p, so that
the sum over harmonics becomes a small matrix product a frame and a polynomial in z^P. The backward
pass has the same form (see ``HarmonicBank``). Groups of harmonics that lie above Nyquist are left out.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sound.threads import for_each

# Harmonics are numbered k = q * _GROUP + p. 16, a power of two, balances the P powers against the Q = H / 16 groups.
_GROUP = 16
# Frames rendered at once. On a CPU the powers of more leave the cache, and with fewer, threads wait for each other
# between the many small operations (see ``threads.py``). A GPU is busy with as many.
_BLOCK_FRAMES = 200
_BLOCK_FRAMES_GPU = 8192


class HarmonicBank(torch.autograd.Function):
    """[B, T, hop] phases, [B, T, H] amplitudes and how many of them sound, [B, T], to [B, T, hop] audio.

    Keeps its inputs alone for the backward pass: to make the powers again costs less than to store them.
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

    def render(block: _Block) -> None:
        powers, step = _powers(rows[block.rows])
        weights = grouped[block.rows, :, : block.n_groups].flatten(1, 2)  # (R, 2Q, P)
        here, there = torch.bmm(weights, torch.view_as_real(powers).flatten(2)).chunk(2, dim=1)  # (R, Q, 2*hop)
        sums = torch.view_as_complex(torch.lerp(here, there, ramp).unflatten(-1, (-1, 2)))
        total.view_as(rows)[block.rows] = part(_polynomial(sums, step))

    for_each(render, _blocks(n_sounding, amplitudes.shape[-1]), phase.device)
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

    def correlate(block: _Block) -> None:
        powers, step = _powers(angles[block.rows])
        weighted = slopes[block.rows, None] * ramps  # (R, 2, hop)
        rows = step.new_empty(len(step), block.n_groups, 2, hop_length)
        torch.complex(torch.zeros_like(weighted), weighted, out=rows[:, 0])
        _fill_powers(rows, torch.conj_physical(step)[:, None, None])
        rows = torch.view_as_real(rows).flatten(3).flatten(1, 2)  # (R, 2Q, 2*hop)
        columns = torch.view_as_real(powers).flatten(2).transpose(1, 2)  # (R, 2*hop, P)
        sums[block.rows, : block.n_groups] = torch.bmm(rows, columns).unflatten(1, (block.n_groups, 2))

    for_each(correlate, _blocks(n_sounding, n_harmonics), phase.device)
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
    if not on_cpu:  # to read the counts would make a GPU wait
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
