"""Requests to the Hugging Face Hub: one patient loop, and one sentence where patience does not help."""

import argparse
import itertools
import json
import logging
import re
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, TypeVar
from urllib.request import getproxies

import httpx2  # what huggingface_hub speaks through; its exceptions come out of it
from huggingface_hub import errors, get_token

_RETRY_STATUSES = (408, 429, 500, 502, 503, 504)  # answers after which the same question may succeed
_OFFLINE_ERRORS = (
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
    for proxy in getproxies().values():
        if proxy.startswith("socks") and not (proxy.startswith("socks5") and find_spec("socksio")):
            advice = "./venv/bin/python -m pip install socksio and write socks5://host:port, or set an http proxy"
            raise HubError(f"{address}: the proxy {proxy} cannot be used for the Hub; {advice}")
    for attempt in itertools.count(1):
        try:
            return action()
        except (httpx2.HTTPError, OSError, RuntimeError, AttributeError, json.JSONDecodeError) as error:
            pause, causes = min(2.0 ** min(attempt - 1, 10), _LONGEST_PAUSE), [error]
            while causes[-1].__cause__:
                causes.append(causes[-1].__cause__)
            if answer := next((cause for cause in causes if isinstance(cause, errors.HfHubHTTPError)), None):
                kind, reason = _explain_answer(answer)
                if (asked := answer.response.headers.get("Retry-After", "")).isdigit():
                    pause = min(float(asked), _LONGEST_REQUESTED_PAUSE)
            elif any(isinstance(cause, _OFFLINE_ERRORS) or _CLOSED_CLIENT.search(str(cause)) for cause in causes):
                kind, reason = UnreachableError, f"it cannot be reached, {type(causes[-1]).__name__} {causes[-1]}"
            elif isinstance(error, httpx2.HTTPError):
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
    if status in _RETRY_STATUSES:
        return UnreachableError, f"the Hub is busy or down, answer {status}"
    return HubError, f"the Hub refuses, answer {status}: {' '.join((answer.server_message or str(answer)).split())}"
