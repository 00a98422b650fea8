"""What is on the web page: controls, results, drawings and words.

Nothing in here reacts to anything: ``app.py`` wires it together and says what the page does.
"""

import html
from pathlib import Path
from typing import NamedTuple

import gradio as gr

from config import PageConfig
from sound.feature_plots import THEMES
from web.transfer_request import STEPS

EXAMPLES_DIR = Path(__file__).parents[1] / "examples"
AUTO = "auto"  # where TransferOptions has None
_OCTAVES = [("Auto", AUTO), ("−2", -24), ("−1", -12), ("0", 0), ("+1", 12), ("+2", 24)]
_TONICS = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
_KEYS = [
    ("Every semitone", "chromatic"),
    *((f"{tonic} {mode}", f"{tonic} {mode}") for mode in ("major", "minor") for tonic in _TONICS),
]
_ARTICULATIONS = [("As the instrument", AUTO), ("Follow my voice", "follow"), ("Pluck each note", "pluck")]
_PLUCK_REPEATS = [("Once a note", AUTO), *((f"Every {seconds:g} s", seconds) for seconds in (0.125, 0.25, 0.5, 1.0))]
_RATES = [("As the instrument", AUTO), ("44.1 kHz", 44100), ("48 kHz", 48000)]


class PageControls(NamedTuple):
    """What a person sets."""

    recording: gr.Audio
    instrument: gr.Radio
    refresh: gr.Button
    options: dict[str, gr.components.Component]  # by the names of TransferOptions
    seed: gr.Number


class PageResults(NamedTuple):
    """What a person gets; ``pictures`` holds one for each of THEMES."""

    status: gr.HTML
    panel: gr.Column
    warning: gr.HTML
    played: gr.Audio
    voice: gr.Audio
    report: gr.HTML
    downloads: list[gr.DownloadButton]
    pictures: list[gr.Image]


def build_controls(limits: PageConfig) -> PageControls:
    recording = gr.Audio(
        sources=["microphone", "upload"],
        type="filepath",
        elem_id="recording",
        label=f"Your voice: sing, hum or whistle, up to {limits.max_seconds:g} s",
        buttons=[],
        waveform_options=_wave_colours("waveform"),
    )
    gr.HTML('<p id="microphone" class="say error" role="alert"></p>', elem_id="microphone-place")
    examples = sorted(EXAMPLES_DIR.glob("*.wav"))
    gr.Examples(
        [[str(path)] for path in examples],
        recording,
        label="Or try an example",
        api_visibility="private",
        example_labels=[path.stem.replace("_", " ").capitalize() for path in examples],
        elem_id="examples",
    )
    refresh = gr.Button("Refresh", size="sm", render=False)
    instrument = gr.Radio(label="Instrument", elem_id="instrument", buttons=[refresh])
    octave = gr.Radio(
        _OCTAVES,
        value=AUTO,
        label="Octave",
        info="Auto moves your voice into the instrument's range",
        elem_id="octave",
    )
    with gr.Accordion("Fine tuning", open=False, elem_id="tuning"):
        options = {"semitones": octave, **_build_options()}
        seed = gr.Number(0, label="Seed of the noise", info="Another number, another breath", precision=0)
    return PageControls(recording, instrument, refresh, options, seed)


def _build_options() -> dict[str, gr.components.Component]:
    """Return a control for each field of TransferOptions but the register, which is outside."""

    def decibels(label: str, info: str) -> gr.Slider:
        return gr.Slider(-20, 20, 0, step=1, label=f"{label}, dB", info=info)

    with gr.Row():
        transpose = gr.Slider(-12, 12, 0, step=1, label="Semitones", info="Beside the octave")
        loudness = decibels("Loudness", "Softer or stronger")
    with gr.Row():
        breath = decibels("Breath", "Less or more noise in the tone")
        gate = decibels("Gate", "Higher leaves more silent")
    with gr.Row():
        autotune = gr.Slider(0, 1, 0, step=0.05, label="Autotune", info="1 puts every note on the key")
        key = gr.Dropdown(_KEYS, value=_KEYS[0][1], label="Key", info="Of what is played")
    with gr.Row():
        articulation = gr.Dropdown(
            _ARTICULATIONS,
            value=AUTO,
            label="Articulation",
            info="A guitar is plucked, a trumpet follows you",
            filterable=False,
            elem_id="articulation",
        )
        pluck_repeat = gr.Dropdown(
            _PLUCK_REPEATS, value=AUTO, label="Pluck a held note", info="Plucked notes only", filterable=False
        )
    with gr.Row():
        smoothing = gr.Slider(0, 0.5, 0, step=0.01, label="Smoothing, s", info="Evens out a trembling voice")
        rate = gr.Dropdown(
            _RATES,
            value=AUTO,
            label="Sample rate",
            info="Shipped models play at 48 kHz",
            filterable=False,
            elem_id="rate",
        )
    fold = gr.Checkbox(False, label="Fold what is too high or too low into the instrument's range")
    fit = gr.Checkbox(True, label="Fit register and loudness to the instrument")
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
    status = gr.HTML(INVITATION, html_template='<div role="status">${value}</div>', elem_id="status")
    with gr.Column(visible=False, elem_id="results") as panel:
        warning = gr.HTML(visible=False, elem_id="warning")
        played = gr.Audio(
            label="The instrument",
            type="filepath",
            interactive=False,
            autoplay=True,
            elem_id="played",
            buttons=[],
            waveform_options=_wave_colours("pitch"),
        )
        voice = gr.Audio(
            label="Your voice",
            type="filepath",
            interactive=False,
            elem_id="heard",
            buttons=[],
            waveform_options=_wave_colours("waveform"),
        )
        report = gr.HTML(elem_id="report")
        with gr.Row(elem_classes="downloads"):
            names = ("Save it", "Tone alone", "Noise alone")
            downloads = [gr.DownloadButton(name, size="md", min_width=100) for name in names]
    return PageResults(status, panel, warning, played, voice, report, downloads, [])


def build_pictures() -> list[gr.Image]:
    return [
        gr.Image(
            type="filepath",
            label="Waveform, pitch and loudness of what was played",
            interactive=False,
            visible=False,
            show_label=False,
            buttons=["fullscreen"],
            elem_classes=["picture", f"in-{theme}"],
        )
        for theme in THEMES
    ]


def _wave_colours(colour: str) -> gr.WaveformOptions:
    """Return colours that can be seen on a light page and on a dark one."""
    light, dark = THEMES["light"], THEMES["dark"]
    return gr.WaveformOptions(
        waveform_color=getattr(light, colour), waveform_progress_color=dark.loudness, trim_region_color=dark.loudness
    )


def message_card(sentence: str, kind: str = "") -> str:
    """Return a sentence as a card; ``kind`` is "error", "warning" or empty."""
    return f'<p class="say {kind}">{html.escape(sentence)}</p>'


def step_list(step: int) -> str:
    """Return the list of steps, with the one in hand marked."""
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

# Gradio is silent when a browser refuses the microphone, and its pictures have no text for who cannot see them.
HEAD = """<script>
if (navigator.mediaDevices) {
  const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
  const sentences = {
    NotAllowedError: "The browser keeps the microphone from me. Allow it beside the address, or upload a recording.",
    NotFoundError: "I find no microphone. Plug one in, or upload a recording.",
  };
  const say = (sentence) => { document.getElementById("microphone").textContent = sentence; };
  navigator.mediaDevices.getUserMedia = (wanted) => ask(wanted).then(
    (stream) => { say(""); return stream; },
    (error) => { say(sentences[error.name] ?? "The microphone does not work. Upload a recording."); throw error; },
  );
}
new MutationObserver(() => document.querySelectorAll('.picture img[alt=""]').forEach((image) => {
  image.alt = "Waveform, pitch, loudness and spectrogram of what was played";
})).observe(document, {childList: true, subtree: true});
</script>"""

INVITATION = f"""<div class="say idle">{_LOGO}
<p>Record yourself, upload a recording or take an example, and press the button. What the instrument plays appears
here.</p></div>"""

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
