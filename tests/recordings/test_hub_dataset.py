"""train.py on a data set that arrives from a Hub on loopback, as users run it."""

import dataclasses
import json
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

import train
import upload_to_hf
from checkpoint import read_checkpoint
from config import DEFAULT_CONFIG_PATH
from conftest import harmonic_tone
from data import Recording, extractor_settings, save_recording
from recordings.corpus import read_corpus
from recordings.hub_client import HubError
from recordings.hub_dataset import HubRecordings, common_corpus, wait_for_common_recording
from recordings.process_ranks import ProcessRanks
from training.held_out_phrases import choose_phrases

NAME = "user/trumpet"
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's own


@pytest.fixture
def folder(tmp_path, config):
    """Eight takes of 2 s."""
    for number in range(8):
        f0 = 200.0 + 40 * number
        recording = Recording(
            "trumpet",
            f0=torch.full((1, 200, 1), f0),
            loudness=torch.linspace(-50, -20, 200)[None, :, None],
            periodicity=torch.ones(1, 200, 1),
            audio=torch.from_numpy(harmonic_tone(f0, 2.0) * np.linspace(0, 1, 32000, dtype=np.float32))[None],
            source={"file": f"{number}.wav", "sha256": f"{number * 7919:064x}"},
            extractor=extractor_settings(config, "trumpet"),
        )
        path = tmp_path / "local" / f"{number}.wav.pt"
        path.parent.mkdir(exist_ok=True)
        save_recording(path, recording)
    return tmp_path / "local"


@pytest.fixture
def place(hub, folder, tmp_path, monkeypatch):
    """A folder to work in, with a small configuration; the recordings are on the Hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    content = json.loads(DEFAULT_CONFIG_PATH.read_text())
    content["base"]["model"]["hidden_size"] = 32
    content["base"]["train"] |= {"batch_size": 4}
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert upload_to_hf.main(["--repo_id", NAME, "--data_dir", str(folder), "--licence", "mit"]) == 0
    hub.requests.clear()
    return tmp_path


def run(*flags):
    return train.main(["--config", "config.json", "--device", "cpu", *map(str, flags)])


def weights(folder):
    return read_checkpoint(Path(folder) / "latest.pth")["model"]


def fetch_all(folder, config):
    """Fetch the eight recordings: training ends without waiting for the last."""
    recordings = HubRecordings(NAME, Path(folder), config)
    recordings.start()
    recordings.wait_for(7)
    recordings.close()
    assert len(recordings.ready()) == 8 and recordings.finished


def fetching():
    """Whether a thread of a download is alive."""
    return any(thread.name == "hub" for thread in threading.enumerate())


def test_data_set_on_the_hub_is_all_that_is_needed(hub, place):
    assert run("--hf_repo_id", NAME, "--epochs", 2) == 0
    checkpoint = read_checkpoint(place / "checkpoints" / "latest.pth")
    assert checkpoint["epoch"] == 2 and checkpoint["instrument"] == "trumpet"
    n_here = len(list((place / "data" / "hub" / "user--trumpet").glob("*.pt")))
    assert 1 < n_here <= len(hub.asked("GET /cdn")) <= 8
    assert not fetching()


def test_cached_data_set_trains_to_the_bits_of_a_local_one(place, folder, config):
    fetch_all("cache", config)
    assert run("--hf_repo_id", NAME, "--data_dir", "cache", "--epochs", 2, "--checkpoint_dir", "streamed") == 0
    assert run("--data_dir", folder, "--epochs", 2, "--checkpoint_dir", "local") == 0
    streamed, local = weights("streamed"), weights("local")
    assert all(torch.equal(streamed[name], local[name]) for name in local)


def test_training_goes_on_without_the_network_and_takes_on_what_comes(hub, place, caplog):
    caplog.set_level("INFO")
    hub.files_left = 3
    assert run("--hf_repo_id", NAME, "--epochs", 2) == 0
    assert "training goes on with" in caplog.text and hub.down
    some = len(list((place / "data" / "hub" / "user--trumpet").glob("*.pt")))
    assert 1 <= some <= 4
    hub.files_left, hub.down = None, False
    caplog.clear()
    assert run("--hf_repo_id", NAME, "--epochs", 4) == 0
    assert "resumed" in caplog.text and "epoch 4" in caplog.text


def test_phrases_are_chosen_from_all_that_will_come_and_kept(hub, place, folder, config):
    chosen = list(choose_phrases(read_corpus(folder, with_half_held_out(config))))
    hub.files_left = 3
    for epochs in (1, 2):
        assert run("--hf_repo_id", NAME, "--epochs", epochs, "--val_fraction", 0.5) == 0
        assert read_checkpoint(place / "checkpoints" / "latest.pth")["schedule"]["phrases"] == chosen
        hub.files_left, hub.down = None, False
    assert len(chosen) == 2


def with_half_held_out(config):
    return dataclasses.replace(config, train=dataclasses.replace(config.train, val_fraction=0.5))


class Machine(ProcessRanks):
    """One of two machines of a training; here they are threads."""

    meeting = threading.Barrier(2, timeout=60)
    said: ClassVar = {}

    def all_reduce(self, values):
        self.said[self.rank] = values
        self.meeting.wait()
        total = self.said[0] + self.said[1]
        self.meeting.wait()
        return total


def corpora_of_two_machines(config, **options):
    """Let two machines stream, each into a cache that holds one recording, another one each; return what each says."""
    streams = [HubRecordings(NAME, Path(f"cache {rank}"), config) for rank in (0, 1)]

    def live(recordings, rank):
        machine = Machine(rank, 0, 2)
        try:
            wait_for_common_recording(recordings, machine, torch.device("cpu"), **options)
            return common_corpus(recordings, machine, torch.device("cpu"))
        except HubError as error:
            return error

    for recordings in streams:
        recordings.start()
    try:
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(live, streams, (0, 1)))
    finally:
        for recordings in streams:
            recordings.close()


@pytest.fixture
def two_caches(hub, place, folder, config):
    """Two caches with one recording to train on each, another one; the network is gone."""
    fetch_all("cache 0", config)
    fetch_all("cache 1", config)
    training = read_corpus(folder, config).training
    for number in (0, 1):
        for path in Path(f"cache {number}").glob("*.pt"):
            if path.name != training[number].path.name:
                path.unlink()
    hub.down = True


def test_machines_wait_until_they_have_a_recording_in_common(hub, two_caches, config, monkeypatch):
    looked = []

    def network_comes_back(seconds):
        looked.append(seconds)
        hub.down = False
        threading.Event().wait(0.05)

    clock = types.SimpleNamespace(monotonic=time.monotonic, sleep=network_comes_back)
    monkeypatch.setattr("recordings.hub_dataset.time", clock)
    one, other = corpora_of_two_machines(config)
    names = [{span.path.name for span in each.training} for each in (one, other)]
    assert names[0] == names[1] and names[0] and looked


def test_machines_without_a_recording_in_common_say_so(hub, two_caches, config):
    for error in corpora_of_two_machines(config, seconds=0.0):
        assert "the machines have no recording in common to train on" in str(error)


def test_a_training_that_cannot_begin_fetches_nothing_more(hub, place, caplog):
    hub.files_left = 3  # the network is gone while more are wanted, which is tried again for ever
    assert run("--hf_repo_id", NAME, "--val_fraction", 0, "--patience", 1) == 1
    assert "nothing is held out" in caplog.text and not fetching()


def test_trouble_gets_a_sentence(hub, place, caplog, capsys):
    assert run("--hf_repo_id", "user/none") == 1
    assert "the Hub has no user/none" in caplog.text
    assert run("--hf_repo_id", NAME, "--data_dir", "local") == 1
    assert "holds recordings of its own" in caplog.text
    with pytest.raises(SystemExit):
        train.parse_args([])
    assert "give --data_dir, a folder of processed recordings, or --hf_repo_id" in capsys.readouterr().err
    assert train.parse_args(["--config_name", "deep", "--hf_repo_id", NAME]).data_dir is None
