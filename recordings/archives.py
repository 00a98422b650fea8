"""A data set out of its archive: downloaded, checked, unpacked and moved to its place.

An archive counts as hostile until each of its members has been looked at; nothing half-written ever carries a final
name. ``download_data.py`` and ``download_trumpet_data.py`` say which archives, and which of their files.
"""

import argparse
import logging
import os
import re
import shutil
import stat
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from recordings.resumable_download import (
    CHUNK,
    ArchiveSource,
    DamagedDownloadError,
    DataError,
    RetryPolicy,
    check_md5,
    download_resumable,
    read_json,
    require_space,
    write_json,
)

log = logging.getLogger(__name__)

RETRY_POLICY = RetryPolicy()
MAX_COMPRESSION_RATIO = 100  # unpacked bytes per packed byte: recordings reach 2, text 20, a bomb 1000
MIN_UNPACKED_BYTES = 64 << 20  # bytes that even the smallest archive may unpack to

PlaceMember = Callable[[str], Path | None]  # a member's name -> group/path below the data folder, None: not wanted
UnpackArchive = Callable[[Path, Path, PlaceMember], None]  # archive, folder to fill, what goes where


@contextmanager
def deleting_damaged(path: Path, ours: bool = True) -> Iterator[None]:
    """Delete `path`, if it is a file that we downloaded, when the block finds it damaged."""
    try:
        yield
    except DamagedDownloadError as error:
        if not ours:
            raise
        path.unlink()
        raise DataError(f"{error}; the file was deleted, run the same command to download it again") from error


@contextmanager
def staging_folder(folder: Path) -> Iterator[Path]:
    """A folder that is gone afterwards; what a killed run has left in it is thrown away first."""
    stage = folder / ".unpacking"
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir(parents=True)
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)


# --- archives -------------------------------------------------------------------------------------


class MemberGuard:
    """Check every member of an archive, wanted or not, before anything of it is written."""

    def __init__(self, archive: Path):
        self.archive = archive.name
        self.remaining_bytes = max(MIN_UNPACKED_BYTES, MAX_COMPRESSION_RATIO * archive.stat().st_size)
        self.seen: set[str] = set()

    def check(self, name: str, size: int, plain: bool, folder: bool) -> None:
        """Raise DataError, with the member's name, for what no honest data set holds."""
        path = name.replace("\\", "/")
        key = unicodedata.normalize("NFC", path).casefold()
        self.remaining_bytes -= max(size, 0)
        faults = {
            "its path is absolute": path.startswith("/") or re.match(r"[A-Za-z]:", path),
            "its path leads out of the folder": ".." in path.split("/"),
            "its name holds control characters": not name.isprintable(),
            "it is neither a file nor a folder but a link or a device": not (plain or folder),
            "its size is negative": size < 0,
            "another member has this name, maybe in other case": not folder and key in self.seen,
            f"it unpacks to more than {MAX_COMPRESSION_RATIO} times the archive, like a zip bomb": self.remaining_bytes
            < 0,
        }
        for fault in (fault for fault, found in faults.items() if found):
            raise DataError(f"{self.archive} is refused because of its member {name!r}: {fault}")
        if not folder:
            self.seen.add(key)


def write_member(stream: BinaryIO, target: Path, size: int) -> None:
    """Copy one member, never more than the bytes that it declared."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        raise DataError(f"the member {target.name} is refused: the archive holds two files of this name")
    with target.open("xb") as file:
        while chunk := stream.read(CHUNK):
            if file.tell() + len(chunk) > size:
                raise DataError(f"the member {target.name} is refused: it holds more than the {size} bytes it declares")
            file.write(chunk)
        if file.tell() != size:
            raise DamagedDownloadError(f"the member {target.name} ends after {file.tell()} of {size} bytes")


def unpack_zip(archive: Path, stage: Path, place: PlaceMember) -> None:
    try:
        with zipfile.ZipFile(archive) as source:
            wanted = check_members(source, MemberGuard(archive), place)
            require_space(stage.parent, sum(member.file_size for member in wanted))
            for member, target in tqdm(wanted.items(), "unpacking", disable=not log.isEnabledFor(logging.INFO)):
                with source.open(member) as stream:
                    write_member(stream, stage / target, member.file_size)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise DamagedDownloadError(f"{archive} cannot be unpacked: {error}") from error


def check_members(source: zipfile.ZipFile, guard: MemberGuard, place: PlaceMember) -> dict[zipfile.ZipInfo, Path]:
    for member in source.infolist():
        kind = stat.S_IFMT(member.external_attr >> 16)  # 0 where it was not packed on Unix
        plain = kind in (0, stat.S_IFREG) and not member.is_dir()
        guard.check(member.orig_filename, member.file_size, plain, member.is_dir() and kind in (0, stat.S_IFDIR))
    placed = {member: place(member.filename) for member in source.infolist() if not member.is_dir()}
    return {member: target for member, target in placed.items() if target}


# --- one data set ---------------------------------------------------------------------------------


def install_dataset(
    source: ArchiveSource,
    folder: Path,
    groups: tuple[str, ...],
    place: PlaceMember,
    unpack: UnpackArchive,
    local: Path | None,
    keep_archive: bool,
) -> None:
    """Bring those `groups` of a data set that are not there yet into `folder`, each with its done-marker.

    Args:
        place: tells for a member of the archive which group it belongs to and where in `folder` it goes.
        unpack: `unpack_zip`, or another function that fills a folder with what `place` wants.
        local: an archive, or for some `unpack` a folder, that the user has; it is neither downloaded nor deleted.
        keep_archive: whether a downloaded archive stays.

    Raises:
        DataError: nothing was installed; what has been downloaded is kept unless it is damaged.
    """
    missing = [group for group in groups if not is_done(folder, group)]
    if not missing:
        log.info(
            "%s is complete (%s); delete %s to have it anew", folder, ", ".join(groups), done_marker(folder, groups[0])
        )
        return
    if local and not local.exists():
        raise DataError(f"{local} does not exist; name the file or folder that you have")
    folder.mkdir(parents=True, exist_ok=True)
    archive = local or download_archive(source, folder)
    with staging_folder(folder) as stage, deleting_damaged(archive, ours=not local):
        if local and local.is_file():
            check_md5(local, source.md5)
        require_space(folder, source.ratio * archive.stat().st_size)
        unpack(archive, stage, lambda name: path if (path := place(name)) and path.parts[0] in missing else None)
        move_into_place(stage, folder, missing, archive)
    if not (local or keep_archive):
        archive.unlink()


def download_archive(source: ArchiveSource, folder: Path) -> Path:
    """The checked archive, downloaded to `folder` unless it is there already."""
    target = folder / source.name
    if target.exists():
        with deleting_damaged(target):
            check_md5(target, source.md5)
        return target
    part = download_resumable(source, target, RETRY_POLICY)
    with deleting_damaged(part.path):
        check_md5(part.path, source.md5)
    os.replace(part.path, target)
    part.notes_path.unlink(missing_ok=True)
    return target


def done_marker(folder: Path, group: str) -> Path:
    return folder / f".{group}.done.json"


def is_done(folder: Path, group: str) -> bool:
    """Whether each file that the done-marker names is there with its size."""
    files = read_json(done_marker(folder, group)).get("files")
    if not files or not isinstance(files, dict):
        return False
    return all((folder / name).is_file() and (folder / name).stat().st_size == size for name, size in files.items())


def move_into_place(stage: Path, folder: Path, groups: list[str], origin: Path) -> None:
    """Move what was unpacked to its place, complete files only, and mark each group as done."""
    found = {group: sorted(path for path in (stage / group).rglob("*") if path.is_file()) for group in groups}
    for group in (group for group in groups if not found[group]):
        raise DataError(f"{origin} holds no {group} files; is it the right one?")
    for group, paths in found.items():
        files = {path.relative_to(stage / group).as_posix(): path.stat().st_size for path in paths}
        for name in files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(stage / group / name, folder / name)
        write_json(done_marker(folder, group), {"files": files})
        log.info("%s: %d files in %s", group, len(files), (folder / next(iter(files))).parent)


# --- the command lines ----------------------------------------------------------------------------


def md5_text(text: str) -> str:
    if not re.fullmatch(r"[0-9a-fA-F]{32}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not an md5: 32 hexadecimal digits")
    return text.lower()


def run_command(task: Callable[[], None]) -> int:
    """Run a download command; every foreseeable end of it is one sentence and an exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        with logging_redirect_tqdm():
            task()
    except KeyboardInterrupt:
        log.error("Stopped. What has been downloaded is kept; the same command resumes from there.")
        return 130
    except (DataError, OSError) as error:
        log.error("Error: %s", error)
        return 1
    return 0
