"""The web page for programs: ``/transfer`` plays a recording, ``/instruments`` lists what it can be played on."""

import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from config import short_repr
from voice.fitting import TransferOptions
from web.transfer_request import TransferRequest, TransferService, answer_request, explain_failure, write_result_files


class AnsweringBlocks(gr.Blocks):
    """Blocks that answer an error with a sentence; Gradio's answer ``null`` and print a traceback for any input."""

    async def preprocess_data(self, block_fn: Any, inputs: list, *args: Any, **options: Any) -> list:
        try:
            return await super().preprocess_data(block_fn, inputs, *args, **options)
        except gr.Error as error:
            raise gr.Error(error.message, print_exception=False) from error
        except Exception as error:  # of any kind: it depends on what a stranger sent
            raise gr.Error(_name_culprit(block_fn, inputs), print_exception=False) from error

    async def process_api(self, *args: Any, **options: Any) -> dict[str, Any]:
        try:
            return await super().process_api(*args, **options)
        except gr.Error:
            raise
        except Exception as error:  # ours, so the log has all of it
            raise gr.Error("Something went wrong here, or too many are playing. Please try again.") from error


def _name_culprit(block_fn: Any, inputs: list) -> str:
    """Return which of the values that were sent cannot be what its component takes."""
    if len(inputs) != len(block_fn.inputs):
        return f"{len(block_fn.inputs)} values are expected, {len(inputs)} were sent."
    for component, value in zip(block_fn.inputs, inputs):
        if isinstance(component, gr.Audio):
            continue
        try:
            component.preprocess(value)
        except Exception:
            return f"{component.label} cannot be {short_repr(value)}."
    return "The recording is not one that was uploaded here; upload it first."


def add_endpoints(service: TransferService) -> None:
    """Offer the page's work to programs."""
    defaults = dataclasses.asdict(TransferOptions())

    def transfer_endpoint(
        recording: str,
        instrument: str = "",
        semitones: float | None = None,
        transpose: float = 0,
        fit: bool = True,
        fold: bool = False,
        autotune: float = 0,
        key: str = "chromatic",
        smoothing: float = 0,
        loudness_offset: float = 0,
        gate_offset: float = 0,
        noise_balance: float = 0,
        output_rate: int | None = None,
        articulation: str | None = None,
        pluck_repeat: float | None = None,
        seed: int = 0,
    ) -> Iterator[tuple[str, str, str, dict]]:
        """Play a recording; return the sound, its harmonic and noise parts, and the report.

        No instrument takes the first of /instruments, and no semitones fit the register by whole octaves.
        """
        values = (
            semitones,
            transpose,
            fit,
            fold,
            autotune,
            key,
            smoothing,
            loudness_offset,
            gate_offset,
            noise_balance,
            output_rate,
            articulation or None,
            pluck_repeat,
        )
        with tempfile.TemporaryDirectory(prefix="vox2trumpet-") as folder:
            try:
                options = TransferOptions(*values)
                request = TransferRequest(recording, instrument, options, seed or 0, Path(folder))
                *_, outcome = answer_request(service, request)
                files = write_result_files(outcome, request)
            except (ValueError, OSError) as error:
                raise gr.Error(explain_failure(error, recording), print_exception=False) from error
            # Gradio copies the files before it asks for more, and only then the folder goes.
            yield (*map(str, files), outcome.report)

    def instruments() -> list[dict]:
        """List what /transfer can play."""
        return [{"name": one.name, "sound": one.sound, "label": one.label} for one in service.collection.find()]

    hidden = gr.Button(visible=False)
    recording = gr.Audio(type="filepath", visible=False, label="recording")
    settings = [
        gr.Textbox("", visible=False, label="instrument"),
        *(_hidden(name, "" if name == "articulation" else default) for name, default in defaults.items()),
        gr.Number(0, visible=False, label="seed", precision=0),
    ]
    outputs = [gr.File(visible=False, label=label) for label in ("sound", "harmonic", "noise")]
    hidden.click(
        transfer_endpoint,
        [recording, *settings],
        [*outputs, gr.JSON(visible=False, label="report")],
        api_name="transfer",
        concurrency_id="transfer",
    )
    gr.api(instruments, api_name="instruments", queue=False)


def _hidden(name: str, default: bool | float | str | None) -> gr.components.Component:
    kind = {bool: gr.Checkbox, str: gr.Textbox}.get(type(default), gr.Number)
    return kind(default, visible=False, label=name)
