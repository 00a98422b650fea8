"""The GPU of a ZeroGPU Space: decorated functions run in another process, which the test simulates."""

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
    """Pickle arguments and result as the package spaces does, and only the name of an error."""

    def elsewhere(*arguments):
        try:
            return pickle.loads(pickle.dumps(function(*pickle.loads(pickle.dumps(arguments)))))
        except Exception as error:
            raise RuntimeError(type(error).__name__) from None

    return elsewhere


def test_arguments_and_results_can_be_pickled(service, tmp_path):
    assert outcome_of(service, request(sing(tmp_path / "a.wav", 220.0), tmp_path)).report["instrument"] == "guitar"


def test_error_is_returned_from_the_other_process(service, tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(RATE), RATE)
    with pytest.raises(ValueError, match="is silent"):
        outcome_of(service, request(tmp_path / "a.wav", tmp_path))


def test_gpu_is_requested_on_zerogpu(monkeypatch):
    borrowed = []
    monkeypatch.setitem(sys.modules, "spaces", type("spaces", (), {"GPU": staticmethod(borrowed.append)}))
    monkeypatch.setitem(sys.modules, "service_again", module := type(sys)("service_again"))
    exec(compile((ROOT / "web" / "transfer_request.py").read_text(), "transfer_request.py", "exec"), module.__dict__)
    assert [function.__name__ for function in borrowed] == ["perform_transfer"]
