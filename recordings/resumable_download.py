"""Download one file over HTTP, with retries and resumption.

A download resumes with range requests (RFC 9110, section 14) if the server still has the same file.
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
RETRIES = 8  # attempts in a row that bring no new bytes
RETRIES_OFFLINE = 2  # the same before the first answer of the server
BACKOFF = 1.0  # s before the next attempt, doubled up to a minute at each attempt without new bytes
MAX_RETRY_AFTER = 600.0  # s; a longer Retry-After ends the run
TIMEOUT = (15.0, 60.0)  # s to connect, s without data

log = logging.getLogger(__name__)


class DataError(Exception):
    """Data cannot be installed; the text is one sentence for the user."""


class DamagedDownloadError(DataError):
    """A file that arrived incomplete or altered."""


class RetryError(Exception):
    """A temporary failure: the next attempt may succeed."""


@dataclass(frozen=True)
class DownloadSource:
    """Address, local name and checksum of a file to download."""

    url: str
    name: str  # local file name
    checksum: str | None = None  # md5 or sha256; None: unknown
    ratio: float = 0.0  # approximate unpacked bytes per byte of the file
    manual_hint: str = ""  # advice for the user if the download fails


def download(source: DownloadSource, target: Path, check: Callable[[Path], None]) -> None:
    """Download to `target`, resuming an earlier run; only a complete, checked file gets that name.

    `<target>.part` holds the partial file, `<target>.part.tag` its ETag or modification date on the server.

    Args:
        source: file to download.
        target: path to write.
        check: raises DamagedDownloadError for a wrong file, which is then deleted.

    Raises:
        DataError: the server refuses, the disk is too small, the file is damaged, or all retries failed.
    """
    part, tag = target.with_name(f"{target.name}.part"), target.with_name(f"{target.name}.part.tag")
    if not (tag.exists() and tag.read_text(encoding="utf-8")):  # the partial file cannot be matched with the server's
        part.unlink(missing_ok=True)
    best, n_failed, allowed, complete = _size(part), 0, RETRIES_OFFLINE, False
    while not complete:
        headers = {"Accept-Encoding": "identity"}  # so that lengths are those of the file itself
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
            n_failed = 1 if _size(part) > best else n_failed + 1
            best = max(best, _size(part))
            reason = str(error) if isinstance(error, RetryError) else f"no connection ({type(error).__name__})"
            if n_failed > allowed:
                raise DataError(f"{source.url}: {reason}, {n_failed} times in a row. {source.manual_hint}") from error
            pause = max(requested_pause, min(BACKOFF * 2 ** (n_failed - 1), 60.0))
            log.info("%s; trying again in %.0f s", reason, pause)
            time.sleep(pause)
        except (requests.RequestException, ValueError, OverflowError) as error:
            advice = f"Check the address and the proxy settings (http_proxy, all_proxy). {source.manual_hint}"
            raise DataError(f"{source.url} cannot be requested: {error}. {advice}") from error
    with deleting_damaged(part):
        check(part)
    os.replace(part, target)
    tag.unlink()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _check_status(response: requests.Response, source: DownloadSource, requested_pause: float) -> None:
    """Raise unless the response has content of the file, or status 416 (nothing left to send)."""
    status = response.status_code
    if requested_pause > MAX_RETRY_AFTER:
        raise DataError(f"{source.url}: the server (HTTP {status}) requests a pause of {requested_pause:.0f} s")
    if status in (408, 425, 429) or status >= 500:
        raise RetryError(f"the server answered HTTP {status}")
    if status not in (200, 206, 416):
        raise DataError(f"{source.url}: the server answered HTTP {status} {response.reason}. {source.manual_hint}")
    if status != 416 and response.headers.get("Content-Type", "").startswith("text/html"):
        raise DataError(f"{source.url}: the server sent a web page (a login?), not the file. {source.manual_hint}")


def _append_body(response: requests.Response, source: DownloadSource, part: Path, tag: Path) -> None:
    """Append a response of status 200, 206 or 416 to the partial file; raise RetryError if it is still incomplete."""
    size, etag = _size(part), response.headers.get("ETag", "W/")
    validator = response.headers.get("Last-Modified", "") if etag.startswith("W/") else etag  # weak: not byte-exact
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
        raise RetryError("the file on the server has changed since this download began")
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
    """Delete the file if the block raises DamagedDownloadError."""
    try:
        yield
    except DamagedDownloadError as error:
        path.unlink()
        raise DataError(f"{error}; the file was deleted, run the same command again to download it") from error


def require_space(folder: Path, needed: float) -> None:
    """Raise DataError if the disk of `folder` has less than `needed` bytes free."""
    missing = needed - shutil.disk_usage(folder).free
    if missing > 0:
        needed, missing = (tqdm.format_sizeof(size, "B") for size in (needed, missing))
        raise DataError(f"{folder} needs {needed} of free space, {missing} more than available; free some space")


def check_checksum(path: Path, expected: str | None) -> None:
    """Raise DamagedDownloadError if a file's md5 (32 digits) or sha256 (64) is not the expected one."""
    if not expected:
        return
    kind = "md5" if len(expected) == 32 else "sha256"
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()
    if found != expected:
        raise DamagedDownloadError(f"{path} has the {kind} {found}, expected {expected} (--md5 sets another)")
