"""Data sets on the Hugging Face Hub: their index, requests with retries, and one-sentence errors."""

import argparse
import dataclasses
import itertools
import json
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import httpx2  # the HTTP client of huggingface_hub, which does not wrap its exceptions
from huggingface_hub import HfApi, errors, get_token

from config import require_name

INDEX_FILE = "index.json"
FORMAT_VERSION = 1
_PART = r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,150}"
_NAME = re.compile(rf"({_PART}/){{0,8}}{_PART}\.pt")  # a relative path that stays inside its folder, on every system
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_COUNT = 10**11  # bytes or frames of a recording
_TEMPORARY_STATUSES = (408, 429, 500, 502, 503, 504)  # temporary: the same request may succeed later
_TEMPORARY_ERRORS = (
    httpx2.TimeoutException,
    httpx2.NetworkError,
    httpx2.RemoteProtocolError,
    errors.OfflineModeIsEnabled,
    errors.LocalEntryNotFoundError,
    json.JSONDecodeError,  # a proxy's error page
)
# Uploads run in threads that share one connection; a thread whose request fails closes it for the others.
_CLOSED_CLIENT = re.compile("client has been closed|'NoneType' object has no attribute '(request|stream)'")
_MAX_PAUSE = 60.0  # s, unless the Hub requests one
_MAX_REQUESTED_PAUSE = 600.0  # s; a longer Retry-After is shortened to this

log = logging.getLogger("hub")
logging.getLogger("httpx2").setLevel(logging.WARNING)  # it logs each request
Answer = TypeVar("Answer")


class HubError(ValueError):
    """Failed access to the Hub; the text is one sentence for the user."""


class RefusedError(HubError):
    """The Hub denies access with this token, or without one."""


class UnreachableError(HubError):
    """No network, or the Hub is down or busy: a later attempt may succeed."""


def check_repo_id(name: str) -> str:
    """Return a repository name of the form user/name; raise ArgumentTypeError for any other text."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name, re.ASCII):
        raise argparse.ArgumentTypeError(f"a repository is named user/name, not {name!r}")
    return name


def ask_hub(
    action: Callable[[], Answer],
    address: str,
    attempts: float = 8,
    wait: Callable[[float], Any] | None = None,
    on_fault: Callable[[str], None] = log.warning,
) -> Answer:
    """Call ``action``, with retries after temporary failures of the network or the Hub, and return its result.

    Args:
        action: function to call; it must be safe to call it twice.
        address: URL, for messages.
        attempts: maximum number of calls.
        wait: called with the pause in s (default: ``time.sleep``); returns True to give up.
        on_fault: called with the message of each failure before a retry.

    Raises:
        HubError: a sentence with the address, the cause and the attempt.
        OSError: a local failure, such as a full disk.
    """
    for attempt in itertools.count(1):
        try:
            return action()
        except HubError:
            raise
        except (httpx2.HTTPError, OSError, RuntimeError, AttributeError, ImportError, ValueError) as error:
            pause, causes = min(2.0 ** min(attempt - 1, 10), _MAX_PAUSE), [error]
            while causes[-1].__cause__:
                causes.append(causes[-1].__cause__)
            if answer := next((cause for cause in causes if isinstance(cause, errors.HfHubHTTPError)), None):
                kind, reason = _explain_answer(answer)
                if (retry_after := answer.response.headers.get("Retry-After", "")).isdigit():
                    pause = min(float(retry_after), _MAX_REQUESTED_PAUSE)
            elif any(isinstance(cause, _TEMPORARY_ERRORS) or _CLOSED_CLIENT.search(str(cause)) for cause in causes):
                kind, reason = UnreachableError, f"it cannot be reached, {type(causes[-1]).__name__} {causes[-1]}"
            elif isinstance(error, (httpx2.HTTPError, ImportError, ValueError)):  # such as an invalid proxy setting
                kind, reason = HubError, str(error)
            else:
                raise
            problem = kind(f"{address}: {reason} (attempt {attempt})")
            if kind is not UnreachableError or attempt >= attempts:
                raise problem from error
            on_fault(f"{problem}; trying again")
            if (wait or time.sleep)(pause):
                raise problem from error
    raise AssertionError("unreachable")


def _explain_answer(answer: errors.HfHubHTTPError) -> tuple[type[HubError], str]:
    status, token = answer.response.status_code, "the token" if get_token() else "a request without a token"
    advice = "set HF_TOKEN (https://huggingface.co/settings/tokens), or run ./venv/bin/hf auth login"
    if isinstance(answer, errors.GatedRepoError):
        return RefusedError, "it is gated; request access on its page"
    if isinstance(answer, errors.RepositoryNotFoundError):
        return RefusedError, f"it does not exist, or it is private and {token} has no access; {advice}"
    if status in (401, 403):
        return RefusedError, f"the Hub {'does not accept' if status == 401 else 'denies this to'} {token}; {advice}"
    if status in _TEMPORARY_STATUSES:
        return UnreachableError, f"the Hub is busy or down (HTTP {status})"
    return HubError, f"the Hub refuses (HTTP {status}): {' '.join((answer.server_message or str(answer)).split())}"


# --- the index ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HubFile:
    """Index entry of a processed file: what training needs before the file is downloaded."""

    file: str  # path in the data set
    sha256: str  # of the file
    n_bytes: int
    n_frames: int
    take: str  # sha256 of the source recording, equal for copies of one take

    def is_valid(self) -> bool:
        """Return True if all values are plausible and the path is safe on every system."""
        counts, digests = (self.n_bytes, self.n_frames), (self.sha256, self.take)
        return bool(_NAME.fullmatch(self.file) and all(map(_SHA256.fullmatch, digests))) and all(
            type(count) is int and 0 < count < _MAX_COUNT for count in counts
        )


@dataclass(frozen=True)
class HubIndex:
    """Index of a data set on the Hub: recordings of one instrument, all measured with the same settings."""

    instrument: str
    extractor: dict[str, Any]
    recordings: tuple[HubFile, ...]

    def to_json(self) -> str:
        return json.dumps({"format_version": FORMAT_VERSION, **dataclasses.asdict(self)}, indent=1)

    @classmethod
    def from_json(cls, text: str, origin: str) -> "HubIndex":
        """Parse and check an index from an untrusted source.

        Raises:
            HubError: the text is not an index of this version, or an entry is invalid.
        """
        try:
            content = json.loads(text)
            names = [field.name for field in dataclasses.fields(HubFile)]
            entries = tuple(HubFile(**{name: entry[name] for name in names}) for entry in content["recordings"])
            instrument = require_name("the instrument", content["instrument"])
            index = cls(instrument, dict(content["extractor"]), entries)
            unique = {entry.file.lower(): entry for entry in entries}  # some file systems ignore case
            unusable = [entry for entry in entries if not entry.is_valid() or unique[entry.file.lower()] is not entry]
            if content["format_version"] != FORMAT_VERSION or not entries:
                raise ValueError(f"not an index of version {FORMAT_VERSION}, or empty")
        except (TypeError, ValueError, LookupError, AttributeError, RecursionError) as error:
            raise HubError(f"{INDEX_FILE} of {origin} is not the index of a data set; upload it again") from error
        if unusable:
            raise HubError(
                f"{INDEX_FILE} of {origin}: the entry {unusable[0].file[:80]!r} is invalid. A name has letters A to Z, "
                f"digits, '.', '_' and '-', and names must differ in more than case: rename the file. If the name is "
                f"valid, a length or checksum is not: upload the data set again"
            )
        return index


def read_text(api: HfApi, repo_id: str, name: str, revision: str | None = None) -> str | None:
    """Return the content of a text file in a data set on the Hub, None if there is no such file."""
    with TemporaryDirectory() as folder:  # not the client's cache, which would hide that the Hub is down
        try:
            path = api.hf_hub_download(repo_id, name, repo_type="dataset", revision=revision, local_dir=folder)
        except errors.RemoteEntryNotFoundError:
            return None
        return Path(path).read_text(encoding="utf-8", errors="replace")
