"""scripts/get_live_runtime.py: only files with the expected sha256 are installed."""

import hashlib
import io
import tarfile
from pathlib import Path

import pytest

import get_live_runtime


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a package with the files of the page and other contents, whose sha256 are then expected."""
    version, files = get_live_runtime.read_pins()
    path = tmp_path / "package.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for name in files:
            entry = tarfile.TarInfo(f"package/dist/{name}")
            entry.size = len(name)
            archive.addfile(entry, io.BytesIO(name.encode()))
    expected = {name: hashlib.sha256(name.encode()).digest() for name in files}
    monkeypatch.setattr(get_live_runtime, "read_pins", lambda: (version, expected))
    return path


def test_the_page_pins_three_files() -> None:
    version, files = get_live_runtime.read_pins()
    assert version.count(".") == 2 and len(files) == 3 and {len(digest) for digest in files.values()} == {32}


def test_a_package_is_unpacked_once(package: Path, tmp_path: Path, capsys) -> None:
    flags = ["--source", str(package), "--output", str(tmp_path / "vendor")]
    assert get_live_runtime.main(flags) == 0
    assert all(path.read_text() == path.name for path in (tmp_path / "vendor").iterdir())
    package.unlink()
    assert get_live_runtime.main(flags) == 0 and "up to date" in capsys.readouterr().out


def test_another_file_is_refused(package: Path, tmp_path: Path, monkeypatch, caplog) -> None:
    version, files = get_live_runtime.read_pins()
    name = min(files)
    monkeypatch.setattr(get_live_runtime, "read_pins", lambda: (version, {**files, name: bytes(32)}))
    assert get_live_runtime.main(["--source", str(package), "--output", str(tmp_path / "vendor")]) == 1
    assert name in caplog.text and not (tmp_path / "vendor").exists()


@pytest.mark.parametrize("content", [b"", b"no archive"])
def test_other_archive_is_one_sentence(content: bytes, tmp_path: Path, caplog) -> None:
    (tmp_path / "package.tgz").write_bytes(content)
    flags = ["--source", str(tmp_path / "package.tgz"), "--output", str(tmp_path / "vendor")]
    assert get_live_runtime.main(flags) == 1 and "package.tgz" in caplog.text


def test_missing_npm_names_the_alternative(tmp_path: Path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(get_live_runtime.shutil, "which", lambda name: None)
    assert get_live_runtime.main(["--output", str(tmp_path / "vendor")]) == 1
    assert "npm" in caplog.text and "--source" in caplog.text
