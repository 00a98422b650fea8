"""A local Hugging Face Hub for the real client: repositories, commits, LFS, and faults on demand.

It implements what ``huggingface_hub`` 2.4 uses without Xet: create a repository, preupload, LFS batch, PUT, commit, and
resolve with ETag and ranges. Large files have another host name, as on the real Hub, to which no token may be sent.
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml


@dataclass
class Fault:
    """A fault of the next ``times`` requests that match ``pattern`` (of "METHOD /path")."""

    pattern: str
    times: int = 1
    status: int = 0  # answered instead of acting; 0: the connection is dropped
    headers: dict = field(default_factory=dict)
    cut: int = 0  # bytes of the body, theirs or ours, before the connection is dropped
    after: bool = False  # drop it after acting: the answer is lost
    flip: bool = False  # a large file comes with one byte changed
    short: bool = False  # a large file comes without its last byte


@dataclass
class Blob:
    content: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def git_sha(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()


@dataclass
class Repo:
    private: bool
    sdk: str | None = None
    commits: list[tuple[str, dict[str, Blob]]] = field(default_factory=list)  # (id, all its files)
    messages: list[str] = field(default_factory=list)

    def commit(self, files: dict[str, Blob], message: str) -> str:
        number = hashlib.sha1(f"{message}{len(self.commits)}".encode()).hexdigest()
        self.commits.append((number, files))
        self.messages.append(message)
        return number

    @property
    def files(self) -> dict[str, Blob]:
        return self.commits[-1][1]

    def at(self, revision: str) -> tuple[str, dict[str, Blob]] | None:
        if revision == "main":
            return self.commits[-1]
        return next((commit for commit in self.commits if commit[0] == revision), None)


class Refused(Exception):
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        self.status, self.code, self.message = status, code, message


class Lost(Exception):
    """The network is gone."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # saves 40 ms for each answer
    server: "HubServer"

    def log_message(self, *_) -> None:
        pass

    def handle_request(self) -> None:
        self.url = urlsplit(self.path)
        line = f"{self.command} {unquote(self.url.path)}"
        self.server.requests.append((line, self.headers.get("Authorization")))
        fault = self.server.next_fault(line)
        drops = fault and not (fault.status or fault.after or fault.flip or fault.short)
        if self.server.down or drops:
            return self._drop(fault)
        body = self._read_body()
        if fault and fault.status:
            return self._answer(fault.status, b"", fault.headers)
        self.fault, self.close_connection = fault or Fault(""), bool(fault and fault.after)
        try:
            answer = self._route(body)
        except Lost:
            return self._drop(None)
        except Refused as refusal:
            headers = {"X-Error-Code": refusal.code} if refusal.code else {}
            answer = refusal.status, {"error": refusal.message}, headers
        if not (fault and fault.after):
            self._answer(*answer)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def _drop(self, fault: Fault | None) -> None:
        self.close_connection = True
        if fault is None or not fault.cut:
            return
        if self.command in ("POST", "PUT"):
            self.rfile.read(fault.cut)
        elif self.url.path.startswith("/cdn/"):
            content = self.server.stored[self.url.path.removeprefix("/cdn/")]
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: fault.cut])

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _answer(self, status: int, content: bytes | dict | list, headers: dict | None = None) -> None:
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
        if self.command == "HEAD":
            content = b""
        self.send_response(status)
        for name, value in ({"Content-Length": len(content)} | (headers or {})).items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(content)

    # ---- routes ----

    def _route(self, body: bytes) -> tuple:
        path = unquote(self.url.path)
        kind = r"(model|dataset|space)s"
        for pattern, action in (
            (r"/api/repos/create", self._create),
            (r"/api/validate-yaml", self._validate),
            (rf"/api/{kind}/([^/]+/[^/]+)(?:/revision/([^/]+))?", self._info),
            (rf"/api/{kind}/([^/]+/[^/]+)/preupload/[^/]+", self._preupload),
            (rf"/api/{kind}/([^/]+/[^/]+)/commit/[^/]+", self._commit),
            (r"/(?:(dataset|space)s/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", self._lfs_batch),
            (r"/(?:(dataset|space)s/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self._resolve),
            (r"/lfs/(\w+)", self._store),
            (r"/cdn/(\w+)", self._send),
        ):
            if match := re.fullmatch(pattern, path):
                return action(body, *match.groups())
        raise Refused(404, message=f"this Hub does not know {path}")

    def _role(self) -> str | None:
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if given and given not in self.server.tokens:
            raise Refused(401, message="Invalid credentials in Authorization header")
        return self.server.tokens.get(given)

    def _repo(self, kind: str | None, name: str, write: bool = False) -> Repo:
        role = self._role()
        repo = self.server.repos.get((kind or "model", name))
        if repo is None or (repo.private and role is None):
            raise Refused(404, "RepoNotFound", "Repository not found")
        if write and role != "write":
            raise Refused(403, message="You need write access")
        return repo

    def _create(self, body: bytes) -> tuple:
        request = json.loads(body)
        name = f"{request['organization']}/{request['name']}"
        if self._role() != "write":
            raise Refused(403, message="You don't have the rights to create this")
        if (request["type"], name) in self.server.repos:
            return 409, {"url": f"{self.server.url}/{name}"}
        repo = Repo(request.get("visibility") == "private", request.get("sdk"))
        repo.commit({".gitattributes": Blob(b"*.pt filter=lfs\n*.pth filter=lfs\n*.wav filter=lfs\n", False)}, "new")
        self.server.repos[request["type"], name] = repo
        return 200, {"url": f"{self.server.url}/{name}"}

    def _validate(self, body: bytes) -> tuple:
        content = json.loads(body)["content"]
        matter = re.match(r"---\n(.*?)\n---\n", content, flags=re.S)
        self.server.cards.append(yaml.safe_load(matter[1]) if matter else None)
        return 200, {"errors": [], "warnings": [] if matter else [{"message": "empty or missing yaml metadata"}]}

    def _info(self, body: bytes, kind: str, name: str, revision: str | None) -> tuple:
        repo = self._repo(kind, name)
        found = repo.at(revision or "main")
        if found is None:
            raise Refused(404, "RevisionNotFound")
        siblings = [{"rfilename": path} for path in found[1]]
        return 200, {"id": name, "sha": found[0], "private": repo.private, "siblings": siblings}

    def _preupload(self, body: bytes, kind: str, name: str) -> tuple:
        repo = self._repo(kind, name, write=True)
        files = []
        for file in json.loads(body)["files"]:
            lfs = file["path"].endswith((".pt", ".pth", ".wav"))
            known = repo.files.get(file["path"])
            oid = None if known is None else known.sha256 if lfs else known.git_sha
            mode = "lfs" if lfs else "regular"
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return 200, {"files": files}

    def _lfs_batch(self, body: bytes, kind: str | None, name: str) -> tuple:
        self._repo(kind, name, write=True)
        answers = []
        for item in json.loads(body)["objects"]:
            upload = {"upload": {"href": f"{self.server.url}/lfs/{item['oid']}"}}
            answers.append(item if item["oid"] in self.server.stored else item | {"actions": upload})
        return 200, {"transfer": "basic", "objects": answers}

    def _store(self, body: bytes, oid: str) -> tuple:
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refused(400, message="the content does not match its name")
        self.server.stored[oid] = body
        self.server.uploads.append(oid)
        return 200, b""

    def _commit(self, body: bytes, kind: str, name: str) -> tuple:
        repo, files, message = self._repo(kind, name, write=True), None, ""
        files = dict(repo.files)
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), False)
            elif line["key"] == "lfsFile":
                files[value["path"]] = Blob(self.server.stored[value["oid"]], True)
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        number = repo.commit(files, message)
        return 200, {"commitUrl": f"{self.server.url}/{name}/commit/{number}", "commitOid": number}

    def _resolve(self, body: bytes, kind: str | None, name: str, revision: str, path: str) -> tuple:
        found = self._repo(kind, name).at(revision)
        if found is None:
            raise Refused(404, "RevisionNotFound")
        number, files = found
        if path not in files:
            raise Refused(404, "EntryNotFound")
        blob = files[path]
        headers = {"X-Repo-Commit": number}
        if not blob.lfs:
            return 200, blob.content, headers | {"ETag": f'"{blob.git_sha}"', "Content-Length": len(blob.content)}
        self.server.stored.setdefault(blob.sha256, blob.content)
        headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": len(blob.content)}
        return 302, b"", headers | {"Location": f"{self.server.cdn}/cdn/{blob.sha256}"}

    def _send(self, body: bytes, oid: str) -> tuple:
        content = self.server.stored[oid]
        if not self.server.count_down():
            raise Lost
        if self.fault.flip:
            content = content[:-1] + bytes([content[-1] ^ 1])
        if self.fault.short:
            content = content[:-1]
        if part := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(part[1])
            return 206, content[start:], {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        return 200, content


class HubServer(ThreadingHTTPServer):
    """A Hub; ``tokens`` maps a token to its role, ``requests`` lists (METHOD /path, authorization)."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.tokens = {"hf_write": "write", "hf_read": "read"}
        self.repos: dict[tuple[str, str], Repo] = {}
        self.stored: dict[str, bytes] = {}  # large files by sha256
        self.uploads: list[str] = []  # of large files, in the order in which they were complete
        self.cards: list[dict | None] = []  # front matter of cards as they came
        self.requests: list[tuple[str, str | None]] = []
        self.faults: list[Fault] = []
        self.pauses: list[float] = []  # s that the client would have slept
        self.down = False  # every connection is dropped
        self.files_left: int | None = None  # large files that are sent before it goes down by itself
        self._choosing = threading.Lock()
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def cdn(self) -> str:
        return f"http://localhost:{self.server_port}"

    def add(self, kind: str, name: str, files: dict[str, bytes], private: bool = True) -> Repo:
        """Put a repository there; .pt and .pth are large files."""
        repo = self.repos[kind, name] = Repo(private)
        repo.commit({path: Blob(content, path.endswith((".pt", ".pth"))) for path, content in files.items()}, "add")
        return repo

    def count_down(self) -> bool:
        """Return True if one more large file may be sent."""
        with self._choosing:
            if self.files_left is not None:
                self.files_left -= 1
                self.down = self.files_left < 0
            return not self.down

    def find_requests(self, pattern: str) -> list[str]:
        """Return the requests ("METHOD /path") in which the pattern is found."""
        return [line for line, _ in self.requests if re.search(pattern, line)]

    def next_fault(self, line: str) -> Fault | None:
        with self._choosing:
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.pattern, line):
                    fault.times -= 1
                    return fault
        return None

    def handle_error(self, *_) -> None:
        pass

    def __exit__(self, *exc) -> None:
        with contextlib.suppress(OSError):
            self.shutdown()
        super().__exit__(*exc)
