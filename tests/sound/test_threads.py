"""Pieces run side by side, each on one thread, in the mode of who asked for them."""

import functools
import os
import platform
import resource
import threading

import pytest
import torch

from config import load_config
from model import build_model
from sound import threads
from sound.threads import alone, for_each, shared
from training.optimization import build_loss, build_optimizer, train_step

CPU = torch.device("cpu")


@pytest.fixture(params=[1, 2, 3])
def n_threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_every_piece_is_done_once_with_one_thread(n_threads):
    done, threads = torch.zeros(10), set()

    def work(piece):
        assert torch.get_num_threads() == 1
        threads.add(threading.get_ident())
        done[piece] += 1

    for_each(work, range(10), CPU)
    assert (done == 1).all()
    assert (threading.get_ident() in threads) == (n_threads == 1)
    assert torch.get_num_threads() == n_threads  # the caller's own number stays


def test_pieces_run_at_the_same_time():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    together = threading.Barrier(2, timeout=60)  # broken, and so a failure, if one piece waits for the other's end
    for_each(lambda piece: together.wait(), range(2), CPU)
    torch.set_num_threads(before)


def test_threads_to_come_have_the_callers_number(n_threads, monkeypatch):
    afresh = functools.cache(threads._start_pool.__wrapped__)  # else those of another test would do the work
    monkeypatch.setattr(threads, "_start_pool", afresh)
    for_each(lambda piece: None, range(4), CPU)
    seen = []
    thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert seen == [n_threads]


def test_alone_pytorch_has_one_thread_and_pieces_have_all(n_threads):
    together = threading.Barrier(n_threads, timeout=60)  # as above

    def work():
        for_each(lambda piece: together.wait(), range(n_threads), CPU)
        weight = torch.ones(3, requires_grad=True)
        (2 * weight).sum().backward()
        return torch.get_num_threads(), weight.grad

    threads, grad = alone(work, CPU)
    assert threads == 1 and (grad == 2).all()
    assert torch.get_num_threads() == n_threads


def test_no_gradient_is_recorded_and_inference_mode_is_taken_over(n_threads):
    weight = torch.ones(4, requires_grad=True)
    results = [None] * 4

    def work(piece):
        results[piece] = weight * piece

    for_each(work, range(4), CPU)
    assert not any(result.requires_grad or result.is_inference() for result in results)
    with torch.inference_mode():
        for_each(work, range(4), CPU)
        assert alone(lambda: weight * 2, CPU).is_inference()
    assert all(result.is_inference() for result in results)
    with torch.no_grad():
        assert not alone(lambda: weight * 2, CPU).requires_grad
    assert alone(lambda: weight * 2, CPU).requires_grad


def test_a_failing_piece_is_an_error(n_threads):
    def work(piece):
        if piece == 2:
            raise ValueError("piece 2")

    with pytest.raises(ValueError, match="piece 2"):
        for_each(work, range(4), CPU)
    with pytest.raises(ValueError, match="piece 2"):
        alone(lambda: work(2), CPU)


def test_pieces_may_have_pieces(n_threads):
    done = torch.zeros(3, 3)

    def work(row):
        for_each(lambda column: done[row, column].add_(1), range(3), CPU)
        alone(lambda: None, CPU)

    for_each(work, range(3), CPU)
    assert (done == 1).all()


class Layer(torch.nn.Module):
    """Two results of two items and three parameters, in double precision."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.gain = torch.nn.Linear(3, 2).double(), torch.nn.Parameter(torch.tensor(0.7).double())

    def forward(self, values, others):
        return torch.tanh(self.linear(values)) * others, (self.gain * values).softmax(dim=-1)


@pytest.mark.parametrize("n_batch", [1, 2, 5])
def test_shared_work_gives_what_it_gives_alone_and_its_gradients(n_threads, n_batch):
    layer = Layer()
    layer.linear.bias.requires_grad_(False)
    values = torch.randn(n_batch, 4, 3, dtype=torch.float64, requires_grad=True)
    others = torch.randn(n_batch, 4, 1, dtype=torch.float64)
    results = shared(layer, layer.parameters(), values, others)
    sources, ends = [values, layer.linear.weight, layer.gain], [torch.randn_like(result) for result in results]
    gradients = torch.autograd.grad(results, sources, ends)
    right = layer(values, others)
    for mine, exact in zip([*results, *gradients], [*right, *torch.autograd.grad(right, sources, ends)], strict=True):
        torch.testing.assert_close(mine, exact, rtol=1e-12, atol=1e-12)  # sums in another order
    assert torch.autograd.gradcheck(lambda *given: shared(layer, layer.parameters(), *given), (values, others))


def test_a_parameter_that_a_share_does_not_use_has_no_slope_there(n_threads):
    gain = torch.tensor(3.0, requires_grad=True)
    values = torch.arange(1.0, 7.0)[:, None].requires_grad_()
    (result,) = shared(lambda share: ((gain if share[0] > 1 else 5) * share,), [gain], values)
    result.sum().backward()
    shares = [slice(0, -(-6 // n_threads)), slice(-(-6 // n_threads), 6)]  # the first is the one without
    wanted = torch.full((6, 1), 3.0)
    wanted[shares[0]] = 5.0
    assert torch.equal(values.grad, wanted)
    assert (gain.grad or torch.zeros(())) == values[shares[1]].sum()


def test_shares_of_a_batch_are_worked_on_at_the_same_time_both_ways():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    together = threading.Barrier(2, timeout=60)  # as above

    def meet(slope):
        together.wait()

    def work(values):
        together.wait()
        assert len(values) == 3
        result = 2 * values
        result.register_hook(meet)
        return (result,)

    values = torch.ones(6, 1, requires_grad=True)
    (result,) = shared(work, (), values)
    result.sum().backward()
    assert (values.grad == 2).all()
    with torch.no_grad():
        shared(lambda all_values: (all_values[5],), (), values)  # whole where no gradient is recorded
    torch.set_num_threads(before)


def test_shared_work_keeps_to_the_precision_of_the_caller(n_threads):
    layer, values = torch.nn.Linear(4, 4), torch.ones(4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        (result,) = shared(lambda share: (layer(share),), layer.parameters(), values)
    assert result.dtype == torch.bfloat16


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_freed_memory_is_kept_for_the_next_step():
    def step():
        return [torch.ones(2**20) for _ in range(12)]  # 48 MB in blocks of 4

    def faults_of_a_step():
        alone(step, CPU)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        alone(step, CPU)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults_of_a_step()
    assert faults_of_a_step() < 2000  # of 12288 pages


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_starts_threads_of_its_own():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    for_each(lambda piece: None, range(2), CPU)
    child = os.fork()
    if not child:
        for_each(lambda piece: None, range(2), CPU)  # would wait for ever for the threads of the parent
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def stepped():
    """Return a function that gives a model's gradients after a whole training step."""
    config = load_config(preset="solo")
    batch = {
        "f0": torch.linspace(200, 400, 5 * 20).view(5, 20, 1), "loudness": torch.full((5, 20, 1), -20.0),
        "audio": 0.1 * torch.randn(5, 3200, generator=torch.Generator().manual_seed(1)),
    }  # fmt: skip

    def step(prepare=lambda model: None):
        torch.manual_seed(0)
        model = build_model(config, "trumpet")
        prepare(model)
        optimizer, noise = build_optimizer(model, config.train), torch.Generator().manual_seed(2)
        train_step(model, build_loss(config), optimizer, batch, 3.0, noise)
        return {name: weight.grad for name, weight in model.named_parameters()}

    return step


def test_a_whole_step_is_the_same_on_any_number_of_threads(n_threads, stepped):
    gradients = stepped()
    torch.set_num_threads(1)
    for name, wanted in stepped().items():
        assert torch.allclose(gradients[name], wanted, atol=1e-5 * wanted.abs().max() + 1e-9), name


def test_compiled_layers_share_a_batch(n_threads, stepped):
    gradients = stepped(lambda model: model.projection.compile(backend="aot_eager"))
    assert any("projection" in name for name in gradients)
    torch.set_num_threads(1)
    for name, wanted in stepped().items():
        assert torch.allclose(gradients[name], wanted, atol=1e-4 * wanted.abs().max() + 1e-9), name
