"""Layout of the web page: controls, results, drawings and text; ``app.py`` connects the events."""

import html
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import numpy as np

from config import PageConfig
from playing.offline_transfer import is_polyphonic
from sound.audio_files import SUFFIXES
from sound.crepe import hz_to_midi, note_name
from voice.harmony import MAX_ENSEMBLE, read_harmonies
from voice.instrument_fit import TransferOptions, fraction_out_of_range
from web.transfer_request import STEPS, TransferOutcome

EXAMPLES_DIR = Path(__file__).parents[1] / "examples"
AUTO = "auto"  # where TransferOptions has None
BRASS_SECTION = {"instrument": "trumpet", "harmony": "third,octave_below", "ensemble": 3}
_OCTAVES = [("Automatic", AUTO), ("−2", -24), ("−1", -12), ("As sung", 0), ("+1", 12), ("+2", 24)]
_TONICS = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
_KEYS = [
    ("Every semitone", "chromatic"),
    *((f"{tonic} {mode}", f"{tonic} {mode}") for mode in ("major", "minor") for tonic in _TONICS),
]
_ARTICULATIONS = [("As the instrument", AUTO), ("Follow my voice", "follow"), ("Pluck each note", "pluck")]
_PLUCK_REPEATS = [("Once a note", AUTO), *((f"Every {seconds:g} s", seconds) for seconds in (0.125, 0.25, 0.5, 1.0))]
_RATES = [("As the instrument", AUTO), ("44.1 kHz", 44100), ("48 kHz", 48000)]
_HARMONIES = [
    ("The melody alone", ""),
    ("A third above", "third"),
    ("A sixth above", "sixth"),
    ("An octave above", "octave"),
    ("An octave below", "octave_below"),
    ("A third, an octave", "third,octave"),
    ("A third, an octave below", "third,octave_below"),
    ("A sixth below, a third", "sixth_below,third"),
]
_WORTH_SAYING = 0.02  # share of the sung frames
_DRAWN_EVERY = 4  # frames
_SHIFTS = {
    0: "where you sang it",
    12: "one octave higher",
    24: "two octaves higher",
    -12: "one octave lower",
    -24: "two octaves lower",
}


_TAKE_LIST = """<details class="card"><summary id="take-count">Takes</summary>
<ul id="take-list"></ul><button type="button" id="forget" class="plain">Delete everything from this browser</button>
</details>"""


class PageControls(NamedTuple):
    """Input components."""

    recording: gr.File  # set by the page's script to the selected take
    instrument: gr.Radio
    play: gr.Button
    cancel: gr.Button
    refresh: gr.Button
    brass: gr.Button
    options: dict[str, gr.components.Component]  # by the names of TransferOptions
    seed: gr.Number
    as_played: gr.Checkbox


class PageResults(NamedTuple):
    """Output components."""

    status: gr.HTML
    desk: gr.HTML


def build_takes(limits: PageConfig) -> gr.File:
    """Add the recorder and the upload; return the component that sends the selected take to the server."""
    accepted = ",".join([*sorted(SUFFIXES), ".mid", ".midi", ".csv", "audio/*", "video/*"])
    gr.HTML(
        html_template=_read("takes.html"),
        elem_id="takes",
        js_on_load="vox.takes(element, props, upload)",
        accepted=accepted,
        seconds=limits.max_seconds,
        megabytes=limits.max_upload_megabytes,
    )
    return hidden_file("recording")


def hidden_file(label: str) -> gr.File:
    """Return an invisible component for an uploaded file; Gradio's preprocessing would add an empty file each time."""
    place = gr.File(visible=False, label=label)
    place.preprocess = lambda payload: payload and payload.path
    return place


def build_controls(limits: PageConfig) -> PageControls:
    instrument = gr.Radio(label="Instrument", elem_id="instrument")
    recording = build_takes(limits)
    with gr.Row(elem_id="play-row"):
        play = gr.Button("Play it", variant="primary", size="lg", elem_id="play")
        cancel = gr.Button("Cancel", size="lg", visible=False, elem_id="cancel")
    octave = gr.Radio(
        _OCTAVES,
        value=AUTO,
        label="Octave",
        info="Automatic moves your voice into the instrument's range",
        elem_id="octave",
    )
    with gr.Accordion("Harmony and players", open=False, elem_id="players"):
        brass = gr.Button("Brass section", size="md", elem_id="brass")
        with gr.Row():
            harmony = gr.Dropdown(_HARMONIES, value="", label="Harmony", info="In the key below", filterable=False)
            ensemble = gr.Slider(1, MAX_ENSEMBLE, 1, step=1, label="Players", info="For each part, slightly apart")
    with gr.Accordion("Fine tuning", open=False, elem_id="tuning"):
        options = {"semitones": octave, **_build_options(), "harmony": harmony, "ensemble": ensemble}
        seed = gr.Number(0, label="Variation", info="Another number, another breath", precision=0)
        as_played = gr.Checkbox(False, label="As played: do not bring it to a common loudness")
        refresh = gr.Button("Look for new instruments", size="md", elem_id="refresh")
    gr.HTML(html_template=_TAKE_LIST, elem_id="takes-kept", js_on_load=None)
    return PageControls(recording, instrument, play, cancel, refresh, brass, options, seed, as_played)


def _build_options() -> dict[str, gr.components.Component]:
    """Return the controls of TransferOptions that are under "Fine tuning", by field."""

    def decibels(label: str, info: str) -> gr.Slider:
        return gr.Slider(-20, 20, 0, step=1, label=label, info=f"{info}, in dB")

    with gr.Row():
        transpose = gr.Slider(-12, 12, 0, step=1, label="Semitones", info="Added to the octave")
        loudness = decibels("Loudness", "Softer or stronger playing")
    with gr.Row():
        breath = decibels("Breath", "Less or more noise in the tone")
        gate = decibels("Ignore quiet sounds", "Higher leaves more silent")
    with gr.Row():
        autotune = gr.Slider(0, 1, 0, step=0.05, label="Autotune", info="1 puts every note on the key")
        key = gr.Dropdown(_KEYS, value=_KEYS[0][1], label="Key", info="Of what is played")
    with gr.Row():
        articulation = gr.Dropdown(
            _ARTICULATIONS,
            value=AUTO,
            label="Attack",
            info="A guitar is plucked, a trumpet follows you",
            filterable=False,
            elem_id="articulation",
        )
        pluck_repeat = gr.Dropdown(
            _PLUCK_REPEATS, value=AUTO, label="Pluck a held note", info="Plucked notes only", filterable=False
        )
    with gr.Row():
        smoothing = gr.Slider(0, 0.5, 0, step=0.01, label="Steady hand", info="Evens out a trembling voice, s")
        rate = gr.Dropdown(
            _RATES, value=AUTO, label="Sample rate of files", info="48 kHz for most", filterable=False, elem_id="rate"
        )
    fold = gr.Checkbox(False, label="Move notes that are too high or too low by octaves", elem_id="fold")
    fit = gr.Checkbox(True, label="Adapt register and loudness to the instrument")
    return {
        "transpose": transpose,
        "loudness_offset": loudness,
        "noise_balance": breath,
        "gate_offset": gate,
        "autotune": autotune,
        "key": key,
        "smoothing": smoothing,
        "output_rate": rate,
        "articulation": articulation,
        "pluck_repeat": pluck_repeat,
        "fold": fold,
        "fit": fit,
    }


def build_results() -> PageResults:
    status = gr.HTML("", html_template='<div role="status">${value}</div>', elem_id="status")
    hum = EXAMPLES_DIR / "hum.wav"
    played = sorted(EXAMPLES_DIR.glob("hum_*.ogg"), key=lambda path: (path.stem != "hum_trumpet", path.stem))
    examples = {path.stem.removeprefix("hum_"): file_data(path) for path in played}
    desk = gr.HTML(
        {"voice": file_data(hum), "examples": examples},
        html_template=_read("desk.html"),
        js_on_load="vox.desk(element, props, trigger, watch, ['fix', 'save'])",
        elem_id="desk",
    )
    return PageResults(status, desk)


def file_data(path: Path | str) -> dict[str, Any]:
    """Return a file in the form in which Gradio sends files inside other values."""
    return {"path": str(path), "orig_name": Path(path).name, "meta": {"_type": "gradio.FileData"}}


def _read(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def message_card(sentence: str, kind: str = "") -> str:
    """Return a sentence as a card; ``kind`` is "error", "warning" or empty."""
    return f'<p class="say {kind}">{html.escape(sentence)}</p>'


def step_list(step: int) -> str:
    """Return the list of steps as HTML, with the current one marked."""
    marks = ["done"] * step + ["now"] + ["later"] * (len(STEPS) - step - 1)
    items = [
        f'<li class="{mark}"{" aria-current=step" if mark == "now" else ""}>{text}</li>'
        for mark, text in zip(marks, STEPS)
    ]
    return f'<ol class="steps">{"".join(items)}</ol>'


_LOGO = """<svg viewBox="0 0 120 44" aria-hidden="true">
  <path class="voice" d="M2 22c4-10 8-10 12 0s8 10 12 0 8-10 12 0 8 10 12 0"/>
  <path class="horn" d="M58 22h34c10 0 16-7 22-14v28c-6-7-12-14-22-14"/>
  <path class="horn" d="M70 22v-8M78 22v-8M86 22v-8M66 22c0 12 24 12 24 0"/>
</svg>"""


def head() -> str:
    """Return the page's head: its script, and English as the language in any browser."""
    english = "for (const [name, value] of [['language', 'en'], ['languages', ['en']]]) "
    english += "Object.defineProperty(navigator, name, {get: () => value});"
    return f"<script>{english}\n{_read('desk.js')}</script>"


HEADER = f"""
<header class="top">
  {_LOGO}
  <div><h1>Vox2Trumpet <span>and Neural Guitar</span></h1>
  <p>Sing, hum or whistle, and an instrument plays it: your notes, your dynamics.</p></div>
  <a class="live" href="live/" target="_blank">Play live</a>
</header>
"""

HOW_IT_WORKS = """
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
      <b>Harmonics</b><span>up to 200 sines in tune</span></div>
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


# --- words about a result -------------------------------------------------------------------------


def describe_result(outcome: TransferOutcome, options: TransferOptions) -> str:
    """Return a sentence with the pitch shift, the range of notes, and whether the instrument can play them all."""
    semitones, sung = round(outcome.report["semitones"]), outcome.curves.f0[outcome.curves.voiced]
    way = "higher" if semitones > 0 else "lower"
    place = _SHIFTS.get(semitones, f"{abs(semitones)} semitones {way}")
    if not np.isfinite(outcome.voice_loudness):
        place = place.replace("you sang it", "it is written")
    low, high = (note_name(float(f0)) for f0 in np.quantile(sung, (0.02, 0.98)))
    share = outcome.report["share_out_of_range"]
    fits = (
        f"every note fits the {outcome.sound}"
        if share < _WORTH_SAYING
        else f"{100 * share:.0f} % of it lies outside the {outcome.sound}'s range"
    )
    voiced, moved = outcome.curves.voiced, hz_to_midi(outcome.curves.f0) - hz_to_midi(outcome.voice_f0) - semitones
    is_folded = options.fold and np.mean(np.abs(moved[voiced]) > 6) > _WORTH_SAYING
    folded = ", what lay outside moved by octaves" if is_folded else ""
    return f"Played {place}{folded}, {low} to {high}{_describe_players(options)}; {fits}."


def _describe_players(options: TransferOptions) -> str:
    names = [name.replace("_", " ") for name in read_harmonies(options.harmony)] if options.harmony else []
    harmony = f", with the {' and the '.join(names)}" if names else ""
    return harmony + (f", {options.ensemble} players for each" if options.ensemble > 1 else "")


def find_notices(outcome: TransferOutcome, options: TransferOptions) -> list[dict[str, Any]]:
    """Return warnings about the result, each with a ``text`` and ``fixes`` (``label``, ``set``)."""
    notices = []
    if is_polyphonic(outcome.report):
        text = "I hear more than one note at a time: a band, or chords. I follow one line of it, often the wrong one. "
        notices.append({"text": text + "Please give me only the singing.", "fixes": []})
    if outcome.report["share_too_high"] > _WORTH_SAYING:
        notices.append({"text": "Some of it is too high for me to hear, and stays silent.", "fixes": []})
    if outcome.report["share_out_of_range"] >= _WORTH_SAYING:
        text = (
            f"{100 * outcome.report['share_out_of_range']:.0f} % of the notes are out of the {outcome.sound}'s range."
        )
        notices.append({"text": text, "fixes": _find_fixes(outcome, options)})
    return notices


def _find_fixes(outcome: TransferOutcome, options: TransferOptions) -> list[dict[str, Any]]:
    """Return the fixes that bring more notes into range; each sets controls, by the names of ``TransferOptions``."""
    fixes = [] if options.fold else [{"label": "Move those by an octave", "set": {"fold": True}}]
    sung, here = outcome.curves.f0[outcome.curves.voiced], outcome.report["share_out_of_range"]
    octave = outcome.report["semitones"] - options.transpose
    for step, label in ((12, "Play all one octave higher"), (-12, "Play all one octave lower")):
        is_better = fraction_out_of_range(sung * 2 ** (step / 12), outcome.profile) < here / 2
        if is_better and octave + step in (-24, -12, 0, 12, 24):
            fixes.append({"label": label, "set": {"semitones": int(octave + step)}})
    return fixes


def draw_pitch(outcome: TransferOutcome) -> dict[str, Any]:
    """Return the curves of the pitch plot, in MIDI numbers rounded to 0.1; None where unvoiced."""
    config, curves = outcome.profile.config, outcome.curves

    def curve(f0: np.ndarray, sounds: np.ndarray) -> list[float | None]:
        notes = np.round(hz_to_midi(f0[::_DRAWN_EVERY]), 1)
        return [float(note) if here else None for note, here in zip(notes, sounds[::_DRAWN_EVERY])]

    return {
        "rate": config.audio.frame_rate / _DRAWN_EVERY,
        "sung": curve(outcome.voice_f0, curves.voiced),
        "played": curve(curves.f0, curves.voiced),
    }
