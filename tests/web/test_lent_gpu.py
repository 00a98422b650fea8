"""The GPU of a ZeroGPU Space: what is decorated runs in a process of its own, which the test stands in for."""

import pickle
import sys

import numpy as np
import pytest
import soundfile
import torch
from test_transfer_request import outcome_of, request

from config import load_config
from page import RATE, ROOT, save_untrained, sing
from web import transfer_request
from web.transfer_request import ModelCollection, TransferService


@pytest.fixture
def service(tmp_path, monkeypatch):
    save_untrained(tmp_path / "guitar.pth", "guitar")
    monkeypatch.setattr(transfer_request, "PRETRAINED_DIR", tmp_path)
    monkeypatch.setattr(transfer_request, "_ON_ZERO_GPU", True)
    monkeypatch.setattr(transfer_request, "perform_transfer", lend(transfer_request.perform_transfer))
    return TransferService(ModelCollection(tmp_path / "checkpoints", torch.device("cpu")), load_config().page)


def lend(function):
    """Send arguments and result as the package spaces does, and of an error its name alone."""

    def elsewhere(*arguments):
        try:
            return pickle.loads(pickle.dumps(function(*pickle.loads(pickle.dumps(arguments)))))
        except Exception as error:
            raise RuntimeError(type(error).__name__) from None

    return elsewhere


def test_another_process_gets_and_gives_what_can_be_sent(service, tmp_path):
    assert outcome_of(service, request(sing(tmp_path / "a.wav", 220.0), tmp_path)).report["instrument"] == "guitar"


def test_the_reason_why_a_voice_cannot_be_played_comes_back(service, tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(RATE), RATE)
    with pytest.raises(ValueError, match="is silent"):
        outcome_of(service, request(tmp_path / "a.wav", tmp_path))


def test_the_gpu_is_borrowed_where_it_is_lent(monkeypatch):
    borrowed = []
    monkeypatch.setitem(sys.modules, "spaces", type("spaces", (), {"GPU": staticmethod(borrowed.append)}))
    monkeypatch.setitem(sys.modules, "service_again", module := type(sys)("service_again"))
    exec(compile((ROOT / "web" / "transfer_request.py").read_text(), "transfer_request.py", "exec"), module.__dict__)
    assert [function.__name__ for function in borrowed] == ["perform_transfer"]
