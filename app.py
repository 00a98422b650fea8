"""Web page for timbre transfer: sing into the browser and play back the instrument.

    ./venv/bin/python app.py

Importing this module builds and loads nothing: ``build_ui`` builds the page, ``main`` serves it. The page and the
endpoint ``/transfer`` (``web/endpoints.py``) share ``web/transfer_request.py``. Every request writes to a separate
temporary folder, which is removed when the request ends. Files that visitors send and receive are kept for an hour at
most, and are removed when the page ends (``web/stored_files.py``).
"""

import argparse
import dataclasses
import html
import json
import logging
import math
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import getproxies

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: spinning threads are slow on a busy machine
# Gradio reads these variables on import. An empty value counts as unset. The page connects only to this machine, so it
# needs no proxy, and a proxy type that Gradio's client does not support must not prevent its start.
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
from playing.offline_transfer import describe_transfer
from sound.console import as_command, command_parser
from voice.instrument_fit import TransferOptions
from web import page_layout
from web.endpoints import AnsweringBlocks, add_endpoints
from web.file_guard import OwnPageOnly, PromptProtocol, WaitingLine
from web.live_page import LivePage
from web.page_style import launch_options
from web.stored_files import list_files, own_folder, remove_old_files
from web.transfer_request import (
    ModelCollection,
    TransferOutcome,
    TransferRequest,
    TransferService,
    answer_request,
    describe_training,
    explain_failure,
    read_model_card,
    write_notes,
    write_package,
    write_sound,
)

_MAX_VISITS = 200  # sessions stored by Gradio with their controls, at up to 1 MB each
_SWEEP_SECONDS = 5.0  # between two clean-ups of stored files
_BUSY = "Too many people are playing just now, or the server had a hiccup. Please try again in a minute."
# Move the keyboard focus and the view with the progress.
_FOCUS_SCRIPT = "() => vox.focus('cancel')"
_TAKE_SCRIPT = "async (recording, ...rest) => [await vox.recording(), ...rest]"


def build_ui(
    checkpoint_dir: Path = Path("checkpoints"),
    device: torch.device | str = "cpu",
    limits: PageConfig | None = None,
    checkpoint: Path | None = None,
) -> gr.Blocks:
    """Build the page; serve it with ``launch``.

    Args:
        checkpoint_dir: folder of trainings; each best.pth and latest.pth in or under it can be played.
        device: device of the models.
        limits: limits per visitor; those of config.json if None.
        checkpoint: a model to list first.

    Raises:
        FileNotFoundError, ValueError: the checkpoint cannot be read.
    """
    if checkpoint is not None:
        describe_training(checkpoint, Path(checkpoint_dir))
    device, limits = torch.device(device), limits or load_config().page
    service = TransferService(ModelCollection(Path(checkpoint_dir), device, checkpoint), limits)
    with AnsweringBlocks(title="Vox2Trumpet", analytics_enabled=False) as page:
        gr.HTML(page_layout.HEADER)
        with gr.Tab("Play"), gr.Row(elem_classes="sides"):
            with gr.Column():
                controls = page_layout.build_controls(limits)
            with gr.Column():
                results = page_layout.build_results()
        with gr.Tab("How it works"):
            gr.HTML(page_layout.HOW_IT_WORKS)
            card = gr.Markdown(elem_id="card")
        place, minutes = html.escape(_name_device(device)), f"{limits.keep_seconds / 60:.0f} minutes"
        kept = f"The server deletes recordings after about {minutes}; takes stay in your browser."
        gr.HTML(f'<p class="foot">Runs on {place}. {kept}</p>')
        _connect_play(service, controls, results)
        _connect_desk(service, controls, results.desk)
        _connect_instruments(service, controls, card, page)
        _connect_settings(controls, page)
        add_endpoints(service)
    page.live = Middleware(LivePage, service.collection)
    return page.queue(max_size=limits.max_waiting, api_open=False)  # clients cannot bypass the queue


def _name_device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"this computer's {device.type.upper()}"


# --- events ---------------------------------------------------------------------------------------


def _connect_play(
    service: TransferService, controls: page_layout.PageControls, results: page_layout.PageResults
) -> None:
    """Connect the play and cancel buttons."""
    play, cancel = controls.play, controls.cancel

    def run(recording: str | None, instrument: str | None, seed: int, as_played: bool, *values) -> Iterator[dict]:
        chosen = (None if value == page_layout.AUTO else value for value in values)
        ready = {play: gr.update(visible=True), cancel: gr.update(visible=False)}
        shown_step = None
        with tempfile.TemporaryDirectory(prefix="vox2trumpet-") as folder:
            try:
                options = TransferOptions(**dict(zip(controls.options, chosen)))
                request = TransferRequest(recording, instrument or "", options, seed or 0, Path(folder), not as_played)
                for step in answer_request(service, request):
                    if isinstance(step, TransferOutcome):
                        said = page_layout.message_card(f"The {step.sound} is ready.", "ready")
                        result = describe_for_desk(step, request)
                        yield {results.status: said, results.desk: result}  # sounds while the notes are written
                        try:
                            midi, curves = map(page_layout.file_data, write_notes(step, request))
                            notes = {results.desk: {**result, "midi": midi, "curves": curves}}
                        except (ValueError, OSError) as error:
                            logging.error("app.py: the notes could not be written: %s", error)
                            said = f"The {step.sound} is ready, but its notes (MIDI and CSV) could not be written."
                            notes = {results.status: page_layout.message_card(said, "warning")}
                        yield {**notes, **ready}
                    else:
                        yield {results.status: gr.skip() if step == shown_step else page_layout.step_list(step)}
                        shown_step = step
            except (ValueError, OSError) as error:
                yield {results.status: page_layout.message_card(explain_failure(error, recording), "error"), **ready}

    inputs = [controls.recording, controls.instrument, controls.seed, controls.as_played, *controls.options.values()]
    shown = [play, cancel, *results]
    waiting = [gr.update(visible=False), gr.update(visible=True), page_layout.message_card("Waiting for my turn.")]
    clicked = play.click(None, None, [play, cancel, results.status], js=f"() => {json.dumps(waiting)}")
    clicked.then(None, js=_FOCUS_SCRIPT)
    started = clicked.then(
        run,
        inputs,
        shown,
        js=_TAKE_SCRIPT,
        api_visibility="private",
        concurrency_id="transfer",
        show_progress="minimal",
        show_progress_on=results.status,
    )
    _connect_cancel(started, play, cancel, results.status)


def _connect_cancel(started: gr.events.Dependency, play: gr.Button, cancel: gr.Button, status: gr.HTML) -> None:
    """Connect the cancel button, and report failed requests."""
    cancelled = page_layout.message_card("Cancelled. What was played before is still here.")

    def stop() -> tuple:
        return gr.update(visible=True), gr.update(visible=False), cancelled

    def fail(shown: str | None) -> tuple:
        # A cancelled request may also be reported as failed later.
        message = gr.skip() if shown == cancelled else page_layout.message_card(_BUSY, "error")
        return gr.update(visible=True), gr.update(visible=False), message

    quiet = {"outputs": [play, cancel, status], "queue": False, "api_visibility": "private"}
    cancel.click(stop, cancels=started, **quiet)
    started.failure(fail, status, **quiet)


def describe_for_desk(outcome: TransferOutcome, request: TransferRequest) -> dict:
    """Return the data of a result that ``web/desk.js`` shows and plays."""
    tone, breath = (write_sound(outcome, request, part, ".flac", 16) for part in ("_harmonic", "_noise"))
    report = describe_transfer(outcome.report)
    options = dataclasses.asdict(request.options)
    voice_gain = outcome.report.get("integrated_loudness", outcome.voice_loudness) - outcome.voice_loudness
    return {
        "id": time.time_ns(),
        "title": request.title.replace("_", " "),
        "instrument": outcome.sound,
        "sentence": page_layout.describe_result(outcome, request.options),
        "notices": page_layout.find_notices(outcome, request.options),
        "details": f"{report[:1].upper()}{report[1:]}.",
        "stems": {"tone": page_layout.file_data(tone), "breath": page_layout.file_data(breath)},
        "rate": outcome.sample_rate,
        "voiceGain": voice_gain if math.isfinite(voice_gain) else 0.0,
        "pitch": page_layout.draw_pitch(outcome),
        "request": {
            "instrument": request.instrument,
            "seed": request.seed,
            "normalize": request.normalize,
            "options": options,
        },
    }


def _connect_desk(service: TransferService, controls: page_layout.PageControls, desk: gr.HTML) -> None:
    """Connect the fixes and the save button of the desk."""
    settings = gr.JSON(visible=False)  # from the page's script

    def fix(event: gr.EventData) -> list:
        wanted = event._data
        return [gr.update(value=wanted[name]) if name in wanted else gr.skip() for name in controls.options]

    def pack(recording: str | None, wanted: dict) -> Iterator[dict]:
        with tempfile.TemporaryDirectory(prefix="vox2trumpet-") as folder:
            try:
                options = TransferOptions(**wanted.pop("options"))
                request = TransferRequest(recording, options=options, folder=Path(folder), **wanted)
                *_, outcome = answer_request(service, request)
                yield {"package": page_layout.file_data(write_package(outcome, request))}
            except (ValueError, TypeError, AttributeError, OSError) as error:
                raise gr.Error(explain_failure(error, recording), print_exception=False) from error

    private = {"api_visibility": "private", "show_progress": "hidden"}
    desk.fix(fix, outputs=list(controls.options.values()), queue=False, **private).then(None, js="() => vox.replay()")
    desk.save(
        pack, [controls.recording, settings], desk, js="async () => vox.package()", concurrency_id="transfer", **private
    )


def _connect_instruments(
    service: TransferService, controls: page_layout.PageControls, card: gr.Markdown, page: gr.Blocks
) -> None:
    """Update the list of instruments, the button's label and the model card."""

    def offer(chosen: str | None) -> dict:
        found = service.collection.find()
        info = None if found else "There is none yet: train one with train.py, then look again"
        names = [one.name for one in found]
        value = chosen if chosen in names else next(iter(names), None)
        return gr.update(choices=[(one.label, one.name) for one in found], value=value, info=info)

    def name(chosen: str | None) -> tuple[str, str]:
        found = next((one for one in service.collection.find() if one.name == chosen), None)
        return (f"Play it on the {found.sound}", read_model_card(found)) if found else ("Play it", "")

    private = {"api_visibility": "private", "show_progress": "hidden", "queue": False}  # works while the queue is full
    kept = gr.Textbox(visible=False)  # a Radio would reject a name that is not yet in its choices
    for event in (page.load, controls.refresh.click):
        event(offer, kept, controls.instrument, js="() => [vox.keptInstrument()]", **private)
    controls.instrument.change(name, controls.instrument, [controls.play, card], **private)


def _connect_settings(controls: page_layout.PageControls, page: gr.Blocks) -> None:
    """Store the settings in the browser, and play the current take again when they change."""
    parts = [controls.instrument, controls.seed, controls.as_played, *controls.options.values()]
    brass = page_layout.BRASS_SECTION
    section = [controls.instrument, controls.options["harmony"], controls.options["ensemble"]]
    gr.on([part.change for part in parts], None, parts, js="(...values) => { vox.changed(...values); }")
    page.load(None, parts[1:], parts[1:], js="(...values) => vox.keptSettings(null, ...values).slice(1)")
    controls.brass.click(lambda: list(brass.values()), outputs=section, queue=False, api_visibility="private")


# --- the command line -----------------------------------------------------------------------------


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_parser("Serve the web page.")
    parser.add_argument("--host", help="address to listen on (default: $GRADIO_SERVER_NAME, else 127.0.0.1)")
    parser.add_argument("--port", type=int, help="default: $GRADIO_SERVER_PORT, else 7860")
    parser.add_argument("--share", action="store_true", help="create a public link through Gradio's servers")
    parser.add_argument(
        "--checkpoint_dir", type=Path, default=Path("checkpoints"), help="folder of trainings (default: checkpoints)"
    )
    parser.add_argument("--checkpoint", type=Path, help="your own model, listed first")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps (default: auto)")
    parser.add_argument("--max_seconds", type=float, help="longest recording in seconds (default: config.json)")
    args = parser.parse_args(argv)
    if args.max_seconds is not None and not 0 < args.max_seconds < float("inf"):
        parser.error("--max_seconds should be a number above 0")
    if args.port is not None and not 0 < args.port < 2**16:
        parser.error("--port should be between 1 and 65535")
    return args


def launch(page: gr.Blocks, limits: PageConfig, host: str | None, port: int, share: bool = False) -> str:
    """Start serving a page and return its address; stop it with ``page.close()``.

    Raises:
        OSError: the port is in use.
    """
    space, listens = os.environ.get("SPACE_HOST", ""), host or os.environ["GRADIO_SERVER_NAME"]
    is_local = listens in ("127.0.0.1", "localhost", "::1") and not space
    hosts = tuple(filter(None, (*space.lower().split(","), ".gradio.live" if share else "")))
    if space:  # the Space's proxies set the visitor's address
        os.environ.setdefault("FORWARDED_ALLOW_IPS", "127.0.0.0/8,10.0.0.0/8,172.16.0.0/12,192.168.0.0/16")
    guard = Middleware(OwnPageOnly, is_local, limits, hosts, WaitingLine(page._queue))
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
            state_session_capacity=_MAX_VISITS,
            app_kwargs={"middleware": [guard, page.live]},
            **launch_options(page_layout.head()),
        )
    except OSError as error:
        message = f"port {port} is in use; stop what runs there, or choose another with --port"
        raise OSError(message if host is None else f"{message} (or {host} is no address of this machine)") from error
    page.server.config.http_protocol_class = PromptProtocol
    return address


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
        own_files = list_files(folder)  # files of the page, such as the examples
        try:
            launch(page, limits, args.host, port, args.share)
            while True:
                time.sleep(_SWEEP_SECONDS)
                remove_old_files(folder, own_files, limits.keep_seconds, limits.max_stored_megabytes * 2**20)
        finally:
            page.close(verbose=False)


if __name__ == "__main__":
    raise SystemExit(main())
