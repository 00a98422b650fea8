import dataclasses
import email.utils
import hashlib
import io
import json
import logging
import random
import shutil
import signal
import stat
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

import download_data
from faulty_server import Fault, FaultyServer, random_fault
from recordings import archives
from recordings.resumable_download import ArchiveSource, DataError, RetryPolicy

ROOT = Path(download_data.__file__).parent
FAST = RetryPolicy(retries=4, retries_offline=1, backoff=0.0, timeout=(5.0, 0.5))
RASH = dataclasses.replace(FAST, timeout=(5.0, 0.08))  # where it does not matter if a busy machine is taken for a fault
CONTENT = random.Random(0).randbytes(20_000)
TAKES = ["00_BN1-129-Eb_comp", "00_BN1-129-Eb_solo", "03_Jazz2-187-F#_comp", "03_Jazz2-187-F#_solo"]


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    """No back-off; and no address but that of the test's own server, and no proxy."""
    monkeypatch.setattr(archives, "RETRY_POLICY", FAST)
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def source(url, content=CONTENT, ratio=1.0):
    return ArchiveSource(url, "archive", hashlib.md5(content).hexdigest(), ratio, "By hand: --local_archive PATH.")


def obtain(folder, server, content=CONTENT):
    return archives.download_archive(source(server.url, content), folder).read_bytes()


def audio_files():
    rng = random.Random(1)
    return {f"{take}_mic.wav": b"RIFF" + rng.randbytes(900) for take in TAKES}


def zip_of(files):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return packed.getvalue()


def md5(content):
    return hashlib.md5(content).hexdigest()


def run(server, content, folder, *flags):
    url = server.url if isinstance(server, FaultyServer) else server
    return download_data.main(["--url", url, "--md5", md5(content), "--output_dir", str(folder), *flags])


def wav_names(folder):
    return sorted(path.name for path in folder.glob("*.wav"))


# --- one file over HTTP ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "faults",
    [
        [],
        [Fault(cut=0), Fault(cut=7_000), Fault(cut=19_000)],
        [Fault(cut=7_000), Fault(ranges=False, cut=9_000), Fault(ranges=False)],
        [Fault(stall=5_000)],
        [Fault(chunked=True)],
        [Fault(chunked=True, cut=5_000), Fault(cut=100)],
        [Fault(claim=500)],
        [Fault(cut=5_000, claim=500)],
        [Fault(status=500), Fault(status=429), Fault(status=503), Fault(status=502)],
        [Fault(cut=5_000), Fault(shift=1)],
        [Fault(cut=5_000), Fault(shift=-1)],
        [Fault(cut=5_000), Fault(headers={"Content-Range": "nonsense"})],
        [Fault(cut=5_000), Fault(status=416)],
        [Fault(cut=5_000), Fault(status=416, headers={"Content-Range": "bytes */123"})],
        [Fault(cut=5_000), Fault(cap=3_000), Fault(cap=3_000)],
        [Fault(headers={"Content-Encoding": "gzip"})] * 9,  # said of a .tar.gz by many servers, and not to be undone
    ],
)
def test_right_bytes_in_spite_of(faults, tmp_path):
    with FaultyServer(CONTENT, faults) as server:
        assert obtain(tmp_path, server) == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["archive"]  # neither .part nor notes stay


def test_a_cut_connection_resumes_where_it_broke(tmp_path):
    with FaultyServer(CONTENT, [Fault(cut=7_000)]) as server:
        obtain(tmp_path, server)
    assert "Range" not in server.requests[0]
    assert server.requests[1]["Range"] == "bytes=7000-"
    assert server.requests[1]["If-Range"] == '"first"'


def test_a_later_run_resumes(tmp_path):
    with FaultyServer(CONTENT, [Fault(cut=7_000)] + [Fault(status=500)] * 5) as server:
        with pytest.raises(DataError, match="HTTP 500"):
            obtain(tmp_path, server)
        assert (tmp_path / "archive.part").stat().st_size == 7_000
        assert obtain(tmp_path, server) == CONTENT
    assert server.requests[-1]["Range"] == "bytes=7000-"


@pytest.mark.parametrize("honest", [True, False])
@pytest.mark.parametrize("length", [20_000, 23_000])
def test_a_file_that_changed_on_the_server_starts_over(tmp_path, honest, length):
    other = random.Random(9).randbytes(length)
    with FaultyServer(CONTENT, [Fault(cut=7_000), Fault(replace=other, honest=honest)]) as server:
        assert obtain(tmp_path, server, other) == other


def test_weak_etags_are_not_used_but_the_date_is(tmp_path):
    date = {"ETag": 'W/"1"', "Last-Modified": "Mon, 26 Aug 2019 10:00:00 GMT"}
    with FaultyServer(CONTENT, [Fault(cut=7_000, headers=date), Fault(headers=date, honest=False)]) as server:
        assert obtain(tmp_path, server) == CONTENT
    assert server.requests[1]["If-Range"] == date["Last-Modified"]
    assert len(server.requests) == 2


def test_without_any_validator_a_later_run_starts_over(tmp_path):
    with FaultyServer(CONTENT, [Fault(cut=7_000)] + [Fault(status=500)] * 5, etag=None) as server:
        with pytest.raises(DataError):
            obtain(tmp_path, server)
        assert obtain(tmp_path, server) == CONTENT
    assert "Range" not in server.requests[-1]


@pytest.mark.parametrize("extra", [b"", b"too much"])
def test_a_part_that_is_complete_or_too_long(tmp_path, extra):
    (tmp_path / "archive.part").write_bytes(CONTENT + extra)
    (tmp_path / "archive.part.json").write_text(json.dumps({"validator": '"first"', "total": None}))
    with FaultyServer(CONTENT) as server:
        assert obtain(tmp_path, server) == CONTENT
    assert len(server.requests) == (2 if extra else 1)  # 416 says that all is there, or that this is another file


@pytest.mark.parametrize("notes", ["", "[]", '{"validator": "x", "total": "y"}', '{"validator": 3}'])
def test_notes_that_are_none(tmp_path, notes):
    (tmp_path / "archive.part").write_bytes(b"something else")
    (tmp_path / "archive.part.json").write_text(notes)
    with FaultyServer(CONTENT) as server:
        assert obtain(tmp_path, server) == CONTENT


def test_a_part_that_is_known_to_be_complete_needs_no_server(tmp_path):
    (tmp_path / "archive.part").write_bytes(CONTENT)
    (tmp_path / "archive.part.json").write_text(json.dumps({"validator": '"first"', "total": len(CONTENT)}))
    assert archives.download_archive(source("http://127.0.0.1:1/"), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("status, words", [(401, "refused"), (403, "refused"), (404, "no such file"), (418, "418")])
def test_what_is_not_tried_again(tmp_path, status, words):
    with FaultyServer(CONTENT, [Fault(status=status)]) as server, pytest.raises(DataError, match=words) as caught:
        obtain(tmp_path, server)
    assert len(server.requests) == 1
    assert server.url in str(caught.value) and "--local_archive" in str(caught.value)


def test_a_web_page_instead_of_the_archive(tmp_path):
    page = Fault(headers={"Content-Type": "text/html; charset=utf-8"})
    with FaultyServer(CONTENT, [Fault(cut=7_000), page]) as server, pytest.raises(DataError, match="web page"):
        obtain(tmp_path, server)
    assert (tmp_path / "archive.part").read_bytes() == CONTENT[:7_000]


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_obeyed(tmp_path, monkeypatch, form):
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    value = "7" if form == "seconds" else email.utils.formatdate(time.time() + 8, usegmt=True)
    with FaultyServer(CONTENT, [Fault(status=429, headers={"Retry-After": value})]) as server:
        obtain(tmp_path, server)
    assert len(pauses) == 1 and 6 <= pauses[0] <= 8


def test_a_retry_after_of_hours_ends_the_run(tmp_path):
    long = Fault(status=503, headers={"Retry-After": "7200"})
    with FaultyServer(CONTENT, [long]) as server, pytest.raises(DataError, match="7200 s"):
        obtain(tmp_path, server)


def test_back_off_doubles(tmp_path, monkeypatch):
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    monkeypatch.setattr(archives, "RETRY_POLICY", RetryPolicy(retries=4, backoff=1.0))
    with FaultyServer(CONTENT, [Fault(status=500)] * 9) as server, pytest.raises(DataError, match="5 times in a row"):
        obtain(tmp_path, server)
    assert pauses == [1.0, 2.0, 4.0, 8.0]


def test_progress_renews_the_patience(tmp_path):
    faults = [Fault(cut=1_000) for _ in range(15)]  # more than `retries`, but each brings bytes
    with FaultyServer(CONTENT, faults) as server:
        assert obtain(tmp_path, server) == CONTENT


def test_a_server_that_always_stops_at_the_same_byte(tmp_path):
    faults = [Fault(cut=1_000, ranges=False) for _ in range(15)]
    with FaultyServer(CONTENT, faults) as server, pytest.raises(DataError, match="connection broke"):
        obtain(tmp_path, server)
    assert len(server.requests) == 1 + FAST.retries


def test_a_server_that_sends_empty_ranges(tmp_path):
    faults = [Fault(cut=1_000)] + [Fault(cap=0)] * 15
    with FaultyServer(CONTENT, faults) as server, pytest.raises(DataError, match="stopped after 1000 of 20000 bytes"):
        obtain(tmp_path, server)


def test_a_wrong_md5_is_deleted_and_said(tmp_path):
    with FaultyServer(CONTENT[:-1] + b"?") as server, pytest.raises(DataError, match=r"md5.*deleted"):
        obtain(tmp_path, server)
    assert not list(tmp_path.glob("archive*[!n]"))


def test_a_short_content_length_is_found_by_the_md5(tmp_path):
    with FaultyServer(CONTENT, [Fault(claim=-100)]) as server:
        with pytest.raises(DataError, match=r"md5.*deleted"):
            obtain(tmp_path, server)
        assert obtain(tmp_path, server) == CONTENT


def test_offline_is_one_sentence_with_the_url_and_the_way_out(tmp_path):
    url = "http://127.0.0.1:1/audio.zip"
    with pytest.raises(DataError, match="no connection") as caught:
        archives.download_archive(source(url), tmp_path)
    assert url in str(caught.value) and "--local_archive" in str(caught.value)
    assert "2 times in a row" in str(caught.value)  # not the patience that a server gets which once answered


@pytest.mark.parametrize("url", ["nonsense", "ftp://127.0.0.1/x", "http://[/"])
def test_what_is_no_url(tmp_path, url):
    with pytest.raises(DataError, match="cannot be asked for"):
        archives.download_archive(source(url), tmp_path)


def test_free_space_is_asked_for_before_a_byte_is_stored(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 0, 15_000))
    with FaultyServer(CONTENT) as server, pytest.raises(DataError, match=r"40\.0kB.*25\.0kB are missing"):
        obtain(tmp_path, server)
    assert (tmp_path / "archive.part").stat().st_size == 0


def test_free_space_counts_what_is_there_already(tmp_path, monkeypatch):
    with FaultyServer(CONTENT, [Fault(cut=7_000)] + [Fault(status=500)] * 5) as server:
        with pytest.raises(DataError):
            obtain(tmp_path, server)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 0, 33_000))
        assert obtain(tmp_path, server) == CONTENT


def test_a_proxy_of_the_environment_is_used(tmp_path, monkeypatch):
    with FaultyServer(CONTENT) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        assert archives.download_archive(source("http://archive.invalid/x"), tmp_path).read_bytes() == CONTENT


# --- archives -------------------------------------------------------------------------------------


def special(name, mode):
    member = zipfile.ZipInfo(name)
    member.create_system, member.external_attr = 3, mode << 16
    return member


@pytest.mark.parametrize(
    "name, reason",
    [
        ("../00_BN1-129-Eb_solo_mic.wav", "out of the folder"),
        ("a/../../00_BN1-129-Eb_solo_mic.wav", "out of the folder"),
        ("..\\00_BN1-129-Eb_solo_mic.wav", "out of the folder"),
        ("/tmp/00_BN1-129-Eb_solo_mic.wav", "absolute"),
        ("C:\\00_BN1-129-Eb_solo_mic.wav", "absolute"),
        ("unwanted\nfile.txt", "control characters"),
        (special("00_BN1-129-Eb_solo_mic.wav", stat.S_IFLNK | 0o777), "link or a device"),
        (special("unwanted", stat.S_IFCHR), "link or a device"),
        (special("unwanted/", stat.S_IFIFO), "link or a device"),
    ],
)
def test_hostile_members_are_refused_by_name(tmp_path, caplog, name, reason):
    content = zip_of({"00_BN1-129-Eb_comp_mic.wav": b"chords"} | {name: b"/etc/passwd"})
    with FaultyServer(content) as server:
        assert run(server, content, tmp_path / "out") == 1
    text = name.filename if isinstance(name, zipfile.ZipInfo) else name
    assert repr(text) in caplog.text and reason in caplog.text
    assert not wav_names(tmp_path / "out") and not list(tmp_path.glob("*.wav"))


def test_members_whose_names_differ_in_case_are_refused(tmp_path, caplog):
    content = zip_of({"00_BN1-129-Eb_solo_mic.wav": b"1", "00_bn1-129-eb_SOLO_mic.wav": b"2"})
    with FaultyServer(content) as server:
        assert run(server, content, tmp_path) == 1
    assert "'00_bn1-129-eb_SOLO_mic.wav'" in caplog.text and "case" in caplog.text


def test_two_folders_with_the_same_take_are_refused(tmp_path, caplog):
    content = zip_of({"a/00_BN1-129-Eb_solo_mic.wav": b"1", "b/00_BN1-129-Eb_solo_mic.wav": b"2"})
    with FaultyServer(content) as server:
        assert run(server, content, tmp_path) == 1
    assert "two files of this name" in caplog.text


def test_a_zip_bomb_is_refused_before_anything_is_written(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(archives, "MIN_UNPACKED_BYTES", 10**5)
    content = zip_of(audio_files() | {"unwanted.bin": bytes(10**6)})
    with FaultyServer(content) as server:
        assert run(server, content, tmp_path) == 1
    assert "'unwanted.bin'" in caplog.text and "bomb" in caplog.text


def test_a_member_that_lies_about_its_size(tmp_path):
    with pytest.raises(DataError, match="more than the 9 bytes"):
        archives.write_member(io.BytesIO(b"0123456789"), tmp_path / "x", 9)
    with pytest.raises(DataError, match="after 10 of 11 bytes"):
        archives.write_member(io.BytesIO(b"0123456789"), tmp_path / "y", 11)


def test_a_damaged_archive_is_deleted_and_said(tmp_path, caplog):
    content = bytearray(zip_of({"00_BN1-129-Eb_solo_mic.wav": CONTENT}))
    content[200] ^= 255
    with FaultyServer(bytes(content)) as server:
        assert run(server, content, tmp_path) == 1
    assert "cannot be unpacked" in caplog.text and "deleted" in caplog.text
    assert not (tmp_path / "audio_mono-mic.zip").exists() and not wav_names(tmp_path)


# --- GuitarSet ------------------------------------------------------------------------------------


@pytest.mark.parametrize("takes, count", [("solo", 2), ("comp", 2), ("all", 4)])
def test_takes(tmp_path, takes, count):
    content = zip_of(audio_files())
    with FaultyServer(content) as server:
        assert run(server, content, tmp_path, "--takes", takes) == 0
    expected = {name: data for name, data in audio_files().items() if takes in (name.split("_")[2], "all")}
    assert len(expected) == count
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.wav")} == expected
    assert not (tmp_path / "audio_mono-mic.zip").exists()


def test_the_default_is_solo_and_says_why(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    content = zip_of({f"a_folder/{name}": data for name, data in audio_files().items()})
    with FaultyServer(content) as server:
        assert run(server, content, tmp_path) == 0
    assert wav_names(tmp_path) == ["00_BN1-129-Eb_solo_mic.wav", "03_Jazz2-187-F#_solo_mic.wav"]
    assert "no single pitch" in caplog.text


def test_annotations(tmp_path):
    audio, jams = zip_of(audio_files()), zip_of({f"{take}.jams": b"{}" for take in TAKES})
    with FaultyServer(audio) as server, FaultyServer(jams) as other:
        flags = ("--annotations", "--annotations_url", other.url, "--annotations_md5", md5(jams))
        assert run(server, audio, tmp_path, *flags) == 0
    found = sorted(path.name for path in (tmp_path / "annotation").iterdir())
    assert found == ["00_BN1-129-Eb_solo.jams", "03_Jazz2-187-F#_solo.jams"]


def test_a_second_call_returns_at_once_and_a_lost_file_is_noticed(tmp_path):
    content = zip_of(audio_files())
    with FaultyServer(content) as server:
        assert run(server, content, tmp_path) == 0
        assert run("http://127.0.0.1:1/", content, tmp_path) == 0
        assert len(server.requests) == 1
        (tmp_path / "00_BN1-129-Eb_solo_mic.wav").unlink()
        assert run(server, content, tmp_path) == 0
    expected = {name: data for name, data in audio_files().items() if "solo" in name}
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.wav")} == expected


def test_a_shortened_file_is_noticed(tmp_path):
    content = zip_of(audio_files())
    with FaultyServer(content) as server:
        assert run(server, content, tmp_path) == 0
        (tmp_path / "03_Jazz2-187-F#_solo_mic.wav").write_bytes(b"shortened")
        assert run(server, content, tmp_path) == 0
    assert (tmp_path / "03_Jazz2-187-F#_solo_mic.wav").read_bytes() == audio_files()["03_Jazz2-187-F#_solo_mic.wav"]


@pytest.mark.parametrize("text", ["", "[]", '{"files": 3}', '{"files": null}'])
def test_a_marker_that_is_no_marker(tmp_path, text):
    (tmp_path / ".solo.done.json").write_text(text)
    content = zip_of(audio_files())
    with FaultyServer(content) as server:
        assert run(server, content, tmp_path) == 0
    assert len(wav_names(tmp_path)) == 2


def test_keep_archive_serves_the_next_call(tmp_path):
    content = zip_of(audio_files())
    with FaultyServer(content) as server:
        assert run(server, content, tmp_path, "--keep_archive") == 0
    assert run("http://127.0.0.1:1/", content, tmp_path, "--takes", "all", "--keep_archive") == 0
    assert len(wav_names(tmp_path)) == 4


def test_local_archive_is_checked_used_and_left_alone(tmp_path, caplog):
    mine = tmp_path / "mine.zip"
    mine.write_bytes(zip_of(audio_files()))
    flags = ["--local_archive", str(mine), "--output_dir", str(tmp_path / "out")]
    assert download_data.main(flags) == 1  # not the md5 of GuitarSet
    assert "md5" in caplog.text and mine.exists() and not wav_names(tmp_path / "out")
    assert download_data.main([*flags, "--md5", md5(mine.read_bytes())]) == 0
    assert len(wav_names(tmp_path / "out")) == 2 and mine.exists()


def test_an_archive_without_takes_or_a_missing_one(tmp_path, caplog):
    content = zip_of({"README.txt": b"hello"})
    with FaultyServer(content) as server:
        assert run(server, content, tmp_path) == 1
    assert "holds no solo files" in caplog.text
    assert download_data.main(["--local_archive", str(tmp_path / "none.zip"), "--output_dir", str(tmp_path)]) == 1
    assert "none.zip does not exist" in caplog.text


def test_too_small_a_disk_for_unpacking(tmp_path, monkeypatch, caplog):
    mine = tmp_path / "mine.zip"
    mine.write_bytes(zip_of({"00_BN1-129-Eb_solo_mic.wav": bytes(10_000)}))  # far smaller when packed
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 0, 1_000))
    flags = ["--local_archive", str(mine), "--md5", md5(mine.read_bytes()), "--output_dir", str(tmp_path / "out")]
    assert download_data.main(flags) == 1
    assert "9.00kB are missing" in caplog.text and mine.exists()


@pytest.mark.parametrize("function", ["write_member", "write_json"])  # while unpacking; when the files are in place
def test_a_crash_while_installing_leaves_no_half_file(tmp_path, monkeypatch, function):
    content, calls = zip_of(audio_files()), []
    (tmp_path / "audio_mono-mic.zip").write_bytes(content)  # downloaded already

    def crash(*arguments):
        calls.append(arguments)
        if function == "write_json" or len(calls) == 2:
            if function == "write_member":
                arguments[1].write_bytes(b"half")
            raise KeyboardInterrupt
        write_member(*arguments)

    write_member = archives.write_member
    with monkeypatch.context() as patch:
        patch.setattr(archives, function, crash)
        assert run("http://127.0.0.1:1/", content, tmp_path) == 130
    files = audio_files()
    assert all(path.read_bytes() == files[path.name] for path in tmp_path.glob("*.wav"))
    assert not (tmp_path / ".unpacking").exists()
    assert run("http://127.0.0.1:1/", content, tmp_path) == 0
    assert wav_names(tmp_path) == ["00_BN1-129-Eb_solo_mic.wav", "03_Jazz2-187-F#_solo_mic.wav"]


def test_what_a_killed_run_left_is_thrown_away(tmp_path):
    (tmp_path / ".unpacking" / "solo").mkdir(parents=True)
    (tmp_path / ".unpacking" / "solo" / "00_BN1-129-Eb_solo_mic.wav").write_bytes(b"half")
    content = zip_of(audio_files())
    with FaultyServer(content) as server:
        assert run(server, content, tmp_path) == 0
    assert (tmp_path / "00_BN1-129-Eb_solo_mic.wav").read_bytes() == audio_files()["00_BN1-129-Eb_solo_mic.wav"]


def test_ctrl_c_keeps_the_part_and_the_next_run_resumes(tmp_path):
    content = zip_of({"00_BN1-129-Eb_solo_mic.wav": CONTENT})
    command = [sys.executable, ROOT / "download_data.py", "--md5", md5(content), "--output_dir", tmp_path, "--url"]
    with FaultyServer(content, [Fault(stall=9_000)]) as server:
        # A shell's background jobs, and so their children, ignore Ctrl-C.
        hears = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
        child = subprocess.Popen([*command, server.url], stderr=subprocess.PIPE, text=True, **hears)
        part = tmp_path / "audio_mono-mic.zip.part"
        for _ in range(1200):
            if (part.exists() and part.stat().st_size) or child.poll() is not None:
                break
            time.sleep(0.05)
        child.send_signal(signal.SIGINT)
        _, words = child.communicate(timeout=60)
        assert child.returncode == 130
        assert "resumes" in words and "Traceback" not in words
        assert 0 < part.stat().st_size <= 9_000
        assert run(server, content, tmp_path) == 0
    assert server.requests[-1]["Range"] == "bytes=9000-"
    assert wav_names(tmp_path) == ["00_BN1-129-Eb_solo_mic.wav"]


def test_the_command_line_says_one_sentence_and_no_traceback(tmp_path):
    command = [sys.executable, ROOT / "download_data.py", "--url", "nonsense", "--output_dir", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "Traceback" not in done.stderr and not done.stdout
    assert len([line for line in done.stderr.splitlines() if line.startswith("Error: ")]) == 1


@pytest.mark.parametrize("flags", [["--md5", "123"], ["--takes", "duet"]])
def test_flags_that_are_wrong(flags):
    with pytest.raises(SystemExit, match="2"):
        download_data.parse_args(flags)


def test_a_hundred_runs_with_random_faults(tmp_path, monkeypatch):
    """Right bytes or a clear error, never anything between; and whatever happened, the next clean run finishes."""
    content = zip_of({"00_BN1-129-Eb_solo_mic.wav": CONTENT[:6_000], "00_BN1-129-Eb_comp_mic.wav": b"chords"})
    codes = []
    for seed in range(100):
        rng, folder = random.Random(seed), tmp_path / str(seed)
        faults = [random_fault(rng, len(content)) for _ in range(rng.randrange(1, 8))]
        with FaultyServer(content, faults) as server:
            with monkeypatch.context() as patch:
                patch.setattr(archives, "RETRY_POLICY", RASH)
                codes.append(run(server, content, folder))
            assert wav_names(folder) == (["00_BN1-129-Eb_solo_mic.wav"] if codes[-1] == 0 else []), f"seed {seed}"
            server.faults.clear()
            assert run(server, content, folder) == 0, f"seed {seed}"
        assert (folder / "00_BN1-129-Eb_solo_mic.wav").read_bytes() == CONTENT[:6_000], f"seed {seed}"
    assert set(codes) == {0, 1}  # the faults are neither all harmless nor all fatal
    print(f"{codes.count(0)} of 100 runs got the right bytes at once, {codes.count(1)} ended in a clear error")
