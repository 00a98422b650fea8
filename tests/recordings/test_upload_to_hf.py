"""scripts/upload_to_hf.py with the real client, against a Hub on loopback."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest

import upload_to_hf as up
from data import save_recording
from hub_server import Blob, Fault, HubServer

NAME = "user/trumpet"
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's own


@pytest.fixture
def folder(tmp_path, counting_recording):
    """Eleven recordings of ten takes of 1 s and more, and what must not leave the folder."""
    for number in range(11):
        path = tmp_path / "local" / ("" if number % 3 else "more") / f"take_{number}.wav.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_recording(path, counting_recording(100 + number, sha256=f"{min(number, 9):064x}"))
    for name in ("notes.txt", ".env", "more/voice.wav", ".hidden/a.pt", ".index.json"):
        (tmp_path / "local" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "local" / name).write_text("private")
    return tmp_path / "local"


def upload(folder, *flags):
    return up.main(["--repo_id", NAME, "--data_dir", str(folder), *flags])


def repo_of(hub):
    return hub.repos["dataset", NAME]


def recordings_of(hub):
    return {path: blob.content for path, blob in repo_of(hub).files.items() if path.endswith(".pt")}


def local(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("take*.pt")}


def index_of(hub):
    entries = json.loads(repo_of(hub).files["index.json"].content)["recordings"]
    return {entry["file"]: entry["sha256"] for entry in entries}


def card_of(hub):
    return repo_of(hub).files["README.md"].content.decode()


def test_processed_files_arrive_private_in_one_commit_and_nothing_else_does(hub, folder, capsys):
    assert upload(folder, "--dry_run") == 0 and not hub.requests
    assert set(capsys.readouterr().out.split()) == {*local(folder), "index.json", "README.md"}
    assert upload(folder, "--licence", "CC-BY-SA-4.0") == 0
    repo = repo_of(hub)
    assert repo.private and recordings_of(hub) == local(folder) and repo.messages == ["new", "Add 11 recordings"]
    assert set(repo.files) == {*local(folder), "index.json", "README.md", ".gitattributes"}
    assert index_of(hub) == {path: blob.sha256 for path, blob in repo.files.items() if path.endswith(".pt")}
    assert "11 recordings uploaded, 0 unchanged" in capsys.readouterr().out
    assert hub.cards == [{"license": "cc-by-sa-4.0", "tags": ["audio", "ddsp", "trumpet"]}]
    for text in ("cc-by-sa-4.0.", "11 recordings (10 different), 0.2 minutes", f"train.py --hf_repo_id {NAME}"):
        assert text in card_of(hub)  # 1155 frames


def test_only_what_is_new_or_changed_is_sent(hub, folder, counting_recording, capsys):
    upload(folder)
    commits = len(repo_of(hub).commits)
    assert upload(folder) == 0 and "0 recordings uploaded, 11 unchanged" in capsys.readouterr().out
    assert len(repo_of(hub).commits) == commits and len(hub.uploads) == 11
    save_recording(folder / "take_new.pt", counting_recording(150, sha256="f" * 64))
    save_recording(folder / "take_1.wav.pt", counting_recording(151, sha256="e" * 64))
    assert upload(folder) == 0
    assert (
        len(hub.uploads) == 13 and recordings_of(hub) == local(folder) and index_of(hub).keys() == local(folder).keys()
    )


@pytest.mark.parametrize(
    "faults",
    [
        [Fault("PUT /lfs", times=4, cut=9000)],
        [Fault("POST .*/batch", times=2), Fault("POST .*/preupload", times=2, status=500)],
        [Fault("POST /api/repos/create", status=503), Fault("HEAD .*index.json", times=2)],
        [Fault("POST .*/commit/", after=True)],
        [Fault("POST /api/validate-yaml", status=502)],
    ],
    ids=["cut", "batch", "before", "answer lost", "card"],
)
def test_passing_faults_leave_no_trace(hub, folder, faults):
    hub.faults = faults
    assert upload(folder) == 0
    assert recordings_of(hub) == local(folder) and len(hub.uploads) == len(set(hub.uploads)) == 11
    assert repo_of(hub).messages == ["new", "Add 11 recordings"]
    assert all(fault.times == 0 for fault in faults)


def test_upload_that_was_cut_off_changes_nothing_and_goes_on(hub, folder, caplog):
    upload(folder)
    before = repo_of(hub).files
    (folder / "more/take_0.wav.pt").write_bytes((folder / "take_1.wav.pt").read_bytes())
    hub.faults = [Fault("POST .*/commit/", times=999)]
    assert upload(folder) == 1 and NAME in caplog.text and repo_of(hub).files == before
    hub.faults.clear()
    assert upload(folder) == 0 and recordings_of(hub) == local(folder)


def test_nothing_is_deleted_unless_told_so(hub, folder, counting_recording, capsys):
    upload(folder)
    repo = repo_of(hub)
    repo.commit(repo.files | {"notes.txt": Blob(b"mine", False), "stray.pt": Blob(b"?", True)}, "by hand")
    for name in ("take_1.wav.pt", "more/take_3.wav.pt"):
        (folder / name).unlink()
    save_recording(folder / "take_new.pt", counting_recording(150, sha256="f" * 64))
    assert upload(folder) == 0 and len(recordings_of(hub)) == 13 and len(index_of(hub)) == 12
    assert "2 recordings kept on the Hub" in capsys.readouterr().out
    hub.faults = [Fault("POST .*/commit/"), Fault("POST .*/commit/", after=True)]
    assert upload(folder, "--delete_missing") == 0
    assert recordings_of(hub) == local(folder) | {"stray.pt": b"?"} and "notes.txt" in repo.files  # never described
    assert index_of(hub).keys() == local(folder).keys()


def test_another_instrument_is_not_mixed_in(hub, folder, tmp_path, counting_recording, caplog):
    upload(folder)
    (tmp_path / "guitar").mkdir()
    save_recording(tmp_path / "guitar" / "a.pt", counting_recording(instrument="guitar"))
    assert upload(tmp_path / "guitar") == 1
    assert "trumpet" in caplog.text and len(recordings_of(hub)) == 11
    assert upload(tmp_path / "guitar", "--delete_missing") == 0
    assert list(recordings_of(hub)) == list(index_of(hub)) == ["a.pt"]


def test_data_set_that_was_changed_by_hand_is_put_right(hub, folder, caplog):
    upload(folder)
    repo = repo_of(hub)
    repo.commit({name: blob for name, blob in repo.files.items() if name != "take_1.wav.pt"}, "by hand")
    (folder / "take_2.wav.pt").unlink()
    repo.commit({name: blob for name, blob in repo.files.items() if name != "take_2.wav.pt"}, "by hand")
    assert upload(folder, "--delete_missing") == 0
    assert recordings_of(hub) == local(folder) and index_of(hub).keys() == local(folder).keys()
    repo.commit(repo.files | {"index.json": Blob(b"{}", False)}, "by hand")
    assert upload(folder) == 1 and "index.json" in caplog.text
    assert upload(folder, "--delete_missing") == 0 and index_of(hub).keys() == local(folder).keys()


def test_words_of_ones_own_in_the_card_and_its_licence_stay(hub, folder, counting_recording):
    upload(folder, "--licence", "cc-by-4.0")
    repo = repo_of(hub)
    card = card_of(hub).replace(f"# {NAME}", "# My trumpet\n\nPlayed by Anna.")
    repo.commit(repo.files | {"README.md": Blob(card.encode(), False)}, "by hand")
    save_recording(folder / "take_new.pt", counting_recording(150, sha256="f" * 64))
    assert upload(folder) == 0
    for text in ("Played by Anna.", "12 recordings (11 different)", "license: cc-by-4.0"):
        assert text in card_of(hub)
    repo.commit(repo.files | {"README.md": Blob(b"---\nlicense: mit\n---\n\nMine alone.\n", False)}, "by hand")
    assert upload(folder) == 0 and "Mine alone." in card_of(hub)


@pytest.mark.parametrize(
    ("flags", "licence", "name"), [([], "unknown", None), (["--licence", "Anna's own"], "other", "Anna's own")]
)
def test_licence_is_the_users_word(hub, folder, flags, licence, name):
    assert upload(folder, *flags) == 0
    assert hub.cards[-1]["license"] == licence and hub.cards[-1].get("license_name") == name
    assert repo_of(hub).private
    assert upload(folder, "--licence", "CC0-1.0") == 0  # said later
    assert hub.cards[-1]["license"] == "cc0-1.0" and "license_name" not in hub.cards[-1]


def test_public_is_said_by_the_user(hub, folder):
    assert upload(folder, "--public", "--licence", "mit") == 0 and not repo_of(hub).private


@pytest.mark.parametrize("token", ["hf_read", "hf_wrong", None])
def test_token_that_does_not_do_gets_a_sentence(hub, folder, monkeypatch, caplog, token):
    monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN")
    assert upload(folder) == 1
    assert f"{hub.url}/datasets/{NAME}" in caplog.text and "HF_TOKEN" in caplog.text and not hub.repos


def test_folders_that_cannot_be_uploaded_are_named(hub, tmp_path, counting_recording, caplog):
    stale = counting_recording()
    stale = dataclasses.replace(stale, extractor={"audio": stale.extractor["audio"]})
    trumpet, guitar = counting_recording(), counting_recording(instrument="guitar")
    for files in ({}, {"a.pt": trumpet, "b.pt": guitar}, {"a.pt": stale}, {"a b.pt": trumpet}, {"a.pt": 0, "A.pt": 0}):
        folder = tmp_path / f"folder {len(caplog.messages)}"
        folder.mkdir()
        for name, recording in files.items():
            save_recording(folder / name, recording or trumpet)
        assert upload(folder) == 1 and folder.name in caplog.messages[-1]
    assert not hub.repos


def test_as_a_user_runs_it(folder, tmp_path):
    """With nothing but the client's own variables, in a process of its own."""
    with HubServer() as hub:
        variables = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home")}
        environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")} | variables
        command = [sys.executable, up.__file__, "--repo_id", NAME, "--data_dir", folder]
        done = subprocess.run(command, env=environment | {"HF_TOKEN": "hf_write"}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"{hub.url}/datasets/{NAME}: 11 recordings uploaded, 0 unchanged\n"
        assert recordings_of(hub) == local(folder)
