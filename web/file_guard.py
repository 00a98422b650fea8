"""The door of the web page's server: it serves its own page and files, to its own page, and fetches nothing.

Gradio has some eighty routes, of which the page and its endpoints use the few below; the others run ``ffmpeg`` on what
a stranger sends, read bodies into memory, or go around the queue. It also fetches any public address it is given, to
hand it on (``file=https://...``) or as the recording to be played, of any size and into memory. A page that takes
recordings from people needs none of it. On somebody's own machine, pages of other sites may not send it anything.
"""

import asyncio
import ipaddress
import json
import re
from typing import Any
from urllib.parse import urlsplit

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_MAX_JSON = 2**20  # bytes; recordings are uploaded, and only their names are sent as JSON
_MAX_JSON_SECONDS = 20.0
_FORM_BYTES = 2**16  # of an upload, around the file
_ENDPOINTS = "call/(v2/)?(transfer|melody|render|instruments)"
_READ = re.compile(  # GET and HEAD
    r"/(config|theme\.css|favicon\.ico|robots\.txt|manifest\.json|(static|assets|svelte)/.+)?"
    r"|/gradio_api/(info|startup-events|app_id|theme\.css|queue/(data|status)|upload_progress|heartbeat/\w+|file=.+)"
    rf"|/gradio_api/{_ENDPOINTS}/\w+",
    re.DOTALL,
)
# POST; /run/predict is how the page calls what does not wait in the queue.
_SEND = re.compile(rf"/gradio_api/(upload|queue/join|run/predict|cancel|reset|{_ENDPOINTS})/?")


class AddressError(ValueError):
    """A request names an address to be fetched."""


class OwnPageOnly:
    """ASGI middleware that lets through what the page and its endpoints use, and no request to fetch an address.

    Args:
        app: Gradio's.
        is_local: the page listens on this machine alone: who asks for it by another name was misled (DNS rebinding).
        max_upload: bytes of a file.
        hosts: names by which the page may be asked for nevertheless; those that begin with a dot are endings.
    """

    def __init__(self, app: ASGIApp, is_local: bool, max_upload: int, hosts: tuple[str, ...] = ()) -> None:
        self.app, self.is_local, self.hosts = app, is_local, hosts
        self.max_upload = max_upload + _FORM_BYTES

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":  # the page uses no web socket
            return await send({"type": "websocket.close", "code": 1008})
        served = {"GET": _READ, "HEAD": _READ, "POST": _SEND}.get(scope["method"])
        if served is None or not served.fullmatch(scope["path"]):
            return await _refuse("there is nothing here", 404)(scope, receive, send)
        if scope["method"] == "POST" and not self._comes_from_page(scope):
            return await _refuse("only this page itself may send anything here")(scope, receive, send)
        _, named, wanted = scope["path"].partition("file=")
        if named and _is_address(wanted):
            return await _refuse("only this page's own files are served")(scope, receive, send)
        if scope["method"] == "POST" and scope["path"].startswith("/gradio_api/upload"):
            length = _content_length(scope)
            if length is None:
                return await _refuse("say how long the upload is (Content-Length)", 411)(scope, receive, send)
            if length > self.max_upload:
                return await _refuse("the recording is too large", 413)(scope, receive, send)
        elif scope["method"] == "POST":
            try:
                async with asyncio.timeout(_MAX_JSON_SECONDS):
                    body = await _read_body(receive)
            except TimeoutError:
                return await _refuse("the request came too slowly", 408)(scope, receive, send)
            if body is None:
                return await _refuse("the request is too large", 413)(scope, receive, send)
            if _names_address(body):
                return await _refuse("upload the recording; addresses are not fetched")(scope, receive, send)
            receive = _replay(body, receive)
        return await self.app(scope, receive, send)

    def _comes_from_page(self, scope: Scope) -> bool:
        asked = [value.decode("latin-1").lower() for name, value in scope["headers"] if name == b"host"]
        origins = [value.decode("latin-1").lower() for name, value in scope["headers"] if name == b"origin"]
        if len(asked) != 1 or (self.is_local and not self._is_own(_host_name(f"//{asked[0]}"))):
            return False
        return all(
            origin.partition("://")[2] == asked[0] or self._is_listed(_host_name(origin)) for origin in origins
        )  # programs send no origin

    def _is_own(self, name: str) -> bool:
        return name == "localhost" or _is_ip(name) or self._is_listed(name)

    def _is_listed(self, name: str) -> bool:
        return any(name.endswith(host) if host.startswith(".") else name == host for host in self.hosts)


def _host_name(address: str) -> str:
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""


def _is_ip(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _refuse(reason: str, status: int = 403) -> PlainTextResponse:
    return PlainTextResponse(reason, status)


def _is_address(text: Any) -> bool:
    return isinstance(text, str) and text.strip().lower().startswith(("http:", "https:", "ftp:", "file:"))


def _content_length(scope: Scope) -> int | None:
    lengths = [value for name, value in scope["headers"] if name == b"content-length"]
    return int(lengths[0]) if len(lengths) == 1 and lengths[0].isdigit() else None


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
