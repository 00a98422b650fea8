"""Fetch one large file over HTTP, however often the connection breaks.

A download resumes by HTTP ranges (RFC 9110, section 14), if the server still has the file that it began with, and is
compared with its md5. Nothing half-written ever carries a final name.
"""

import hashlib
import json
import logging
import re
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import requests
from tqdm import tqdm
from urllib3.exceptions import HTTPError, InvalidHeader, MaxRetryError, ReadTimeoutError
from urllib3.util import Retry

from sound.atomic_files import write_text

CHUNK = 1 << 16  # bytes read at a time

log = logging.getLogger(__name__)


class DataError(Exception):
    """What keeps a data set from being installed; its text is the sentence for the user."""


class DamagedDownloadError(DataError):
    """A file that arrived incomplete or altered."""


class RetryError(Exception):
    """An attempt that failed in a way that the next one may not."""

    def __init__(self, reason: str, wait: float = 0.0, offline: bool = False):
        super().__init__(reason)
        self.wait, self.offline = wait, offline  # s that the server asks for; whether there was no server at all


@dataclass(frozen=True)
class RetryPolicy:
    retries: int = 8  # fruitless attempts in a row; one that brought new bytes is not fruitless
    retries_offline: int = 2  # the same while no server has answered at all
    backoff: float = 1.0  # s, doubled at each fruitless attempt up to a minute
    max_retry_after: float = 600.0  # s; a server that asks for more ends the run
    timeout: tuple[float, float] = (15.0, 60.0)  # s to connect, s without a byte


@dataclass(frozen=True)
class ArchiveSource:
    url: str
    name: str  # file name of the archive
    md5: str | None  # None: unknown
    ratio: float  # rough number of unpacked bytes per byte of the archive
    manual_hint: str  # what to do where the download does not work


# --- one file over HTTP ---------------------------------------------------------------------------


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

    def save_notes(self, **facts: str | int | None) -> None:
        self.notes |= facts
        write_json(self.notes_path, self.notes)

    def request_headers(self) -> dict[str, str]:
        headers = {"Accept-Encoding": "identity"}  # lengths must be those of the file itself
        if self.size:
            headers["Range"] = f"bytes={self.size}-"
        if self.size and self.notes["validator"]:
            headers["If-Range"] = self.notes["validator"]
        return headers

    def accept_response(self, response: requests.Response) -> None:
        """Make the file fit an answer of status 200, 206 or 416, or raise RetryError."""
        start, total = content_range(response.headers.get("Content-Range"))
        known = (range_validator(response) or self.notes.get("validator"), total or self.total)
        if response.status_code == 200 or (response.status_code == 206 and start == 0 == self.size):
            length = response.headers.get("Content-Length", "")
            self.start_over()
            self.save_notes(
                validator=range_validator(response), total=total or (int(length) if length.isdecimal() else None)
            )
            self.path.touch()
        elif response.status_code == 416 and self.size and total == self.size:  # more was announced than there is
            self.save_notes(total=total)
        elif response.status_code == 416 or start != self.size or known != (self.notes["validator"], self.total):
            self.start_over()
            raise RetryError("the file on the server is not the one that this download began with")

    def append(self, body: BinaryIO) -> None:
        with self.path.open("ab") as file, progress_bar(self.path.stem, self.total, self.size) as bar:
            while chunk := body.read1(CHUNK, decode_content=False):
                file.write(chunk)
                bar.update(len(chunk))
        if self.total is None:
            self.save_notes(total=self.size)
        if self.size < self.total:
            raise RetryError(f"the server stopped after {self.size} of {self.total} bytes")
        if self.size > self.total:
            self.start_over()
            raise RetryError("the server sent more bytes than it had announced")


def range_validator(response: requests.Response) -> str | None:
    """What If-Range may be asked with: a strong ETag, else the date of the last change."""
    etag = response.headers.get("ETag", "W/")
    return response.headers.get("Last-Modified") if etag.startswith("W/") else etag


def content_range(value: str | None) -> tuple[int | None, int | None]:
    """Start and total of a Content-Range header, None where it does not say."""
    match = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(?:(\d+)|\*)", (value or "").strip())
    return tuple(group and int(group) for group in match.groups()) if match else (None, None)


def download_resumable(source: ArchiveSource, target: Path, policy: RetryPolicy) -> PartialFile:
    """Download to `<target>.part`, going on from whatever is there, until it is complete.

    Raises:
        DataError: the server refuses, the disk is too small, or `policy` allows no more attempts.
    """
    part = PartialFile(target)
    best, fruitless, online = part.size, 0, False
    with requests.Session() as session:
        while not part.complete:
            try:
                request_missing_bytes(session, source, part, policy)
            except RetryError as error:
                fruitless = 1 if part.size > best else fruitless + 1
                best, online = max(best, part.size), online or not error.offline
                if fruitless > (policy.retries if online else policy.retries_offline):
                    raise DataError(
                        f"{source.url}: {error}, {fruitless} times in a row. {source.manual_hint}"
                    ) from error
                pause = max(error.wait, min(policy.backoff * 2 ** (fruitless - 1), 60.0))
                log.info("%s; trying again in %.0f s", error, pause)
                time.sleep(pause)
    return part


def request_missing_bytes(
    session: requests.Session, source: ArchiveSource, part: PartialFile, policy: RetryPolicy
) -> None:
    """Ask once for the bytes that are missing and append what comes."""
    try:
        with session.get(source.url, headers=part.request_headers(), stream=True, timeout=policy.timeout) as response:
            check_status(response, source, policy)
            part.accept_response(response)
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
        raise DataError(f"{source.url} cannot be asked for: {error}. {source.manual_hint}") from error


def check_status(response: requests.Response, source: ArchiveSource, policy: RetryPolicy) -> None:
    """Let an answer pass that has bytes or news of the file; a RetryError or a DataError for every other."""
    status = response.status_code
    if status in (408, 425, 429) or status >= 500:
        wait = retry_after(response.headers.get("Retry-After"))
        if wait > policy.max_retry_after:
            raise DataError(f"{source.url}: the server (HTTP {status}) asks to wait {wait:.0f} s; try again then")
        raise RetryError(f"the server answered HTTP {status}", wait)
    if status not in (200, 206, 416):
        reasons = {401: "refused by the server", 403: "refused by the server", 404: "no such file", 410: "no such file"}
        raise DataError(
            f"{source.url}: {reasons.get(status, 'unexpected answer')} (HTTP {status}). {source.manual_hint}"
        )
    if status != 416 and response.headers.get("Content-Type", "").startswith("text/html"):
        raise DataError(
            f"{source.url}: a web page came (a login or browser check), not the archive. {source.manual_hint}"
        )


def retry_after(value: str | None) -> float:
    """Seconds that a Retry-After header asks for, be it a number or an HTTP date."""
    try:
        return Retry().parse_retry_after(value or "0")
    except (InvalidHeader, ValueError, OverflowError):
        return 0.0


def progress_bar(label: str, total: int | None, done: int = 0) -> tqdm:
    """A bar with rate and time left; silent unless the command line has turned logging on."""
    quiet = not log.isEnabledFor(logging.INFO)
    pause = 0.5 if sys.stderr.isatty() else 30.0  # s; a log file needs no more
    return tqdm(desc=label, total=total, initial=done, unit="B", unit_scale=True, mininterval=pause, disable=quiet)


# --- on the disk ----------------------------------------------------------------------------------


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
    with path.open("rb") as file, progress_bar(f"checking {path.name}", path.stat().st_size) as bar:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    if digest.hexdigest() != expected.lower():
        raise DamagedDownloadError(
            f"{path} has the md5 {digest.hexdigest()}, {expected} was expected (--md5 names another)"
        )
