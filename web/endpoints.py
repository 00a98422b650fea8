"""API endpoints of the web page.

``/transfer`` plays a recording, ``/melody`` returns the melody sung in it, ``/render`` plays curves without fitting
them, and ``/instruments`` lists the available instruments.
"""

import contextlib
import dataclasses
import inspect
import logging
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from config import short_repr
from sound.crepe import midi_to_hz, note_name
from voice.curves import write_curves
from voice.harmony import HARMONIES, MAX_ENSEMBLE
from voice.instrument_fit import ARTICULATIONS, OPTION_LIMITS, TransferOptions
from voice.midi import write_midi
from web.page_layout import hidden_file
from web.transfer_request import (
    TransferRequest,
    TransferService,
    answer_request,
    explain_failure,
    find_sung_notes,
    hide_folders,
    write_notes,
    write_sounds,
)

log = logging.getLogger("app")
_UNITS = {
    "semitones": "semitones by which the register moves; null fits it by whole octaves",
    "transpose": "semitones on top of the register",
    "fit": "adapt register and loudness to the instrument",
    "fold": "move notes out of the instrument's range into it, by octaves",
    "autotune": "how far each note is moved onto the nearest note of the key",
    "key": "chromatic, or a major or minor key such as 'F# minor'",
    "smoothing": "seconds over which pitch and loudness are smoothed inside a note",
    "loudness_offset": "dB",
    "gate_offset": "dB on the level under which nothing is played",
    "noise_balance": "dB on the noise part",
    "output_rate": "Hz, a whole number; null is the model's own",
    "articulation": f"{' or '.join(ARTICULATIONS)}; null or empty is the instrument's own",
    "pluck_repeat": "seconds after which a held note is plucked again; null never does",
    "harmony": f"any of {', '.join(HARMONIES)}, with commas between; empty for the melody alone",
    "ensemble": f"players for each part, 1 to {MAX_ENSEMBLE}",
    "instrument": "a name that /instruments lists; empty takes the first",
    "seed": "of the noise, 0 to 2147483647",
    "normalize": "normalize to -16 LUFS, true peak below -1 dB",
}
_KINDS = {bool: "boolean", str: "string", int: "integer", float: "number"}
_WORDS = {bool: "true or false", str: "text", int: "a whole number", float: "a number"}


def _parameter(name: str, default: Any, kind: type) -> gr.components.Component:
    """Return the input component of a parameter.

    It accepts any JSON value, so that a wrong type gets a clear message from ``_check`` instead of Gradio's "null".
    """
    place = {bool: gr.Checkbox, str: gr.Textbox}.get(kind, gr.Number)(default, visible=False, label=name)
    limits = OPTION_LIMITS.get(name)
    text = _UNITS[name] + (f"; {limits[0]:g} to {limits[1]:g}" if limits else "")
    place.preprocess = lambda payload: payload
    place.api_info = lambda: {"type": _KINDS[kind], "description": text, "additional_description": text}
    return place


def _file(label: str, example: str) -> gr.File:
    """Return the input component of a file; ``example`` is a path in the repository."""
    place = hidden_file(label)
    payload = {"path": example, "meta": {"_type": "gradio.FileData"}}
    place.example_inputs = lambda: payload
    return place


def _check(name: str, value: Any, default: Any) -> Any:
    """Return the value, or the default if the value is None.

    Raises:
        ValueError: the value has the wrong type.
    """
    kind = _kind(name, default)
    allowed = (int, float) if kind is float else kind
    if value is None:
        return default
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{name} should be {_WORDS[kind]} ({_UNITS[name]}), not {short_repr(value)}")
    return value or None if name == "articulation" else value


def _kind(name: str, default: Any) -> type:
    return {"output_rate": int, "articulation": str}.get(name, float if default is None else type(default))


@contextlib.contextmanager
def _answer(source: str | None) -> Iterator[Path]:
    """Yield a temporary folder, removed when the answer is sent; turn errors into messages for the user."""
    with tempfile.TemporaryDirectory(prefix="vox2trumpet-") as folder:
        try:
            yield Path(folder)
        except (ValueError, OSError) as error:
            raise gr.Error(explain_failure(error, source), print_exception=False) from error


class AnsweringBlocks(gr.Blocks):
    """Blocks that answer an error with a message; Gradio answers ``null`` and prints a traceback for invalid input."""

    async def preprocess_data(self, block_fn: Any, inputs: list, *args: Any, **options: Any) -> list:
        try:
            return await super().preprocess_data(block_fn, inputs, *args, **options)
        except gr.Error as error:
            raise gr.Error(error.message, print_exception=False) from error
        except Exception as error:  # any kind: the input is untrusted
            raise gr.Error(_name_culprit(block_fn, inputs), print_exception=False) from error

    async def process_api(self, *args: Any, **options: Any) -> dict[str, Any]:
        try:
            return await super().process_api(*args, **options)
        except gr.Error:
            raise
        except Exception as error:  # ours, or Gradio's for invalid input
            place = traceback.extract_tb(error.__traceback__)[-1]
            reason = hide_folders(f"{type(error).__name__}: {error}"[:200])
            log.error("app.py: %s (%s, line %d)", reason, Path(place.filename).name, place.lineno)
            sentence = "Something went wrong here, or too many are playing. Please try again."
            raise gr.Error(sentence, print_exception=False) from error


def _name_culprit(block_fn: Any, inputs: list) -> str:
    """Return a message that names the invalid input value."""
    if len(inputs) != len(block_fn.inputs):
        return f"{len(block_fn.inputs)} values are expected, {len(inputs)} were sent."
    for component, value in zip(block_fn.inputs, inputs):
        if isinstance(component, gr.File):
            continue
        try:
            component.preprocess(value)
        except (gr.Error, ValueError, TypeError, LookupError, AttributeError):
            return f"{component.label} cannot be {short_repr(value)}."
    return "The recording is not one that was uploaded here; upload it first."


def add_endpoints(service: TransferService) -> None:
    """Add the API endpoints to the page."""
    options = dataclasses.asdict(TransferOptions())
    others = {"instrument": "", "seed": 0, "normalize": True}

    def read_options(values: dict[str, Any]) -> TransferOptions:
        return TransferOptions(**{name: _check(name, value, options[name]) for name, value in values.items()})

    def transfer(recording, instrument, *values) -> Iterator[tuple]:
        """Play a recording or a MIDI file; return the sound, its harmonic and noise parts, the report, MIDI and curves.

        All sounds are 24-bit WAV files.
        """
        *values, seed, normalize = values
        with _answer(recording) as folder:
            request = TransferRequest(
                recording,
                _check("instrument", instrument, ""),
                read_options(dict(zip(options, values))),
                _check("seed", seed, 0),
                folder,
                _check("normalize", normalize, True),
            )
            *_, outcome = answer_request(service, request)
            # Gradio copies the files before it resumes this generator, which then removes the folder.
            yield (*map(str, write_sounds(outcome, request)), outcome.report, *map(str, write_notes(outcome, request)))

    def melody(recording, gate_offset) -> Iterator[tuple]:
        """Find the sung melody; return its notes (s, MIDI number, name, dB), curves for /render, and MIDI."""
        with _answer(recording) as folder:
            model = service.collection.load(service.collection.choose(""))
            sung, notes = find_sung_notes(service, recording, model, _check("gate_offset", gate_offset, 0.0))
            rate, written = model.settings.audio.frame_rate, (folder / "melody_curves.csv", folder / "melody.mid")
            write_curves(written[0], sung, rate)
            write_midi(written[1], notes, sung, model.settings)
            listed = [
                {
                    "start": note.onset / rate,
                    "end": note.end / rate,
                    "pitch": round(note.pitch, 2),
                    "name": note_name(midi_to_hz(note.pitch)),
                    "level": round(note.level, 1),
                }
                for note in notes
            ]
            yield (listed, *map(str, written))

    def render(curves, instrument, noise_balance, output_rate, seed, normalize) -> Iterator[tuple]:
        """Play curves without fitting them; return the sound, its harmonic and noise parts, and the report.

        The file is a CSV with the columns time (s), f0 (Hz), loudness (dB), periodicity and voiced.
        """
        with _answer(curves) as folder:
            chosen = read_options({"noise_balance": noise_balance, "output_rate": output_rate})
            request = TransferRequest(
                curves,
                _check("instrument", instrument, ""),
                chosen,
                _check("seed", seed, 0),
                folder,
                _check("normalize", normalize, True),
            )
            *_, outcome = answer_request(service, request)
            yield (*map(str, write_sounds(outcome, request)), outcome.report)

    def instruments() -> list[dict]:
        """List the available instruments."""
        return [{"name": one.name, "sound": one.sound, "label": one.label} for one in service.collection.find()]

    def place(*names: str) -> list[gr.components.Component]:
        defaults = {**options, **others}
        return [_parameter(name, defaults[name], _kind(name, defaults[name])) for name in names]

    def files(*labels: str) -> list[gr.File]:
        return [gr.File(visible=False, label=label) for label in labels]

    report, notes = gr.JSON(visible=False, label="report"), gr.JSON(visible=False, label="notes")
    sounds = files("sound", "harmonic", "noise")
    recording = _file("recording", "examples/hum.wav")
    parameters = place("instrument", *options, "seed", "normalize")
    _offer(transfer, [recording, *parameters], [*sounds, report, *files("midi", "curves")])
    _offer(melody, [recording, *place("gate_offset")], [notes, *files("curves", "midi")])
    parameters = place("instrument", "noise_balance", "output_rate", "seed", "normalize")
    _offer(render, [_file("curves", "examples/hum_curves.csv"), *parameters], [*sounds, report])
    gr.api(instruments, api_name="instruments", queue=False)


def _offer(work: Callable, inputs: list[gr.components.Component], outputs: list[gr.components.Component]) -> None:
    """Add a function as an endpoint; its parameters are named after the input components."""
    source, *others = (inspect.Parameter(each.label, inspect.Parameter.POSITIONAL_OR_KEYWORD) for each in inputs)
    defaults = (each.replace(default=place.value) for each, place in zip(others, inputs[1:]))
    work.__signature__ = inspect.Signature([source, *defaults])
    gr.Button(visible=False).click(work, inputs, outputs, api_name=work.__name__, concurrency_id="transfer")
