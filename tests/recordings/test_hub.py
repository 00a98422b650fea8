"""hub_client, hub_cache and hub_dataset with the real client and a Hub on loopback that drops, spoils and refuses."""

import dataclasses
import json
import logging
import threading
import time
from pathlib import Path

import pytest
from huggingface_hub.utils import close_session, get_session

from data import save_recording
from hub_server import Fault
from recordings import hub_cache, hub_client, hub_dataset
from recordings.corpus import read_corpus
from recordings.hub_client import (
    INDEX_FILE,
    HubError,
    HubIndex,
    RefusedError,
    UnreachableError,
    check_repo_id,
    connect_to_hub,
    request_with_retries,
)
from recordings.hub_dataset import HubRecordings, corpus_from_index
from recordings.hub_upload import read_folder

NAME = "user/trumpet"
N_FILES = 12


@pytest.fixture
def folder(tmp_path, counting_recording):
    """Twelve recordings of ten takes, some in a subfolder."""
    for number in range(N_FILES):
        path = tmp_path / "local" / ("" if number % 3 else "more") / f"take {number}.wav.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_recording(path, counting_recording(20 + number, sha256=f"{min(number, 9) * 7919:064x}"))
    return tmp_path / "local"


@pytest.fixture
def data_set(hub, folder, config):
    """The same on the Hub."""
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.pt")}
    return hub.add("dataset", NAME, files | {INDEX_FILE: read_folder(folder, config).to_json().encode()})


@pytest.fixture
def stream(tmp_path, config):
    """Return a function that makes a stream; all are closed in the end."""
    opened = []

    def make(cache="cache", name=NAME, settings=config, **options):
        retry_policy = hub_dataset.HubRetryPolicy(retries=float("inf"), backoff=0.01, longest=0.01)
        opened.append(HubRecordings(name, tmp_path / cache, settings, **{"retry_policy": retry_policy} | options))
        return opened[-1]

    yield make
    for recordings in opened:
        recordings.close()


def finish(recordings):
    """Wait until nothing more comes."""
    recordings._thread.join(60)
    assert recordings.finished
    return recordings


def wait_until(holds):
    """Wait for what another thread does."""
    for _ in range(1200):
        if holds():
            return
        threading.Event().wait(0.05)
    raise AssertionError("waited in vain")


def names_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.pt"))


def change_index(repo, change):
    """Commit an index that was changed as JSON."""
    values = json.loads(repo.files[INDEX_FILE].content)
    change(values)
    repo.commit(repo.files | {INDEX_FILE: type(repo.files[INDEX_FILE])(json.dumps(values).encode(), False)}, "change")


# --- what arrives -------------------------------------------------------------------------------


def test_every_file_comes_once_and_whole_and_the_next_time_none_is_fetched(hub, data_set, folder, stream, tmp_path):
    recordings = stream()
    recordings.start()
    recordings.wait_for(1)
    finish(recordings)
    assert names_in(tmp_path / "cache") == names_in(folder)
    assert all((tmp_path / "cache" / name).read_bytes() == (folder / name).read_bytes() for name in names_in(folder))
    assert sorted(recordings.ready()) == sorted(tmp_path / "cache" / name for name in names_in(folder))
    fetched = hub.asked("GET /cdn")
    assert len(fetched) == len(set(fetched)) == len({blob.sha256 for blob in data_set.files.values() if blob.lfs})
    hub.requests.clear()
    again = stream()
    again.start()
    assert len(finish(again).ready()) == N_FILES and not hub.asked("/cdn|/resolve")


def test_split_is_that_of_the_same_files_on_disk(data_set, folder, config, stream, tmp_path):
    recordings = stream()
    recordings.start()
    local = read_corpus(folder, config)
    for side in ("training", "validation"):
        here = [(span.path.relative_to(tmp_path / "cache"), span.n_frames) for span in getattr(recordings.corpus, side)]
        assert here == [(span.path.relative_to(folder), span.n_frames) for span in getattr(local, side)]
    assert len(local.validation) == 1 and len(local.training) == N_FILES - 1


def test_with_few_takes_the_end_of_each_is_held_out(config, tmp_path, folder):
    index = read_folder(folder, config)
    few = dataclasses.replace(index, recordings=index.recordings[:3])
    corpus = corpus_from_index(few, tmp_path, config, NAME)
    assert len(corpus.training) == len(corpus.validation) == 3


def test_held_out_recordings_come_right_after_the_first(hub, data_set, stream):
    recordings = stream(n_threads=1)
    recordings.start()
    order = finish(recordings).ready()
    assert order[0] == recordings.corpus.training[0].path and order[1] == recordings.corpus.validation[0].path


def test_corpus_so_far_keeps_epochs_long_until_all_is_here(data_set, stream):
    recordings = stream()
    recordings.start()
    finish(recordings)
    whole = recordings.corpus
    assert recordings.available_corpus() == whole
    first, *others = (span.path for span in whole.training)
    little = recordings.available_corpus([first])
    assert little.training == whole.training[:1] * 8 and little.validation == ()
    more = recordings.available_corpus([first, others[0], whole.validation[0].path])
    assert len(more.training) == len(whole.training) and set(more.training) == set(whole.training[:2])
    assert more.validation == whole.validation and recordings.available_corpus([]).training == ()


def test_token_goes_to_the_hub_and_not_to_the_storage(hub, data_set, stream):
    recordings = stream()
    recordings.start()
    finish(recordings)
    assert {token for line, token in hub.requests if "/cdn" in line} == {None}
    assert {token for line, token in hub.requests if "/resolve" in line} == {"Bearer hf_write"}


# --- what goes wrong on the way -----------------------------------------------------------------


@pytest.mark.parametrize(
    "faults",
    [
        [Fault("GET /cdn", times=5, cut=9000)],
        [Fault("HEAD .*pt", times=5)],
        [Fault("GET /cdn", times=3, status=503)],
        [Fault("HEAD .*pt", times=3, status=500), Fault("GET /cdn", times=2, flip=True)],
        [Fault("GET /cdn", times=2, short=True)],
        [Fault("GET /api/datasets", times=2, status=503), Fault("GET .*index.json", times=1)],
    ],
    ids=["cut", "dropped", "503", "500 and flipped", "short", "at the start"],
)
def test_passing_faults_leave_no_trace(hub, data_set, folder, stream, tmp_path, faults):
    hub.faults = faults
    recordings = stream()
    recordings.start()
    finish(recordings)
    assert not recordings.failed and all(fault.times == 0 for fault in faults)
    assert all((tmp_path / "cache" / name).read_bytes() == (folder / name).read_bytes() for name in names_in(folder))


def test_pause_that_the_hub_asks_for_is_kept(hub, data_set, stream):
    hub.faults = [
        Fault("GET /api/datasets", status=429, headers={"Retry-After": "77"}),
        Fault("GET /cdn", status=429, headers={"Retry-After": "33"}),
    ]
    recordings = stream()
    recordings.start()
    finish(recordings)
    assert 77 in hub.pauses and 34 in hub.pauses  # ours, and the client's, which adds one


def test_file_that_stays_broken_is_left_out_and_named(hub, data_set, stream, caplog, tmp_path):
    hub.faults = [Fault(f"GET /cdn/{data_set.files['take 1.wav.pt'].sha256}", times=99, flip=True)]
    recordings = stream()
    recordings.start()
    finish(recordings)
    assert list(recordings.failed) == [tmp_path / "cache" / "take 1.wav.pt"]
    assert "arrived damaged" in caplog.text and 99 - hub.faults[0].times == 3
    assert len(names_in(tmp_path / "cache")) == N_FILES - 1


def test_file_that_is_not_there_is_left_out(data_set, stream):
    data_set.commit({name: blob for name, blob in data_set.files.items() if name != "take 1.wav.pt"}, "lose one")
    recordings = stream()
    recordings.start()
    assert "404" in next(iter(finish(recordings).failed.values()))


def test_file_that_the_index_describes_falsely_is_left_out(data_set, stream):
    change_index(data_set, lambda values: values["recordings"][2].update(n_frames=7))
    recordings = stream()
    recordings.start()
    assert "is not what index.json says" in next(iter(finish(recordings).failed.values()))


def test_file_that_is_no_recording_is_left_out(hub, data_set, stream, tmp_path):
    blob = type(data_set.files[INDEX_FILE])(b"no recording", True)
    data_set.commit(data_set.files | {"take 1.wav.pt": blob}, "spoil")
    change_index(
        data_set,
        lambda values: next(entry for entry in values["recordings"] if entry["file"] == "take 1.wav.pt").update(
            sha256=blob.sha256, n_bytes=12
        ),
    )
    recordings = stream()
    recordings.start()
    assert "not a readable processed file" in next(iter(finish(recordings).failed.values()))
    assert not (tmp_path / "cache" / "take 1.wav.pt").exists()


def test_network_is_lost_and_comes_back(hub, data_set, stream, caplog):
    caplog.set_level(logging.INFO)
    hub.files_left = 3
    recordings = stream()
    recordings.start()
    recordings.wait_for(1)  # training can start, and goes on with these
    wait_until(lambda: "training goes on with" in caplog.text)
    some = recordings.ready()
    assert 1 <= len(some) <= 4 and all(path.is_file() for path in some)
    hub.files_left, hub.down = None, False
    assert len(finish(recordings).ready()) == N_FILES
    assert caplog.text.count("training goes on") == 1 and "answers again" in caplog.text


def test_access_that_is_withdrawn_ends_the_download_not_the_training(hub, data_set, stream, caplog):
    hub.faults = [Fault("HEAD .*(take 3|take 4)", times=99, status=403)]
    recordings = stream(n_threads=1)
    recordings.start()
    recordings.wait_for(1)
    finish(recordings)
    assert "may not do this" in caplog.text and 1 <= len(recordings.ready()) < N_FILES


def test_disk_that_cannot_be_written_ends_the_download(data_set, stream, tmp_path, caplog):
    recordings = stream(n_threads=1)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / ".incoming").touch()  # a file where a folder has to be
    recordings.start()
    finish(recordings)
    assert ".incoming" in caplog.text and "goes on with the 0 recordings" in caplog.text and recordings.failed


def test_what_a_killed_download_left_unchecked_is_deleted_at_once(hub, data_set, stream, tmp_path):
    hub.faults = [Fault("HEAD .*pt", times=10**6, status=503)]  # nothing arrives, so the download never ends
    recordings = stream()
    recordings.start()
    recordings.close()
    left = tmp_path / "cache" / ".incoming" / "folder" / "take.pt"
    left.parent.mkdir(parents=True, exist_ok=True)
    resumable = left.with_suffix(".incomplete")
    for path in (left, resumable):
        path.write_bytes(b"unchecked")
    stream().start()
    wait_until(lambda: not left.exists())
    assert resumable.exists()


def test_waiting_for_what_cannot_come_ends(hub, data_set, stream):
    hub.faults = [Fault("HEAD .*pt", times=99, status=404)]
    recordings = stream()
    recordings.start()
    with pytest.raises(HubError, match="too few recordings to train on"):
        recordings.wait_for(1)


def test_closing_stops_the_download(hub, data_set, stream):
    hub.files_left = 2
    recordings = stream()
    recordings.start()
    recordings.wait_for(1)
    recordings.close()
    assert len(finish(recordings).ready()) < N_FILES


def test_two_processes_share_one_download(hub, data_set, stream):
    both = stream(), stream()
    for recordings in both:
        recordings.start()
    for recordings in both:
        assert len(finish(recordings).ready()) == N_FILES
    fetched = hub.asked("GET /cdn")
    assert len(fetched) == len(set(fetched))


# --- the cache ----------------------------------------------------------------------------------


def test_broken_and_changed_files_in_the_cache_are_fetched_again(hub, data_set, folder, stream, tmp_path):
    finish_started(stream())
    broken = tmp_path / "cache" / "take 1.wav.pt"
    broken.write_bytes(broken.read_bytes()[:-1] + b"x")
    (tmp_path / "cache" / "take 2.wav.pt").write_bytes(b"")
    hub.requests.clear()
    finish_started(stream())
    assert sorted(line.rpartition("/")[2] for line in hub.asked("HEAD")) == ["take 1.wav.pt", "take 2.wav.pt"]
    assert broken.read_bytes() == (folder / "take 1.wav.pt").read_bytes()


def finish_started(recordings):
    recordings.start()
    return finish(recordings)


def test_without_network_the_cache_is_enough(hub, data_set, stream, caplog):
    finish_started(stream())
    hub.down = True
    assert len(finish_started(stream()).ready()) == N_FILES
    assert "cannot be reached; going on with what is in" in caplog.text


def test_without_network_and_cache_the_message_is_clear(hub, data_set, stream):
    hub.down = True
    with pytest.raises(UnreachableError, match="cannot be reached"):
        stream().start()
    assert hub.pauses == [1, 2, 4, 8, 16]


def test_new_version_of_the_data_set_is_seen(hub, data_set, stream):
    finish_started(stream())
    change_index(data_set, lambda values: values["recordings"].pop())
    assert len(finish_started(stream()).ready()) == N_FILES - 1


def test_folder_of_somebody_elses_is_left_alone(hub, data_set, folder, stream, tmp_path):
    with pytest.raises(HubError, match="holds recordings of its own"):
        stream("local").start()
    assert len(names_in(folder)) == N_FILES
    finish_started(stream())
    with pytest.raises(HubError, match=f"holds {NAME}; give another --data_dir for user/other"):
        stream(name="user/other").start()
    (tmp_path / "cache" / "hub.json").write_text("{}")
    with pytest.raises(HubError, match="is damaged; delete the folder"):
        stream().start()


def test_what_is_left_of_a_download_is_not_taken_for_recordings_of_ones_own(data_set, stream, tmp_path):
    left = tmp_path / "cache" / ".incoming" / "take.pt"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"unchecked")
    assert len(finish_started(stream()).ready()) == N_FILES and not left.exists()


# --- what is refused ----------------------------------------------------------------------------


def test_private_data_set_without_a_token(data_set, stream, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(RefusedError, match="has no user/trumpet, or it is private and the token may not see it"):
        stream().start()


def test_repository_without_an_index(hub, stream):
    hub.add("dataset", NAME, {"a.pt": b"a"})
    with pytest.raises(HubError, match=r"holds no index\.json; scripts/upload_to_hf\.py makes it"):
        stream().start()


def test_other_settings_and_unknown_instruments_are_refused(data_set, config, stream):
    other = dataclasses.replace(config, features=dataclasses.replace(config.features, crepe_model="full"))
    with pytest.raises(HubError, match="measured with other settings"):
        stream(settings=other).start()
    change_index(data_set, lambda values: values.update(instrument="theremin"))
    with pytest.raises(ValueError, match="unknown instrument 'theremin'"):
        stream("another").start()


OUTSIDE = ("../up.pt", "/root.pt", "a/../../b.pt", ".hidden.pt", ".git/a.pt", "a\\b.pt", "C:a.pt", "a\0.pt")


@pytest.mark.parametrize("name", [*OUTSIDE, "a.txt", "", "a//b.pt", "./a.pt", 3])
def test_names_that_would_leave_the_folder_are_refused(config, folder, name):
    values = json.loads(read_folder(folder, config).to_json())
    values["recordings"][0]["file"] = name
    with pytest.raises(HubError, match="has an entry that cannot be used"):
        HubIndex.from_json(json.dumps(values), NAME)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values.update(format_version=2), "another format"),
        (lambda values: values.pop("instrument"), "not the index"),
        (lambda values: values.pop("format_version"), "not the index"),
        (lambda values: values.update(more=1), "not the index"),
        (lambda values: values.update(recordings=[]), "empty"),
        (lambda values: values["recordings"].append(values["recordings"][0]), "lists a file twice"),
        (lambda values: values["recordings"][0].update(n_frames=-1), "cannot be used"),
        (lambda values: values["recordings"][0].update(take=None), "cannot be used"),
        (lambda values: values["recordings"][0].pop("sha256"), "not the index"),
    ],
)
def test_index_that_is_not_one_is_refused(config, folder, change, message):
    index = read_folder(folder, config)
    values = json.loads(index.to_json())
    change(values)
    with pytest.raises(HubError, match=message):
        HubIndex.from_json(json.dumps(values), NAME)
    for text in ("", "[]", "null", "{"):
        with pytest.raises(HubError, match="not the index"):
            HubIndex.from_json(text, NAME)


def test_index_survives_being_written(config, folder):
    index = read_folder(folder, config)
    assert json.loads(HubIndex.from_json(index.to_json(), NAME).to_json()) == json.loads(index.to_json())


# --- asking -------------------------------------------------------------------------------------


def test_token_that_cannot_write_is_refused_in_words(hub, monkeypatch):
    connect_to_hub(write=True)
    monkeypatch.setenv("HF_TOKEN", "hf_read")
    with pytest.raises(RefusedError, match="the token 'mine' may only read: make a token with write permission"):
        connect_to_hub(write=True)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(RefusedError, match="does not know this token"):
        connect_to_hub(write=True)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(RefusedError, match="there is no token for the Hub: make a token"):
        connect_to_hub(write=True)


def test_saved_login_is_used(hub, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "token").write_text("hf_write\n")
    assert connect_to_hub(write=True).whoami()["name"] == "user"
    assert hub.requests[-1][1] == "Bearer hf_write"


@pytest.mark.parametrize(
    ("status", "code", "kind", "message"),
    [
        (403, "GatedRepo", RefusedError, "gated: ask for access"),
        (404, "RepoNotFound", RefusedError, "the Hub has no user/trumpet"),
        (401, "", RefusedError, "does not know this token"),
        (403, "", RefusedError, "needs write permission"),
        (503, "", UnreachableError, "busy or down .answer 503"),
        (402, "", HubError, "answer 402.: Payment needed"),
    ],
)
def test_answers_in_words(hub, status, code, kind, message):
    headers = {"X-Error-Code": code, "X-Error-Message": "Payment needed"}
    hub.faults = [Fault("GET", times=9, status=status, headers=headers)]
    with pytest.raises(HubError, match=message) as caught:
        request_with_retries(lambda: connect_to_hub().dataset_info(NAME), NAME)
    assert type(caught.value) is kind and len(hub.pauses) == (5 if status == 503 else 0)


def test_what_is_not_the_hubs_fault_passes_through(tmp_path):
    with pytest.raises(FileNotFoundError):
        request_with_retries((tmp_path / "none").read_bytes, NAME)


@pytest.mark.parametrize("name", ["trumpet", "a b/c", "a/b/c", "-a/b", ""])
def test_repository_names(name):
    with pytest.raises(ValueError, match="is named user/name"):
        check_repo_id(name)
    assert check_repo_id(NAME) == NAME


def test_client_that_another_thread_has_closed_is_a_passing_fault(hub):
    client = get_session()
    close_session()  # as huggingface_hub does in the thread whose connection fails, though all threads share it
    sessions = iter([client, get_session()])
    request_with_retries(lambda: next(sessions).get(hub.url), NAME, wait=lambda _: None)
    assert next(sessions, None) is None
    sessions = iter([None, get_session()])  # the same, a moment earlier
    request_with_retries(lambda: next(sessions).request("GET", hub.url), NAME, wait=lambda _: None)
    with pytest.raises(AttributeError):
        request_with_retries(lambda: None.something, NAME, wait=lambda _: None)  # a mistake of our own is not


def test_file_that_was_on_its_way_does_not_end_the_trouble(data_set, stream, caplog):
    caplog.set_level(logging.INFO)
    recordings = stream()
    recordings.start()
    finish(recordings)
    asked = time.monotonic()
    recordings._warn_once("the Hub cannot be reached", asked)
    recordings._note_arrival(Path("a.pt"), asked)
    assert "answers again" not in caplog.text
    recordings._note_arrival(Path("b.pt"), time.monotonic())
    assert "answers again" in caplog.text
    recordings._warn_once("the Hub cannot be reached", asked)  # a question from before, whose answer comes late
    assert caplog.text.count("training goes on with") == 1


def test_cache_that_cannot_be_locked_is_said(data_set, stream, tmp_path, caplog):
    (tmp_path / "cache" / ".lock").mkdir(parents=True)
    recordings = stream()
    recordings.start()
    with pytest.raises(HubError, match="too few recordings"):
        recordings.wait_for(1)
    assert "cannot be locked" in caplog.text


def test_file_that_another_process_replaces_meanwhile_is_no_error(data_set, stream, tmp_path, monkeypatch):
    recordings = finish_started(stream())
    entry = recordings.cache.open_index().recordings[0]
    monkeypatch.setattr(hub_cache, "hash_file", lambda path: path.unlink() or path.read_bytes())
    assert not recordings.cache.has_file(entry)


@pytest.mark.parametrize("proxy", ["socks://127.0.0.1:1", "socks5://127.0.0.1:1"])
def test_socks_proxy_that_cannot_be_used_is_one_sentence(monkeypatch, proxy):
    monkeypatch.setenv("all_proxy", proxy)
    monkeypatch.setattr(hub_client, "find_spec", lambda _: None)
    with pytest.raises(HubError, match=proxy):
        connect_to_hub()
