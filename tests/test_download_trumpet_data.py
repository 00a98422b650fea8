import dataclasses
import gzip
import hashlib
import io
import json
import logging
import random
import shutil
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

import pytest

import download_trumpet_data
from faulty_server import Fault, FaultyServer, random_fault
from recordings import archives
from recordings.resumable_download import RetryPolicy

ROOT = Path(download_trumpet_data.__file__).parent
NOWHERE = "http://127.0.0.1:1/"
PIECES = ["05_Entertainer_tpt_tpt", "06_Entertainer_sax_sax", "11_Maria_ob_vc", "15_Surprise_tpt_tpt_tbn"]
TRUMPETS = [
    "AuSep_1_tpt_05_Entertainer.wav",
    "AuSep_1_tpt_15_Surprise.wav",
    "AuSep_2_tpt_05_Entertainer.wav",
    "AuSep_2_tpt_15_Surprise.wav",
]

FAST = RetryPolicy(retries=4, retries_offline=1, backoff=0.0, timeout=(5.0, 0.5))
RASH = dataclasses.replace(FAST, timeout=(5.0, 0.08))  # where it does not matter if a busy machine is taken for a fault


@pytest.fixture(autouse=True)
def loopback_only(monkeypatch):
    monkeypatch.setattr(archives, "RETRY_POLICY", FAST)
    monkeypatch.setattr(download_trumpet_data, "URL", NOWHERE)
    monkeypatch.setattr(download_trumpet_data, "FACTS_URL", NOWHERE)
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def urmp_files(size=300):
    """A small URMP with the names and the nesting of the real one, piece 15 with its misnamed third track included."""
    rng, files = random.Random(2), {"Dataset/Supplementary_Files/README.txt": b"URMP"}
    for folder in PIECES:
        number, piece, *codes = folder.split("_")
        base = f"Dataset/{folder}"
        for track, code in enumerate(codes, 1):
            written = "tpt" if (number, track) == ("15", 3) else code
            name = f"{track}_{written}_{number}_{piece}"
            files[f"{base}/AuSep_{name}.wav"] = b"RIFF" + rng.randbytes(size)
            files[f"{base}/F0s_{name}.txt"] = b"0.000\t440.0\n"
            files[f"{base}/Notes_{name}.txt"] = b"0.0\t440.0\t1.0\n"
            files[f"{base}/._AuSep_{name}.wav"] = b"left by a Mac"
        files[f"{base}/AuMix_{folder}.wav"] = rng.randbytes(size)
        files[f"{base}/Sco_{folder}.mid"] = b"MThd"
        files[f"{base}/Vid_{folder}.mp4"] = rng.randbytes(4 * size)
    return files


def plain(name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    return member, io.BytesIO(content)


def tar_of(files, *members, mode="w:gz", **flags):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode, **flags) as archive:
        for folder in PIECES:
            directory = tarfile.TarInfo(f"Dataset/{folder}")
            directory.type = tarfile.DIRTYPE
            archive.addfile(directory)
        for member, content in [plain(*item) for item in files.items()] + list(members):
            archive.addfile(member, content)
    return packed.getvalue()


def run(server, folder, *flags):
    url = server.url if isinstance(server, FaultyServer) else server
    return download_trumpet_data.main(["--url", url, "--output_dir", str(folder), *flags])


def names(folder, pattern="*.wav"):
    return sorted(path.name for path in folder.glob(pattern))


def installed(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*_only/*")}


def test_trumpet_is_the_default_and_the_misnamed_trombone_stays_out(tmp_path):
    with FaultyServer(tar_of(urmp_files())) as server:
        assert run(server, tmp_path) == 0
    by_name = {Path(name).name: content for name, content in urmp_files().items()}
    wanted = TRUMPETS + [name.replace("AuSep", "F0s").replace(".wav", ".txt") for name in TRUMPETS]
    assert installed(tmp_path) == {name: by_name[name] for name in wanted}
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["trumpet_only"]


def test_instruments(tmp_path):
    with FaultyServer(tar_of(urmp_files())) as server:
        assert run(server, tmp_path, "--instruments", "sax, oboe") == 0
    assert names(tmp_path / "saxophone_only") == ["AuSep_1_sax_06_Entertainer.wav", "AuSep_2_sax_06_Entertainer.wav"]
    assert names(tmp_path / "oboe_only") == ["AuSep_1_ob_11_Maria.wav"]
    assert not (tmp_path / "trumpet_only").exists()


def test_all_instruments_and_their_spelling():
    parse = download_trumpet_data.instruments_text
    assert len(parse("all")) == 13
    assert parse("tpt,trumpet,vc") == ("trumpet", "cello")
    for wrong in ("trumpets", "", "trumpet,", "kazoo"):
        with pytest.raises(SystemExit):
            download_trumpet_data.parse_args(["--instruments", wrong])


def test_an_instrument_that_the_archive_does_not_hold(tmp_path, caplog):
    with FaultyServer(tar_of(urmp_files())) as server:
        assert run(server, tmp_path, "--instruments", "tuba") == 1
    assert "holds no tuba files" in caplog.text


def test_one_pass_and_only_the_wanted_members_are_written(tmp_path, monkeypatch):
    written, opened = [], []
    write, unpack = download_trumpet_data.write_member, download_trumpet_data.open_archive
    monkeypatch.setattr(download_trumpet_data, "write_member", lambda *a: (written.append(a[1].name), write(*a)))
    monkeypatch.setattr(download_trumpet_data, "open_archive", lambda *a: (opened.append(a), unpack(*a))[1])
    with FaultyServer(tar_of(urmp_files())) as server:
        assert run(server, tmp_path, "--instruments", "trumpet,oboe") == 0
    assert len(opened) == 1 and len(written) == 10
    assert all("_tpt_" in name or "_ob_" in name for name in written)


def test_keep_archive_serves_another_instrument(tmp_path):
    with FaultyServer(tar_of(urmp_files())) as server:
        assert run(server, tmp_path, "--keep_archive") == 0
    assert run(NOWHERE, tmp_path, "--instruments", "oboe") == 0
    assert names(tmp_path / "oboe_only") == ["AuSep_1_ob_11_Maria.wav"]
    assert not (tmp_path / "Dataset.tar.gz").exists()  # not asked to keep it this time


def test_a_second_call_returns_at_once_without_network(tmp_path, monkeypatch):
    with FaultyServer(tar_of(urmp_files())) as server:
        assert run(server, tmp_path) == 0
        monkeypatch.setattr(download_trumpet_data, "FACTS_URL", server.url)
        assert download_trumpet_data.main(["--output_dir", str(tmp_path)]) == 0
        assert len(server.requests) == 1


@pytest.mark.parametrize("mode", ["w:gz", "w"])
def test_local_archive(tmp_path, mode):
    mine = tmp_path / "Dataset.tar"
    mine.write_bytes(tar_of(urmp_files(), mode=mode))
    flags = ["--local_archive", str(mine), "--output_dir", str(tmp_path / "out")]
    assert download_trumpet_data.main(flags) == 0
    assert names(tmp_path / "out" / "trumpet_only") == TRUMPETS
    assert mine.exists() and not (tmp_path / "out" / "Dataset.tar.gz").exists()


def test_a_zip_around_the_archive_is_explained(tmp_path, caplog):
    mine = tmp_path / "doi.zip"
    mine.write_bytes(b"PK\3\4")
    assert download_trumpet_data.main(["--local_archive", str(mine), "--output_dir", str(tmp_path)]) == 1
    assert "is a zip" in caplog.text and mine.exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"\x1f\x8bhello", gzip.compress(b"hello", mtime=0)])
def test_a_local_file_that_is_no_archive(tmp_path, caplog, content):
    mine = tmp_path / "mine"
    mine.write_bytes(content)
    assert download_trumpet_data.main(["--local_archive", str(mine), "--output_dir", str(tmp_path)]) == 1
    assert "cannot be unpacked" in caplog.text and mine.exists()


def test_source_dir(tmp_path):
    for name, content in urmp_files().items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    flags = ["--source_dir", str(tmp_path / "Dataset"), "--output_dir", str(tmp_path / "out")]
    assert download_trumpet_data.main(flags) == 0
    assert names(tmp_path / "out" / "trumpet_only") == TRUMPETS
    assert (tmp_path / "Dataset" / PIECES[0] / TRUMPETS[0]).exists()


@pytest.mark.parametrize("flag", ["--local_archive", "--source_dir"])
def test_what_the_user_names_must_exist(tmp_path, flag, capsys):
    with pytest.raises(SystemExit, match="2"):
        download_trumpet_data.parse_args([flag, str(tmp_path / "none")])
    assert "none is no f" in capsys.readouterr().err


@pytest.mark.parametrize("fault", [Fault(status=403), Fault(headers={"Content-Type": "text/html"})])
def test_dryads_refusal_says_how_to_go_on_by_browser(tmp_path, caplog, fault):
    with FaultyServer(tar_of(urmp_files()), [fault]) as server:
        assert run(server, tmp_path) == 1
    for words in (server.url, "browser", "doi:10.5061/dryad.ng3r749", "--local_archive", "--url"):
        assert words in caplog.text


def facts(content, **changes):
    stated = {"path": "Dataset.tar.gz", "digestType": "md5", "digest": hashlib.md5(content).hexdigest()}
    return json.dumps(stated | changes).encode()


@pytest.mark.parametrize("right", [True, False])
def test_the_md5_that_dryad_states_is_used(tmp_path, monkeypatch, caplog, right):
    content = tar_of(urmp_files())
    with FaultyServer(content) as server, FaultyServer(facts(content if right else b"other")) as api:
        monkeypatch.setattr(download_trumpet_data, "URL", server.url)
        monkeypatch.setattr(download_trumpet_data, "FACTS_URL", api.url)
        assert download_trumpet_data.main(["--output_dir", str(tmp_path)]) == (0 if right else 1)
    assert right or ("md5" in caplog.text and "deleted" in caplog.text)


@pytest.mark.parametrize(
    "answer", [b"", b"[]", facts(b"", digestType="sha-256"), facts(b"", path="README"), facts(b"", digest="1")]
)
def test_an_unknown_md5_is_said(tmp_path, monkeypatch, caplog, answer):
    caplog.set_level(logging.INFO)
    with FaultyServer(tar_of(urmp_files())) as server, FaultyServer(answer) as api:
        monkeypatch.setattr(download_trumpet_data, "URL", server.url)
        monkeypatch.setattr(download_trumpet_data, "FACTS_URL", api.url)
        assert download_trumpet_data.main(["--output_dir", str(tmp_path)]) == 0
    assert "No md5 of this archive is known" in caplog.text


def test_md5_of_the_user(tmp_path, caplog):
    with FaultyServer(tar_of(urmp_files())) as server:
        assert run(server, tmp_path, "--md5", "0" * 32) == 1
    assert "deleted" in caplog.text and not list(tmp_path.glob("Dataset.tar.gz*[!n]"))


def special(name, kind, size=0, link=""):
    member = tarfile.TarInfo(name)
    member.type, member.size, member.linkname = kind, size, link
    return member, None


AUDIO = "AuSep_1_tpt_07_GString.wav"


@pytest.mark.parametrize(
    "member, reason",
    [
        (plain(f"../{AUDIO}", b"x"), "out of the folder"),
        (plain(f"Dataset/../../{AUDIO}", b"x"), "out of the folder"),
        (plain(f"/tmp/{AUDIO}", b"x"), "absolute"),
        (special(f"Dataset/{AUDIO}", tarfile.SYMTYPE, link="/etc/passwd"), "link or a device"),
        (special(f"Dataset/{AUDIO}", tarfile.LNKTYPE, link="/etc/passwd"), "link or a device"),
        (special("Dataset/unwanted", tarfile.CHRTYPE), "link or a device"),
        (special("Dataset/unwanted", tarfile.FIFOTYPE), "link or a device"),
        (plain("Dataset/05_Entertainer_tpt_tpt/AUSEP_1_tpt_05_Entertainer.wav", b"x"), "other case"),
        (plain("Dataset/unwanted.bin", bytes(10**6)), "bomb"),
    ],
)
def test_hostile_members_are_refused_by_name(tmp_path, caplog, monkeypatch, member, reason):
    monkeypatch.setattr(archives, "MIN_UNPACKED_BYTES", 10**5)
    monkeypatch.setattr(archives, "MAX_COMPRESSION_RATIO", 10)
    with FaultyServer(tar_of(urmp_files(), member)) as server:
        assert run(server, tmp_path) == 1
    assert repr(member[0].name) in caplog.text and reason in caplog.text
    assert not installed(tmp_path) and not list(tmp_path.parent.glob("*.wav"))


def test_a_header_that_is_a_bomb(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(download_trumpet_data, "HEADER_LIMIT", 10**5)
    member, content = plain("x" * 10**6, b"")
    with FaultyServer(tar_of(urmp_files(), (member, content), format=tarfile.GNU_FORMAT)) as server:
        assert run(server, tmp_path) == 1
    assert "far too much" in caplog.text and "Vid_15_Surprise" in caplog.text


def test_a_tail_that_is_a_bomb(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(archives, "MIN_UNPACKED_BYTES", 10**5)
    monkeypatch.setattr(archives, "MAX_COMPRESSION_RATIO", 10)
    with FaultyServer(gzip.compress(gzip.decompress(tar_of(urmp_files())) + bytes(10**7))) as server:
        assert run(server, tmp_path) == 1
    assert "far too much" in caplog.text and not installed(tmp_path)


def test_nested_headers_without_end(tmp_path, caplog):
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 512
    block = header.tobuf(tarfile.GNU_FORMAT) + b"x".ljust(512, b"\0")
    mine = tmp_path / "mine.tar"
    mine.write_bytes(block * 1_020)
    assert download_trumpet_data.main(["--local_archive", str(mine), "--output_dir", str(tmp_path)]) == 1
    assert "Error: " in caplog.text


@pytest.mark.parametrize("damage", ["cut", "bit", "crc", "code"])
def test_a_damaged_archive_without_md5_is_deleted_and_said(tmp_path, caplog, damage):
    content = bytearray(tar_of(urmp_files(100_000 if damage == "code" else 300)))
    if damage == "cut":
        del content[-3000:]
    elif damage == "code":
        raw, packer = gzip.decompress(content), zlib.compressobj(wbits=31)
        middle = raw.index(b"RIFF") + 80_000  # of a wanted member, beyond what is read ahead
        content = packer.compress(raw[:middle]) + packer.flush(zlib.Z_FULL_FLUSH) + b"\xff" * 100
    else:
        content[-2000 if damage == "bit" else -8] ^= 4
    with FaultyServer(bytes(content)) as server:
        assert run(server, tmp_path) == 1
    assert "cannot be unpacked" in caplog.text and "deleted" in caplog.text
    assert not installed(tmp_path) and not (tmp_path / "Dataset.tar.gz").exists()


def test_a_crash_while_unpacking_is_finished_by_the_next_run(tmp_path, monkeypatch):
    calls, write_member = [], download_trumpet_data.write_member

    def crash(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            arguments[1].write_bytes(b"half")
            raise KeyboardInterrupt
        write_member(*arguments)

    with FaultyServer(tar_of(urmp_files())) as server, monkeypatch.context() as patch:
        patch.setattr(download_trumpet_data, "write_member", crash)
        assert run(server, tmp_path) == 130
    assert not installed(tmp_path) and (tmp_path / "Dataset.tar.gz").exists()
    assert run(NOWHERE, tmp_path) == 0
    assert names(tmp_path / "trumpet_only") == TRUMPETS


@pytest.mark.parametrize("free, words", [(10, "are missing"), (10**9, None)])
def test_free_space(tmp_path, monkeypatch, caplog, free, words):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 0, free))
    with FaultyServer(tar_of(urmp_files())) as server:
        assert run(server, tmp_path) == (1 if words else 0)
    assert words is None or words in caplog.text


def test_space_that_runs_out_while_unpacking(tmp_path, monkeypatch, caplog):
    mine, free = tmp_path / "mine.tar.gz", iter([10**6, 10**6, 5])
    mine.write_bytes(tar_of(urmp_files()))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 0, next(free)))
    assert download_trumpet_data.main(["--local_archive", str(mine), "--output_dir", str(tmp_path)]) == 1
    assert "are missing" in caplog.text and not installed(tmp_path) and mine.exists()


def test_space_is_asked_for_before_a_local_archive_is_opened(tmp_path, monkeypatch, caplog):
    mine = tmp_path / "mine.tar.gz"
    mine.write_bytes(tar_of(urmp_files()))
    monkeypatch.setattr(download_trumpet_data, "open_archive", None)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 0, 100))
    assert download_trumpet_data.main(["--local_archive", str(mine), "--output_dir", str(tmp_path)]) == 1
    assert "are missing" in caplog.text


def test_neither_script_needs_torch():
    code = "import sys, download_trumpet_data; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=30).returncode == 0


def test_a_hundred_runs_with_random_faults_and_no_md5(tmp_path, monkeypatch):
    content, codes = tar_of(urmp_files(60)), []
    for seed in range(100):
        rng, folder = random.Random(1000 + seed), tmp_path / str(seed)
        faults = [random_fault(rng, len(content)) for _ in range(rng.randrange(1, 8))]
        with FaultyServer(content, faults) as server:
            with monkeypatch.context() as patch:
                patch.setattr(archives, "RETRY_POLICY", RASH)
                codes.append(run(server, folder))
            assert names(folder / "trumpet_only") == (TRUMPETS if codes[-1] == 0 else []), f"seed {seed}"
            server.faults.clear()
            assert run(server, folder) == 0, f"seed {seed}"
        by_name = {Path(name).name: data for name, data in urmp_files(60).items()}
        assert all(by_name[name] == data for name, data in installed(folder).items()), f"seed {seed}"
        assert names(folder / "trumpet_only") == TRUMPETS, f"seed {seed}"
    assert set(codes) == {0, 1}
    print(f"{codes.count(0)} of 100 runs got the right bytes at once, {codes.count(1)} ended in a clear error")
