"""The web page: sing into the browser, hear the instrument.

    ./venv/bin/python app.py

Nothing is built or loaded when this module is imported: ``build_ui`` makes the page, ``main`` serves it. The page
and the endpoint ``/transfer`` do the same work. Every request writes into a temporary folder of its own, which is
gone when it ends; Gradio keeps its copies of what it handed out for an hour.
"""

import argparse
import contextlib
import html
import logging
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import soundfile
import torch

from checkpoint import LATEST, PRETRAINED_DIR, load_model, read_checkpoint
from conditioning import TransferOptions
from config import get_device
from features import load_audio
from model import NeuralGuitar
from transfer import Transfer, describe, transfer, write_audio
from visualize_features import THEMES, plot_features, save_figure

EXAMPLES_DIR = Path(__file__).parent / "examples"
DEFAULT_PORT = 7860
_CACHE_SECONDS = 3600  # how long a result can be fetched
_MAX_UPLOAD = "100mb"
_MAX_WAITING = 64  # requests in line
_TICK = 0.25  # s, how soon a cancel is noticed
_STEPS = ("Fetching the instrument", "Listening to your recording", "Playing your melody", "Drawing what was played")
_OCTAVES = [("Auto", "auto"), ("−2", -24), ("−1", -12), ("0", 0), ("+1", 12), ("+2", 24)]
log = logging.getLogger("app")


# --- instruments ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Instrument:
    """A model that can be chosen."""

    name: str  # what it is chosen by: "latest", or as shipped
    sound: str  # such as "trumpet"
    label: str  # for people
    path: Path


@dataclass
class Collection:
    """The instruments there are. A file is read once, and again when it has changed."""

    checkpoint_dir: Path
    device: torch.device
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _models: dict[Path, tuple[int, NeuralGuitar]] = field(default_factory=dict)
    _described: dict[Path, tuple[int, Instrument]] = field(default_factory=dict)

    def find(self) -> list[Instrument]:
        """Return the newest training, if there is one that can be read, then the shipped models."""
        shipped = sorted(PRETRAINED_DIR.glob("*.pth"))
        found = [Instrument(path.stem, path.stem, path.stem.capitalize(), path) for path in shipped]
        latest = find_latest(self.checkpoint_dir)
        try:
            return [self._read(self._described, latest, describe_latest), *found] if latest else found
        except (ValueError, OSError) as error:
            log.warning("app.py: %s", error)
            return found

    def choose(self, name: str) -> Instrument:
        """Return an instrument by name; the first for an empty name.

        Raises:
            ValueError: there is none of that name.
        """
        found = self.find()
        chosen = next((instrument for instrument in found if name in ("", instrument.name)), None)
        if chosen is None:
            names = ", ".join(instrument.name for instrument in found) or "none: train one with train.py"
            raise ValueError(f"there is no instrument '{name}' (there is {names})")
        return chosen

    def load(self, instrument: Instrument) -> NeuralGuitar:
        """Return an instrument's model; it raises what ``checkpoint.load_model`` raises."""
        return self._read(self._models, instrument.path, lambda path: load_model(path, self.device))

    def _read(self, known: dict[Path, tuple[int, Any]], path: Path, read: Callable[[Path], Any]) -> Any:
        with self._lock:
            changed = path.stat().st_mtime_ns
            if path not in known or known[path][0] != changed:
                known[path] = (changed, read(path))
            return known[path][1]


def find_latest(checkpoint_dir: Path) -> Path | None:
    """Return the most recently written latest.pth in or under a folder."""
    return max(checkpoint_dir.rglob(LATEST), key=lambda path: path.stat().st_mtime_ns, default=None)


def describe_latest(path: Path) -> Instrument:
    """Read what a training has reached; raises what ``checkpoint.read_checkpoint`` raises."""
    content = read_checkpoint(path)
    saved = time.strftime("%d %b, %H:%M", time.localtime(path.stat().st_mtime))
    reached = f"epoch {content['epoch']}, step {content['step']}, {saved}"
    return Instrument("latest", content["instrument"], f"Latest {content['instrument']} ({reached})", path)


def read_card(instrument: Instrument) -> str:
    """Return the model card, which lies beside the checkpoint."""
    card = instrument.path.with_suffix(".md")
    return card.read_text() if card.is_file() else f"**{instrument.label}** has no model card."


# --- one request ----------------------------------------------------------------------------------


class Service(NamedTuple):
    """What all requests share. One thread does the heavy work, so that no two fight for the cores."""

    collection: Collection
    max_seconds: float
    worker: ThreadPoolExecutor


@dataclass(frozen=True)
class Request:
    """What is to be played, how, and where the files go."""

    recording: str | None
    instrument: str
    semitones: float | None
    fit: bool
    seed: int
    folder: Path

    def __post_init__(self) -> None:
        if self.semitones is not None and not -60 <= self.semitones <= 60:
            raise ValueError(f"semitones should be between -60 and 60, not {self.semitones:g}")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"the seed should be between 0 and {2**31 - 1}, not {self.seed:g}")


class Outcome(NamedTuple):
    instrument: Instrument
    result: Transfer
    frame_rate: float  # of the result's curves
    files: list[Path]  # sound, harmonic part, noise part


def work(service: Service, request: Request) -> Iterator[int | Outcome]:
    """Answer a request; yield the step in hand, again and again while it lasts, and in the end the outcome.

    Raises:
        ValueError, OSError: the recording or the instrument cannot be used.
    """
    yield 0
    recording = check_recording(request.recording, service.max_seconds)
    instrument = service.collection.choose(request.instrument)
    model = service.collection.load(instrument)
    yield 1
    rate = model.settings.audio.feature_rate
    voice = load_audio(recording, rate)
    check_length(len(voice) / rate, service.max_seconds)
    options = TransferOptions(semitones=request.semitones, fit=request.fit)
    job = service.worker.submit(transfer, voice, rate, model, options, request.seed)
    try:
        while not job.done():
            yield 2
            wait([job], timeout=_TICK)
    finally:
        job.cancel()
    result = job.result()
    yield Outcome(instrument, result, model.settings.audio.frame_rate, write_files(result, instrument, request))


def check_recording(recording: str | None, max_seconds: float) -> Path:
    """Return the path of a recording that is not too long, before it is decoded.

    Raises:
        ValueError: there is none, or it is too long.
    """
    if recording is None:
        raise ValueError("there is no recording yet; sing into the microphone, or upload a file")
    with contextlib.suppress(soundfile.LibsndfileError):  # not sound: load_audio says so
        check_length(soundfile.info(recording).duration, max_seconds)
    return Path(recording)


def check_length(seconds: float, max_seconds: float) -> None:
    if seconds > max_seconds:
        raise ValueError(f"the recording lasts {seconds:.0f} s, and up to {max_seconds:g} s can be played; trim it")


def write_files(result: Transfer, instrument: Instrument, request: Request) -> list[Path]:
    """Write the sound and its two parts, named after the recording."""
    title = re.sub(r"[^\w-]+", "_", Path(request.recording).stem)[:40]
    parts = {"": result.audio, "_harmonic": result.harmonic, "_noise": result.noise}
    paths = [request.folder / f"{title}_{instrument.sound}{part}.wav" for part in parts]
    for path, audio in zip(paths, parts.values()):
        write_audio(path, audio, result.sample_rate)
    return paths


def draw(outcome: Outcome, folder: Path) -> list[Path]:
    """Draw the result, for a light page and for a dark one."""
    result, sound = outcome.result, outcome.instrument.sound
    paths = [folder / f"{outcome.files[0].stem}_{theme}.png" for theme in THEMES]
    for path, theme in zip(paths, THEMES):
        figure = plot_features(
            result.audio, result.sample_rate, result.curves.f0, result.curves.loudness, outcome.frame_rate,
            voiced=result.curves.gate > 0, second_f0=result.features.f0, f0_labels=(sound, "your voice"), theme=theme,
            title=f"Played on the {sound}",
        )  # fmt: skip
        save_figure(figure, path)
    return paths


def explain(error: Exception, recording: str | None) -> str:
    """Return one friendly sentence for what a person can do something about; no path of the server is in it."""
    known = {
        "is silent": "I hear only silence. Is the right microphone chosen, and is it switched on?",
        "no samples": "The recording is empty. Record again, or upload another file.",
        "no melody": "I could not hear a melody. Sing or hum a little closer to the microphone, one note at a time.",
        "cannot be read as sound": "This is not a sound file that I can read. Try wav, flac, ogg or mp3.",
    }
    message = str(error)
    sentence = next((sentence for sign, sentence in known.items() if sign in message), None)
    if sentence is None:
        message = message.replace(recording or "\0", "the recording")
        sentence = f"{message[:1].upper()}{message[1:]}.".replace("..", ".")
    return sentence


# --- the page -------------------------------------------------------------------------------------


class Controls(NamedTuple):
    """What a person sets, in the order in which the handler takes it."""

    recording: gr.Audio
    instrument: gr.Radio
    octave: gr.Radio
    semitones: gr.Slider
    fit: gr.Checkbox
    seed: gr.Number


class Results(NamedTuple):
    """What a person gets; ``pictures`` holds one for each of THEMES."""

    status: gr.HTML
    panel: gr.Column
    played: gr.Audio
    heard: gr.Audio
    report: gr.HTML
    downloads: list[gr.DownloadButton]
    pictures: list[gr.Image]


def build_ui(
    checkpoint_dir: Path = Path("checkpoints"), device: torch.device | str = "cpu", max_seconds: float = 60
) -> gr.Blocks:
    """Build the page; launch it with ``**look()``.

    Args:
        checkpoint_dir: where training writes; the newest latest.pth in or under it can be played.
        device: where models run.
        max_seconds: longer recordings are refused.
    """
    device = torch.device(device)
    service = Service(Collection(Path(checkpoint_dir), device), max_seconds, ThreadPoolExecutor(1, "transfer"))
    cache = (_CACHE_SECONDS // 4, _CACHE_SECONDS)
    with gr.Blocks(title="Vox2Trumpet", analytics_enabled=False, delete_cache=cache) as page:
        gr.HTML(_HEADER)
        with gr.Tab("Play"):
            with gr.Row(elem_classes="sides"):
                with gr.Column():
                    controls, refresh = _build_controls(service)
                    play = gr.Button("Play it", variant="primary", size="lg", elem_id="play")
                    cancel = gr.Button("Cancel", size="lg", visible=False, elem_id="cancel")
                with gr.Column():
                    results = _build_results()
            results = results._replace(pictures=_build_pictures())
        with gr.Tab("How it works"):
            gr.HTML(_HOW_IT_WORKS)
            card = gr.Markdown(elem_id="card")
        gr.HTML(f'<p class="foot">Runs on {_name_device(device)}. Recordings are deleted after about an hour.</p>')
        _connect(service, controls, results, play, cancel)
        _connect_instruments(service, controls.instrument, card, play, refresh, page)
        _add_endpoints(service)
    return page.queue(max_size=_MAX_WAITING)


def _name_device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()


def _build_controls(service: Service) -> tuple[Controls, gr.Button]:
    recording = gr.Audio(
        sources=["microphone", "upload"], type="filepath", elem_id="recording", waveform_options=_waveform("waveform"),
        label=f"Your voice: sing, hum or whistle, up to {service.max_seconds:g} s", buttons=[],
    )  # fmt: skip
    examples = sorted(EXAMPLES_DIR.glob("*.wav"))
    gr.Examples(
        [[str(path)] for path in examples], recording, label="Or try an example", api_visibility="private",
        example_labels=[path.stem.replace("_", " ").capitalize() for path in examples],
    )  # fmt: skip
    refresh = gr.Button("Refresh", size="sm", render=False)
    instrument = gr.Radio(label="Instrument", elem_id="instrument", buttons=[refresh])
    octave = gr.Radio(_OCTAVES, value="auto", label="Octave", info="Auto moves your voice into the instrument's range")
    semitones = gr.Slider(-11, 11, 0, step=1, label="Semitones", info="On top of the octave", visible=False)
    with gr.Accordion("Fine tuning", open=False):
        fit = gr.Checkbox(
            True, label="Fit pitch and loudness to the instrument", info="Off: both are played as they were measured"
        )
        seed = gr.Number(0, label="Breath noise", info="Another number, another breath", precision=0)
    octave.change(
        lambda chosen: gr.update(visible=chosen != "auto"), octave, semitones, api_visibility="private", queue=False
    )
    return Controls(recording, instrument, octave, semitones, fit, seed), refresh


def _build_results() -> Results:
    status = gr.HTML(_INVITATION, html_template='<div role="status">${value}</div>', elem_id="status")
    with gr.Column(visible=False, elem_id="results") as panel:
        played = gr.Audio(
            label="The instrument", type="filepath", interactive=False, autoplay=True, elem_id="played", buttons=[],
            waveform_options=_waveform("pitch"),
        )  # fmt: skip
        heard = gr.Audio(
            label="Your voice", type="filepath", interactive=False, elem_id="heard", buttons=[],
            waveform_options=_waveform("waveform"),
        )  # fmt: skip
        report = gr.HTML(elem_id="report")
        with gr.Row(elem_classes="downloads"):
            names = ("Save wav", "Harmonics", "Noise")
            downloads = [gr.DownloadButton(name, size="sm", min_width=90) for name in names]
    return Results(status, panel, played, heard, report, downloads, [])


def _build_pictures() -> list[gr.Image]:
    return [
        gr.Image(
            type="filepath", label="Waveform, pitch and loudness of what was played", interactive=False, visible=False,
            show_label=False, buttons=["fullscreen"], elem_classes=["picture", f"in-{theme}"],
        )
        for theme in THEMES
    ]  # fmt: skip


def _connect(service: Service, controls: Controls, results: Results, play: gr.Button, cancel: gr.Button) -> None:
    """Let the buttons do something."""

    def run(
        recording: str | None, instrument: str | None, octave: str | int, semitones: int, fit: bool, seed: int
    ) -> Iterator[dict]:
        shift = None if octave == "auto" else octave + semitones
        ready = {play: gr.update(visible=True), cancel: gr.update(visible=False)}
        shown = None
        with tempfile.TemporaryDirectory(prefix="vox2trumpet-") as folder:
            try:
                for step in work(service, Request(recording, instrument or "", shift, fit, seed or 0, Path(folder))):
                    if isinstance(step, Outcome):
                        yield _show_sound(results, step, recording)
                        yield {**_show_pictures(results, draw(step, Path(folder))), **ready}
                    else:
                        yield {results.status: gr.skip() if step == shown else _say_step(step)}
                        shown = step
            except (ValueError, OSError) as error:
                yield {results.status: _say(explain(error, recording), "error"), **ready}

    def wait_in_line() -> dict:
        hidden = {part: gr.update(visible=False) for part in (play, results.panel, *results.pictures)}
        status = gr.update(value=_say("Waiting for my turn."), visible=True)
        return {cancel: gr.update(visible=True), results.status: status, **hidden}

    parts = [play, cancel, *results[:5], *results.downloads, *results.pictures]
    clicked = play.click(wait_in_line, outputs=parts, queue=False, api_visibility="private", show_progress="hidden")
    started = clicked.then(
        run, list(controls), parts,
        api_visibility="private", concurrency_id="transfer", show_progress="minimal", show_progress_on=results.status,
    )  # fmt: skip

    def stop(sentence: str, kind: str = "") -> Callable[[], tuple]:
        return lambda: (gr.update(visible=True), gr.update(visible=False), _say(sentence, kind))

    quiet = {"outputs": [play, cancel, results.status], "queue": False, "api_visibility": "private"}
    cancel.click(stop("Cancelled. Nothing was kept."), cancels=started, **quiet)
    started.failure(stop("This did not work, or too many are waiting. Please try again in a minute.", "error"), **quiet)


def _show_sound(results: Results, outcome: Outcome, recording: str | None) -> dict:
    """Let the sound be heard while the picture is being drawn."""
    downloads = {button: str(path) for button, path in zip(results.downloads, outcome.files)}
    report = describe(outcome.result.report)
    return {
        results.status: _say_step(len(_STEPS) - 1),
        results.panel: gr.update(visible=True),
        results.played: gr.update(value=str(outcome.files[0]), label=f"The {outcome.instrument.sound}"),
        results.heard: recording,
        results.report: f"<p>{html.escape(report[:1].upper() + report[1:])}.</p>",
        **downloads,
    }


def _show_pictures(results: Results, paths: list[Path]) -> dict:
    pictures = {picture: gr.update(value=str(path), visible=True) for picture, path in zip(results.pictures, paths)}
    return {results.status: gr.update(visible=False), **pictures}


def _connect_instruments(
    service: Service, instrument: gr.Radio, card: gr.Markdown, play: gr.Button, refresh: gr.Button, page: gr.Blocks
) -> None:
    """Keep the list of instruments, the button's name and the model card up to date."""

    def offer() -> dict:
        found = service.collection.find()
        info = None if found else "There is none yet: train one with train.py, then refresh"
        choices = [(one.label, one.name) for one in found]
        return gr.update(choices=choices, value=found[0].name if found else None, info=info)

    def name(chosen: str | None) -> tuple[str, str]:
        found = next((one for one in service.collection.find() if one.name == chosen), None)
        return (f"Play it on the {found.sound}", read_card(found)) if found else ("Play it", "")

    for event in (page.load, refresh.click):
        event(offer, outputs=instrument, api_visibility="private", show_progress="hidden")
    instrument.change(name, instrument, [play, card], api_visibility="private", show_progress="hidden")


def _add_endpoints(service: Service) -> None:
    """Offer the page's work to programs."""

    def transfer_endpoint(
        recording: str, instrument: str = "", semitones: float | None = None, fit: bool = True, seed: int = 0
    ) -> Iterator[tuple[str, str, str, dict]]:
        """Play a recording; return the sound, its harmonic and noise parts, and the report.

        No instrument takes the first of /instruments, and no semitones fit the register by whole octaves.
        """
        with tempfile.TemporaryDirectory(prefix="vox2trumpet-") as folder:
            try:
                *_, outcome = work(service, Request(recording, instrument, semitones, fit, seed, Path(folder)))
            except (ValueError, OSError) as error:
                raise gr.Error(explain(error, recording), print_exception=False) from error
            # Gradio copies the files before it asks for more, and only then the folder goes.
            yield (*map(str, outcome.files), outcome.result.report)

    def instruments() -> list[dict]:
        """List what /transfer can play."""
        return [{"name": one.name, "sound": one.sound, "label": one.label} for one in service.collection.find()]

    hidden = gr.Button(visible=False)
    recording = gr.Audio(type="filepath", visible=False, label="recording")
    settings = [
        gr.Textbox("", visible=False, label="instrument"),
        gr.Number(None, visible=False, label="semitones"),
        gr.Checkbox(True, visible=False, label="fit"),
        gr.Number(0, visible=False, label="seed", precision=0),
    ]
    outputs = [gr.File(visible=False, label=label) for label in ("sound", "harmonic", "noise")]
    hidden.click(
        transfer_endpoint, [recording, *settings], [*outputs, gr.JSON(visible=False, label="report")],
        api_name="transfer", concurrency_id="transfer",
    )  # fmt: skip
    gr.api(instruments, api_name="instruments", queue=False)


# --- words and looks ------------------------------------------------------------------------------

def _say(sentence: str, kind: str = "") -> str:
    return f'<p class="say {kind}">{html.escape(sentence)}</p>'


def _say_step(step: int) -> str:
    """Return the list of steps, with the one in hand marked."""
    marks = ["done"] * step + ["now"] + ["later"] * (len(_STEPS) - step - 1)
    items = [
        f'<li class="{mark}"{" aria-current=step" if mark == "now" else ""}>{text}</li>'
        for mark, text in zip(marks, _STEPS)
    ]
    return f'<ol class="steps">{"".join(items)}</ol>'


def _waveform(colour: str) -> gr.WaveformOptions:
    """Return colours that can be seen on a light page and on a dark one."""
    light, dark = THEMES["light"], THEMES["dark"]
    return gr.WaveformOptions(
        waveform_color=getattr(light, colour), waveform_progress_color=dark.loudness, trim_region_color=dark.loudness
    )


def look() -> dict[str, Any]:
    """Return theme, style and icon for ``launch``, in the colours of the pictures; nothing comes from outside."""
    return {"theme": _make_theme(), "css": _CSS, "head": _ICON, "footer_links": ["api", "settings"]}


def _make_theme() -> gr.themes.Base:
    light, dark = THEMES["light"], THEMES["dark"]
    orange = gr.themes.Color(
        "#fff6ed", "#ffe9d2", "#fdd0a5", "#fbb06d", dark.pitch, "#e07a1f", light.pitch, "#a1460d", "#82390f", "#6b3110",
        "#2b1c10", name="brass",
    )  # fmt: skip
    grey = gr.themes.Color(
        "#f6f7f9", light.grid, "#e2e5ea", light.octave, dark.muted, light.muted, "#4b5260", dark.octave, dark.grid,
        dark.background, "#0d0f13", name="slate",
    )  # fmt: skip
    theme = gr.themes.Base(
        primary_hue=orange, secondary_hue=orange, neutral_hue=grey, radius_size=gr.themes.sizes.radius_lg,
        font=("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif"),
        font_mono=("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"),
    )  # fmt: skip
    return theme.set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        body_text_color=light.text,
        body_text_color_dark=dark.text,
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        color_accent="*primary_600",
        block_background_fill=light.background,
        block_background_fill_dark=dark.background,
        block_border_color="*neutral_200",
        block_border_color_dark="*neutral_800",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_label_border_width="0px",
        block_label_text_color="*neutral_500",
        block_label_text_color_dark="*neutral_400",
        block_title_text_color="*neutral_600",
        block_title_text_color_dark="*neutral_400",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_400",
        button_primary_background_fill_hover_dark="*primary_300",
        button_primary_text_color="white",
        button_primary_text_color_dark="*neutral_950",
        button_secondary_background_fill="*neutral_100",
        button_secondary_background_fill_hover="*neutral_200",
        button_secondary_background_fill_dark="*neutral_800",
        button_secondary_background_fill_hover_dark="*neutral_700",
        checkbox_label_background_fill="*neutral_100",
        checkbox_label_background_fill_hover="*neutral_200",
        checkbox_label_background_fill_dark="*neutral_800",
        checkbox_label_background_fill_hover_dark="*neutral_700",
        checkbox_label_border_width="1px",
        checkbox_label_border_width_dark="1px",
        checkbox_label_border_color="*neutral_100",
        checkbox_label_border_color_dark="*neutral_800",
        checkbox_label_background_fill_selected="*primary_50",
        checkbox_label_background_fill_selected_dark="*primary_950",
        checkbox_label_border_color_selected="*primary_600",
        checkbox_label_border_color_selected_dark="*primary_400",
    )


_ICON = (
    "<link rel=icon href=\"data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 32 32'%3E"
    "%3Crect width='32' height='32' rx='8' fill='%23c2570c'/%3E%3Cpath d='M6 16h3l3-7 4 14 4-10 2 3h4' fill='none' "
    "stroke='%23fff' stroke-width='2.4' stroke-linejoin='round' stroke-linecap='round'/%3E%3C/svg%3E\">"
)

_LOGO = """<svg viewBox="0 0 120 44" aria-hidden="true">
  <path class="voice" d="M2 22c4-10 8-10 12 0s8 10 12 0 8-10 12 0 8 10 12 0"/>
  <path class="horn" d="M58 22h34c10 0 16-7 22-14v28c-6-7-12-14-22-14"/>
  <path class="horn" d="M70 22v-8M78 22v-8M86 22v-8M66 22c0 12 24 12 24 0"/>
</svg>"""

_INVITATION = f"""<div class="say idle">{_LOGO}
<p>Record yourself, or upload a recording, then press the button. What the instrument plays appears here.</p></div>"""

_HEADER = f"""
<header class="top">
  {_LOGO}
  <div><h1>Vox2Trumpet</h1><p>Sing, hum or whistle, and an instrument plays it: your notes, your dynamics.</p></div>
</header>
"""

_HOW_IT_WORKS = """
<div class="flow" role="img" aria-label="A voice is measured as pitch and loudness; a small network turns them into
harmonics and noise, whose sum is the instrument's sound.">
  <div class="node"><svg viewBox="0 0 80 30"><path d="M2 15h8l4-10 6 22 6-24 6 20 6-12 5 6h7l5-8 6 14 5-6h10"/></svg>
    <b>Your voice</b><span>16,000 samples a second</span></div>
  <div class="arrow"></div>
  <div class="stack">
    <div class="node brass"><svg viewBox="0 0 80 30"><path d="M2 24h18V14h18V6h20v10h20"/></svg>
      <b>Pitch</b><span>CREPE, 100 times a second</span></div>
    <div class="node teal"><svg viewBox="0 0 80 30"><path d="M2 26C12 26 14 8 24 8s12 12 22 12 12-16 32-16"/></svg>
      <b>Loudness</b><span>A-weighted, in dB</span></div>
  </div>
  <div class="arrow"></div>
  <div class="node"><svg viewBox="0 0 80 30"><path d="M14 7l26 8 26-8M14 23l26-8 26 8"/><circle cx="14" cy="7" r="3"/>
    <circle cx="14" cy="23" r="3"/><circle cx="40" cy="15" r="4"/><circle cx="66" cy="7" r="3"/>
    <circle cx="66" cy="23" r="3"/></svg><b>The player</b><span>a network that learned one instrument</span></div>
  <div class="arrow"></div>
  <div class="stack">
    <div class="node brass">
      <svg viewBox="0 0 80 30"><path d="M10 28V4M22 28V10M34 28V14M46 28V19M58 28V22M70 28V25"/></svg>
      <b>Harmonics</b><span>101 sines in tune</span></div>
    <div class="node teal"><svg viewBox="0 0 80 30"><path d="M4 15v4M10 10v12M16 13v6M22 7v16M28 12v8M34 9v14M40 14v4M46
      8v15M52 12v7M58 10v11M64 13v5M70 9v13M76 14v3"/></svg><b>Noise</b><span>breath and attack</span></div>
  </div>
  <div class="arrow"></div>
  <div class="node brass"><svg viewBox="0 0 80 30"><path d="M4 15h40c12 0 18-6 26-11v22c-8-5-14-11-26-11"/></svg>
    <b>The instrument</b><span>your melody</span></div>
</div>
<p class="words">Two curves are taken from your voice: which note it sings, and how loud. A small neural network,
trained on recordings of the instrument, decides from them how strong each overtone is and how much breath there is.
A synthesizer adds these up to sound, so the timing and the tune are yours, and only the voice has changed.</p>
"""

_CSS = """
.gradio-container { width: 100% !important; max-width: 1120px !important; margin: 0 auto !important; }
.dark { --color-accent: var(--primary-400); }
.html-container { padding: 0 !important; }
.top { display: flex; align-items: center; gap: 20px; padding: 10px 0; }
.top svg { width: 104px; }
.top svg, .idle svg { flex: none; fill: none; stroke-width: 3; stroke-linecap: round; stroke-linejoin: round; }
.top h1 { font-size: 1.7rem; font-weight: 700; letter-spacing: -.02em; margin: 0; line-height: 1.2; }
.top p { margin: 2px 0 0; color: var(--body-text-color-subdued); }
.voice { stroke: var(--neutral-400); }
.horn { stroke: var(--color-accent); }
.say { padding: 20px; border: 1px solid var(--border-color-primary); border-radius: 12px; margin: 0; line-height: 1.5;
  background: var(--block-background-fill); }
.say.error { border-color: #c0392b; border-left-width: 5px; }
.say.idle { min-height: 300px; display: flex; flex-direction: column; align-items: center; justify-content: center;
  gap: 18px; border-style: dashed; background: none; text-align: center; }
.idle svg { width: 132px; opacity: .6; }
.idle p { margin: 0; max-width: 34ch; color: var(--body-text-color-subdued); }
#status .pending { opacity: 1 !important; }
#status .wrap { opacity: 1 !important; background: none; z-index: 2; overflow: visible; }
#status .progress-text { position: absolute; inset: 22px 20px auto auto; transform: none; font-size: .8rem;
  color: var(--body-text-color-subdued); }
.steps { list-style: none; margin: 0; padding: 16px 20px; border: 1px solid var(--border-color-primary);
  border-radius: 12px; background: var(--block-background-fill); }
.steps li { padding: 5px 0 5px 28px; margin: 0; position: relative; color: var(--body-text-color-subdued); }
.steps li::before { content: ""; position: absolute; left: 4px; top: 12px; width: 10px; height: 10px;
  border-radius: 50%; border: 2px solid var(--neutral-400); box-sizing: border-box; }
.steps .done::before, .steps .now::before { border-color: var(--color-accent); background: var(--color-accent); }
.steps .now { color: var(--body-text-color); font-weight: 600; }
.steps .now::before { animation: pulse 1.1s ease-in-out infinite alternate; }
@keyframes pulse { to { transform: scale(1.5); opacity: .55; } }
@media (prefers-reduced-motion: reduce) { .steps .now::before { animation: none; } }
#report p { margin: 0; font-size: .9rem; color: var(--body-text-color-subdued); }
.dark .in-light, body:not(.dark) .in-dark { display: none !important; }
.flow { display: flex; align-items: center; justify-content: space-between; gap: 10px; padding: 16px 0 8px; }
.node { flex: 1; min-width: 0; text-align: center; padding: 16px 10px; border-radius: 12px;
  background: var(--block-background-fill); border: 1px solid var(--border-color-primary); }
.node svg { width: 80px; height: 30px; fill: none; stroke: var(--neutral-500); stroke-width: 2.2;
  stroke-linecap: round; stroke-linejoin: round; display: block; margin: 0 auto 8px; }
.node.brass svg { stroke: var(--color-accent); }
.node.teal svg { stroke: #0e7c86; }
.dark .node.teal svg { stroke: #45b8c2; }
.node b, .node span { display: block; }
.node span { font-size: .8rem; color: var(--body-text-color-subdued); }
.stack { flex: 1.2; display: flex; flex-direction: column; gap: 10px; min-width: 0; }
.arrow { flex: none; width: 11px; height: 11px; border: solid var(--neutral-400) !important;
  border-width: 2px 2px 0 0 !important; transform: rotate(45deg); }
.words { max-width: 72ch; line-height: 1.6; margin: 14px 0 24px; }
#card { padding: 8px 24px 20px !important; border: 1px solid var(--border-color-primary) !important;
  border-radius: 12px; background: var(--block-background-fill); }
#card h1 { font-size: 1.2rem; }
#card h2 { font-size: 1rem; }
#card table { display: block; overflow-x: auto; border: 0 !important; padding: 0; }
#card thead { display: none; }
#card td { padding: 6px 12px !important; border-color: var(--border-color-primary) !important; white-space: nowrap; }
.foot { color: var(--body-text-color-subdued); font-size: .85rem; margin: 0; }
@media (max-width: 700px) {
  .top svg { width: 76px; } .top h1 { font-size: 1.35rem; }
  .say.idle { min-height: 0; }
  .flow { flex-direction: column; } .node, .stack { width: 100%; flex: none; }
  .stack { flex-direction: row; } .stack .node { flex: 1; width: auto; }
  .arrow { transform: rotate(135deg); }
  .picture { overflow-x: auto !important; max-width: 100%; }
  .picture button, .picture .image-frame { justify-content: flex-start; }
  .picture img { width: 760px !important; max-width: none !important; }
}
"""


# --- the command line -----------------------------------------------------------------------------


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Serve the web page.")
    parser.add_argument("--host", help="address to listen on (default $GRADIO_SERVER_NAME, else 127.0.0.1)")
    parser.add_argument("--port", type=int, help=f"default $GRADIO_SERVER_PORT, else {DEFAULT_PORT}")
    parser.add_argument("--share", action="store_true", help="make a public link, through Gradio's servers")
    parser.add_argument("--checkpoint_dir", type=Path, default=Path("checkpoints"), help="where training writes")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps (default auto)")
    parser.add_argument("--max_seconds", type=float, default=60, help="longest recording (default 60)")
    args = parser.parse_args(argv)
    if args.max_seconds <= 0:
        parser.error("--max_seconds should be over 0")
    return args


def serve(page: gr.Blocks, host: str | None, port: int, share: bool) -> None:
    """Serve the page until Ctrl-C.

    Raises:
        OSError: the port is in use.
        KeyboardInterrupt: Ctrl-C.
    """
    try:
        page.launch(
            server_name=host, server_port=port, share=share, prevent_thread_lock=True, run_history=False,
            max_file_size=_MAX_UPLOAD, ssr_mode=False, enable_monitoring=False, **look(),
        )  # fmt: skip
        threading.Event().wait()
    finally:
        page.close(verbose=False)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    port = args.port or int(os.environ.get("GRADIO_SERVER_PORT", DEFAULT_PORT))
    try:
        serve(build_ui(args.checkpoint_dir, get_device(args.device), args.max_seconds), args.host, port, args.share)
    except OSError:
        log.error("app.py: port %d is in use; stop what runs there, or choose another with --port", port)
        return 1
    except ValueError as error:
        log.error("app.py: %s", error)
        return 1
    except KeyboardInterrupt:
        log.warning("app.py: stopped")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
