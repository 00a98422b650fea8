"""web/stored_files.py: the page's own folder, what a killed page leaves, and how much is stored."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from page import ROOT
from web import stored_files
from web.stored_files import list_files, own_folder, remove_old_files

_HOLD = """
import tempfile, time
from web.stored_files import own_folder
with own_folder() as folder:
    tempfile.NamedTemporaryFile(delete=False).write(b"a recording")
    print(folder, flush=True)
    time.sleep(60)
"""


def hold_folder(parent: Path) -> tuple[subprocess.Popen, Path]:
    """Start a process that holds a page's folder with a file."""
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(parent)}
    process = subprocess.Popen([sys.executable, "-c", _HOLD], cwd=ROOT, env=environment, stdout=subprocess.PIPE)
    return process, Path(os.fsdecode(process.stdout.readline().strip()))


def test_files_of_killed_pages_are_removed_and_of_running_pages_kept(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine.wav").touch()
    (tmp_path / "vox2trumpet-page-link").symlink_to(tmp_path / "elsewhere")
    killed, left = hold_folder(tmp_path)
    running, used = hold_folder(tmp_path)
    killed.kill()
    killed.wait()
    assert len(list_files(left)) == 2
    with own_folder() as folder:
        assert not left.exists() and len(list_files(used)) == 2
        assert folder.stat().st_mode & 0o077 == 0 and Path(tempfile.gettempdir()) == folder
        assert (tmp_path / "elsewhere" / "mine.wav").exists()
    assert not folder.exists() and os.environ["GRADIO_TEMP_DIR"] == str(tmp_path)
    running.kill()
    running.wait()


def test_old_files_are_removed_and_the_oldest_beyond_the_size_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / name / "voice.wav" for name in "dcba"]
    for path in paths:
        path.parent.mkdir()
        path.write_bytes(bytes(100))
        time.sleep(0.02)  # a clock tick of the file system
    remove_old_files(tmp_path, paths[:1], 60.0, 300)
    assert all(path.exists() for path in paths)
    remove_old_files(tmp_path, paths[:1], 60.0, 240)  # down to 80 % of it
    assert [path.parent.exists() for path in paths] == [True, False, False, True]
    later = time.time() + 61
    monkeypatch.setattr(stored_files.time, "time", lambda: later)
    remove_old_files(tmp_path, paths[:1], 60.0, 300)
    assert [path.exists() for path in paths] == [True, False, False, False]
