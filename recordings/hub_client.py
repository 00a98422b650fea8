"""Requests to the Hugging Face Hub, repeated while it is down, and the index of a data set on it.

A data set is the processed files of ``preprocess.py`` and, beside them, ``index.json``, which says of each file what
training has to know before the file is there: how long it is, which take it comes from, and its sha256.
``scripts/upload_to_hf.py`` writes it, ``hub_dataset.py`` reads it.
"""

import dataclasses
import itertools
import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import PurePosixPath
from typing import Any, TypeVar
from urllib.request import getproxies

import httpx2  # what huggingface_hub speaks through; its exceptions come out of it
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import HFValidationError, validate_repo_id

INDEX_FILE = "index.json"
FORMAT_VERSION = 1
_RETRY_STATUSES = (408, 429, 500, 502, 503, 504)  # answers after which the same question may succeed
_OFFLINE_ERRORS = (
    httpx2.TimeoutException,
    httpx2.NetworkError,
    httpx2.RemoteProtocolError,
    OfflineModeIsEnabled,
    LocalEntryNotFoundError,
    json.JSONDecodeError,  # a page of a proxy that says that the Hub is down
)
# All threads share the client's connection, and one whose request fails closes it under the hands of the others.
_CLOSED_CLIENT_MESSAGES = (
    "Cannot send a request, as the client has been closed.",
    "'NoneType' object has no attribute 'request'",
    "'NoneType' object has no attribute 'stream'",
)
_MAX_PAUSE = 600.0  # s; who asks for more is asked again
_TOKENS = "https://huggingface.co/settings/tokens"

log = logging.getLogger("hub")
Answer = TypeVar("Answer")


class HubError(ValueError):
    """What keeps us from the Hub's data; its text is the sentence for the user."""


class RefusedError(HubError):
    """This user, or this token, may not have it: asking again is of no use."""


class UnreachableError(HubError):
    """No network, or a Hub that is down or asks for a pause."""


@dataclass(frozen=True)
class HubRetryPolicy:
    retries: float = 5  # in a row
    backoff: float = 1.0  # s, doubled at each
    longest: float = 60.0  # s


HUB_RETRY_POLICY = HubRetryPolicy()


# --- asking ---------------------------------------------------------------------------------------


def check_repo_id(repo_id: str) -> str:
    """Return a name as it is if it can be one of a repository on the Hub: user/name.

    Raises:
        ValueError: it cannot.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"a repository is named user/name; {error}") from error
    if "/" not in repo_id:
        raise ValueError(f"a repository is named user/name, not {repo_id}")
    return repo_id


def connect_to_hub(write: bool = False) -> HfApi:
    """Return a client that knows ``HF_TOKEN`` or the saved login.

    Raises:
        HubError: the environment names a proxy that the client cannot use.
        RefusedError: ``write``, and there is no token, or one that the Hub does not know or that only reads.
    """
    usable = "socks5" if find_spec("socksio") else ()
    for proxy in getproxies().values():
        if proxy.startswith("socks") and not proxy.startswith(usable):
            advice = "./venv/bin/python -m pip install socksio and write socks5://host:port, or set an http proxy"
            raise HubError(f"the proxy {proxy} cannot be used for the Hub: {advice}")
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # it says a line for each request
    api = HfApi()
    if not write:
        return api
    advice = f"make a token with write permission at {_TOKENS}, then set HF_TOKEN or run ./venv/bin/hf auth login"
    if get_token() is None:
        raise RefusedError(f"there is no token for the Hub: {advice}")
    token = request_with_retries(api.whoami, "your account").get("auth", {}).get("accessToken", {})
    if token.get("role") == "read":
        raise RefusedError(f"the token '{token.get('displayName')}' may only read: {advice}")
    return api


def request_with_retries(
    action: Callable[[], Answer],
    repo_id: str,
    retry_policy: HubRetryPolicy = HUB_RETRY_POLICY,
    wait: Callable[[float], Any] | None = None,
    warn: Callable[[str], None] = log.warning,
) -> Answer:
    """Do something with the Hub, again and again where the network or the Hub fails for a while.

    Args:
        action: what to do; it must not matter whether it is done twice.
        repo_id: what it is about, for the message.
        retry_policy: how often and how long.
        wait: waits so many seconds (default: sleeps); may return True to give up.
        warn: told of each failure that is tried again.

    Raises:
        HubError: what went wrong, as one sentence.
        OSError: it was not the Hub (a full disk, say).
    """
    for attempt in itertools.count():
        try:
            return action()
        except (httpx2.HTTPError, OSError, RuntimeError, AttributeError, json.JSONDecodeError) as error:
            problem = translate_error(error, repo_id)
            if problem is None:
                raise
            if not isinstance(problem, UnreachableError) or attempt >= retry_policy.retries:
                raise problem from error
            delay = _requested_pause(error) or min(retry_policy.backoff * 2.0 ** min(attempt, 30), retry_policy.longest)
            warn(f"{problem}; trying again")
            if (wait or time.sleep)(delay):
                raise problem from error
    raise AssertionError("unreachable")


def translate_error(error: BaseException, repo_id: str) -> HubError | None:
    """Return an error of the client as one of ours; None: the Hub has nothing to do with it."""
    chain = list(_causes(error))
    answer = next((cause for cause in chain if isinstance(cause, HfHubHTTPError)), None)
    if answer is None:
        if any(isinstance(cause, _OFFLINE_ERRORS) or str(cause) in _CLOSED_CLIENT_MESSAGES for cause in chain):
            return UnreachableError("the Hugging Face Hub cannot be reached")
        return HubError(f"the Hub: {error}") if isinstance(error, httpx2.HTTPError) else None
    status = answer.response.status_code
    if isinstance(answer, GatedRepoError):
        return RefusedError(f"{repo_id} is gated: ask for access on its page")
    if isinstance(answer, RepositoryNotFoundError):
        return RefusedError(f"the Hub has no {repo_id}, or it is private and the token may not see it (set HF_TOKEN)")
    if status == 401:
        return RefusedError(f"the Hub does not know this token; make one at {_TOKENS} and set HF_TOKEN")
    if status == 403:
        return RefusedError(f"the token may not do this with {repo_id}; it needs write permission ({_TOKENS})")
    if status in _RETRY_STATUSES:
        return UnreachableError(f"the Hub is busy or down (answer {status})")
    said = " ".join((answer.server_message or str(answer)).split())
    return HubError(f"the Hub refuses {repo_id} (answer {status}): {said}")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _requested_pause(error: BaseException) -> float | None:
    for cause in _causes(error):
        if isinstance(cause, HfHubHTTPError) and (asked := cause.response.headers.get("Retry-After", "")).isdigit():
            return min(float(asked), _MAX_PAUSE)
    return None


# --- the index ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HubFile:
    """One processed file of a data set on the Hub."""

    file: str  # path in the data set
    sha256: str  # of the file
    n_bytes: int
    n_frames: int
    take: str  # sha256 of the recording it was made from: copies of one take share it
    f0_range: tuple[float, float] | None  # Hz, the middle 98 % of the frames that have a pitch


@dataclass(frozen=True)
class HubIndex:
    """What a data set on the Hub holds: recordings of one instrument, measured with the same settings."""

    instrument: str
    extractor: dict[str, Any]
    recordings: tuple[HubFile, ...]

    def to_json(self) -> str:
        return json.dumps({"format_version": FORMAT_VERSION, **dataclasses.asdict(self)}, indent=1)

    @classmethod
    def from_json(cls, content: str, origin: str) -> "HubIndex":
        """Read an index that anybody may have written.

        Raises:
            HubError: not an index, of another version, or with names that would leave their folder.
        """
        try:
            values = json.loads(content)
            if values.pop("format_version") != FORMAT_VERSION:
                raise HubError(
                    f"{INDEX_FILE} of {origin} has another format than version {FORMAT_VERSION}; upload it again"
                )
            recordings = tuple(HubFile(**entry) for entry in values.pop("recordings"))
            index = cls(recordings=recordings, **values)
        except (TypeError, LookupError, AttributeError, json.JSONDecodeError) as error:
            raise HubError(f"{INDEX_FILE} of {origin} is not the index of a data set; upload it again") from error
        for entry in recordings:
            if not _is_valid_entry(entry):
                raise HubError(f"{INDEX_FILE} of {origin} has an entry that cannot be used: {str(entry.file)[:80]!r}")
        if not recordings or len({entry.file for entry in recordings}) < len(recordings):
            raise HubError(f"{INDEX_FILE} of {origin} is empty, or lists a file twice; upload it again")
        return index


def _is_valid_entry(entry: HubFile) -> bool:
    texts = all(isinstance(text, str) for text in (entry.file, entry.sha256, entry.take))
    counts = all(isinstance(count, int) and count > 0 for count in (entry.n_bytes, entry.n_frames))
    return texts and counts and is_safe_name(entry.file)


def is_safe_name(name: str) -> bool:
    """Whether a path of a data set leads, on any system, to a processed file in the folder it is joined to."""
    parts = PurePosixPath(name).parts
    safe = all(part != ".." and not part.startswith(".") for part in parts) and not any(c in name for c in "\\:\0")
    return safe and name.endswith(".pt") and not name.startswith("/") and str(PurePosixPath(name)) == name
