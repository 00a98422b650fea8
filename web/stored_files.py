"""Temporary folder of a running page, for the files that visitors send and receive.

The folder is removed when the page ends. If the page is killed, the next page of the same user removes it at startup.
A file lock held in the folder marks a page that is still running.
"""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

_PREFIX = "vox2trumpet-page-"
_LOCK = ".lock"
_LEFT = 0.8  # share of the maximum that is kept when it was exceeded


@contextlib.contextmanager
def own_folder() -> Iterator[Path]:
    """Create the page's folder in $GRADIO_TEMP_DIR or the system's; use it for all temporary files while open."""
    former, former_cache = tempfile.tempdir, os.environ.get("GRADIO_TEMP_DIR")
    parent = Path(former_cache or tempfile.gettempdir()).resolve()
    parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(parent)
    made = Path(tempfile.mkdtemp(prefix=f"new-{_PREFIX}", dir=parent))
    with FileLock(made / _LOCK):
        folder = made.rename(parent / made.name.removeprefix("new-"))  # visible to other pages only once locked
        tempfile.tempdir, os.environ["GRADIO_TEMP_DIR"] = str(folder), str(folder / "gradio")
        try:
            yield folder
        finally:
            tempfile.tempdir = former
            os.environ.pop("GRADIO_TEMP_DIR")
            if former_cache is not None:
                os.environ["GRADIO_TEMP_DIR"] = former_cache
            shutil.rmtree(folder, ignore_errors=True)


def _remove_leftovers(parent: Path) -> None:
    for folder in parent.glob(f"{_PREFIX}*"):
        is_own = not folder.is_symlink() and folder.is_dir() and folder.stat().st_uid == os.getuid()
        with contextlib.suppress(Timeout, OSError):  # its page is running, or another page is removing it
            if is_own:
                with FileLock(folder / _LOCK, timeout=0):
                    shutil.rmtree(folder, ignore_errors=True)


def list_files(folder: Path) -> dict[Path, os.stat_result]:
    """Return the files in a folder and its subfolders; files removed during the call are skipped."""
    found = {}
    for here, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                found[Path(here, name)] = os.lstat(Path(here, name))
    return found


def remove_old_files(folder: Path, spared: Collection[Path], seconds: float, most: int) -> None:
    """Remove files older than ``seconds``, and the oldest files if there are more than ``most`` bytes.

    Args:
        folder: the page's folder.
        spared: files to keep.
        seconds: maximum age in s since a file was stored.
        most: maximum total size in bytes.
    """
    files = {path: stat for path, stat in list_files(folder).items() if path not in spared}
    stored, oldest = sum(stat.st_size for stat in files.values()), time.time() - seconds
    least = _LEFT * most if stored > most else most
    for path, stat in sorted(files.items(), key=lambda file: file[1].st_ctime):
        if stat.st_ctime >= oldest and stored <= least:
            break
        stored -= stat.st_size
        with contextlib.suppress(OSError):  # a request's folder, removed concurrently
            path.unlink()
            path.parent.rmdir()
