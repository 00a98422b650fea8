"""Data sets on the Hugging Face Hub: their index, one patient loop, and one sentence where patience does not help."""

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

import httpx2  # what huggingface_hub speaks through; its exceptions come out of it
from huggingface_hub import HfApi, errors, get_token

INDEX_FILE = "index.json"
FORMAT_VERSION = 1
_PART = r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,150}"
_NAME = re.compile(rf"({_PART}/){{0,8}}{_PART}\.pt")  # a path inside of any folder, on every system
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_COUNT = 10**11  # bytes or frames of a recording
_PASSING_STATUSES = (408, 429, 500, 502, 503, 504)  # answers after which the same question may succeed
_PASSING_ERRORS = (
    httpx2.TimeoutException,
    httpx2.NetworkError,
    httpx2.RemoteProtocolError,
    errors.OfflineModeIsEnabled,
    errors.LocalEntryNotFoundError,
    json.JSONDecodeError,  # a page of a proxy that says that the Hub is down
)
# Uploads run in threads that share one connection; a thread whose request fails closes it for the others.
_CLOSED_CLIENT = re.compile("client has been closed|'NoneType' object has no attribute '(request|stream)'")
_LONGEST_PAUSE = 60.0  # s, of our own choice
_LONGEST_REQUESTED_PAUSE = 600.0  # s; a Hub that asks for more is asked again

log = logging.getLogger("hub")
logging.getLogger("httpx2").setLevel(logging.WARNING)  # it logs each request
Answer = TypeVar("Answer")


class HubError(ValueError):
    """What keeps us from the Hub's data; its text is the sentence for the user."""


class RefusedError(HubError):
    """This token, or none at all, may not have it."""


class UnreachableError(HubError):
    """No network, or a Hub that is down or asks for a pause: asking again may help."""


def check_repo_id(name: str) -> str:
    """Return a repository's name as the command line gives it, if it is user/name."""
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
    """Do something with the Hub, again and again where the network or the Hub fails for a while.

    Args:
        action: what to do; it must not matter whether it is done twice.
        address: where, for the message.
        attempts: how often at most.
        wait: waits so many seconds (default: sleeps); may return True to give up.
        on_fault: called with the sentence of each failure that is tried again.

    Raises:
        HubError: one sentence with the address, the cause and the attempt.
        OSError: it was not the Hub (a full disk, say).
    """
    for attempt in itertools.count(1):
        try:
            return action()
        except HubError:
            raise
        except (httpx2.HTTPError, OSError, RuntimeError, AttributeError, ImportError, ValueError) as error:
            pause, causes = min(2.0 ** min(attempt - 1, 10), _LONGEST_PAUSE), [error]
            while causes[-1].__cause__:
                causes.append(causes[-1].__cause__)
            if answer := next((cause for cause in causes if isinstance(cause, errors.HfHubHTTPError)), None):
                kind, reason = _explain_answer(answer)
                if (asked := answer.response.headers.get("Retry-After", "")).isdigit():
                    pause = min(float(asked), _LONGEST_REQUESTED_PAUSE)
            elif any(isinstance(cause, _PASSING_ERRORS) or _CLOSED_CLIENT.search(str(cause)) for cause in causes):
                kind, reason = UnreachableError, f"it cannot be reached, {type(causes[-1]).__name__} {causes[-1]}"
            elif isinstance(error, (httpx2.HTTPError, ImportError, ValueError)):  # a proxy that does not do, say
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
    advice = "set HF_TOKEN to one that may (https://huggingface.co/settings/tokens), or run ./venv/bin/hf auth login"
    if isinstance(answer, errors.GatedRepoError):
        return RefusedError, "it is gated; ask for access on its page"
    if isinstance(answer, errors.RepositoryNotFoundError):
        return RefusedError, f"it does not exist, or it is private and {token} may not see it; {advice}"
    if status in (401, 403):
        return RefusedError, f"the Hub does not {'know' if status == 401 else 'allow this to'} {token}; {advice}"
    if status in _PASSING_STATUSES:
        return UnreachableError, f"the Hub is busy or down, answer {status}"
    return HubError, f"the Hub refuses, answer {status}: {' '.join((answer.server_message or str(answer)).split())}"


# --- the index ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HubFile:
    """What training has to know of a processed file before it is here."""

    file: str  # path in the data set
    sha256: str  # of the file
    n_bytes: int
    n_frames: int
    take: str  # sha256 of the recording it was made from: copies of one take share it

    def is_valid(self) -> bool:
        """Return True if a processed file can be so, and its path is a plain one."""
        counts, digests = (self.n_bytes, self.n_frames), (self.sha256, self.take)
        return bool(_NAME.fullmatch(self.file) and all(map(_SHA256.fullmatch, digests))) and all(
            type(count) is int and 0 < count < _MAX_COUNT for count in counts
        )


@dataclass(frozen=True)
class HubIndex:
    """What a data set on the Hub holds: recordings of one instrument, measured with the same settings."""

    instrument: str
    extractor: dict[str, Any]
    recordings: tuple[HubFile, ...]

    def to_json(self) -> str:
        return json.dumps({"format_version": FORMAT_VERSION, **dataclasses.asdict(self)}, indent=1)

    @classmethod
    def from_json(cls, text: str, origin: str) -> "HubIndex":
        """Read an index that anybody may have written.

        Raises:
            HubError: it is not an index of this version, or has an entry that cannot be used.
        """
        try:
            content = json.loads(text)
            names = [field.name for field in dataclasses.fields(HubFile)]
            entries = tuple(HubFile(**{name: entry[name] for name in names}) for entry in content["recordings"])
            index = cls(str(content["instrument"]), dict(content["extractor"]), entries)
            unique = {entry.file.lower(): entry for entry in entries}  # on some systems case makes no other name
            unusable = [entry for entry in entries if not entry.is_valid() or unique[entry.file.lower()] is not entry]
            if content["format_version"] != FORMAT_VERSION or not entries:
                raise ValueError(f"it is not of version {FORMAT_VERSION}, or empty")
        except (TypeError, ValueError, LookupError, AttributeError, RecursionError) as error:
            raise HubError(f"{INDEX_FILE} of {origin} is not the index of a data set; upload it again") from error
        if unusable:
            raise HubError(
                f"{INDEX_FILE} of {origin}: {unusable[0].file[:80]!r} cannot be used. A name is of letters A to Z, "
                f"digits, '.', '_' and '-', and no other differs in case only; lengths and sums are right. Rename it"
            )
        return index


def read_text(api: HfApi, repo_id: str, name: str, revision: str | None = None) -> str | None:
    """Return a text file of a data set on the Hub; None if it has none."""
    with TemporaryDirectory() as folder:  # not the client's cache, which answers for a Hub that is down
        try:
            path = api.hf_hub_download(repo_id, name, repo_type="dataset", revision=revision, local_dir=folder)
        except errors.RemoteEntryNotFoundError:
            return None
        return Path(path).read_text(encoding="utf-8", errors="replace")
