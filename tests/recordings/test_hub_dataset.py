"""recordings/hub_dataset.py and train.py on a data set of a local Hub with faults: outages, damage, refusals."""

import json
import threading
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
from hub_server import Blob, Fault
from recordings import hub_client
from recordings.corpus import read_corpus
from recordings.crops import SINGLE_PROCESS, ProcessRanks
from recordings.hub_client import HubError, RefusedError, UnreachableError
from recordings.hub_dataset import HubRecordings
from training.held_out_phrases import choose_phrases

NAME = "user/trumpet"
N_FILES = 8
CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's own


@pytest.fixture
def folder(tmp_path, config):
    """Eight recordings of 2 s of seven takes, some in a subfolder."""
    for number in range(N_FILES):
        f0 = 200.0 + 40 * number
        recording = Recording(
            "trumpet",
            f0=torch.full((1, 200, 1), f0),
            loudness=torch.linspace(-50, -20, 200)[None, :, None],
            periodicity=torch.ones(1, 200, 1),
            audio=torch.from_numpy(harmonic_tone(f0, 2.0) * np.linspace(0, 1, 32000, dtype=np.float32))[None],
            source={"file": f"{number}.wav", "sha256": f"{max(number, 1) * 7919:064x}"},
            extractor=extractor_settings(config, "trumpet"),
        )
        path = tmp_path / "local" / ("" if number % 3 else "more") / f"{number}.wav.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_recording(path, recording)
    return tmp_path / "local"


@pytest.fixture
def repo(hub, folder, tmp_path, monkeypatch):
    """The data set on the Hub; the working folder has a small configuration."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(hub_client, "_MAX_PAUSE", 0.01)
    content = json.loads(DEFAULT_CONFIG_PATH.read_text())
    content["base"]["model"]["hidden_size"] = 32
    content["base"]["train"] |= {"batch_size": 4}
    Path("config.json").write_text(json.dumps(content))
    assert upload_to_hf.main(["--repo_id", NAME, "--data_dir", str(folder), "--licence", "mit"]) == 0
    hub.requests.clear()
    return hub.repos["dataset", NAME]


@pytest.fixture
def stream(repo, config):
    """Return a function that starts a download; all are closed at the end."""
    opened = []

    def start(folder="cache", name=NAME, settings=config):
        opened.append(HubRecordings(name, Path(folder), settings))
        return opened[-1]

    yield start
    for recordings in opened:
        recordings.close()


def finish(recordings):
    """Wait until the download has ended."""
    wait_until(lambda: recordings.finished)
    return recordings


def wait_until(holds):
    for _ in range(1200):
        if holds():
            return
        threading.Event().wait(0.05)
    raise AssertionError("timeout")


def names_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*.pt"))


def run(*flags):
    return train.main(["--config", "config.json", "--device", "cpu", *map(str, flags)])


def test_each_file_is_downloaded_once(hub, repo, folder, stream, config):
    recordings = finish(stream())
    assert names_in("cache") == names_in(folder) and len(recordings.ready) == N_FILES
    assert all((Path("cache") / name).read_bytes() == (folder / name).read_bytes() for name in names_in(folder))
    assert len(hub.find_requests("GET /cdn")) == N_FILES
    assert {token for line, token in hub.requests if "/cdn" in line} == {None}  # a token is not for the storage
    assert recordings.common_corpus(SINGLE_PROCESS, CPU) == recordings.corpus
    hub.requests.clear()
    assert len(finish(stream()).ready) == N_FILES and not hub.find_requests("/cdn|/resolve")


@pytest.mark.parametrize("n_takes", [8, 3])
def test_the_split_equals_that_of_a_local_folder(repo, folder, stream, config, n_takes):
    for name in names_in(folder)[n_takes:]:
        (folder / name).unlink()
    assert upload_to_hf.main(["--repo_id", NAME, "--data_dir", str(folder), "--delete_missing"]) == 0
    streamed, local = stream().corpus, read_corpus(folder, config)
    for side in ("training", "validation"):
        here = [(span.path.relative_to("cache"), *span[1:]) for span in getattr(streamed, side)]
        assert here == [(span.path.relative_to(folder), *span[1:]) for span in getattr(local, side)] and here
    assert streamed.boundary == local.boundary


def test_training_offline_equals_training_on_a_local_folder(hub, repo, folder, stream):
    finish(stream())
    hub.down = True
    assert run("--hf_repo_id", NAME, "--data_dir", "cache", "--epochs", 2, "--checkpoint_dir", "streamed") == 0
    assert run("--data_dir", folder, "--epochs", 2, "--checkpoint_dir", "local") == 0
    streamed, local = (read_checkpoint(Path(name) / "latest.pth")["model"] for name in ("streamed", "local"))
    assert all(torch.equal(streamed[name], local[name]) for name in local)


def test_training_starts_before_the_download_ends_and_survives_an_outage(hub, repo, folder, config, caplog):
    caplog.set_level("INFO")
    hub.files_left = 3
    assert run("--hf_repo_id", NAME, "--epochs", 2) == 0
    assert f"{hub.url}/datasets/{NAME}" in caplog.text and hub.down
    assert all(thread.name != "hub" for thread in threading.enumerate())
    assert 1 <= len(names_in("data/hub/user--trumpet")) <= 3
    chosen = list(choose_phrases(read_corpus(folder, config)))  # of all recordings, also those to come
    assert read_checkpoint(Path("checkpoints/latest.pth"))["schedule"]["phrases"] == chosen
    hub.files_left, hub.down = None, False
    assert run("--hf_repo_id", NAME, "--epochs", 4) == 0
    assert "resumed" in caplog.text and "epoch 4" in caplog.text


def test_the_download_continues_after_an_outage(hub, stream, caplog):
    caplog.set_level("INFO")
    hub.files_left = 3
    recordings = stream()
    wait_until(lambda: recordings.in_trouble)
    recordings.wait_for_first(SINGLE_PROCESS, CPU)  # training can start and repeats the recording
    some = recordings.common_corpus(SINGLE_PROCESS, CPU)
    assert len(set(some.training)) == 1 and len(some.training) == len(recordings.corpus.training)
    hub.files_left, hub.down = None, False
    assert len(finish(recordings).ready) == N_FILES
    levels = [record.levelname for record in caplog.records if record.name == "hub"]
    assert levels.count("WARNING") == 1 and levels[-1] == "INFO"  # one on the outage, and one on its end


@pytest.mark.parametrize(
    "faults",
    [
        [Fault("GET /cdn", times=5, cut=9000)],
        [Fault("HEAD .*pt", times=3, status=500), Fault("GET /cdn", times=2, flip=True)],
        [Fault("GET /cdn", times=3, status=503), Fault("GET /cdn", times=2, short=True)],
        [Fault("GET /api/datasets", times=2, status=503), Fault("GET .*index.json", times=1)],
    ],
    ids=["cut", "flipped", "short", "at the start"],
)
def test_temporary_faults_are_retried(hub, stream, folder, faults):
    hub.faults = faults
    recordings = finish(stream())
    assert not recordings.failed and all(fault.times == 0 for fault in faults)
    assert all((Path("cache") / name).read_bytes() == (folder / name).read_bytes() for name in names_in(folder))


def test_damaged_files_are_downloaded_again(hub, stream, folder):
    finish(stream())
    broken = Path("cache/1.wav.pt")
    broken.write_bytes(broken.read_bytes()[:-1] + b"x")
    Path("cache/2.wav.pt").write_bytes(b"")
    hub.requests.clear()
    hub.faults = [Fault("HEAD .*pt", times=3, status=503)]  # on which the client would use the existing file
    assert len(finish(stream()).ready) == N_FILES
    assert {line.rpartition("/")[2] for line in hub.find_requests("HEAD")} == {"1.wav.pt", "2.wav.pt"}
    assert broken.read_bytes() == (folder / "1.wav.pt").read_bytes()


def change_index(repo, change):
    values = json.loads(repo.files["index.json"].content)
    change({entry["file"]: entry for entry in values["recordings"]})
    repo.commit(repo.files | {"index.json": Blob(json.dumps(values).encode(), False)}, "change")


def damage(hub, repo):
    hub.faults = [Fault(f"GET /cdn/{repo.files['1.wav.pt'].sha256}", times=99, flip=True)]


def lose(hub, repo):
    repo.commit({name: blob for name, blob in repo.files.items() if name != "1.wav.pt"}, "lose")


def replace(hub, repo):
    blob = Blob(b"no recording", True)
    repo.commit(repo.files | {"1.wav.pt": blob}, "replace")
    change_index(repo, lambda entries: entries["1.wav.pt"].update(sha256=blob.sha256, n_bytes=12))


def misdescribe(hub, repo):
    change_index(repo, lambda entries: entries["1.wav.pt"].update(n_frames=7))


@pytest.mark.parametrize("change", [damage, lose, replace, misdescribe])
def test_unusable_files_are_left_out_and_named(hub, repo, stream, caplog, change):
    change(hub, repo)
    recordings = finish(stream())
    assert list(recordings.failed) == [Path("cache/1.wav.pt")] and f"datasets/{NAME}" in caplog.text
    assert "1.wav.pt" in caplog.text and len(names_in("cache")) == len(recordings.ready) == N_FILES - 1
    assert change is not damage or hub.faults[0].times == 96


def test_two_processes_share_one_download_also_through_an_outage(hub, stream):
    hub.files_left = 4
    both = stream(), stream()
    wait_until(lambda: all(len(recordings.ready) == 4 for recordings in both))
    hub.requests.clear()
    hub.files_left, hub.down = None, False
    assert all(len(finish(recordings).ready) == N_FILES for recordings in both)
    assert len(hub.find_requests("GET /cdn")) == N_FILES - 4


class Machine(ProcessRanks):
    """One of two machines of a training; here they are threads."""

    meeting = threading.Barrier(2, timeout=60)
    values: ClassVar = {}

    def all_reduce(self, values):
        self.values[self.rank] = values
        self.meeting.wait()
        total = self.values[0] + self.values[1]
        self.meeting.wait()
        return total


def test_machines_train_on_recordings_that_both_have(hub, stream, folder, config):
    """At first each machine has a different recording, and there is no network."""
    training = read_corpus(folder, config).training
    for number in (0, 1):
        finish(stream(f"cache {number}"))
        for path in Path(f"cache {number}").rglob("*.pt"):
            if path.name != training[number].path.name:
                path.unlink()
    hub.down = True
    machines = [(stream(f"cache {number}"), Machine(number, 0, 2)) for number in (0, 1)]

    def run(recordings, machine):
        assert not recordings.common_corpus(machine, CPU).training
        hub.down = False
        recordings.wait_for_first(machine, CPU)
        return recordings.common_corpus(machine, CPU)

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(run, *zip(*machines))
    names = [[span.path.relative_to(each.folder) for span in each.training] for each in (one, other)]
    assert names[0] == names[1] and names[0]


def test_without_network_and_data_the_error_names_address_and_attempt(hub, stream):
    hub.down = True
    with pytest.raises(UnreachableError, match=rf"{hub.url}/datasets/{NAME}.*attempt 8"):
        stream()


def test_a_private_data_set_needs_a_token(hub, stream, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(RefusedError, match=NAME):
        stream()
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(RefusedError, match="without a token"):
        stream()
    Path(hub_token := "home/token").parent.mkdir(exist_ok=True)
    Path(hub_token).write_text("hf_read\n")  # as hf auth login leaves it
    assert len(finish(stream()).ready) == N_FILES


def test_unsuitable_data_sets_are_refused(hub, stream, config, caplog):
    hub.add("dataset", "user/other", {"a.pt": b"a"})
    with pytest.raises(HubError, match=r"user/other.*index\.json"):
        stream("other", "user/other")
    assert run("--hf_repo_id", NAME, "--config_name", "wide") == 1 and "other settings" in caplog.text
    assert run("--hf_repo_id", "user/none") == 1 and "user/none" in caplog.text


def test_folders_of_other_data_are_not_changed(hub, stream, folder, config):
    before = names_in(folder)
    with pytest.raises(HubError, match="local"):
        stream("local")
    assert names_in(folder) == before
    finish(stream())
    with pytest.raises(HubError, match=f"{NAME}.*user/other"):
        stream(name="user/other")
    for text in ("{}", "[" * 10**5, json.dumps({"repo_id": NAME, "revision": "", "index": "{}"})):
        Path("cache/hub.json").write_text(text)
        with pytest.raises(HubError, match=r"hub\.json"):
            stream()


def test_a_new_version_of_the_data_set_is_used(repo, folder, stream):
    finish(stream())
    (folder / "1.wav.pt").unlink()
    assert upload_to_hf.main(["--repo_id", NAME, "--data_dir", str(folder), "--delete_missing"]) == 0
    assert len(finish(stream()).ready) == N_FILES - 1
