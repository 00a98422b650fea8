"""scripts/upload_to_hf.py with the real client, against a Hub on loopback."""

import dataclasses
import json

import pytest

import upload_to_hf as up
from data import save_recording
from hub_server import Blob, Fault

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


def test_only_processed_files_are_uploaded_in_one_private_commit(hub, folder, capsys):
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


def test_only_new_and_changed_files_are_sent(hub, folder, counting_recording, capsys):
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
def test_temporary_faults_are_retried(hub, folder, faults):
    hub.faults = faults
    assert upload(folder) == 0
    assert recordings_of(hub) == local(folder) and len(hub.uploads) == len(set(hub.uploads)) == 11
    assert repo_of(hub).messages == ["new", "Add 11 recordings"]
    assert all(fault.times == 0 for fault in faults)


def test_an_interrupted_upload_changes_nothing_and_can_be_repeated(hub, folder, caplog):
    upload(folder)
    before = repo_of(hub).files
    (folder / "more/take_0.wav.pt").write_bytes((folder / "take_1.wav.pt").read_bytes())
    hub.faults = [Fault("POST .*/commit/", times=999)]
    assert upload(folder) == 1 and NAME in caplog.text and repo_of(hub).files == before
    hub.faults.clear()
    assert upload(folder) == 0 and recordings_of(hub) == local(folder)


def test_files_are_deleted_only_on_request(hub, folder, counting_recording, capsys):
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


def test_another_instrument_is_refused(hub, folder, tmp_path, counting_recording, caplog):
    upload(folder)
    (tmp_path / "guitar").mkdir()
    save_recording(tmp_path / "guitar" / "a.pt", counting_recording(instrument="guitar"))
    assert upload(tmp_path / "guitar") == 1
    assert "trumpet" in caplog.text and len(recordings_of(hub)) == 11
    assert upload(tmp_path / "guitar", "--delete_missing") == 0
    assert list(recordings_of(hub)) == list(index_of(hub)) == ["a.pt"]


def test_a_data_set_changed_by_hand_is_repaired(hub, folder, caplog):
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


def test_text_and_licence_of_the_card_are_kept(hub, folder, counting_recording):
    upload(folder, "--licence", "cc-by-4.0")
    repo = repo_of(hub)
    card = card_of(hub).replace(f"# {NAME}", "# My trumpet\n\nPlayed by Anna.")
    repo.commit(repo.files | {"README.md": Blob(card.encode(), False)}, "by hand")
    save_recording(folder / "take_new.pt", counting_recording(150, sha256="f" * 64))
    assert upload(folder) == 0
    for text in ("Played by Anna.", "12 recordings (11 different)", "license: cc-by-4.0"):
        assert text in card_of(hub)
    repo.commit(repo.files | {"README.md": Blob(b"---\nlicense: mit\n---\n\nMy own text.\n", False)}, "by hand")
    assert upload(folder) == 0 and "My own text." in card_of(hub)


@pytest.mark.parametrize(
    ("flags", "licence", "name"),
    [([], "unknown", None), (["--licence", "Anna's own", "--public"], "other", "Anna's own")],
)
def test_the_licence_is_the_one_given(hub, folder, flags, licence, name):
    assert upload(folder, *flags) == 0
    assert hub.cards[-1]["license"] == licence and hub.cards[-1].get("license_name") == name
    assert repo_of(hub).private == ("--public" not in flags)
    assert upload(folder, "--licence", "CC0-1.0") == 0  # said later
    assert hub.cards[-1]["license"] == "cc0-1.0" and "license_name" not in hub.cards[-1]


@pytest.mark.parametrize("token", ["hf_read", "hf_wrong", None])
def test_an_insufficient_token_is_an_error(hub, folder, monkeypatch, caplog, token):
    monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN")
    assert upload(folder) == 1
    assert f"{hub.url}/datasets/{NAME}" in caplog.text and "HF_TOKEN" in caplog.text and not hub.repos


def test_unsuitable_folders_are_named(hub, tmp_path, counting_recording, caplog):
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
