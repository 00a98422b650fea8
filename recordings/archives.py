"""Unpack a data set's archive safely and move its files to their place.

An archive counts as hostile: each member is checked, wanted or not, and written under a name of ours. Nothing
half-written carries a final name. ``download_data.py`` and ``download_trumpet_data.py`` say which files are wanted.
"""

import argparse
import errno
import gzip
import json
import logging
import lzma
import os
import re
import shutil
import stat
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from recordings.resumable_download import (
    CHUNK,
    DamagedDownloadError,
    DataError,
    DownloadSource,
    check_checksum,
    deleting_damaged,
    download,
    require_space,
)
from sound.atomic_files import write_text

log = logging.getLogger(__name__)

MAX_MEMBERS = 20_000  # URMP has about 1,000, a section of an orchestra some thousands
MAX_COMPRESSION_RATIO = 100  # unpacked bytes per packed byte: recordings reach 2, text 20, a bomb 1000
MIN_UNPACKED_BYTES = 64 << 20  # bytes that even the smallest archive may unpack to
MIN_SPEED = 1e6  # packed bytes a second, after a first minute; a slow disk unpacks 20 times as fast
MAX_HEADER_BYTES = 1 << 20  # between two members of a tar, and after the last one
UNREADABLE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError)

PlaceMember = Callable[[str], Path | None]  # a member's name -> group/path below the data folder, None: not wanted
UnpackArchive = Callable[[Path, Path, PlaceMember], None]  # archive, folder to fill, what goes where


# --- archives -------------------------------------------------------------------------------------


class MemberGuard:
    """Check each member of an archive, and the number, size and time of all."""

    def __init__(self, archive: Path):
        size = archive.stat().st_size
        self.archive, self.members_left = archive.name, MAX_MEMBERS
        self.bytes_left = max(MIN_UNPACKED_BYTES, MAX_COMPRESSION_RATIO * size)
        self.deadline = time.monotonic() + 60 + size / MIN_SPEED

    def check(self, name: str, size: int, is_plain: bool) -> None:
        """Raise DataError, with the member's name, for what no honest data set holds."""
        self.members_left -= 1
        self.bytes_left -= size
        faults = {
            "its path leads out of the folder": re.match(r"[/\\]|[A-Za-z]:", name) or ".." in re.split(r"[/\\]", name),
            "it is a link or a device": not is_plain,
            f"the archive unpacks to over {MAX_COMPRESSION_RATIO} times its size": size < 0 or self.bytes_left < 0,
            f"the archive has more than {MAX_MEMBERS} members": self.members_left < 0,
            "the archive takes far too long to unpack": time.monotonic() > self.deadline,
        }
        for fault in (fault for fault, found in faults.items() if found):
            raise DataError(f"{self.archive} is refused at its member {name[:200]!r}: {fault}")

    def check_zip(self, archive: zipfile.ZipFile) -> None:
        for member in archive.infolist():
            kind = stat.S_IFMT(member.external_attr >> 16)  # 0 where it was not packed on Unix
            is_plain = kind in (0, stat.S_IFDIR if member.is_dir() else stat.S_IFREG)
            self.check(member.orig_filename, member.file_size, is_plain)


@contextmanager
def naming_damage(archive: Path) -> Iterator[None]:
    """Raise DamagedDownloadError, with the archive's name, for what the libraries raise on a damaged one."""
    try:
        yield
    except (*UNREADABLE, RuntimeError, ValueError, OSError) as error:  # also a password, endless headers, a wrong CRC
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # the disk's, not the archive's
            raise
        raise DamagedDownloadError(f"{archive} cannot be unpacked: {error}") from error


def write_member(stream: BinaryIO, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with target.open("xb") as file:
            shutil.copyfileobj(stream, file)
    except FileExistsError as error:
        raise DataError(f"the archive is refused: it holds two files named {target.name}") from error


def unpack_zip(archive: Path, stage: Path, place: PlaceMember) -> None:
    """Take the wanted members of a zip out."""
    with naming_damage(archive), zipfile.ZipFile(archive) as source:
        MemberGuard(archive).check_zip(source)
        placed = {member: place(member.filename) for member in source.infolist() if not member.is_dir()}
        wanted = {member: target for member, target in placed.items() if target}
        require_space(stage.parent, sum(member.file_size for member in wanted))
        for member, target in tqdm(wanted.items(), "unpacking", disable=None):
            with source.open(member) as stream:
                write_member(stream, stage / target)


class LimitedStream:
    """A stream that hands out no more than its first `limit` bytes."""

    def __init__(self, stream: BinaryIO):
        self.stream, self.position, self.limit = stream, 0, MAX_HEADER_BYTES

    def read(self, size: int) -> bytes:
        data = self.stream.read(size)
        self.position += len(data)
        if self.position > self.limit:
            raise DataError(f"the archive is refused: too much that is no file lies before its byte {self.position}")
        return data


def unpack_tar(archive: Path, stage: Path, place: PlaceMember) -> None:
    """Take the wanted members of a .tar.gz or .tar out in one pass; gzip's own CRC is checked at its end."""
    guard = MemberGuard(archive)
    with archive.open("rb") as file, naming_damage(archive):
        magic = file.read(2)
        file.seek(0)
        if magic == b"PK":
            raise DataError(f"{archive} is a zip: unpack it and name the archive inside")
        # Some browsers save a .tar.gz as a .tar. tarfile reads gzip itself, but without a look at its CRC.
        with gzip.GzipFile(fileobj=file) if magic == b"\x1f\x8b" else nullcontext(file) as unpacked:
            stream = LimitedStream(unpacked)
            with tarfile.open(fileobj=stream, mode="r|", bufsize=CHUNK) as tar:
                for member in tqdm(tar, "unpacking", unit=" files", disable=None):
                    guard.check(member.name, member.size, member.isdir() or (member.isreg() and not member.issparse()))
                    stream.limit = member.offset_data + member.size + MAX_HEADER_BYTES
                    if member.isreg() and (target := place(member.name)):
                        write_member(tar.extractfile(member), stage / target)
            while stream.read(CHUNK):
                pass


# --- one data set ---------------------------------------------------------------------------------


def install_dataset(
    source: DownloadSource,
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
        unpack: fills a folder with what `place` wants.
        local: an archive, or for some `unpack` a folder, that the user has; it is neither downloaded nor deleted.
        keep_archive: whether a downloaded archive stays.

    Raises:
        DataError: nothing was installed; what has been downloaded is kept unless it is damaged.
    """
    missing = [group for group in groups if not is_done(folder, group)]
    if not missing:
        log.info("%s is complete; delete %s to have it anew", folder, done_marker(folder, groups[0]))
        return
    if local and not local.exists():
        raise DataError(f"{local} does not exist; name the file or folder that you have")
    folder.mkdir(parents=True, exist_ok=True)
    archive = local or download_archive(source, folder)
    with staging_folder(folder) as stage, nullcontext() if local else deleting_damaged(archive):
        if local and local.is_file():
            check_checksum(local, source.checksum)
        require_space(folder, source.ratio * archive.stat().st_size)
        unpack(archive, stage, lambda name: path if (path := place(name)) and path.parts[0] in missing else None)
        move_into_place(stage, folder, missing, archive)
    if not (local or keep_archive):
        archive.unlink()


def download_archive(source: DownloadSource, folder: Path) -> Path:
    """Return the checked archive, downloaded to `folder` unless it is there already."""
    archive = folder / source.name
    if archive.exists():
        with deleting_damaged(archive):
            check_checksum(archive, source.checksum)
    else:
        download(source, archive, lambda part: check_checksum(part, source.checksum))
    return archive


@contextmanager
def staging_folder(folder: Path) -> Iterator[Path]:
    """Give a folder that is gone afterwards; what a killed run has left in it is deleted first."""
    stage = folder / ".unpacking"
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir()
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def done_marker(folder: Path, group: str) -> Path:
    return folder / f".{group}.done.json"


def is_done(folder: Path, group: str) -> bool:
    """Return True if each file that the done-marker names is there with its size."""
    try:
        files = json.loads(done_marker(folder, group).read_text(encoding="utf-8"))["files"]
        return bool(files) and all((folder / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # no marker, or a damaged one
        return False


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
        write_text(done_marker(folder, group), json.dumps({"files": files}, indent=1))
        log.info("%s: %d files in %s", group, len(files), (folder / next(iter(files))).parent)


# --- the command lines ----------------------------------------------------------------------------


def checksum_text(text: str) -> str:
    """Return an md5 or sha256 in lower case, or raise ArgumentTypeError."""
    if not re.fullmatch(r"[0-9a-fA-F]{32}|[0-9a-fA-F]{64}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no md5 (32 hexadecimal digits) and no sha256 (64)")
    return text.lower()
