"""A GRU layer (Cho et al., EMNLP 2014) for training on a CPU: nn.GRU's result and gradients in half its time.

nn.GRU adds to the gradient of the weight, megabytes, once a frame, and asks all threads to meet after every
operation of every frame. Here each thread runs its own items through all frames, with weights that are laid out
for the processor's products once a step, and the gradient of the weight is one product at the end.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sound.threads import for_each, shares

_Product = Callable[[Tensor], Tensor]  # the state's with the weight: [b, H] to [b, 3H], or back


class GruLayer(torch.autograd.Function):
    """[B, T, C] to states [B, T, H] from a start at zero, with the weights and biases of one layer of an nn.GRU."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(ctx, inputs: Tensor, weight_in: Tensor, weight: Tensor, bias_in: Tensor, bias: Tensor) -> Tensor:
        hidden = inputs.new_empty(*inputs.shape[:2], weight.shape[1])
        parts = shares(len(inputs))
        runs: list[_Run | None] = [None] * len(parts)
        product = _product(weight, bias, -(-len(inputs) // len(parts)))

        def proceed(number: int) -> None:
            # (T, b, 3H)
            gates = nn.functional.linear(inputs[parts[number]].transpose(0, 1).contiguous(), weight_in, bias_in)
            runs[number] = run = _run(gates, product)
            hidden[parts[number]] = run.states[1:].transpose(0, 1)

        for_each(proceed, range(len(parts)), inputs.device)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(inputs, weight_in, weight)
            ctx.parts, ctx.runs = parts, runs
        return hidden

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight_in, weight = ctx.saved_tensors
        parts, runs = ctx.parts, ctx.runs
        grad_inputs = torch.empty_like(inputs) if ctx.needs_input_grad[0] else None
        slopes: list[_Slopes | None] = [None] * len(parts)
        grads_in: list[tuple[Tensor, Tensor, Tensor] | None] = [None] * len(parts)
        product = _product(weight.t(), None, -(-len(inputs) // len(parts)))

        def go_back(number: int) -> None:
            slopes[number] = slope = _run_back(runs[number], grad[parts[number]].transpose(0, 1), product)
            grads_in[number] = _grads_in(slope, inputs[parts[number]].transpose(0, 1))
            if grad_inputs is not None:
                grad_inputs[parts[number]] = _grad_inputs(slope, weight_in).transpose(0, 1)

        for_each(go_back, range(len(parts)), grad.device)
        grad_weight_in, grad_bias_in, grad_bias = map(sum, zip(*grads_in))
        return grad_inputs, grad_weight_in, _grad_weight(slopes, runs), grad_bias_in, grad_bias


def step(gru: nn.GRU, inputs: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """Do for one frame [1, 1, C] of one sound, without gradients, what the GRU itself does.

    Its products with a vector, as such and not as matrices of one row, take two thirds of the time.
    """
    hidden, states = inputs.flatten(), []
    for number, (weight_in, weight, bias_in, bias) in enumerate(gru.all_weights):
        before = hidden.new_zeros(weight.shape[1]) if state is None else state[number, 0]
        gates, sums = torch.addmv(bias_in, weight_in, hidden), torch.addmv(bias, weight, before)
        size = len(before)
        reset, update = torch.sigmoid(gates[: 2 * size] + sums[: 2 * size]).chunk(2)
        candidate = torch.tanh(torch.addcmul(gates[2 * size :], reset, sums[2 * size :]))
        hidden = torch.lerp(candidate, before, update)
        states.append(hidden)
    return hidden[None, None], torch.stack(states)[:, None]


class _Run(NamedTuple):
    """What some items went through."""

    states: Tensor  # [T + 1, b, H], from the start on
    gates: Tensor  # [T, b, 3H]: reset, update, candidate
    recalled: Tensor  # [T, b, H]: what the candidate takes from the state, before the reset


class _Slopes(NamedTuple):
    """Gradients before the nonlinearities of the gates."""

    of_sums: Tensor  # [T, b, 3H]: of W h + b
    of_candidate: Tensor  # [T, b, H]: of the inputs' part of the candidate, where theirs differs


def _run(gates: Tensor, product: _Product) -> _Run:
    """Run through the frames, given what the inputs add to the gates [T, b, 3H], which are made of it in place."""
    n_frames, n_items, size = len(gates), gates.shape[1], gates.shape[2] // 3
    states = gates.new_zeros(n_frames + 1, n_items, size)
    recalled = gates.new_empty(n_frames, n_items, size)
    both, candidates = gates[..., : 2 * size], gates[..., 2 * size :]
    frames = zip(states, states[1:], both, both[..., :size], both[..., size:], candidates, recalled)
    for state, following, reset_update, reset, update, candidate, memory in frames:
        sums = product(state)
        reset_update.add_(sums[:, : 2 * size]).sigmoid_()
        memory.copy_(sums[:, 2 * size :])
        candidate.addcmul_(reset, memory).tanh_()
        torch.lerp(candidate, state, update, out=following)
    return _Run(states, gates, recalled)


def _run_back(run: _Run, grad: Tensor, product: _Product) -> _Slopes:
    """Turn the gradient of the states [T, b, H] into those before the gates."""
    reset, update, candidate = run.gates.chunk(3, dim=-1)
    # Of the next state by candidate and update; of the candidate by the reset.
    to_candidate = torch.ops.aten.tanh_backward(1 - update, candidate)
    to_update = torch.ops.aten.sigmoid_backward(run.states[:-1] - candidate, update)
    to_reset = torch.ops.aten.sigmoid_backward(run.recalled, reset)
    of_sums = torch.empty_like(run.gates)
    of_candidate = torch.empty_like(to_candidate)
    carried = torch.zeros_like(run.states[0])
    frames = zip(grad, to_candidate, to_update, to_reset, reset, update, of_candidate, of_sums, *of_sums.chunk(3, -1))
    for slope, by_candidate, by_update, by_reset, let, keep, at_candidate, at_all, at_reset, at_update, at_memory in (
        reversed(list(frames))
    ):
        carried += slope
        torch.mul(carried, by_candidate, out=at_candidate)
        torch.mul(carried, by_update, out=at_update)
        torch.mul(at_candidate, by_reset, out=at_reset)
        torch.mul(at_candidate, let, out=at_memory)
        carried.mul_(keep).add_(product(at_all))
    return _Slopes(of_sums, of_candidate)


def _grad_inputs(slope: _Slopes, weight_in: Tensor) -> Tensor:
    n_gates = 2 * slope.of_candidate.shape[-1]
    return slope.of_sums[..., :n_gates] @ weight_in[:n_gates] + slope.of_candidate @ weight_in[n_gates:]


def _grads_in(slope: _Slopes, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of weight_in, bias_in and bias: sums over the frames and items of a part."""
    n_gates = 2 * slope.of_candidate.shape[-1]
    heard = torch.cat([inputs, torch.ones_like(inputs[..., :1])], dim=-1).flatten(0, 1).t()  # (C + 1, T * b)
    of_sums, of_candidate = heard @ slope.of_sums.flatten(0, 1), heard @ slope.of_candidate.flatten(0, 1)
    grad_in = torch.cat([of_sums[:, :n_gates], of_candidate], dim=1)  # (C + 1, 3H)
    return grad_in[:-1].t(), grad_in[-1], of_sums[-1]


def _grad_weight(slopes: list[_Slopes], runs: list[_Run]) -> Tensor:
    """Return the gradient of weight, a sum over all parts and frames, some of its rows a thread."""
    size = runs[0].states.shape[-1]
    grad = runs[0].states.new_zeros(3 * size, size)

    def add(rows: slice) -> None:
        for slope, run in zip(slopes, runs):
            grad[rows].addmm_(slope.of_sums.flatten(0, 1)[:, rows].t(), run.states[:-1].flatten(0, 1))

    for_each(add, shares(3 * size), grad.device)
    return grad


def _product(weight: Tensor, bias: Tensor | None, n_rows: int) -> _Product:
    """Return a function that multiplies [n_rows, C] by a weight [D, C], to be called often: [n_rows, D]."""
    if not torch.backends.mkldnn.is_available() or weight.dtype != torch.float32:
        return lambda values: nn.functional.linear(values, weight, bias)
    # As torch.compile does with weights that stay as they are; on one core of an AMD EPYC 1.4 to 1.7 times as fast.
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, n_rows)
    return lambda values: torch.ops.mkldnn._linear_pointwise(values, packed, bias, "none", [], "")
