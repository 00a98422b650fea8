"""scripts/upload_to_hf.py with the real client, against a Hub on loopback."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest
import torch

import upload_to_hf as up
from data import save_recording
from hub_server import Blob, Fault, HubServer
from recordings import hub_upload
from recordings.hub_client import HubFile, HubIndex

NAME = "user/trumpet"
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's own


@pytest.fixture
def folder(tmp_path, counting_recording):
    """Eleven recordings of ten takes of 1 s and more, with pitches from 100 Hz on."""
    for number in range(11):
        path = tmp_path / "local" / ("" if number % 3 else "more") / f"take {number}.wav.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_recording(path, counting_recording(100 + number, sha256=f"{min(number, 9):064x}"))
    return tmp_path / "local"


def upload(folder, *flags):
    return up.main(["--repo_id", NAME, "--data_dir", str(folder), *flags])


def repo_of(hub):
    return hub.repos["dataset", NAME]


def recordings_of(hub):
    return {path: blob.content for path, blob in repo_of(hub).files.items() if path.endswith(".pt")}


def local(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.pt")}


def index_of(files):
    return json.loads(files["index.json"].content)


def test_folder_arrives_whole_private_and_in_one_commit(hub, folder, capsys):
    assert upload(folder, "--licence", "MIT") == 0
    repo = repo_of(hub)
    assert repo.private and recordings_of(hub) == local(folder)
    assert repo.messages == ["new", "Add 11 recordings"]
    assert {entry["file"] for entry in index_of(repo.files)["recordings"]} == set(local(folder))
    assert "11 recordings uploaded, 0 were there" in capsys.readouterr().out


def test_card_tells_what_is_there(hub, folder):
    assert upload(folder, "--licence", "CC-BY-4.0") == 0
    assert hub.cards == [{"license": "cc-by-4.0", "tags": ["audio", "ddsp", "trumpet"]}]
    card = repo_of(hub).files["README.md"].content.decode()
    for line in (
        "| instrument | trumpet |",
        "| licence | cc-by-4.0 |",
        "| recordings | 11 (10 different) |",
        "| length | 0.2 minutes |",  # 1155 frames
        "| pitch | 101 to 208 Hz |",  # of 100 to 209
        "| `features.crepe_model` | tiny |",
        "./venv/bin/python train.py --hf_repo_id user/trumpet",
    ):
        assert line in card


def test_second_run_sends_nothing(hub, folder, capsys):
    upload(folder)
    commits, uploads = len(repo_of(hub).commits), len(hub.uploads)
    assert upload(folder) == 0
    assert (len(repo_of(hub).commits), len(hub.uploads)) == (commits, uploads)
    assert "0 recordings uploaded, 11 were there" in capsys.readouterr().out


def test_only_what_is_new_or_changed_is_sent(hub, folder, counting_recording):
    upload(folder)
    hub.uploads.clear()
    save_recording(folder / "new.pt", counting_recording(150, sha256="f" * 64))
    save_recording(folder / "take 1.wav.pt", counting_recording(151, sha256="e" * 64))
    assert upload(folder) == 0
    assert len(hub.uploads) == 2 and recordings_of(hub) == local(folder)
    assert len(index_of(repo_of(hub).files)["recordings"]) == 12


@pytest.mark.parametrize(
    "faults",
    [
        [Fault("PUT /lfs", times=4, cut=9000)],
        [Fault("PUT /lfs", times=4, status=503)],
        [Fault("POST .*/batch", times=2), Fault("POST .*/preupload", times=2, status=500)],
        [Fault("POST /api/repos/create", status=503), Fault("GET /api/whoami", times=2), Fault("GET .*/tree", times=2)],
        [Fault("POST .*/commit/", times=2)],
        [Fault("POST .*/commit/", after=True)],
        [Fault("POST /api/validate-yaml", status=502)],
    ],
    ids=["cut", "503", "batch", "before", "commit", "answer lost", "card"],
)
def test_passing_faults_leave_no_trace(hub, folder, faults):
    hub.faults = faults
    assert upload(folder) == 0
    assert recordings_of(hub) == local(folder) and len(hub.uploads) == len(set(hub.uploads)) == 11
    assert repo_of(hub).messages == ["new", "Add 11 recordings"]
    assert all(fault.times == 0 for fault in faults)


def test_pause_that_the_hub_asks_for_is_kept(hub, folder):
    hub.faults = [
        Fault("PUT /lfs", status=429, headers={"Retry-After": "33"}),
        Fault("POST .*/commit/", status=429, headers={"Retry-After": "77"}),
    ]
    assert upload(folder) == 0
    assert hub.pauses == [34, 77]  # the client's own, which adds one, and ours


def test_upload_that_was_cut_off_goes_on(hub, folder, monkeypatch, caplog):
    monkeypatch.setattr(hub_upload, "BATCH_FILES", 4)
    names = sorted(local(folder))
    hub.faults = [Fault(f"PUT /lfs/{hub_upload.hash_file(folder / names[6])}", times=999)]
    assert upload(folder) == 1
    assert "the Hugging Face Hub cannot be reached" in caplog.text and "Traceback" not in caplog.text
    files = repo_of(hub).files
    assert sorted(entry["file"] for entry in index_of(files)["recordings"]) == sorted(recordings_of(hub)) == names[:4]
    assert "| recordings | 4 (4 different) |" in files["README.md"].content.decode()
    hub.faults.clear()
    assert upload(folder) == 0
    assert recordings_of(hub) == local(folder) and len(hub.uploads) == len(set(hub.uploads)) == 11


def test_each_commit_describes_itself(hub, folder, monkeypatch):
    monkeypatch.setattr(hub_upload, "BATCH_FILES", 4)
    assert upload(folder) == 0
    assert repo_of(hub).messages[1:] == ["Add 4 recordings", "Add 4 recordings", "Add 3 recordings"]
    for _, files in repo_of(hub).commits[1:]:
        entries = {entry["file"]: entry["sha256"] for entry in index_of(files)["recordings"]}
        assert entries == {path: blob.sha256 for path, blob in files.items() if path.endswith(".pt")}


def test_nothing_is_deleted_unless_told_so(hub, folder, capsys):
    upload(folder)
    repo = repo_of(hub)
    repo.commit(repo.files | {"notes.txt": Blob(b"mine", False), "stray.pt": Blob(b"?", True)}, "by hand")
    for name in ("take 1.wav.pt", "more/take 3.wav.pt"):
        (folder / name).unlink()
    assert upload(folder) == 0
    assert len(recordings_of(hub)) == 12 and "notes.txt" in repo.files
    assert "3 there but not here, and kept" in capsys.readouterr().out
    assert len(index_of(repo.files)["recordings"]) == 11  # stray.pt was never described
    hub.faults = [Fault("POST .*/commit/"), Fault("POST .*/commit/", times=2, after=True)]  # index, then deletion
    assert upload(folder, "--delete_missing") == 0
    assert recordings_of(hub) == local(folder) and "notes.txt" in repo.files
    assert "3 deleted there" in capsys.readouterr().out
    assert {entry["file"] for entry in index_of(repo.files)["recordings"]} == set(local(folder))


def test_another_instrument_is_not_mixed_in(hub, folder, tmp_path, counting_recording, caplog):
    upload(folder)
    (tmp_path / "guitar").mkdir()
    save_recording(tmp_path / "guitar" / "a.pt", counting_recording(instrument="guitar"))
    assert upload(tmp_path / "guitar") == 1
    assert "holds 11 other recordings (trumpet)" in caplog.text and len(recordings_of(hub)) == 11
    assert upload(tmp_path / "guitar", "--delete_missing") == 0
    assert list(recordings_of(hub)) == ["a.pt"] and index_of(repo_of(hub).files)["instrument"] == "guitar"


def test_words_of_ones_own_in_the_card_stay(hub, folder, counting_recording):
    upload(folder, "--licence", "mit")
    repo = repo_of(hub)
    card = repo.files["README.md"].content.decode().replace("# user/trumpet", "# My trumpet\n\nPlayed by Anna.")
    repo.commit(repo.files | {"README.md": Blob(card.encode(), False)}, "by hand")
    save_recording(folder / "new.pt", counting_recording(150, sha256="f" * 64))
    assert upload(folder) == 0
    card = repo.files["README.md"].content.decode()
    assert "Played by Anna." in card and "| recordings | 12 (11 different) |" in card and "license: mit" in card
    repo.commit(repo.files | {"README.md": Blob(b"---\nlicense: mit\n---\n\nMine alone.\n", False)}, "by hand")
    assert upload(folder) == 0
    assert "Mine alone." in repo.files["README.md"].content.decode()


@pytest.mark.parametrize(
    ("flags", "licence", "name"),
    [
        ([], "unknown", None),
        (["--licence", "CC0-1.0"], "cc0-1.0", None),
        (["--licence", "Anna's own"], "other", "Anna's own"),
    ],
)
def test_licence_on_the_card(hub, folder, flags, licence, name, caplog):
    assert upload(folder, *flags) == 0
    assert hub.cards[-1]["license"] == licence and hub.cards[-1].get("license_name") == name
    assert ("no --licence" in caplog.text) is (not flags)
    assert upload(folder, "--licence", "mit") == 0  # said later
    assert hub.cards[-1]["license"] == "mit" and "license_name" not in hub.cards[-1]


def test_visibility(hub, folder, caplog):
    assert upload(folder, "--public", "--licence", "mit") == 0
    assert not repo_of(hub).private
    assert upload(folder) == 0
    assert "exists already and is public" in caplog.text


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("hf_read", "the token 'mine' may only read"),
        ("hf_wrong", "does not know this token"),
        (None, "there is no token"),
    ],
)
def test_token_that_does_not_do_gets_a_sentence(hub, folder, monkeypatch, caplog, token, message):
    monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN")
    assert upload(folder) == 1
    assert message in caplog.text and "HF_TOKEN" in caplog.text and not hub.repos


def test_place_where_the_token_may_not_write_gets_a_sentence(hub, folder, caplog):
    hub.faults = [Fault("POST .*/preupload", times=9, status=403)]
    assert upload(folder) == 1
    assert "the token may not do this with user/trumpet; it needs write permission" in caplog.text


def test_folders_that_cannot_be_uploaded_get_a_sentence(hub, tmp_path, counting_recording, caplog):
    (tmp_path / "empty").mkdir()
    assert upload(tmp_path / "empty") == 1 and "holds no .pt files" in caplog.text
    for name, instrument in (("a.pt", "guitar"), ("b.pt", "trumpet")):
        save_recording(tmp_path / name, counting_recording(instrument=instrument))
    assert upload(tmp_path) == 1 and "a data set has one instrument" in caplog.text
    stale = counting_recording()
    save_recording(tmp_path / "a.pt", dataclasses.replace(stale, extractor={"audio": stale.extractor["audio"]}))
    assert upload(tmp_path) == 1 and "was made with other settings" in caplog.text
    (tmp_path / "odd").mkdir()
    save_recording(tmp_path / "odd" / "a:b.pt", counting_recording())
    assert upload(tmp_path / "odd") == 1 and "cannot be uploaded under its name" in caplog.text
    assert not hub.repos


def test_recording_without_a_pitch(hub, tmp_path, counting_recording):
    recording = counting_recording()
    (tmp_path / "local").mkdir()
    save_recording(tmp_path / "local" / "a.pt", dataclasses.replace(recording, periodicity=torch.zeros(1, 100, 1)))
    assert upload(tmp_path / "local") == 0
    assert index_of(repo_of(hub).files)["recordings"][0]["f0_range"] is None
    assert "| pitch | none |" in repo_of(hub).files["README.md"].content.decode()


def test_batches_are_bounded_and_lose_nothing(monkeypatch):
    monkeypatch.setattr(hub_upload, "BATCH_FILES", 3)
    monkeypatch.setattr(hub_upload, "BATCH_BYTES", 100)
    sizes = [10, 20, 30, 40, 90, 20, 500, 1, 1, 1, 1]
    entries = [HubFile(f"{i}.pt", "0", size, 1, "0", None) for i, size in enumerate(sizes)]
    batches = list(hub_upload.batched(entries))
    assert [entry for batch in batches for entry in batch] == entries
    batched_sizes = [[entry.n_bytes for entry in batch] for batch in batches]
    assert batched_sizes == [[10, 20, 30], [40], [90], [20], [500], [1, 1, 1], [1]]
    assert list(hub_upload.batched([])) == []


def test_bad_flags(capsys):
    for flags, message in (("trumpet", "user/name"), (f"{NAME} --public", "needs a --licence")):
        with pytest.raises(SystemExit):
            up.parse_args(["--repo_id", *flags.split()])
        assert message in capsys.readouterr().err


def test_as_a_user_runs_it(folder, tmp_path):
    """With nothing but the client's own variables, in a process of its own."""
    with HubServer() as hub:
        variables = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home")}
        environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")} | variables
        command = [sys.executable, up.__file__, "--repo_id", NAME, "--data_dir", folder]
        done = subprocess.run(command, env=environment | {"HF_TOKEN": "hf_write"}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"{hub.url}/datasets/{NAME}: 11 recordings uploaded, 0 were there\n"
        assert recordings_of(hub) == local(folder)
        assert HubIndex.from_json(repo_of(hub).files["index.json"].content.decode(), NAME).instrument == "trumpet"
