"""download_data.py: interrupted downloads, hostile and damaged archives, and the takes of GuitarSet."""

import hashlib
import io
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
from faulty_server import Fault, FaultyServer, random_fault, shorten_patience
from recordings import archives, resumable_download
from recordings.resumable_download import DataError, DownloadSource, check_checksum

ROOT = Path(download_data.__file__).parent
NOWHERE = "http://127.0.0.1:1/audio.zip"
CONTENT = random.Random(0).randbytes(20_000)
TAKES = ["00_BN1-129-Eb_comp", "00_BN1-129-Eb_solo", "03_Jazz2-187-F#_comp", "03_Jazz2-187-F#_solo"]
AUDIO = {f"{take}_mic.wav": b"RIFF" + random.Random(take).randbytes(900) for take in TAKES}
SOLO = {name: data for name, data in AUDIO.items() if "solo" in name}


@pytest.fixture(autouse=True)
def short_patience(monkeypatch):
    shorten_patience(monkeypatch)


def digest(content, kind="md5"):
    return hashlib.new(kind, content).hexdigest()


def fetch(folder, url, content=CONTENT, checksum=None):
    source = DownloadSource(url, "archive", checksum or digest(content), 1.0, "By hand: --local_archive PATH.")
    resumable_download.download(source, folder / "archive", lambda part: check_checksum(part, source.checksum))
    return (folder / "archive").read_bytes()


def stop_after(n_bytes, **headers):
    """Return faults that end a run with the first bytes on the disk."""
    return [Fault(cut=n_bytes, headers=headers)] + [Fault(status=500)] * (1 + resumable_download.RETRIES)


def zip_of(files):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return packed.getvalue()


def run(server, content, folder, *flags):
    url = server.url if isinstance(server, FaultyServer) else server
    return download_data.main(["--url", url, "--md5", digest(content), "--output_dir", str(folder), *flags])


def serve(content, folder, *flags):
    with FaultyServer(content) as server:
        return run(server, content, folder, *flags)


def installed(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.wav")}


@pytest.mark.parametrize(
    "faults",
    [
        [],
        [Fault(cut=0), Fault(cut=7_000), Fault(cut=19_000)],
        [Fault(cut=7_000), Fault(ranges=False, cut=9_000), Fault(ranges=False)],
        [Fault(stall=5_000)],
        [Fault(chunked=True, cut=5_000), Fault(cut=100)],
        [Fault(claim=500)],
        [Fault(status=500), Fault(status=429), Fault(status=503), Fault(status=502)],
        [Fault(cut=5_000), Fault(shift=1)],
        [Fault(cut=5_000), Fault(headers={"Content-Range": "nonsense"})],
        [Fault(cut=5_000), Fault(status=416)],
        [Fault(cut=5_000), Fault(status=416, headers={"Content-Range": "bytes */123"})],
        [Fault(cut=5_000), Fault(cap=3_000), Fault(cap=3_000)],
        [Fault(headers={"Content-Encoding": "gzip"})] * 9,  # many servers send this with a .tar.gz
        [Fault(cut=1_000)] * 15,  # more than RETRIES, but each brings bytes
    ],
)
def test_a_download_is_complete_despite_faults(faults, tmp_path):
    with FaultyServer(CONTENT, faults) as server:
        assert fetch(tmp_path, server.url) == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["archive"]  # neither .part nor .part.tag stays


@pytest.mark.parametrize("etag", ['"first"', None])
def test_a_later_run_resumes_or_starts_over(tmp_path, monkeypatch, etag):
    """It resumes if an ETag identifies the file; bytes that are already stored count towards the free space."""
    with FaultyServer(CONTENT, stop_after(7_000), etag=etag) as server:
        with pytest.raises(DataError, match="500"):
            fetch(tmp_path, server.url)
        assert (tmp_path / "archive.part").read_bytes() == CONTENT[:7_000]
        for n_free in (32_000, 33_000) if etag else (10**9,):
            monkeypatch.setattr(shutil, "disk_usage", lambda path, n=n_free: shutil._ntuple_diskusage(10**9, 0, n))
            if n_free == 32_000:
                with pytest.raises(DataError, match=r"33\.0kB.*1\.00kB"):
                    fetch(tmp_path, server.url)
        assert fetch(tmp_path, server.url) == CONTENT
    assert "Range" not in server.requests[0]
    last = server.requests[-1]
    assert (last.get("Range"), last.get("If-Range")) == (("bytes=7000-", etag) if etag else (None, None))


@pytest.mark.parametrize("honest", [True, False])
@pytest.mark.parametrize("length", [20_000, 23_000])
def test_a_file_changed_on_the_server_is_downloaded_from_the_start(tmp_path, honest, length):
    other = random.Random(9).randbytes(length)
    with FaultyServer(CONTENT, [Fault(cut=7_000), Fault(replace=other, honest=honest)]) as server:
        assert fetch(tmp_path, server.url, other) == other


@pytest.mark.parametrize(
    "part, tag, n_requests",
    [
        (CONTENT, '"first"', 1),
        (CONTENT + b"too much", '"first"', 2),
        (b"something else", None, 1),  # nothing ties it to what the server has
        (b"something else", "", 1),
        (b"something else", "of another file", 1),
    ],
)
def test_an_existing_part_is_used_only_if_it_belongs_to_the_file(tmp_path, part, tag, n_requests):
    (tmp_path / "archive.part").write_bytes(part)
    if tag is not None:
        (tmp_path / "archive.part.tag").write_text(tag)
    with FaultyServer(CONTENT) as server:
        assert fetch(tmp_path, server.url) == CONTENT
    assert len(server.requests) == n_requests


@pytest.mark.parametrize(
    "fault", [*(Fault(status=status) for status in (401, 403, 404, 418)), Fault(headers={"Content-Type": "text/html"})]
)
def test_a_refused_download_ends_at_once_and_keeps_the_part(tmp_path, fault):
    with FaultyServer(CONTENT, [Fault(cut=7_000), fault]) as server, pytest.raises(DataError) as caught:
        fetch(tmp_path, server.url)
    assert len(server.requests) == 2 and (tmp_path / "archive.part").stat().st_size == 7_000
    assert all(word in str(caught.value) for word in (server.url, "--local_archive", str(fault.status or "web page")))


@pytest.mark.parametrize("value, pause", [("7", 7), ("soon", 0), ("7200", None), ("9" * 5_000, None)])
def test_retry_after_is_followed_up_to_a_limit(tmp_path, monkeypatch, value, pause):
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    with FaultyServer(CONTENT, [Fault(status=503, headers={"Retry-After": value})]) as server:
        if pause is None:
            with pytest.raises(DataError, match=server.url):
                fetch(tmp_path, server.url)
        else:
            assert fetch(tmp_path, server.url) == CONTENT
    assert [each for each in pauses if each] == ([pause] if pause else [])


@pytest.mark.parametrize("kind", ["md5", "sha256"])
def test_a_file_with_a_wrong_checksum_is_deleted(tmp_path, kind):
    expected = digest(CONTENT, kind)
    with FaultyServer(CONTENT, [Fault(replace=CONTENT[:-1] + b"?")]) as server:
        with pytest.raises(DataError, match=expected):
            fetch(tmp_path, server.url, checksum=expected)
        assert not (tmp_path / "archive").exists() and not (tmp_path / "archive.part").exists()
        server.content = CONTENT
        assert fetch(tmp_path, server.url, checksum=expected) == CONTENT


def special(name, mode):
    member = zipfile.ZipInfo(name)
    member.create_system, member.external_attr = 3, mode << 16
    return member


@pytest.mark.parametrize(
    "name, reason",
    [
        ("../00_BN1-129-Eb_solo_mic.wav", "path"),
        ("a/../../00_BN1-129-Eb_solo_mic.wav", "path"),
        ("/tmp/00_BN1-129-Eb_solo_mic.wav", "path"),
        ("C:\\00_BN1-129-Eb_solo_mic.wav", "path"),
        (special("00_BN1-129-Eb_solo_mic.wav", stat.S_IFLNK | 0o777), "link"),
        (special("unwanted", stat.S_IFCHR), "device"),
        (special("unwanted/", stat.S_IFIFO), "device"),
        ("unwanted.bin", "times its size"),
        ("a/03_Jazz2-187-F#_solo_mic.wav", ""),  # twice the same take
    ],
)
def test_hostile_archive_members_are_refused(tmp_path, monkeypatch, caplog, name, reason):
    monkeypatch.setattr(archives, "MIN_UNPACKED_BYTES", 10**5)
    data = bytes(10**6) if name == "unwanted.bin" else b"/etc/passwd"
    content = zip_of({"03_Jazz2-187-F#_solo_mic.wav": b"notes", name: data})
    assert serve(content, tmp_path / "out") == 1
    file_name = Path(getattr(name, "filename", name).replace("\\", "/")).name
    assert file_name in caplog.text and reason in caplog.text
    assert not list(tmp_path.rglob("*.wav"))


def test_random_damage_to_an_archive_is_reported(tmp_path, caplog):
    intact = zip_of(SOLO)
    for seed in range(20):
        rng, content, folder = random.Random(seed), bytearray(intact), tmp_path / str(seed)
        for _ in range(3):
            content[rng.randrange(len(content))] = rng.randrange(256)
        (tmp_path / "mine.zip").write_bytes(content)
        flags = ["--local_archive", str(tmp_path / "mine.zip"), "--md5", digest(content), "--output_dir", str(folder)]
        caplog.clear()
        assert download_data.main(flags) == 0 or "mine.zip" in caplog.text, f"seed {seed}"
        assert all(data == SOLO[name] for name, data in installed(folder).items()), f"seed {seed}"


@pytest.mark.parametrize(
    ("url", "proxy"),
    [
        *((url, "") for url in (NOWHERE, "nonsense", "ftp://127.0.0.1/x", "http://[/", "http://127.0.0.1:99999/")),
        *(("http://archive.invalid/x", f"{kind}://127.0.0.1:1") for kind in ("socks", "http")),
    ],
)
def test_unreachable_addresses_and_unusable_proxies_are_named(tmp_path, monkeypatch, url, proxy):
    monkeypatch.setenv("all_proxy", proxy)
    with pytest.raises(DataError) as caught:
        fetch(tmp_path, url)
    assert ("archive.invalid" if proxy else url) in str(caught.value)
    assert ("proxy" if proxy else "--local_archive") in str(caught.value).replace("Proxy", "proxy")


@pytest.mark.parametrize("takes", ["solo", "comp", "all"])
def test_selected_takes_are_installed(tmp_path, takes):
    content = zip_of({f"a_folder/{name}": data for name, data in AUDIO.items()})
    assert serve(content, tmp_path, "--takes", takes) == 0
    assert installed(tmp_path) == {name: data for name, data in AUDIO.items() if takes in (name.split("_")[2], "all")}
    assert not (tmp_path / "audio_mono-mic.zip").exists()


def test_annotations_are_installed(tmp_path):
    audio, jams = zip_of(AUDIO), zip_of({f"{take}.jams": b"{}" for take in TAKES})
    with FaultyServer(audio) as server, FaultyServer(jams) as other:
        flags = ("--annotations", "--annotations_url", other.url, "--annotations_md5", digest(jams))
        assert run(server, audio, tmp_path, *flags) == 0
    found = sorted(path.name for path in (tmp_path / "annotation").iterdir())
    assert found == ["00_BN1-129-Eb_solo.jams", "03_Jazz2-187-F#_solo.jams"]


@pytest.mark.parametrize("shortened", [b"", b"shortened", None, "marker"])
def test_a_second_call_downloads_only_if_a_file_is_missing_or_changed(tmp_path, shortened):
    content, take = zip_of(AUDIO), tmp_path / "00_BN1-129-Eb_solo_mic.wav"
    with FaultyServer(content) as server:
        assert run(server, content, tmp_path) == 0
        assert run(NOWHERE, content, tmp_path) == 0
        if shortened == "marker":
            (tmp_path / ".solo.done.json").write_text('{"files": {}}')
        else:
            take.unlink() if shortened is None else take.write_bytes(shortened)
        assert run(server, content, tmp_path) == 0
    assert len(server.requests) == 2 and installed(tmp_path) == SOLO


def test_a_local_archive_is_checked_and_kept(tmp_path, caplog):
    mine = tmp_path / "mine.zip"
    mine.write_bytes(zip_of(AUDIO))
    flags = ["--local_archive", str(mine), "--output_dir", str(tmp_path / "out")]
    assert download_data.main(flags) == 1  # not the md5 of GuitarSet
    assert "mine.zip" in caplog.text and not installed(tmp_path / "out")
    assert download_data.main([*flags[2:], "--local_archive", str(tmp_path / "none.zip")]) == 1
    assert "none.zip" in caplog.messages[-1]
    empty = zip_of({"README.txt": b"hello"})
    assert serve(empty, tmp_path / "out") == 1 and "audio_mono-mic.zip" in caplog.messages[-1]
    assert download_data.main([*flags, "--md5", digest(mine.read_bytes(), "sha256").upper()]) == 0
    assert installed(tmp_path / "out") == SOLO and mine.exists()


@pytest.mark.parametrize("function", ["write_member", "write_text"])  # while unpacking; when the files are in place
def test_an_interrupted_installation_leaves_no_incomplete_file(tmp_path, monkeypatch, function):
    content = zip_of(AUDIO)
    (tmp_path / "audio_mono-mic.zip").write_bytes(content)  # downloaded already
    (tmp_path / ".unpacking" / "solo").mkdir(parents=True)
    (tmp_path / ".unpacking" / "solo" / "00_BN1-129-Eb_solo_mic.wav").write_bytes(b"left by a killed run")

    def crash(stream, target):
        if function == "write_member":
            target.parent.mkdir(parents=True)
            target.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(archives, function, crash)
        assert run(NOWHERE, content, tmp_path) == 130
    assert installed(tmp_path) == ({} if function == "write_member" else SOLO)
    assert not (tmp_path / ".unpacking").exists()
    assert run(NOWHERE, content, tmp_path) == 0
    assert installed(tmp_path) == SOLO


def test_ctrl_c_keeps_the_part_and_the_next_run_resumes(tmp_path):
    content = zip_of({"00_BN1-129-Eb_solo_mic.wav": CONTENT})
    command = [sys.executable, ROOT / "download_data.py", "--md5", digest(content), "--output_dir", tmp_path, "--url"]
    with FaultyServer(content, [Fault(stall=9_000)]) as server:
        # The children of a shell's background jobs ignore Ctrl-C.
        restore = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
        child = subprocess.Popen([*command, server.url], stderr=subprocess.PIPE, text=True, **restore)
        part = tmp_path / "audio_mono-mic.zip.part"
        for _ in range(1200):
            if (part.exists() and part.stat().st_size) or child.poll() is not None:
                break
            time.sleep(0.05)
        child.send_signal(signal.SIGINT)
        _, message = child.communicate(timeout=60)
        assert child.returncode == 130 and "Traceback" not in message
        assert part.stat().st_size == 9_000
        assert run(server, content, tmp_path) == 0
    assert server.requests[-1]["Range"] == "bytes=9000-"
    assert installed(tmp_path) == {"00_BN1-129-Eb_solo_mic.wav": CONTENT}


@pytest.mark.parametrize("seed", range(50))
def test_random_faults_end_in_the_right_files_or_an_error(tmp_path, monkeypatch, seed):
    """After any faults, the next run without faults completes the installation."""
    solo = {"00_BN1-129-Eb_solo_mic.wav": CONTENT[:6_000]}
    content, rng = zip_of(solo | {"00_BN1-129-Eb_comp_mic.wav": b"chords"}), random.Random(seed)
    faults = [random_fault(rng, len(content)) for _ in range(rng.randrange(1, 8))]
    with FaultyServer(content, faults) as server:
        with monkeypatch.context() as patch:
            shorten_patience(patch, silence=0.08)  # it does not matter if a busy machine causes a timeout
            code = run(server, content, tmp_path)
        assert code in (0, 1) and installed(tmp_path) == ({} if code else solo)
        server.faults.clear()
        assert run(server, content, tmp_path) == 0
    assert installed(tmp_path) == solo
