"""recordings/download_samples.py with a local server, archives and folders."""

import io
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from faulty_server import Fault, FaultyServer, shorten_patience
from recordings import download_samples as module
from recordings.download_samples import (
    COLLECTIONS,
    INSTRUMENTS,
    download_samples,
    hash_recording,
    local_stem,
    published_name,
    read_checksums,
)
from recordings.resumable_download import DataError
from recordings.samples import parse_name


@pytest.fixture(autouse=True)
def short_patience(monkeypatch) -> None:
    shorten_patience(monkeypatch)


def make_wav(seed: int) -> bytes:
    buffer = io.BytesIO()
    sf.write(buffer, np.random.default_rng(seed).uniform(-0.5, 0.5, 500), 44_100, format="WAV")
    return buffer.getvalue()


NAMES = ("flute_A4_1_forte_normal.mp3", "flute_B4_1_forte_normal.mp3")
FILES = {name: make_wav(i) for i, name in enumerate(NAMES)}


def zip_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


@pytest.fixture
def flute(monkeypatch) -> bytes:
    """Make the flute a collection of two files; return its archive, with the instrument's own zip inside."""
    checksums = {"flute_philharmonia": {name: hash_recording(data, name, True) for name, data in FILES.items()}}
    monkeypatch.setattr(module, "read_checksums", lambda: checksums)
    inner = zip_of({f"flute/{name}": data for name, data in FILES.items()} | {"flute/readme.txt": b"no sound"})
    return zip_of({"Woodwind/flute.zip": inner, "Woodwind/oboe_A4_1_forte_normal.mp3": b"another instrument"})


def read_all(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.suffix in (".mp3", ".wav")}


def test_checksums_list_every_collection() -> None:
    table = read_checksums()
    assert set(table) == set(COLLECTIONS) == {name for names in INSTRUMENTS.values() for name in names}
    for name, files in table.items():
        assert files
        assert all(len(digest) == 32 and int(digest, 16) >= 0 for digest in files.values())
        assert all(parse_name(file) for file in files), name


def test_published_names() -> None:
    assert published_name(COLLECTIONS["trumpet_vsco"], "sus_v3_f_asharp3.flac") == "Sum_SHTrumpet_sus_A#3_v3_rr1.wav"
    assert published_name(COLLECTIONS["guitar_shiny"], "a2_vl1_rr2_1.flac") == "a2_vl1_rr2_1.wav"
    assert published_name(COLLECTIONS["guitar_freepats"], "A#3.flac") == "A#3.flac"
    for name in read_checksums()["trumpet_vsco"]:
        published = published_name(COLLECTIONS["trumpet_vsco"], name)
        assert local_stem(Path(published).stem) == Path(name).stem


def test_an_archive_is_downloaded_despite_faults_and_unpacked(flute, tmp_path, monkeypatch) -> None:
    with FaultyServer(flute, [Fault(cut=100), Fault(status=503)]) as server:
        monkeypatch.setattr(module, "ORCHESTRA", server.url)
        assert download_samples("flute", tmp_path) == {"flute_philharmonia": 2}
        n_requests = len(server.requests)
        assert n_requests == 3
        assert read_all(tmp_path / "flute" / "flute_philharmonia") == FILES
        (tmp_path / "flute" / "flute_philharmonia" / NAMES[0]).unlink()
        download_samples("flute", tmp_path)
        assert read_all(tmp_path / "flute") == FILES
        assert len(server.requests) == n_requests  # the archive is still there


def test_local_archives_and_folders_are_used(flute, tmp_path) -> None:
    archive = tmp_path / "Woodwind.zip"
    archive.write_bytes(flute)
    download_samples("flute", tmp_path / "one", (archive,))
    by_hand = tmp_path / "by_hand"
    by_hand.mkdir()
    for name, data in FILES.items():
        (by_hand / name).write_bytes(data)
    download_samples("flute", tmp_path / "two", local_dir=by_hand)
    assert read_all(tmp_path / "one") == read_all(tmp_path / "two") == FILES


@pytest.mark.parametrize(
    "files",
    [
        {NAMES[0]: FILES[NAMES[0]], NAMES[1]: b"damaged"},
        {NAMES[0]: FILES[NAMES[0]]},
        {NAMES[0]: FILES[NAMES[0]], f"../{NAMES[1]}": FILES[NAMES[1]]},
        {"inner.zip": zip_of({f"../{NAMES[1]}": FILES[NAMES[1]]})},
    ],
)
def test_damaged_missing_and_hostile_recordings_are_refused(flute, tmp_path, monkeypatch, files) -> None:
    with FaultyServer(zip_of(files)) as server:
        monkeypatch.setattr(module, "ORCHESTRA", server.url)
        with pytest.raises(DataError, match=NAMES[1].replace(".", r"\.")):
            download_samples("flute", tmp_path)
    assert set(read_all(tmp_path)) <= {NAMES[0]}


@pytest.mark.parametrize("content", [b"not a zip", zip_of({"inner.zip": b"not a zip"})])
def test_other_files_than_archives_are_deleted(flute, tmp_path, monkeypatch, content) -> None:
    with FaultyServer(content) as server:
        monkeypatch.setattr(module, "ORCHESTRA", server.url)
        with pytest.raises(DataError, match=r"Woodwind\.zip"):
            download_samples("flute", tmp_path)
    assert not (tmp_path / "archives" / "Woodwind.zip").exists()


@pytest.mark.parametrize("exact", [True, False])
def test_single_files_are_downloaded_and_checked(tmp_path, monkeypatch, exact, caplog) -> None:
    name, data = "a2_vl1_rr1_1.flac" if not exact else "A2.flac", make_wav(5)
    expected = {"guitar_shiny": {name: hash_recording(data, name, exact)}}
    monkeypatch.setattr(module, "read_checksums", lambda: expected)
    monkeypatch.setitem(INSTRUMENTS, "guitar", ("guitar_shiny",))
    with FaultyServer(data, [Fault(cut=50)]) as server:
        collection = replace(COLLECTIONS["guitar_shiny"], base=server.url, exact=exact)
        monkeypatch.setitem(COLLECTIONS, "guitar_shiny", collection)
        download_samples("guitar", tmp_path)
        written = next(path for path in tmp_path.rglob("*") if path.is_file())
        assert written.read_bytes() == data and written.suffix == (".flac" if exact else ".wav")
        download_samples("guitar", tmp_path)
        assert len(server.requests) == 2
        expected["guitar_shiny"]["c4_vl1_rr1_1.flac"] = "0" * 32
        if exact:
            with pytest.raises(DataError, match="c4_vl1_rr1_1"):
                download_samples("guitar", tmp_path)
            assert len(list(tmp_path.rglob("*.flac"))) == 1
        else:  # the same sound in another precision will do, but is named
            download_samples("guitar", tmp_path)
            assert "c4_vl1_rr1_1" in caplog.text
