"""The door of the web page's server: it serves its own files and fetches nothing.

Gradio fetches any public address it is given, to hand it on (``file=https://...``) or as the recording to be played, of
any size and into memory. A page that takes recordings from people needs neither, and a server that reads addresses for
strangers is a danger. This stands before Gradio and knows nothing of the page.
"""

import json
from typing import Any

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_MAX_JSON = 2**20  # bytes; recordings are uploaded, and only their names are sent as JSON


class AddressError(ValueError):
    """A request names an address to be fetched."""


class OwnFilesOnly:
    """ASGI middleware that turns away requests to fetch an address."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        _, named, wanted = scope["path"].partition("file=")
        if named and _is_address(wanted):
            return await _refuse("only this page's own files are served")(scope, receive, send)
        if scope["method"] == "POST" and _is_json(scope):
            body = await _read_body(receive)
            if body is None:
                return await _refuse("the request is too large", 413)(scope, receive, send)
            if _names_address(body):
                return await _refuse("upload the recording; addresses are not fetched")(scope, receive, send)
            receive = _replay(body, receive)
        return await self.app(scope, receive, send)


def _refuse(reason: str, status: int = 403) -> PlainTextResponse:
    return PlainTextResponse(reason, status)


def _is_address(text: Any) -> bool:
    return isinstance(text, str) and text.strip().lower().startswith(("http:", "https:", "ftp:", "file:"))


def _is_json(scope: Scope) -> bool:
    """Return True if the body is JSON, as Gradio's own requests are; what is not said to be another kind may be."""
    kinds = [value for name, value in scope["headers"] if name == b"content-type"]
    # Said twice, the first would count for Gradio, and here perhaps the second.
    return len(kinds) != 1 or not kinds[0].strip().lower().startswith(b"multipart/")


async def _read_body(receive: Receive) -> bytes | None:
    """Return a body, or None if it is too large."""
    body, more = b"", True
    while more and len(body) <= _MAX_JSON:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body if len(body) <= _MAX_JSON else None


def _names_address(body: bytes) -> bool:
    def check(values: dict) -> dict:
        if _is_address(values.get("path")):
            raise AddressError
        return values

    try:
        json.loads(body or b"{}", object_hook=check)
    except AddressError:
        return True
    except (ValueError, RecursionError):  # not JSON: Gradio says so
        return False
    return False


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a ``receive`` that gives a body that was read already, and then what comes after it."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def give() -> Message:
        return waiting.pop() if waiting else await receive()

    return give
