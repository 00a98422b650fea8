"""The web page: sing into the browser, hear the instrument.

    ./venv/bin/python app.py

Nothing is built or loaded when this module is imported: ``build_ui`` makes the page, ``main`` serves it. The page
and the endpoint ``/transfer`` (``web/endpoints.py``) do the same work (``web/transfer_request.py``). Every request
writes into a temporary folder of its own, which is gone when it ends; what visitors sent and got is kept for an hour,
and no longer than the page runs (``web/stored_files.py``).
"""

import argparse
import dataclasses
import html
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from urllib.request import getproxies

# Gradio reads these as soon as it is imported. What is empty is as unset; the page asks only this machine, so it needs
# no proxy, and one that Gradio's client does not know must not keep it from coming up.
os.environ["GRADIO_SERVER_PORT"] = os.environ.get("GRADIO_SERVER_PORT") or "7860"
if not (os.environ["GRADIO_SERVER_PORT"].isdecimal() and 0 < int(os.environ["GRADIO_SERVER_PORT"]) < 2**16):
    sys.exit(f"app.py: GRADIO_SERVER_PORT is '{os.environ['GRADIO_SERVER_PORT']}', give a number from 1 to 65535")
os.environ["GRADIO_SERVER_NAME"] = os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1"
os.environ["no_proxy"] = (
    "*"
    if any(proxy.startswith("socks") for proxy in getproxies().values())
    else ",".join(filter(None, (getproxies().get("no"), "localhost,127.0.0.1")))
)

import gradio as gr
import torch
from starlette.middleware import Middleware

from config import PageConfig, get_device, load_config
from playing.offline_transfer import describe_transfer, is_polyphonic
from sound.console import as_command, command_parser
from voice.fitting import TransferOptions
from web import page_layout
from web.endpoints import AnsweringBlocks, add_endpoints
from web.file_guard import OwnPageOnly, name_visitor
from web.live_page import LivePage
from web.page_style import launch_options
from web.stored_files import list_files, own_folder, remove_old_files
from web.transfer_request import (
    DRAW,
    ModelCollection,
    TransferOutcome,
    TransferRequest,
    TransferService,
    answer_request,
    describe_training,
    draw_result,
    explain_failure,
    read_model_card,
    write_result_files,
)

_SWEEP_SECONDS = 5.0  # between two looks at what is stored
_POLYPHONIC = "I hear more than one note at a time. I play one melody, so chords and backing tracks come out odd."
_BUSY = "Too many people are playing just now, or the server had a hiccup. Please try again in a minute."
# The keyboard and the screen follow the work.
_FOCUS_SCRIPT = (
    "() => { document.getElementById('cancel')?.focus({preventScroll: true}); "
    "document.getElementById('status').scrollIntoView({behavior: 'smooth', block: 'nearest'}); }"
)


def build_ui(
    checkpoint_dir: Path = Path("checkpoints"),
    device: torch.device | str = "cpu",
    limits: PageConfig | None = None,
    checkpoint: Path | None = None,
) -> gr.Blocks:
    """Build the page; serve it by ``launch``.

    Args:
        checkpoint_dir: where trainings write; each best.pth and latest.pth in or under it can be played.
        device: where models run.
        limits: what a visitor may ask for; None takes config.json's.
        checkpoint: a model to be offered before all others.

    Raises:
        FileNotFoundError, ValueError: it cannot be read.
    """
    if checkpoint is not None:
        describe_training(checkpoint, Path(checkpoint_dir))
    device, limits = torch.device(device), limits or load_config().page
    service = TransferService(ModelCollection(Path(checkpoint_dir), device, checkpoint), limits)
    with AnsweringBlocks(title="Vox2Trumpet", analytics_enabled=False) as page:
        gr.HTML(page_layout.HEADER)
        with gr.Tab("Play"):
            with gr.Row(elem_classes="sides"):
                with gr.Column():
                    controls = page_layout.build_controls(limits)
                    play = gr.Button("Play it", variant="primary", size="lg", elem_id="play")
                    cancel = gr.Button("Cancel", size="lg", visible=False, elem_id="cancel")
                with gr.Column():
                    results = page_layout.build_results()
            results = results._replace(pictures=page_layout.build_pictures())
        with gr.Tab("How it works"):
            gr.HTML(page_layout.HOW_IT_WORKS)
            card = gr.Markdown(elem_id="card")
        kept = f"Recordings are deleted after about {limits.keep_seconds / 60:.0f} minutes."
        gr.HTML(f'<p class="foot">Runs on {html.escape(_name_device(device))}. {kept}</p>')
        _connect_play(service, controls, results, play, cancel)
        _connect_instruments(service, controls, card, play, page)
        add_endpoints(service)
    page.live = Middleware(LivePage, service.collection)
    return page.queue(max_size=limits.max_waiting, api_open=False)  # no way around the queue


def _name_device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"this computer's {device.type.upper()}"


# --- what it does ---------------------------------------------------------------------------------


def _connect_play(
    service: TransferService,
    controls: page_layout.PageControls,
    results: page_layout.PageResults,
    play: gr.Button,
    cancel: gr.Button,
) -> None:
    """Connect the buttons to what they do."""

    def run(recording: str | None, instrument: str | None, seed: int, *values) -> Iterator[dict]:
        chosen = (None if value == page_layout.AUTO else value for value in values)
        ready = {play: gr.update(visible=True), cancel: gr.update(visible=False)}
        shown_step = None
        with tempfile.TemporaryDirectory(prefix="vox2trumpet-") as folder:
            try:
                options = TransferOptions(**dict(zip(controls.options, chosen)))
                request = TransferRequest(recording, instrument or "", options, seed or 0, Path(folder))
                for step in answer_request(service, request):
                    if isinstance(step, TransferOutcome):
                        yield _show_sound(results, step, request)
                        yield {**_show_pictures(results, draw_result(step, Path(folder))), **ready}
                    else:
                        yield {results.status: gr.skip() if step == shown_step else page_layout.step_list(step)}
                        shown_step = step
            except (ValueError, OSError) as error:
                yield {results.status: page_layout.message_card(explain_failure(error, recording), "error"), **ready}

    def wait_in_line() -> dict:
        hidden = {part: gr.update(visible=False) for part in (play, results.panel, *results.pictures)}
        status = gr.update(value=page_layout.message_card("Waiting for my turn."), visible=True)
        return {cancel: gr.update(visible=True), results.status: status, **hidden}

    asked = [controls.recording, controls.instrument, controls.seed, *controls.options.values()]
    shown = [play, cancel, *results[:6], *results.downloads, *results.pictures]
    clicked = play.click(wait_in_line, outputs=shown, queue=False, api_visibility="private", show_progress="hidden")
    clicked.then(None, js=_FOCUS_SCRIPT)
    started = clicked.then(
        run,
        asked,
        shown,
        api_visibility="private",
        concurrency_id="transfer",
        show_progress="minimal",
        show_progress_on=results.status,
    )
    _connect_cancel(started, play, cancel, results.status)


def _connect_cancel(started: gr.events.Dependency, play: gr.Button, cancel: gr.Button, status: gr.HTML) -> None:
    """Make the button cancel a request, and report one that fails."""
    cancelled = page_layout.message_card("Cancelled. Nothing was kept.")

    def stop() -> tuple:
        return gr.update(visible=True), gr.update(visible=False), cancelled

    def fail(shown: str | None) -> tuple:
        # What is cancelled may also count as failed, and be told so later.
        message = gr.skip() if shown == cancelled else page_layout.message_card(_BUSY, "error")
        return gr.update(visible=True), gr.update(visible=False), message

    quiet = {"outputs": [play, cancel, status], "queue": False, "api_visibility": "private"}
    cancel.click(stop, cancels=started, **quiet)
    started.failure(fail, status, **quiet)


def _show_sound(results: page_layout.PageResults, outcome: TransferOutcome, request: TransferRequest) -> dict:
    """Show the sound while the picture is being drawn."""
    sound, *_ = files = write_result_files(outcome, request)
    report = describe_transfer(outcome.report)
    return {
        results.status: page_layout.step_list(DRAW),
        results.panel: gr.update(visible=True),
        results.warning: gr.update(
            value=page_layout.message_card(_POLYPHONIC, "warning"), visible=is_polyphonic(outcome.report)
        ),
        results.played: gr.update(value=str(sound), label=f"The {outcome.sound}"),
        results.voice: request.recording,
        results.report: f"<p>{html.escape(report[:1].upper() + report[1:])}.</p>",
        **{button: str(path) for button, path in zip(results.downloads, files)},
    }


def _show_pictures(results: page_layout.PageResults, paths: list[Path]) -> dict:
    pictures = {picture: gr.update(value=str(path), visible=True) for picture, path in zip(results.pictures, paths)}
    return {results.status: gr.update(visible=False), **pictures}


def _connect_instruments(
    service: TransferService, controls: page_layout.PageControls, card: gr.Markdown, play: gr.Button, page: gr.Blocks
) -> None:
    """Keep the list of instruments, the button's name and the model card up to date."""

    def offer() -> dict:
        found = service.collection.find()
        info = None if found else "There is none yet: train one with train.py, then refresh"
        choices = [(one.label, one.name) for one in found]
        return gr.update(choices=choices, value=found[0].name if found else None, info=info)

    def name(chosen: str | None) -> tuple[str, str]:
        found = next((one for one in service.collection.find() if one.name == chosen), None)
        return (f"Play it on the {found.sound}", read_model_card(found)) if found else ("Play it", "")

    private = {"api_visibility": "private", "show_progress": "hidden", "queue": False}  # a full line is no shut door
    for event in (page.load, controls.refresh.click):
        event(offer, outputs=controls.instrument, **private)
    controls.instrument.change(name, controls.instrument, [play, card], **private)


# --- the command line -----------------------------------------------------------------------------


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_parser("Serve the web page.")
    parser.add_argument("--host", help="address to listen on (default $GRADIO_SERVER_NAME, else 127.0.0.1)")
    parser.add_argument("--port", type=int, help="default $GRADIO_SERVER_PORT, else 7860")
    parser.add_argument("--share", action="store_true", help="make a public link, through Gradio's servers")
    parser.add_argument("--checkpoint_dir", type=Path, default=Path("checkpoints"), help="where training writes")
    parser.add_argument("--checkpoint", type=Path, help="a model of your own to be offered first")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps (default auto)")
    parser.add_argument("--max_seconds", type=float, help="longest recording (default: config.json's)")
    args = parser.parse_args(argv)
    if args.max_seconds is not None and not 0 < args.max_seconds < float("inf"):
        parser.error("--max_seconds should be a number over 0")
    if args.port is not None and not 0 < args.port < 2**16:
        parser.error("--port should be between 1 and 65535")
    return args


def launch(page: gr.Blocks, limits: PageConfig, host: str | None, port: int, share: bool = False) -> str:
    """Begin to serve a page, and return its address; ``page.close()`` ends it.

    Raises:
        OSError: the port is in use.
    """
    space, listens = os.environ.get("SPACE_HOST", ""), host or os.environ["GRADIO_SERVER_NAME"]
    is_local = listens in ("127.0.0.1", "localhost", "::1") and not space
    hosts = tuple(filter(None, (*space.lower().split(","), ".gradio.live" if share else "")))
    if space:  # the visitor's address is what the Space's own proxies say
        os.environ.setdefault("FORWARDED_ALLOW_IPS", "127.0.0.0/8,10.0.0.0/8,172.16.0.0/12,192.168.0.0/16")
    guard = Middleware(OwnPageOnly, is_local, limits, hosts, partial(_count_waiting, page))
    os.environ["no_proxy"] += f",{listens}"
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            share=share,
            prevent_thread_lock=True,
            run_history=False,
            pwa=False,
            max_file_size=f"{limits.max_upload_megabytes}mb",
            ssr_mode=False,
            enable_monitoring=False,
            app_kwargs={"middleware": [guard, page.live]},
            **launch_options(page_layout.HEAD),
        )
    except OSError as error:
        message = f"port {port} is in use; stop what runs there, or choose another with --port"
        raise OSError(message if host is None else f"{message} (or {host} is no address of this machine)") from error
    return address


def _count_waiting(page: gr.Blocks, visitor: str) -> int:
    """Return how many of a visitor's requests wait in the page's line, or are being answered."""
    waiting = [event for line in page._queue.event_queue_per_concurrency_id.values() for event in line.queue]
    answered = [event for events in page._queue.active_jobs if events for event in events]
    return sum(name_visitor(event.request.scope) == visitor for event in waiting + answered)


def _stop(number: int, _: object) -> None:
    sys.exit(128 + number)


@as_command(level=logging.WARNING)
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    port = args.port or int(os.environ["GRADIO_SERVER_PORT"])
    limits = load_config().page
    limits = dataclasses.replace(limits, max_seconds=args.max_seconds or limits.max_seconds)
    signal.signal(signal.SIGTERM, _stop)
    with own_folder() as folder:
        page = build_ui(args.checkpoint_dir, get_device(args.device), limits, args.checkpoint)
        own_files = list_files(folder)  # of the page itself, such as the examples
        try:
            launch(page, limits, args.host, port, args.share)
            while True:
                time.sleep(_SWEEP_SECONDS)
                remove_old_files(folder, own_files, limits.keep_seconds, limits.max_stored_megabytes * 2**20)
        finally:
            page.close(verbose=False)


if __name__ == "__main__":
    raise SystemExit(main())
