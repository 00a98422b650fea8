"""Server side of the live page: its files, the list of instruments, and their graphs, exported on first request.

The page (``web/live/``) runs entirely in the browser. ``write_static_page`` writes it to a folder that any web server
can serve.
"""

import asyncio
import json
import shutil
from pathlib import Path

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from checkpoint import PRETRAINED_DIR
from playing.export import CACHE, cached_live_graph, find_live_graph
from web.transfer_request import ModelCollection

_MAX_WAIT = 60.0  # s; an export takes half of it on a slow machine
PAGE_DIR = Path(__file__).parent / "live"


class LivePage:
    """ASGI middleware that serves the live page under /live and forwards all other requests."""

    def __init__(self, app: ASGIApp, collection: ModelCollection) -> None:
        self.app, self.collection, self._exporting = app, collection, asyncio.Lock()
        self.page = Starlette(
            routes=[
                Route("/live", lambda request: RedirectResponse("live/")),
                Route("/live/instruments.json", self._list),
                Route("/live/graphs/{name:path}", self._serve_graph),
                Mount("/live", _Files(directory=PAGE_DIR, html=True)),
            ]
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_live = scope["type"] == "http" and (scope["path"] + "/").startswith("/live/")
        await (self.page if is_live else self.app)(scope, receive, send)

    def _list(self, request: Request) -> Response:
        return JSONResponse(
            [{"label": one.label, "graph": f"graphs/{one.name}.onnx"} for one in self.collection.find()]
        )

    async def _serve_graph(self, request: Request) -> Response:
        """Serve a graph. One is exported at a time; the others wait without a thread, which other requests need."""
        name, _, suffix = request.path_params["name"].rpartition(".")
        try:
            chosen = name if suffix in ("onnx", "json") else "?"
            instrument = await run_in_threadpool(self.collection.choose, chosen)
        except ValueError as error:
            return PlainTextResponse(str(error), 404)
        try:
            path = await run_in_threadpool(find_live_graph, instrument.path, CACHE)
            if path is None:
                await asyncio.wait_for(self._exporting.acquire(), _MAX_WAIT)
                try:
                    path = await run_in_threadpool(cached_live_graph, instrument.path, CACHE)
                finally:
                    self._exporting.release()
        except TimeoutError:
            return PlainTextResponse("Other instruments are being prepared; try again in a minute.", 503)
        except ValueError as error:
            return PlainTextResponse(f"The {instrument.sound} cannot be played live: {error}.", 422)
        return FileResponse(path.with_suffix(f".{suffix}"), headers={"Cache-Control": "no-cache"})


class _Files(StaticFiles):
    """Static files that the browser revalidates, so that files of two versions are never mixed."""

    def file_response(self, *args, **kwargs) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response


def write_static_page(folder: Path) -> None:
    """Write the live page with the shipped instruments to a folder, for a web server without Python."""
    shutil.copytree(PAGE_DIR, folder, dirs_exist_ok=True)
    page = (folder / "index.html").read_text(encoding="utf-8")
    (folder / "index.html").write_text(page.replace("<head>", '<head>\n    <meta name="static" />'), encoding="utf-8")
    (folder / "graphs").mkdir(exist_ok=True)
    offered = []
    for checkpoint in sorted(PRETRAINED_DIR.glob("*.pth"), key=lambda path: (path.stem != "trumpet", path.stem)):
        graph = cached_live_graph(checkpoint, CACHE)
        for suffix in (".onnx", ".json"):
            shutil.copyfile(graph.with_suffix(suffix), folder / "graphs" / f"{checkpoint.stem}{suffix}")
        offered.append({"label": checkpoint.stem.capitalize(), "graph": f"graphs/{checkpoint.stem}.onnx"})
    (folder / "instruments.json").write_text(json.dumps(offered), encoding="utf-8")
