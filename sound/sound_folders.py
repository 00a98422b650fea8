"""Find the recordings in a folder: dot names are none, links to folders are followed once."""

import logging
from collections import Counter, deque
from collections.abc import Set
from pathlib import Path

from sound.audio_files import SUFFIXES

_MAX_NAMED = 6  # kinds of files that are named as left out
log = logging.getLogger("sound_folders")


def find_sound_files(folder: Path, suffixes: Set[str] = SUFFIXES) -> list[Path]:
    """Return the files with one of the suffixes in a folder and its subfolders, sorted; the log says what is left out.

    Left out are dot names (``._take.wav`` of macOS, ``.ipynb_checkpoints``), and what has another suffix. A folder
    that several links lead to is searched once, under its own name if it lies inside.
    """
    found, left_out, seen = [], Counter(), set()
    folders, links = [folder], deque()
    while folders or links:
        here = folders.pop() if folders else links.popleft()
        if (real := here.resolve()) in seen:
            continue
        seen.add(real)
        try:
            paths = sorted(here.iterdir())
        except OSError:
            left_out["folders that cannot be opened"] += 1
            continue
        for path in paths:
            if path.name.startswith("."):
                left_out["dot names"] += 1
            elif path.is_dir():
                (links if path.is_symlink() else folders).append(path)
            elif path.suffix.lower() in suffixes and path.is_file():
                found.append(path)
            else:
                left_out[path.suffix or "names without suffix"] += 1
    if left_out:
        kinds = [f"{count} {kind}" for kind, count in left_out.most_common(_MAX_NAMED)]
        kinds += ["..."] * (len(left_out) > _MAX_NAMED)
        log.info("%s: %d recordings; not read as such: %s", folder, len(found), ", ".join(kinds))
    return sorted(found)
