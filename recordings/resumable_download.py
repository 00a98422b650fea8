"""Download one file over HTTP, however often the connection breaks.

A download resumes by ranges (RFC 9110, section 14) while the server still has the file that it began with.
"""

import hashlib
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests
from tqdm import tqdm
from urllib3.exceptions import HTTPError
from urllib3.util import Retry

from sound.atomic_files import write_text

CHUNK = 1 << 16  # bytes read at a time
RETRIES = 8  # fruitless attempts in a row; one that brought new bytes is not fruitless
RETRIES_OFFLINE = 2  # the same while no server has answered at all
BACKOFF = 1.0  # s before the next attempt, doubled at each fruitless one up to a minute
MAX_RETRY_AFTER = 600.0  # s; a server that asks to wait longer ends the run
TIMEOUT = (15.0, 60.0)  # s to connect, s without a byte

log = logging.getLogger(__name__)


class DataError(Exception):
    """What keeps data from being installed; its text is the sentence for the user."""


class DamagedDownloadError(DataError):
    """A file that arrived incomplete or altered."""


class RetryError(Exception):
    """An attempt that failed in a way that the next one may not."""


@dataclass(frozen=True)
class DownloadSource:
    """Where a file comes from and what is known of it."""

    url: str
    name: str  # of the file here
    checksum: str | None = None  # md5 or sha256; None: unknown
    ratio: float = 0.0  # rough number of unpacked bytes per byte of the file
    manual_hint: str = ""  # what to do where the download does not work


def download(source: DownloadSource, target: Path, check: Callable[[Path], None]) -> None:
    """Download to `target`, from where an earlier run stopped; only a complete and checked file gets that name.

    `<target>.part` holds what has come so far, `<target>.part.tag` the server's ETag or date of that file.

    Args:
        check: raises DamagedDownloadError for a file that is not the expected one, which is then deleted.

    Raises:
        DataError: the server refuses, the disk is too small, the file is damaged, or RETRIES are used up.
    """
    part, tag = target.with_name(f"{target.name}.part"), target.with_name(f"{target.name}.part.tag")
    if not (tag.exists() and tag.read_text(encoding="utf-8")):  # nothing ties the bytes to what the server has now
        part.unlink(missing_ok=True)
    best, fruitless, allowed, complete = _size(part), 0, RETRIES_OFFLINE, False
    while not complete:
        headers = {"Accept-Encoding": "identity"}  # lengths must be those of the file itself
        if size := _size(part):
            headers |= {"Range": f"bytes={size}-", "If-Range": tag.read_text(encoding="utf-8") or None}
        requested_pause = 0.0
        try:
            with requests.get(source.url, headers=headers, stream=True, timeout=TIMEOUT) as response:
                allowed, requested_pause = RETRIES, Retry().get_retry_after(response.raw) or 0.0
                _check_status(response, source, requested_pause)
                _append_body(response, source, part, tag)
                complete = True
        except (requests.ConnectionError, requests.Timeout, HTTPError, RetryError) as error:
            fruitless = 1 if _size(part) > best else fruitless + 1
            best = max(best, _size(part))
            reason = str(error) if isinstance(error, RetryError) else f"no connection ({type(error).__name__})"
            if fruitless > allowed:
                raise DataError(f"{source.url}: {reason}, {fruitless} times in a row. {source.manual_hint}") from error
            pause = max(requested_pause, min(BACKOFF * 2 ** (fruitless - 1), 60.0))
            log.info("%s; trying again in %.0f s", reason, pause)
            time.sleep(pause)
        except (requests.RequestException, ValueError, OverflowError) as error:
            advice = f"Check it and the proxy settings (http_proxy, all_proxy). {source.manual_hint}"
            raise DataError(f"{source.url} cannot be requested: {error}. {advice}") from error
    with deleting_damaged(part):
        check(part)
    os.replace(part, target)
    tag.unlink()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _check_status(response: requests.Response, source: DownloadSource, requested_pause: float) -> None:
    """Raise unless an answer has bytes or news of the file."""
    status = response.status_code
    if requested_pause > MAX_RETRY_AFTER:
        raise DataError(f"{source.url}: the server (HTTP {status}) asks to wait {requested_pause:.0f} s; try then")
    if status in (408, 425, 429) or status >= 500:
        raise RetryError(f"the server answered HTTP {status}")
    if status not in (200, 206, 416):
        raise DataError(f"{source.url}: the server answered HTTP {status} {response.reason}. {source.manual_hint}")
    if status != 416 and response.headers.get("Content-Type", "").startswith("text/html"):
        raise DataError(f"{source.url}: a web page (a login?) came instead of the file. {source.manual_hint}")


def _append_body(response: requests.Response, source: DownloadSource, part: Path, tag: Path) -> None:
    """Append an answer of status 200, 206 or 416 to the part; return only if the file is then complete."""
    size, etag = _size(part), response.headers.get("ETag", "W/")
    validator = response.headers.get("Last-Modified", "") if etag.startswith("W/") else etag  # a weak ETag ties nothing
    content_range = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", response.headers.get("Content-Range", ""))
    start, total = content_range.groups() if content_range else (None, None)
    if response.status_code == 200:
        part.unlink(missing_ok=True)
        write_text(tag, validator)
        size, total = 0, response.headers.get("Content-Length")
    elif response.status_code == 416 and size and total == str(size):
        return
    elif not size or start != str(size) or validator not in ("", tag.read_text(encoding="utf-8")):
        part.unlink(missing_ok=True)
        raise RetryError("the server no longer has the file that this download began with")
    total = int(total) if total and total.isdecimal() else None
    require_space(part.parent, (total or 0) * (1 + source.ratio) - size)
    bar = tqdm(desc=source.name, total=total, initial=size, unit="B", unit_scale=True, mininterval=0.5, disable=None)
    with bar, part.open("ab") as file:
        while chunk := response.raw.read1(CHUNK, decode_content=False):
            bar.update(file.write(chunk))
    if total not in (None, _size(part)):
        raise RetryError(f"the server stopped after {_size(part)} of {total} bytes")


@contextmanager
def deleting_damaged(path: Path) -> Iterator[None]:
    """Delete a downloaded file that the block finds damaged."""
    try:
        yield
    except DamagedDownloadError as error:
        path.unlink()
        raise DataError(f"{error}; the file was deleted, run the same command to download it again") from error


def require_space(folder: Path, needed: float) -> None:
    """Raise DataError unless the disk of `folder` has `needed` free bytes."""
    missing = needed - shutil.disk_usage(folder).free
    if missing > 0:
        needed, missing = (tqdm.format_sizeof(size, "B") for size in (needed, missing))
        raise DataError(f"{folder} needs {needed} of free space, {missing} more than there is; free some")


def check_checksum(path: Path, expected: str | None) -> None:
    """Raise DamagedDownloadError unless a file has the expected md5 (32 digits) or sha256 (64)."""
    if not expected:
        return
    kind = "md5" if len(expected) == 32 else "sha256"
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()
    if found != expected:
        raise DamagedDownloadError(f"{path} has the {kind} {found}, {expected} was expected (--md5 names another)")
