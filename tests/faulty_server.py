"""A local file server with faults on demand or at random."""

import contextlib
import random
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from recordings import resumable_download


@dataclass
class Fault:
    """A fault of one answer; the default is a correct one."""

    status: int = 0  # instead of the body
    headers: dict = field(default_factory=dict)  # added, or put in the place of the right ones
    cut: int | None = None  # the connection is closed after so many bytes of the body
    stall: int | None = None  # no more is sent after so many bytes of the body
    claim: int = 0  # added to Content-Length
    ranges: bool = True  # whether the Range header is understood
    honest: bool = True  # whether If-Range is respected
    chunked: bool = False
    replace: bytes | None = None  # from this request on the server has another file
    shift: int = 0  # offset of the start of an answer to a range
    cap: int | None = None  # the most bytes that an answer to a range has, which HTTP allows


def random_fault(rng: random.Random, length: int) -> Fault:
    """Return a fault that sends no wrong bytes."""
    at = rng.randrange(length)
    kinds = [
        lambda: Fault(cut=at),
        lambda: Fault(cut=at, chunked=True),
        lambda: Fault(cut=at, ranges=False),
        lambda: Fault(stall=at),
        lambda: Fault(claim=rng.randrange(1, 999)),
        lambda: Fault(claim=-rng.randrange(1, min(length, 999))),
        lambda: Fault(status=rng.choice((403, 404))),
        lambda: Fault(status=416, headers={"Content-Range": f"bytes */{rng.choice((length, at))}"}),
        lambda: Fault(status=rng.choice((429, 500, 502, 503)), headers={"Retry-After": "0"}),
        lambda: Fault(shift=rng.choice((-1, 1))),
        lambda: Fault(honest=False),
        lambda: Fault(cap=rng.randrange(99)),
    ]
    weights = [6, 3, 3, 1, 2, 1, 1, 1, 4, 1, 1, 2]
    return rng.choices(kinds, weights)[0]()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # saves 40 ms for each answer

    def log_message(self, *_) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        server.requests.append(dict(self.headers))
        fault = server.faults.pop(0) if server.faults else Fault()
        if fault.replace is not None:
            server.content, server.etag = fault.replace, f'"{len(server.requests)}"'
        self.close_connection = True
        if fault.status:
            self._head(fault.status, {"Content-Length": "0"} | fault.headers)
        else:
            self._send_file(fault)

    def _send_file(self, fault: Fault) -> None:
        content, start, headers = self.server.content, self._start(fault), {}
        if start is not None and start >= len(content):
            self._head(416, {"Content-Range": f"bytes */{len(content)}", "Content-Length": "0"})
            return
        body = content
        if start is not None:
            start = max(0, start + fault.shift)
            body = content[start:][: fault.cap]
            headers["Content-Range"] = f"bytes {start}-{start + max(len(body), 1) - 1}/{len(content)}"
        headers |= {"Transfer-Encoding": "chunked"} if fault.chunked else {"Content-Length": len(body) + fault.claim}
        headers |= {"ETag": self.server.etag} if self.server.etag else {}
        self._head(200 if start is None else 206, headers | fault.headers)
        end = min(x for x in (len(body), fault.cut, fault.stall) if x is not None)
        with contextlib.suppress(OSError):
            self._write(body[:end], fault.chunked, finished=end == len(body))
            if fault.stall is not None:
                self.server.closing.wait(20)

    def _start(self, fault: Fault) -> int | None:
        part = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        stale = fault.honest and self.headers.get("If-Range", self.server.etag) != self.server.etag
        return None if not part or not fault.ranges or stale else int(part[1])

    def _write(self, body: bytes, chunked: bool, finished: bool) -> None:
        if chunked and body:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(body), body))
        if chunked and finished:
            self.wfile.write(b"0\r\n\r\n")
        if not chunked:
            self.wfile.write(body)
        self.wfile.flush()

    def _head(self, status: int, headers: dict) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.send_header("Connection", "close")
        self.end_headers()


class FaultyServer(ThreadingHTTPServer):
    """Serves `content` at every address, with `faults` for the first requests; ``requests`` lists their headers."""

    daemon_threads = True

    def __init__(self, content: bytes, faults: list[Fault] | None = None, etag: str | None = '"first"'):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.faults, self.etag = content, list(faults or []), etag
        self.requests: list[dict] = []
        self.closing = threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/archive"

    def handle_error(self, *_) -> None:
        pass

    def __exit__(self, *exc) -> None:
        self.closing.set()
        self.shutdown()
        super().__exit__(*exc)


def shorten_patience(monkeypatch, silence: float = 0.5) -> None:
    """Make downloads give up soon, without pauses; `silence` is in seconds. Remove the proxies of the environment."""
    settings = {"RETRIES": 4, "RETRIES_OFFLINE": 1, "BACKOFF": 0.0, "TIMEOUT": (5.0, silence)}
    for name, value in settings.items():
        monkeypatch.setattr(resumable_download, name, value)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
