"""Pieces run side by side, each on one thread, in the mode of who asked for them."""

import os
import threading

import pytest
import torch

from threads import alone, for_each

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


def test_threads_to_come_have_the_callers_number(n_threads):
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
