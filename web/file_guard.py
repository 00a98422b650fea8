"""Request filter of the web server: allow only the routes of the page and its endpoints, and fetch no URLs.

Gradio has about eighty routes, of which the page and its endpoints use those below. The others run ``ffmpeg`` on
untrusted input, read request bodies into memory, or bypass the queue. Gradio also fetches any public URL, of any size
and into memory, to forward it (``file=https://...``) or to use it as the recording. The page needs none of this. When
the page runs on a local machine, pages of other sites may not send requests to it.

To prevent one visitor, identified by network address, from blocking the others, there are limits on the bytes uploaded
in a period, queued requests, simultaneous requests, and the time to receive a request body.
"""

import asyncio
import contextlib
import ipaddress
import json
import logging
import re
import time
from collections import Counter, deque
from typing import Any
from urllib.parse import urlsplit

from starlette.formparsers import MultiPartException
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from config import PageConfig

_MAX_JSON = 2**17  # bytes; recordings are uploaded separately, and the JSON has only their names
_MAX_JSON_SECONDS = 20.0
_MAX_SESSION = 64  # characters of a session hash, which Gradio stores
_FORM_BYTES = 2**16  # bytes of an upload besides the file; also the minimum counted for an upload
_MAX_PARTS = 8  # per upload; the page and the client send one file each
_SLOWEST_UPLOAD = 2**15  # bytes/s, after the first _MAX_JSON_SECONDS
_MAX_SILENT = 200  # connections without a request per client
_MAX_OPEN = 128  # simultaneous requests per visitor; a browser page has two or three
_IPV6_PREFIX = 64  # bits of the network assigned to one visitor

_ENDPOINTS = "call/(v2/)?(transfer|melody|render|instruments)"
_READ = re.compile(  # GET and HEAD
    r"/(config|theme\.css|favicon\.ico|robots\.txt|manifest\.json|(static|assets|svelte)/.+)?"
    r"|/gradio_api/(info|startup-events|app_id|theme\.css|queue/(data|status)|upload_progress|heartbeat/\w+|file=.+)"
    rf"|/gradio_api/{_ENDPOINTS}/\w+"
    r"|/live(/.*)?",
    re.DOTALL,
)
# POST; the page calls functions outside the queue through /run/predict.
_SEND = re.compile(rf"/gradio_api/(upload|queue/join|run/predict|cancel|reset|{_ENDPOINTS})/?")
_JOIN = re.compile(r"/gradio_api/(queue/join|call/.+)")
log = logging.getLogger("app")


class UnwantedError(Exception):
    """Request for an unsupported action, such as fetching a URL; the message says what to do instead."""


class OwnPageOnly:
    """ASGI middleware that allows only the requests of the page and its endpoints, and none that fetch a URL.

    Args:
        app: Gradio's app.
        is_local: the page listens on this machine only, so other host names are refused (DNS rebinding).
        limits: limits per visitor.
        hosts: additional host names to accept; a name that starts with a dot is a suffix.
        line: queue of waiting requests, if there is one.
    """

    def __init__(
        self,
        app: ASGIApp,
        is_local: bool,
        limits: PageConfig,
        hosts: tuple[str, ...] = (),
        line: "WaitingLine | None" = None,
    ) -> None:
        self.app, self.is_local, self.limits, self.hosts, self.line = app, is_local, limits, hosts, line
        self.open: Counter[str] = Counter()  # requests by visitor
        self.joining: Counter[str] = Counter()  # requests about to enter the queue, by visitor
        self.uploads = UploadQuota(limits.max_megabytes_per_visitor * 2**20, limits.keep_seconds)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":  # the page uses no WebSocket
            return await send({"type": "websocket.close", "code": 1008})
        visitor = name_visitor(scope)
        refusal = self._refuse_request(scope, visitor)
        if refusal is not None:
            return await refusal(scope, receive, send)
        self.open[visitor] += 1
        try:
            await self._answer(scope, receive, send, visitor)
        finally:
            _lower(self.open, visitor)

    def _refuse_request(self, scope: Scope, visitor: str) -> Response | None:
        """Return the refusal of a request that can be refused before reading its body, or None."""
        served = {"GET": _READ, "HEAD": _READ, "POST": _SEND}.get(scope["method"])
        if served is None or not served.fullmatch(scope["path"]):
            return _refuse("there is nothing here", 404)
        if scope["method"] == "POST" and not self._comes_from_page(scope):
            return _refuse("only this page itself may send anything here")
        _, named, wanted = scope["path"].partition("file=")
        if named and _is_address(wanted):
            return _refuse("only this page's own files are served")
        if self.open[visitor] >= _MAX_OPEN:
            return _refuse("too many requests at once from your address; wait until some are answered", 429)
        return None

    async def _answer(self, scope: Scope, receive: Receive, send: Send, visitor: str) -> None:
        if scope["method"] == "POST" and scope["path"].startswith("/gradio_api/upload"):
            length = _content_length(scope)
            if length is None:
                return await _refuse("say how long the upload is (Content-Length)", 411)(scope, receive, send)
            if length > self.limits.max_upload_megabytes * 2**20 + _FORM_BYTES:
                return await _refuse("the recording is too large", 413)(scope, receive, send)
            if not self.uploads.take(visitor, max(length, _FORM_BYTES)):
                minutes = self.limits.keep_seconds / 60
                reason = f"your address has sent as much as it may in {minutes:.0f} minutes; come back later"
                return await _refuse(reason, 429)(scope, receive, send)
            receive = _watch_upload(receive, _MAX_JSON_SECONDS + length / _SLOWEST_UPLOAD)
        elif scope["method"] == "POST":
            try:
                async with asyncio.timeout(_MAX_JSON_SECONDS):
                    body = await _read_body(receive)
            except TimeoutError:
                return await _refuse("the request came too slowly", 408)(scope, receive, send)
            if body is None:
                return await _refuse("the request is too large", 413)(scope, receive, send)
            try:
                _check_values(body)
            except UnwantedError as error:
                return await _refuse(str(error))(scope, receive, send)
            receive = _replay(body, receive)
            if _JOIN.fullmatch(scope["path"]):
                return await self._join(scope, receive, send, visitor)
        await self._pass_on(scope, receive, send)

    async def _join(self, scope: Scope, receive: Receive, send: Send, visitor: str) -> None:
        """Queue a request, or refuse it if too many of the same visitor are waiting."""
        most, waiting = self.limits.max_waiting_per_visitor, self.line.count(visitor) if self.line else 0
        if waiting + self.joining[visitor] >= most:
            reason = f"{most} requests from your address are waiting already; send more when they are answered"
            return await JSONResponse({"detail": reason}, 429)(scope, receive, send)  # as Gradio's pages expect
        self.joining[visitor] += 1
        try:
            await self._pass_on(scope, receive, send)
        finally:
            _lower(self.joining, visitor)
            if self.line:
                self.line.take_turns()

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call Gradio; answer an exception with a message and log one line instead of a traceback."""
        has_begun = False

        async def send_on(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self.app(scope, receive, send_on)
        except Exception as error:  # any kind: the input is untrusted
            path = scope["path"].partition("=")[0]  # the rest is visitor data
            log.error("app.py: %s %s cannot be answered (%s)", scope["method"], path, type(error).__name__)
            if not has_begun:
                refusal = JSONResponse({"detail": "this request cannot be understood; see docs/page.md"}, 400)
                await refusal(scope, receive, send)

    def _comes_from_page(self, scope: Scope) -> bool:
        host_headers = [value.decode("latin-1").lower() for name, value in scope["headers"] if name == b"host"]
        origins = [value.decode("latin-1").lower() for name, value in scope["headers"] if name == b"origin"]
        if len(host_headers) != 1 or (self.is_local and not self._is_own(_host_name(f"//{host_headers[0]}"))):
            return False
        return all(
            origin.partition("://")[2] == host_headers[0] or self._is_listed(_host_name(origin)) for origin in origins
        )  # API clients send no origin

    def _is_own(self, name: str) -> bool:
        return name == "localhost" or _is_ip(name) or self._is_listed(name)

    def _is_listed(self, name: str) -> bool:
        return any(name.endswith(host) if host.startswith(".") else name == host for host in self.hosts)


class PromptProtocol(H11Protocol):
    """HTTP connection that is closed if no request arrives in time, or if its client opens many more without one.

    uvicorn waits without limit for the first request of a connection, and for the rest of each header.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self.opened, self.client_host = self.loop.time(), self.client and self.client[0]
        silent = [other for other in self.connections if isinstance(other, PromptProtocol) and other.cycle is None]
        same = [each for each in silent if each.client_host == self.client_host and not each.transport.is_closing()]
        if len(same) > _MAX_SILENT:  # the client may be a proxy: its newest connection should be answered
            min(same, key=lambda other: other.opened).transport.abort()
        self.loop.call_later(_MAX_JSON_SECONDS, self._close_if_silent, None)

    def _close_if_silent(self, former: Any) -> None:
        """Close the connection if no request has arrived since the request ``former``, and none is being answered."""
        if self.cycle is former and (former is None or former.response_complete):
            self.transport.close()
        if not self.transport.is_closing():
            self.loop.call_later(_MAX_JSON_SECONDS, self._close_if_silent, self.cycle)


class WaitingLine:
    """Requests waiting in the queue of Gradio's ``Blocks``, by visitor.

    Args:
        queue: queue of the blocks.
    """

    def __init__(self, queue: Any) -> None:
        self.queue = queue

    def count(self, visitor: str) -> int:
        """Return the number of a visitor's requests that are waiting or running."""
        waiting = [event for line in self.queue.event_queue_per_concurrency_id.values() for event in line.queue]
        return sum(name_visitor(event.request.scope) == visitor for event in waiting) + self._answered()[visitor]

    def take_turns(self) -> None:
        """Sort the queue round-robin by visitor: each visitor's first request precedes everyone's second."""
        for line in self.queue.event_queue_per_concurrency_id.values():
            turns, ranks = self._answered(), {}
            for event in line.queue:
                visitor = name_visitor(event.request.scope)
                ranks[event] = turns[visitor]
                turns[visitor] += 1
            line.queue.sort(key=ranks.__getitem__)

    def _answered(self) -> Counter[str]:
        events = [event for job in self.queue.active_jobs if job for event in job]
        return Counter(name_visitor(event.request.scope) for event in events)


class UploadQuota:
    """Quota of bytes uploaded per visitor in the last ``seconds``."""

    def __init__(self, most: int, seconds: float) -> None:
        self.most, self.seconds = most, seconds  # bytes, s
        self._taken: deque[tuple[float, str, int]] = deque()  # time, visitor, bytes
        self._sums: Counter[str] = Counter()

    def take(self, visitor: str, n_bytes: int) -> bool:
        """Count an upload and return True, or return False if it exceeds the quota."""
        now = time.monotonic()
        while self._taken and self._taken[0][0] < now - self.seconds:
            _, former, former_bytes = self._taken.popleft()
            _lower(self._sums, former, former_bytes)
        if self._sums[visitor] + n_bytes > self.most:
            return False
        self._taken.append((now, visitor, n_bytes))
        self._sums[visitor] += n_bytes
        return True


def name_visitor(scope: Scope) -> str:
    """Return the address that identifies a visitor; an IPv6 /64 network counts as one visitor."""
    host = scope["client"][0] if scope.get("client") else ""
    try:
        address = ipaddress.IPv6Address(host)
    except ValueError:  # IPv4, or a value set by a proxy
        return host
    return str(address.ipv4_mapped or ipaddress.IPv6Network((int(address), _IPV6_PREFIX), strict=False))


def _lower(counts: Counter[str], name: str, by: int = 1) -> None:
    counts[name] -= by
    if counts[name] <= 0:
        del counts[name]


def _watch_upload(receive: Receive, seconds: float) -> Receive:
    """Return a ``receive`` that aborts an upload if it is too slow, incomplete or has too many files.

    Gradio removes the stored part of an upload only for ``MultiPartException``, and keeps a record of each chunk.
    """
    deadline, n_parts, tail = time.monotonic() + seconds, 0, b""

    async def give() -> Message:
        nonlocal n_parts, tail
        body, more = b"", True
        while more and len(body) < _FORM_BYTES:
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    message = await receive()
            except TimeoutError:
                raise MultiPartException("the upload came too slowly") from None
            if message["type"] == "http.disconnect":
                raise MultiPartException("the upload broke off")
            body += message.get("body", b"")
            more = message.get("more_body", False)
        n_parts += (tail + body).lower().count(b"filename")
        tail = body[-len(b"filename") + 1 :]
        if n_parts > _MAX_PARTS:
            raise MultiPartException("send one recording at a time")
        return {"type": "http.request", "body": body, "more_body": more}

    return give


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
    """Return a request body, or None if it is too large."""
    body, more = b"", True
    while more and len(body) <= _MAX_JSON:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body if len(body) <= _MAX_JSON else None


def _check_values(body: bytes) -> None:
    """Raise UnwantedError if a body has a URL to fetch or a session hash that is too long."""

    def check(values: dict) -> dict:
        if _is_address(values.get("path")):
            raise UnwantedError("upload the recording; addresses are not fetched")
        if len(str(values.get("session_hash"))) > _MAX_SESSION:
            raise UnwantedError(f"session_hash should have at most {_MAX_SESSION} characters")
        return values

    with contextlib.suppress(ValueError, RecursionError):  # not JSON: Gradio reports it
        json.loads(body or b"{}", object_hook=check)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a ``receive`` that returns a body already read, then calls the original ``receive``."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def give() -> Message:
        return waiting.pop() if waiting else await receive()

    return give
