"""The GRU layer is nn.GRU: its states, and its gradients in float64."""

import pytest
import torch
from torch import nn

from sound.gru import GruLayer, step


@pytest.fixture(params=[1, 2, 3], autouse=True)
def n_threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def make(n_inputs, size, n_batch, n_frames, dtype=torch.float32):
    """Return a layer, its inputs, and a gradient of its states."""
    torch.manual_seed(0)
    layer = nn.GRU(n_inputs, size, batch_first=True)
    inputs, grad = torch.randn(n_batch, n_frames, n_inputs), torch.randn(n_batch, n_frames, size)
    return layer.to(dtype), inputs.to(dtype).requires_grad_(), grad.to(dtype)


def states_and_gradients(layer, inputs, grad, ours):
    states = GruLayer.apply(inputs, *layer.all_weights[0]) if ours else layer(inputs)[0]
    return [states.detach(), *torch.autograd.grad(states, [inputs, *layer.all_weights[0]], grad)]


# Batches that threads share evenly, unevenly, and not at all.
@pytest.mark.parametrize("sizes", [(2, 512, 16, 20), (5, 33, 7, 9), (128, 64, 1, 11), (3, 16, 2, 1)])
def test_states_and_gradients_are_those_of_torch_in_float64(sizes):
    ours = states_and_gradients(*make(*sizes), ours=True)
    exact = states_and_gradients(*make(*sizes, torch.float64), ours=False)
    for mine, right in zip(ours, exact, strict=True):
        assert mine.shape == right.shape
        # Relative to the largest: float32 sums of up to 10^3 terms. Measured 1e-6.
        assert (mine - right).abs().max() <= 1e-5 * right.abs().max()


def test_float64_is_kept():
    ours, exact = (states_and_gradients(*make(3, 16, 4, 6, torch.float64), ours=ours) for ours in (True, False))
    for mine, right in zip(ours, exact):
        assert (mine - right).abs().max() <= 1e-12  # rounding


def test_the_same_bits_every_time():
    first, second = (states_and_gradients(*make(2, 256, 6, 10), ours=True) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second))


def test_inputs_that_need_no_gradient_get_none():
    layer, inputs, grad = make(2, 16, 3, 5)
    _, _, *expected = states_and_gradients(layer, inputs, grad, ours=True)
    inputs = inputs.detach()
    GruLayer.apply(inputs, *layer.all_weights[0]).backward(grad)
    assert inputs.grad is None
    assert all(torch.equal(weight.grad, right) for weight, right in zip(layer.all_weights[0], expected, strict=True))


def test_within_autocast_it_stays_in_float32():
    layer, inputs, grad = make(2, 16, 3, 5)
    plain = states_and_gradients(layer, inputs, grad, ours=True)
    with torch.autocast("cpu", torch.bfloat16):
        within = states_and_gradients(layer, inputs, grad, ours=True)
        coarse = GruLayer.apply(inputs.bfloat16(), *layer.all_weights[0])
    assert all(torch.equal(one, other) for one, other in zip(plain, within, strict=True))
    assert coarse.dtype == torch.float32


@pytest.mark.parametrize("num_layers", [1, 2])
@torch.inference_mode()
def test_a_step_is_pytorchs(num_layers: int) -> None:
    torch.manual_seed(0)
    gru, state, theirs = nn.GRU(3, 8, num_layers, batch_first=True), None, None
    for inputs in torch.randn(5, 1, 1, 3):
        hidden, state = step(gru, inputs, state)
        expected, theirs = gru(inputs, theirs)
        assert hidden.shape == expected.shape and state.shape == theirs.shape
        assert (hidden - expected).abs().max() < 1e-6 and (state - theirs).abs().max() < 1e-6
