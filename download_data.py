"""Download GuitarSet to data/raw/guitarset; also the machinery that every data set download shares.

    ./venv/bin/python download_data.py                       # the solo takes: melodies, one pitch at a time
    ./venv/bin/python download_data.py --takes all --annotations

GuitarSet (Xi, Bittner, Pauwels, Ye, Bello, ISMIR 2018; CC BY 4.0) is Zenodo record 3371780. A download resumes by
HTTP ranges (RFC 9110, section 14) and is compared with its md5 before it is opened; an archive counts as hostile until
each of its members has been looked at; nothing half-written ever carries a final name.
"""

import argparse
import hashlib
import json
import logging
import os
import re
import shutil
import stat
import sys
import time
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import requests
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm
from urllib3.exceptions import HTTPError, InvalidHeader, MaxRetryError, ReadTimeoutError
from urllib3.util import Retry

from files import write_text

log = logging.getLogger(__name__)

RECORD = "https://zenodo.org/records/3371780"
AUDIO_URL, AUDIO_MD5 = f"{RECORD}/files/audio_mono-mic.zip?download=1", "275966d6610ac34999b58426beb119c3"
JAMS_URL, JAMS_MD5 = f"{RECORD}/files/annotation.zip?download=1", "b39b78e63d3446f2e54ddb7a54df9b10"
TAKES = ("solo", "comp")
TAKE_FILE = re.compile(r"\d\d_[A-Za-z0-9#-]+_(solo|comp)(_mic\.wav|\.jams)")  # 00_BN1-129-Eb_solo_mic.wav

CHUNK = 1 << 16  # bytes read at a time
MAX_RATIO = 100  # unpacked bytes per packed byte: recordings reach 2, text 20, a bomb 1000
MIN_ROOM = 64 << 20  # bytes that even the smallest archive may unpack to

Place = Callable[[str], Path | None]  # a member's name -> group/path below the data folder, None: not wanted
Unpack = Callable[[Path, Path, Place], None]  # archive, folder to fill, what goes where


class DataError(Exception):
    """What keeps a data set from being installed; its text is the sentence for the user."""


class DamagedError(DataError):
    """A file that arrived incomplete or altered."""


class RetryError(Exception):
    """An attempt that failed in a way that the next one may not."""

    def __init__(self, reason: str, wait: float = 0.0, offline: bool = False):
        super().__init__(reason)
        self.wait, self.offline = wait, offline  # s that the server asks for; whether there was no server at all


@dataclass(frozen=True)
class Patience:
    retries: int = 8  # fruitless attempts in a row; one that brought new bytes is not fruitless
    retries_offline: int = 2  # the same while no server has answered at all
    backoff: float = 1.0  # s, doubled at each fruitless attempt up to a minute
    max_retry_after: float = 600.0  # s; a server that asks for more ends the run
    timeout: tuple[float, float] = (15.0, 60.0)  # s to connect, s without a byte


PATIENCE = Patience()


@dataclass(frozen=True)
class Source:
    url: str
    name: str  # file name of the archive
    md5: str | None  # None: unknown
    ratio: float  # rough number of unpacked bytes per byte of the archive
    by_hand: str  # what to do where the download does not work


# ---- one file over HTTP ----


class PartialFile:
    """`<name>.part` and, beside it, what the server said of the file, so that a later run can go on."""

    def __init__(self, target: Path):
        self.path = target.with_name(f"{target.name}.part")
        self.notes_path = target.with_name(f"{target.name}.part.json")
        self.notes = read_json(self.notes_path)
        if not isinstance(self.notes.get("validator"), str):  # nothing ties the bytes to what the server has now
            self.start_over()

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def total(self) -> int | None:
        total = self.notes.get("total")
        return total if isinstance(total, int) else None

    @property
    def complete(self) -> bool:
        return self.path.exists() and self.size == self.total

    def start_over(self) -> None:
        self.path.unlink(missing_ok=True)
        self.notes = {}

    def note(self, **facts: str | int | None) -> None:
        self.notes |= facts
        write_json(self.notes_path, self.notes)

    def headers(self) -> dict[str, str]:
        headers = {"Accept-Encoding": "identity"}  # lengths must be those of the file itself
        if self.size:
            headers["Range"] = f"bytes={self.size}-"
        if self.size and self.notes["validator"]:
            headers["If-Range"] = self.notes["validator"]
        return headers

    def accept(self, response: requests.Response) -> None:
        """Make the file fit an answer of status 200, 206 or 416, or raise RetryError."""
        start, total = content_range(response.headers.get("Content-Range"))
        known = (validator(response) or self.notes.get("validator"), total or self.total)
        if response.status_code == 200 or (response.status_code == 206 and start == 0 == self.size):
            length = response.headers.get("Content-Length", "")
            self.start_over()
            self.note(validator=validator(response), total=total or (int(length) if length.isdecimal() else None))
            self.path.touch()
        elif response.status_code == 416 and self.size and total == self.size:  # more was announced than there is
            self.note(total=total)
        elif response.status_code == 416 or start != self.size or known != (self.notes["validator"], self.total):
            self.start_over()
            raise RetryError("the file on the server is not the one that this download began with")

    def append(self, body: BinaryIO) -> None:
        with self.path.open("ab") as file, progress(self.path.stem, self.total, self.size) as bar:
            while chunk := body.read1(CHUNK, decode_content=False):
                file.write(chunk)
                bar.update(len(chunk))
        if self.total is None:
            self.note(total=self.size)
        if self.size < self.total:
            raise RetryError(f"the server stopped after {self.size} of {self.total} bytes")
        if self.size > self.total:
            self.start_over()
            raise RetryError("the server sent more bytes than it had announced")


def validator(response: requests.Response) -> str | None:
    """What If-Range may be asked with: a strong ETag, else the date of the last change."""
    etag = response.headers.get("ETag", "W/")
    return response.headers.get("Last-Modified") if etag.startswith("W/") else etag


def content_range(value: str | None) -> tuple[int | None, int | None]:
    """Start and total of a Content-Range header, None where it does not say."""
    match = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(?:(\d+)|\*)", (value or "").strip())
    return tuple(group and int(group) for group in match.groups()) if match else (None, None)


def fetch(source: Source, target: Path, patience: Patience) -> PartialFile:
    """Download to `<target>.part`, going on from whatever is there, until it is complete.

    Raises:
        DataError: the server refuses, the disk is too small, or `patience` is at its end.
    """
    part = PartialFile(target)
    best, fruitless, online = part.size, 0, False
    with requests.Session() as session:
        while not part.complete:
            try:
                attempt(session, source, part, patience)
            except RetryError as error:
                fruitless = 1 if part.size > best else fruitless + 1
                best, online = max(best, part.size), online or not error.offline
                if fruitless > (patience.retries if online else patience.retries_offline):
                    raise DataError(f"{source.url}: {error}, {fruitless} times in a row. {source.by_hand}") from error
                pause = max(error.wait, min(patience.backoff * 2 ** (fruitless - 1), 60.0))
                log.info("%s; trying again in %.0f s", error, pause)
                time.sleep(pause)
    return part


def attempt(session: requests.Session, source: Source, part: PartialFile, patience: Patience) -> None:
    """Ask once for the bytes that are missing and append what comes."""
    try:
        with session.get(source.url, headers=part.headers(), stream=True, timeout=patience.timeout) as response:
            check_status(response, source, patience)
            part.accept(response)
            if not part.complete:
                require_space(part.path.parent, (part.total or 0) * (1 + source.ratio) - part.size)
                part.append(response.raw)
    except (requests.Timeout, ReadTimeoutError) as error:
        raise RetryError("the server went silent", offline=isinstance(error, requests.ConnectTimeout)) from error
    except requests.ConnectionError as error:
        nobody = any(isinstance(cause, MaxRetryError) for cause in error.args)
        raise RetryError(f"no connection ({type(error).__name__})", offline=nobody) from error
    except HTTPError as error:
        raise RetryError("the connection broke") from error
    except requests.RequestException as error:
        raise DataError(f"{source.url} cannot be asked for: {error}. {source.by_hand}") from error


def check_status(response: requests.Response, source: Source, patience: Patience) -> None:
    """Let an answer pass that has bytes or news of the file; a RetryError or a DataError for every other."""
    status = response.status_code
    if status in (408, 425, 429) or status >= 500:
        wait = retry_after(response.headers.get("Retry-After"))
        if wait > patience.max_retry_after:
            raise DataError(f"{source.url}: the server (HTTP {status}) asks to wait {wait:.0f} s; try again then")
        raise RetryError(f"the server answered HTTP {status}", wait)
    if status not in (200, 206, 416):
        reasons = {401: "refused by the server", 403: "refused by the server", 404: "no such file", 410: "no such file"}
        raise DataError(f"{source.url}: {reasons.get(status, 'unexpected answer')} (HTTP {status}). {source.by_hand}")
    if status != 416 and response.headers.get("Content-Type", "").startswith("text/html"):
        raise DataError(f"{source.url}: a web page came (a login or browser check), not the archive. {source.by_hand}")


def retry_after(value: str | None) -> float:
    """Seconds that a Retry-After header asks for, be it a number or an HTTP date."""
    try:
        return Retry().parse_retry_after(value or "0")
    except (InvalidHeader, ValueError, OverflowError):
        return 0.0


def progress(label: str, total: int | None, done: int = 0) -> tqdm:
    """A bar with rate and time left; silent unless the command line has turned logging on."""
    quiet = not log.isEnabledFor(logging.INFO)
    pause = 0.5 if sys.stderr.isatty() else 30.0  # s; a log file needs no more
    return tqdm(desc=label, total=total, initial=done, unit="B", unit_scale=True, mininterval=pause, disable=quiet)


# ---- files and folders ----


def read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_json(path: Path, content: dict) -> None:
    write_text(path, json.dumps(content, indent=1))


def require_space(folder: Path, needed: float) -> None:
    """Raise DataError unless the disk of `folder`, which may not exist yet, has `needed` free bytes."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    missing = needed - shutil.disk_usage(existing).free
    if missing > 0:
        size = tqdm.format_sizeof
        raise DataError(
            f"{folder} needs {size(needed, 'B')} of free space and {size(missing, 'B')} are missing: "
            "free some, or name another disk by --output_dir"
        )


def check_md5(path: Path, expected: str | None) -> None:
    if expected is None:
        return
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file, progress(f"checking {path.name}", path.stat().st_size) as bar:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    if digest.hexdigest() != expected.lower():
        raise DamagedError(f"{path} has the md5 {digest.hexdigest()}, {expected} was expected (--md5 names another)")


@contextmanager
def discarding(path: Path, ours: bool = True) -> Iterator[None]:
    """Delete `path`, if it is a file that we downloaded, when the block finds it damaged."""
    try:
        yield
    except DamagedError as error:
        if not ours:
            raise
        path.unlink()
        raise DataError(f"{error}; the file was deleted, run the same command to download it again") from error


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """A folder that is gone afterwards; what a killed run has left in it is thrown away first."""
    stage = folder / ".unpacking"
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir(parents=True)
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)


# ---- archives ----


class Gate:
    """Looks at every member of an archive, wanted or not, before anything of it is written."""

    def __init__(self, archive: Path):
        self.archive = archive.name
        self.room = max(MIN_ROOM, MAX_RATIO * archive.stat().st_size)
        self.seen: set[str] = set()

    def admit(self, name: str, size: int, plain: bool, folder: bool) -> None:
        """Raise DataError, with the member's name, for what no honest data set holds."""
        path = name.replace("\\", "/")
        key = unicodedata.normalize("NFC", path).casefold()
        self.room -= max(size, 0)
        faults = {
            "its path is absolute": path.startswith("/") or re.match(r"[A-Za-z]:", path),
            "its path leads out of the folder": ".." in path.split("/"),
            "its name holds control characters": not name.isprintable(),
            "it is neither a file nor a folder but a link or a device": not (plain or folder),
            "its size is negative": size < 0,
            "another member has this name, maybe in other case": not folder and key in self.seen,
            f"it unpacks to more than {MAX_RATIO} times the archive, like a zip bomb": self.room < 0,
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
            raise DamagedError(f"the member {target.name} ends after {file.tell()} of {size} bytes")


def unpack_zip(archive: Path, stage: Path, place: Place) -> None:
    try:
        with zipfile.ZipFile(archive) as source:
            wanted = admit_all(source, Gate(archive), place)
            require_space(stage.parent, sum(member.file_size for member in wanted))
            for member, target in tqdm(wanted.items(), "unpacking", disable=not log.isEnabledFor(logging.INFO)):
                with source.open(member) as stream:
                    write_member(stream, stage / target, member.file_size)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise DamagedError(f"{archive} cannot be unpacked: {error}") from error


def admit_all(source: zipfile.ZipFile, gate: Gate, place: Place) -> dict[zipfile.ZipInfo, Path]:
    for member in source.infolist():
        kind = stat.S_IFMT(member.external_attr >> 16)  # 0 where it was not packed on Unix
        plain = kind in (0, stat.S_IFREG) and not member.is_dir()
        gate.admit(member.orig_filename, member.file_size, plain, member.is_dir() and kind in (0, stat.S_IFDIR))
    placed = {member: place(member.filename) for member in source.infolist() if not member.is_dir()}
    return {member: target for member, target in placed.items() if target}


# ---- one data set ----


def install(
    source: Source, folder: Path, groups: tuple[str, ...], place: Place, unpack: Unpack, local: Path | None, keep: bool
) -> None:
    """Bring those `groups` of a data set that are not there yet into `folder`, each with its done-marker.

    Args:
        place: tells for a member of the archive which group it belongs to and where in `folder` it goes.
        unpack: `unpack_zip`, or another function that fills a folder with what `place` wants.
        local: an archive, or for some `unpack` a folder, that the user has; it is neither downloaded nor deleted.
        keep: whether a downloaded archive stays.

    Raises:
        DataError: nothing was installed; what has been downloaded is kept unless it is damaged.
    """
    missing = [group for group in groups if not is_done(folder, group)]
    if not missing:
        log.info("%s is complete (%s); delete %s to have it anew", folder, ", ".join(groups), marker(folder, groups[0]))
        return
    if local and not local.exists():
        raise DataError(f"{local} does not exist; name the file or folder that you have")
    folder.mkdir(parents=True, exist_ok=True)
    archive = local or obtain(source, folder)
    with staging(folder) as stage, discarding(archive, ours=not local):
        if local and local.is_file():
            check_md5(local, source.md5)
        require_space(folder, source.ratio * archive.stat().st_size)
        unpack(archive, stage, lambda name: path if (path := place(name)) and path.parts[0] in missing else None)
        publish(stage, folder, missing, archive)
    if not (local or keep):
        archive.unlink()


def obtain(source: Source, folder: Path) -> Path:
    """The checked archive, downloaded to `folder` unless it is there already."""
    target = folder / source.name
    if target.exists():
        with discarding(target):
            check_md5(target, source.md5)
        return target
    part = fetch(source, target, PATIENCE)
    with discarding(part.path):
        check_md5(part.path, source.md5)
    os.replace(part.path, target)
    part.notes_path.unlink(missing_ok=True)
    return target


def marker(folder: Path, group: str) -> Path:
    return folder / f".{group}.done.json"


def is_done(folder: Path, group: str) -> bool:
    """Whether each file that the done-marker names is there with its size."""
    files = read_json(marker(folder, group)).get("files")
    if not files or not isinstance(files, dict):
        return False
    return all((folder / name).is_file() and (folder / name).stat().st_size == size for name, size in files.items())


def publish(stage: Path, folder: Path, groups: list[str], origin: Path) -> None:
    """Move what was unpacked to its place, complete files only, and mark each group as done."""
    found = {group: sorted(path for path in (stage / group).rglob("*") if path.is_file()) for group in groups}
    for group in (group for group in groups if not found[group]):
        raise DataError(f"{origin} holds no {group} files; is it the right one?")
    for group, paths in found.items():
        files = {path.relative_to(stage / group).as_posix(): path.stat().st_size for path in paths}
        for name in files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(stage / group / name, folder / name)
        write_json(marker(folder, group), {"files": files})
        log.info("%s: %d files in %s", group, len(files), (folder / next(iter(files))).parent)


# ---- GuitarSet ----


def place_take(name: str) -> Path | None:
    """solo/00_BN1-129-Eb_solo_mic.wav for a take, solo_annotation/annotation/....jams for its annotation."""
    match = TAKE_FILE.fullmatch(Path(name).name)
    if not match:
        return None
    take = match[1]
    return Path(take, match[0]) if match[2] == "_mic.wav" else Path(f"{take}_annotation", "annotation", match[0])


def by_hand(name: str, local_flag: str, url_flag: str) -> str:
    return f"By browser: save {name} from {RECORD} and run again with {local_flag} PATH; {url_flag} takes a mirror."


def download_guitarset(args: argparse.Namespace) -> None:
    takes = TAKES if args.takes == "all" else (args.takes,)
    if args.takes == "solo":
        log.info("Taking the solo takes only: comp takes are strummed chords, which have no single pitch (--takes)")
    share = len(takes) / len(TAKES)
    hint = by_hand("audio_mono-mic.zip", "--local_archive", "--url")
    audio = Source(args.url, "audio_mono-mic.zip", args.md5, 1.5 * share, hint)
    install(audio, args.output_dir, takes, place_take, unpack_zip, args.local_archive, args.keep_archive)
    if args.annotations:
        hint = by_hand("annotation.zip", "--local_annotations", "--annotations_url")
        jams = Source(args.annotations_url, "annotation.zip", args.annotations_md5, 10.0 * share, hint)
        groups = tuple(f"{take}_annotation" for take in takes)
        install(jams, args.output_dir, groups, place_take, unpack_zip, args.local_annotations, args.keep_archive)


def md5_text(text: str) -> str:
    if not re.fullmatch(r"[0-9a-fA-F]{32}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not an md5: 32 hexadecimal digits")
    return text.lower()


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Download GuitarSet (Zenodo record 3371780, 657 MB, CC BY 4.0).")
    add = parser.add_argument
    add("--takes", choices=(*TAKES, "all"), default="solo", help="solo: melodies; comp: strummed chords; all: both")
    add("--annotations", action="store_true", help="also the JAMS annotations (39 MB), to OUTPUT_DIR/annotation")
    add("--output_dir", type=Path, default=Path("data/raw/guitarset"))
    add("--url", default=AUDIO_URL, help="a mirror of audio_mono-mic.zip")
    add("--md5", type=md5_text, default=AUDIO_MD5, help="md5 of the archive, where it is not the one of Zenodo")
    add("--local_archive", type=Path, metavar="PATH", help="audio_mono-mic.zip that you already have")
    add("--annotations_url", default=JAMS_URL, help="a mirror of annotation.zip")
    add("--annotations_md5", type=md5_text, default=JAMS_MD5, help="md5 of a different annotation.zip")
    add("--local_annotations", type=Path, metavar="PATH", help="annotation.zip that you already have")
    add("--keep_archive", action="store_true", help="do not delete the downloaded archive when it is unpacked")
    return parser.parse_args(argv)


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


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    return run_command(lambda: download_guitarset(args))


if __name__ == "__main__":
    raise SystemExit(main())
