"""Install a data set: download its archive, unpack the selected files and move them to the data folder.

Files get names chosen here, never the archive's paths, and an incomplete file never has its final name.
``download_data.py`` and ``download_trumpet_data.py`` select the files.
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
from functools import partial
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

MAX_RATIO = 100  # unpacked bytes per packed byte: recordings reach 2, text 20, a zip bomb 1000
MAX_MEMBERS = 20_000  # folders included; URMP has about 1,000
MIN_SPEED = 1e6  # packed bytes per second, after the first minute; a slow disk unpacks 20 times as fast
MAX_HEADER_BYTES = 1 << 20  # of a tar, between two files and after the last one
MIN_UNPACKED_BYTES = 64 << 20  # an archive of any size may unpack to this many bytes
UNREADABLE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError)

PlaceMember = Callable[[str], Path | None]  # a member's name -> group/path in the data folder, or None to skip it
Member = tuple[str, int, Callable[[], BinaryIO]]  # name, size in bytes, function that opens it


def read_members(archive: Path) -> Iterator[Member]:
    """Yield the files of a zip, tar, gzipped tar or folder; files of a tar must be opened in the order they come.

    Raises:
        DataError: a member is not a regular file, its path leaves the folder, or there are too many members, too many
            unpacked bytes, or too much time is spent.
        DamagedDownloadError: the archive cannot be read.
    """
    left = max(MIN_UNPACKED_BYTES, MAX_RATIO * archive.stat().st_size) if archive.is_file() else float("inf")
    deadline = time.monotonic() + 60 + archive.stat().st_size / MIN_SPEED
    read = read_folder if archive.is_dir() else read_zip if zipfile.is_zipfile(archive) else read_tar
    with naming_damage(archive):
        for name, size, open_member in tqdm(read(archive), "unpacking", unit=" files", disable=None):
            left -= size
            if left < 0:
                refuse(name, f"the archive unpacks to over {MAX_RATIO} times its size")
            if not archive.is_dir() and time.monotonic() > deadline:
                refuse(name, "the archive takes too long to unpack")
            yield name, size, open_member


def read_folder(folder: Path) -> Iterator[Member]:
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        yield path.name, path.stat().st_size, partial(path.open, "rb")


def read_zip(file: Path | BinaryIO) -> Iterator[Member]:
    with zipfile.ZipFile(file) as source:
        for number, member in enumerate(source.infolist()):
            require_few_members(number, member.orig_filename)
            name, kind = member.orig_filename, stat.S_IFMT(member.external_attr >> 16)  # 0: not made on Unix
            if re.match(r"[/\\]|[A-Za-z]:", name) or ".." in re.split(r"[/\\]", name):
                refuse(name, "its path leaves the folder")
            if kind not in (0, stat.S_IFDIR if member.is_dir() else stat.S_IFREG):
                refuse(name, "it is a link or a device")
            if not member.is_dir():
                yield member.filename, member.file_size, partial(source.open, member)


class LimitedStream:
    """Stream that raises DataError beyond ``limit`` bytes, since tarfile reads headers of any size into memory."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.position, self.limit = stream, 0, MAX_HEADER_BYTES

    def read(self, size: int) -> bytes:
        data = self.stream.read(size)
        self.position += len(data)
        if self.position > self.limit:
            raise DataError(f"the archive is refused: over {MAX_HEADER_BYTES} bytes before {self.position} are no file")
        return data


def read_tar(archive: Path) -> Iterator[Member]:
    with archive.open("rb") as file:
        is_packed = file.read(2) == b"\x1f\x8b"  # some browsers save a .tar.gz as a .tar
        file.seek(0)
        # tarfile can read gzip, but does not check its CRC.
        with gzip.GzipFile(fileobj=file) if is_packed else nullcontext(file) as unpacked:
            stream = LimitedStream(unpacked)
            with tarfile.open(fileobj=stream, mode="r|", bufsize=CHUNK) as tar:
                for number, member in enumerate(tar):
                    require_few_members(number, member.name)
                    stream.limit = member.offset_data + member.size + MAX_HEADER_BYTES
                    try:
                        tarfile.data_filter(member, "/folder")
                    except tarfile.FilterError as error:
                        refuse(member.name, str(error))
                    if member.isreg():
                        yield member.name, member.size, partial(tar.extractfile, member)
            while stream.read(CHUNK):  # gzip checks the CRC at the end of the file
                pass


def require_few_members(number: int, name: str) -> None:
    if number >= MAX_MEMBERS:
        refuse(name, f"it has more than {MAX_MEMBERS} members")


def refuse(name: str, reason: str) -> None:
    raise DataError(f"the archive is refused at its member {name[:200]!r}: {reason}")


@contextmanager
def naming_damage(archive: Path) -> Iterator[None]:
    """Convert the errors that libraries raise for a damaged archive to DamagedDownloadError with its name."""
    try:
        yield
    # The last three: a password, endless headers, a wrong CRC.
    except (*UNREADABLE, RuntimeError, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # from the disk, not the archive
            raise
        raise DamagedDownloadError(f"{archive} cannot be unpacked: {error}") from error


def unpack(archive: Path, stage: Path, place: PlaceMember) -> None:
    """Write the selected files of an archive or folder to `stage`."""
    for name, size, open_member in read_members(archive):
        if target := place(name):
            require_space(stage.parent, size)
            with naming_damage(archive), open_member() as stream:
                write_member(stream, stage / target)


def write_member(stream: BinaryIO, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with target.open("xb") as file:
            shutil.copyfileobj(stream, file)
    except FileExistsError as error:
        raise DataError(f"the archive is refused: it contains two files named {target.name}") from error


def install_dataset(
    source: DownloadSource,
    folder: Path,
    groups: tuple[str, ...],
    place: PlaceMember,
    local: Path | None,
    keep_archive: bool,
) -> None:
    """Install the missing `groups` of a data set in `folder`, each with its done-marker.

    Args:
        source: address and checksum of the archive.
        folder: data folder.
        groups: names of the groups to install.
        place: function from a member's name to its group and path in `folder`, None to skip it.
        local: archive or folder on disk, used instead of a download and never deleted.
        keep_archive: keep a downloaded archive after unpacking.

    Raises:
        DataError: nothing was installed; a download is kept unless it is damaged.
    """
    missing = [group for group in groups if not is_done(folder, group)]
    if not missing:
        log.info("%s is complete; to install it again, delete %s", folder, done_marker(folder, groups[0]))
        return
    if local and not local.exists():
        raise DataError(f"{local} does not exist; give the path of an existing file or folder")
    folder.mkdir(parents=True, exist_ok=True)
    archive, stage = local or folder / source.name, folder / ".unpacking"
    shutil.rmtree(stage, ignore_errors=True)  # left by an interrupted run
    try:
        if not archive.exists():
            download(source, archive, lambda part: check_checksum(part, source.checksum))
        with nullcontext() if local else deleting_damaged(archive):
            if archive.is_file():
                check_checksum(archive, source.checksum)
                require_space(folder, source.ratio * archive.stat().st_size)
            unpack(archive, stage, lambda name: path if (path := place(name)) and path.parts[0] in missing else None)
        move_into_place(stage, folder, missing, archive)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    if not (local or keep_archive):
        archive.unlink()


def done_marker(folder: Path, group: str) -> Path:
    return folder / f".{group}.done.json"


def is_done(folder: Path, group: str) -> bool:
    """Return True if every file listed in the done-marker exists and has its listed size."""
    try:
        files = json.loads(done_marker(folder, group).read_text(encoding="utf-8"))["files"]
        return bool(files) and all((folder / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # missing or damaged marker
        return False


def move_into_place(stage: Path, folder: Path, groups: list[str], origin: Path) -> None:
    """Move the unpacked files from `stage` to `folder` and write the done-marker of each group."""
    found = {group: sorted(path for path in (stage / group).rglob("*") if path.is_file()) for group in groups}
    for group in (group for group in groups if not found[group]):
        raise DataError(f"{origin} holds no {group} files; check that it is the right archive")
    for group, paths in found.items():
        files = {path.relative_to(stage / group).as_posix(): path.stat().st_size for path in paths}
        for name in files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(stage / group / name, folder / name)
        write_text(done_marker(folder, group), json.dumps({"files": files}, indent=1))
        log.info("%s: %d files in %s", group, len(files), (folder / next(iter(files))).parent)


def checksum_text(text: str) -> str:
    """Return an md5 or sha256 digest in lower case; raise ArgumentTypeError for other text."""
    if not re.fullmatch(r"[0-9a-fA-F]{32}|[0-9a-fA-F]{64}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is neither an md5 (32 hexadecimal digits) nor a sha256 (64)")
    return text.lower()
