"""download_trumpet_data.py on a small URMP: selected files, checksums, hostile and damaged tar archives."""

import errno
import gzip
import hashlib
import io
import json
import logging
import random
import tarfile
import zlib
from pathlib import Path

import pytest

import download_trumpet_data
from faulty_server import Fault, FaultyServer, random_fault, shorten_patience
from recordings import archives

ROOT = Path(download_trumpet_data.__file__).parent
NOWHERE = "http://127.0.0.1:1/"
PIECES = ["05_Entertainer_tpt_tpt", "06_Entertainer_sax_sax", "11_Maria_ob_vc", "15_Surprise_tpt_tpt_tbn"]
TRUMPETS = [
    "AuSep_1_tpt_05_Entertainer.wav",
    "AuSep_1_tpt_15_Surprise.wav",
    "AuSep_2_tpt_05_Entertainer.wav",
    "AuSep_2_tpt_15_Surprise.wav",
]
OBOE = "AuSep_1_ob_11_Maria.wav"
AUDIO = "AuSep_1_tpt_07_GString.wav"


@pytest.fixture(autouse=True)
def loopback_only(monkeypatch):
    shorten_patience(monkeypatch)
    monkeypatch.setattr(download_trumpet_data, "URL", NOWHERE)
    monkeypatch.setattr(download_trumpet_data, "FACTS_URL", NOWHERE)


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


def serve(content, folder, *flags):
    with FaultyServer(content) as server:
        return run(server, folder, *flags)


def installed(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*_only/*")}


def expected_files(*names, size=300):
    """The named tracks and their annotated pitches."""
    by_name = {Path(name).name: content for name, content in urmp_files(size).items()}
    pitches = [name.replace("AuSep", "F0s").replace(".wav", ".txt") for name in names]
    return {name: by_name[name] for name in (*names, *pitches)}


def test_trumpet_tracks_are_installed_without_the_misnamed_trombone(tmp_path):
    assert serve(tar_of(urmp_files()), tmp_path) == 0
    assert installed(tmp_path) == expected_files(*TRUMPETS)
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["trumpet_only"]


def test_only_files_of_the_selected_instruments_are_unpacked(tmp_path, monkeypatch):
    written, write = [], archives.write_member
    monkeypatch.setattr(archives, "write_member", lambda *a: (written.append(a[1].name), write(*a)))
    assert serve(tar_of(urmp_files()), tmp_path, "--instruments", "sax, oboe") == 0
    expected = expected_files(OBOE, "AuSep_1_sax_06_Entertainer.wav", "AuSep_2_sax_06_Entertainer.wav")
    assert installed(tmp_path) == expected and sorted(written) == sorted(expected)
    assert {path.name for path in tmp_path.glob("*_only")} == {"saxophone_only", "oboe_only"}


@pytest.mark.parametrize(
    "flags, named",
    [(["--instruments", "trumpet,kazoo"], "kazoo"), (["--local_archive", "a/none"], "a/none"), (["--md5", "1"], "1")],
)
def test_invalid_flags_are_refused(flags, named, capsys):
    with pytest.raises(SystemExit, match="2"):
        download_trumpet_data.parse_args(flags)
    assert named in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["w:gz", "w", "folder"])
def test_local_archives_and_folders_are_used_and_kept(tmp_path, caplog, mode):
    mine, flag = tmp_path / "Dataset", "--source_dir" if mode == "folder" else "--local_archive"
    if mode == "folder":
        for name, content in urmp_files().items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(content)
    else:
        mine.write_bytes(tar_of(urmp_files(), mode=mode))
    output = ["--output_dir", str(tmp_path / "out")]
    assert download_trumpet_data.main([flag, str(mine), *output]) == 0
    assert installed(tmp_path / "out") == expected_files(*TRUMPETS)
    assert mine.exists() and not (tmp_path / "out" / "Dataset.tar.gz").exists()
    for content in (b"", b"hello", b"\x1f\x8bhello", gzip.compress(b"hello", mtime=0)):
        (tmp_path / "other").write_bytes(content)
        assert (
            download_trumpet_data.main(["--local_archive", str(tmp_path / "other"), "--output_dir", str(tmp_path)]) == 1
        )
        assert str(tmp_path / "other") in caplog.messages[-1] and (tmp_path / "other").exists()


def test_a_refused_download_explains_how_to_download_by_browser(tmp_path, caplog):
    with FaultyServer(tar_of(urmp_files()), [Fault(status=403)]) as server:
        assert run(server, tmp_path) == 1
    for words in (server.url, "browser", "doi:10.5061/dryad.ng3r749", "--local_archive", "--url"):
        assert words in caplog.text


def digest(content, kind):
    return hashlib.new(kind.replace("-", ""), content).hexdigest()


@pytest.mark.parametrize(
    ("changes", "kind", "code"),
    [
        ({}, "md5", 0),
        ({"digest": digest(b"other", "md5")}, "md5", 1),
        ({"digest": digest(b"other", "sha256")}, "sha-256", 1),
        *(({name: value}, "md5", None) for name, value in {"digestType": "crc32", "path": "x", "digest": "1"}.items()),
        (b"", "", None),
        (b"[]", "", None),
    ],
)
def test_the_published_checksum_is_used_if_it_is_known(tmp_path, monkeypatch, caplog, changes, kind, code):
    caplog.set_level(logging.INFO)
    content, facts = tar_of(urmp_files()), changes
    if isinstance(changes, dict):
        stated = {"path": "Dataset.tar.gz", "digestType": kind, "digest": digest(content, kind)}
        facts = json.dumps(stated | changes).encode()
    with FaultyServer(content) as server, FaultyServer(facts) as api:
        monkeypatch.setattr(download_trumpet_data, "URL", server.url)
        monkeypatch.setattr(download_trumpet_data, "FACTS_URL", api.url)
        assert download_trumpet_data.main(["--output_dir", str(tmp_path)]) == (code or 0)
    assert code != 1 or changes["digest"] in caplog.text
    assert code == 1 or ("--md5" in caplog.text) == (code is None)
    assert not (tmp_path / "Dataset.tar.gz").exists()


def special(name, kind, link=""):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member, None


@pytest.mark.parametrize(
    "member, reason",
    [
        (plain(f"../{AUDIO}", b"x"), "outside"),
        (plain(f"Dataset/../../{AUDIO}", b"x"), "outside"),
        (special(f"Dataset/{AUDIO}", tarfile.SYMTYPE, "/etc/passwd"), "link"),
        (special(f"Dataset/{AUDIO}", tarfile.LNKTYPE, "/etc/passwd"), "link"),
        (special("Dataset/unwanted", tarfile.CHRTYPE), "special"),
        (special("Dataset/unwanted", tarfile.FIFOTYPE), "special"),
        (plain("Dataset/unwanted.bin", bytes(10**6)), "times its size"),
    ],
)
def test_hostile_archive_members_are_refused(tmp_path, caplog, monkeypatch, member, reason):
    monkeypatch.setattr(archives, "MIN_UNPACKED_BYTES", 10**5)
    monkeypatch.setattr(archives, "MAX_RATIO", 10)
    assert serve(tar_of(urmp_files(), member), tmp_path) == 1
    assert repr(member[0].name) in caplog.text and reason in caplog.text
    assert not installed(tmp_path) and not list(tmp_path.parent.glob("*.wav"))


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.DIRTYPE])
def test_an_archive_of_too_many_empty_members_is_refused(tmp_path, caplog, kind):
    member, mine = tarfile.TarInfo("x"), tmp_path / "mine.tar.gz"
    member.type = kind
    mine.write_bytes(gzip.compress(member.tobuf() * (archives.MAX_MEMBERS + 1), compresslevel=1))
    assert download_trumpet_data.main(["--local_archive", str(mine), "--output_dir", str(tmp_path / "out")]) == 1
    assert str(archives.MAX_MEMBERS) in caplog.text


@pytest.mark.parametrize("place", ["header", "tail"])
def test_an_archive_bomb_outside_the_members_is_refused(tmp_path, caplog, monkeypatch, place):
    monkeypatch.setattr(archives, "MAX_HEADER_BYTES", 10**5)
    if place == "header":
        content = tar_of(urmp_files(), plain("x" * 10**6, b""), format=tarfile.GNU_FORMAT)
    else:
        content = gzip.compress(gzip.decompress(tar_of(urmp_files())) + bytes(10**6))
    assert serve(content, tmp_path) == 1
    assert "refused" in caplog.text and not installed(tmp_path)


def test_unpacking_that_takes_too_long_is_stopped(tmp_path, caplog, monkeypatch):
    mine = tmp_path / "mine.tar.gz"
    mine.write_bytes(tar_of(urmp_files()))
    now = iter(range(0, 10**6, 50))
    monkeypatch.setattr(archives.time, "monotonic", lambda: next(now))
    assert download_trumpet_data.main(["--local_archive", str(mine), "--output_dir", str(tmp_path / "out")]) == 1
    assert "too long" in caplog.text and not installed(tmp_path / "out")


@pytest.mark.parametrize("damage", ["cut", "bit", "crc", "code"])
def test_a_damaged_archive_is_deleted(tmp_path, caplog, damage):
    content = bytearray(tar_of(urmp_files(100_000 if damage == "code" else 300)))
    if damage == "cut":
        del content[-3000:]
    elif damage == "code":
        raw, packer = gzip.decompress(content), zlib.compressobj(wbits=31)
        middle = raw.index(b"RIFF") + 80_000  # of a wanted member, beyond what is read ahead
        content = packer.compress(raw[:middle]) + packer.flush(zlib.Z_FULL_FLUSH) + b"\xff" * 100
    else:
        content[-2000 if damage == "bit" else -8] ^= 4
    assert serve(bytes(content), tmp_path) == 1
    assert "Dataset.tar.gz" in caplog.text
    assert not installed(tmp_path) and not (tmp_path / "Dataset.tar.gz").exists()


def test_a_full_disk_does_not_delete_the_archive(tmp_path, monkeypatch, caplog):
    def fill(stream, target):
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    monkeypatch.setattr(archives, "write_member", fill)
    assert serve(tar_of(urmp_files()), tmp_path) == 1
    assert "No space" in caplog.text and not installed(tmp_path)
    assert (tmp_path / "Dataset.tar.gz").exists()  # the disk's fault, not the archive's


@pytest.mark.parametrize("seed", range(50))
def test_random_faults_without_a_checksum_end_in_the_right_files_or_an_error(tmp_path, monkeypatch, seed):
    content, rng, expected = tar_of(urmp_files(60)), random.Random(1000 + seed), expected_files(*TRUMPETS, size=60)
    faults = [random_fault(rng, len(content)) for _ in range(rng.randrange(1, 8))]
    with FaultyServer(content, faults) as server:
        with monkeypatch.context() as patch:
            shorten_patience(patch, silence=0.08)  # it does not matter if a busy machine causes a timeout
            code = run(server, tmp_path)
        assert code in (0, 1) and installed(tmp_path) == ({} if code else expected)
        server.faults.clear()
        assert run(server, tmp_path) == 0
    assert installed(tmp_path) == expected
