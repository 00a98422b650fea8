"""Timbre transfer: plays the notes and dynamics of a voice on an instrument.

    ./venv/bin/python transfer.py --input examples/hum.wav --instrument trumpet --output out/hum_trumpet.wav

This is the command line for files and folders; the method is in ``playing/offline_transfer.py``.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import logging
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from checkpoint import load_model, pretrained_path
from config import get_device
from model import NeuralGuitar
from playing.blend import BlendedModel
from playing.causal_transfer import require_causal_options
from playing.loudness import normalize_loudness
from playing.offline_transfer import (
    ProgressCallback,
    TransferResult,
    describe_transfer,
    transfer,  # noqa: F401  part of this module's API
    transfer_blocks,
    transfer_causal,
    transfer_curves,
    transfer_midi,
)
from sound.atomic_files import write_text
from sound.audio_files import SUFFIXES, find_sound_files, read_blocks, write_blocks
from sound.console import as_command, command_parser, suggest
from voice.curves import read_curves, write_curves
from voice.instrument_fit import ARTICULATIONS, TransferOptions
from voice.midi import write_midi

_STEMS = ("harmonic", "noise")
_MIDI = {".mid", ".midi"}
_DEFAULTS = TransferOptions()
log = logging.getLogger("transfer")


def _is_midi(path: Path) -> bool:
    return path.suffix.lower() in _MIDI and not path.is_dir()


def transfer_file(
    source: Path, target: Path, model: NeuralGuitar, args: argparse.Namespace, has_bar: bool = True
) -> TransferResult:
    """Transfer one file; also write stems, curves and notes if ``args`` requests them."""
    if args.controls:
        result = transfer_curves(read_curves(source, model.settings), model, args.options)
    elif _is_midi(source):
        result = transfer_midi(source, model, args.options)
    else:
        blocks = read_blocks(source, model.settings.audio.feature_rate)
        with _progress_bar(has_bar) as show:
            play_voice = transfer_causal if args.causal else transfer_blocks
            result = play_voice(blocks, model, args.options, progress=show)
    if args.normalize:
        result = normalize_loudness(result)
    write_blocks(target, result.blocks(), result.sample_rate)
    if args.stems:
        for number, name in enumerate(_STEMS):
            write_blocks(target.with_stem(f"{target.stem}_{name}"), result.blocks(number), result.sample_rate)
    if args.export_controls:
        write_curves(args.export_controls, result.curves, model.settings.audio.frame_rate)
    if args.midi:
        write_midi(args.midi, result.notes, result.curves, model.settings)
    return result


@contextlib.contextmanager
def _progress_bar(wanted: bool) -> Iterator[ProgressCallback]:
    """Yield a progress callback that draws a bar on a terminal after 3 seconds."""
    shape = "{desc}: {bar} {n:.0f} %, {remaining} left"
    with tqdm(total=100, delay=3, leave=False, disable=None if wanted else True, bar_format=shape) as bar:

        def show(step: str, share: float) -> None:
            bar.set_description(step, refresh=False)
            bar.update(100 * share - bar.n)

        yield show


def require_free_targets(jobs: list[tuple[Path, Path]], args: argparse.Namespace) -> None:
    """Raise ValueError if an output is a folder, would overwrite an input, or has the name of another output."""
    sources = {source.resolve() for source, _ in jobs}
    extra = [path for path in (args.report, args.export_controls, args.midi) if path]
    written = [target for _, target in jobs] + extra
    if args.stems:
        written += [target.with_stem(f"{target.stem}_{name}") for _, target in jobs for name in _STEMS]
    for path in written:
        if os.path.isdir(path):  # unlike Path.is_dir, it does not raise for a name that is too long
            raise ValueError(f"{path} is a folder; name a file to be written")
        if path.resolve() in sources:
            raise ValueError(f"{path} is a recording to be transferred and would be overwritten; name another")
    if len({path.resolve() for path in written}) < len(written):
        raise ValueError("two of the files to be written have the same name; name another")


def plan_files(source: Path, target: Path, instrument: str) -> list[tuple[Path, Path]]:
    """Return pairs of an input and an output file; for a folder as input, ``target`` is a folder.

    Raises:
        FileNotFoundError, ValueError: there is nothing to transfer, or ``target`` is not valid.
    """
    if not source.exists():
        raise FileNotFoundError(f"there is no file or folder {source}")
    if source.is_file():
        if target.suffix.lower() not in {".wav", ".flac", ".ogg"}:
            raise ValueError(f"--output {target} should end in .wav, .flac or .ogg")
        return [(source, target)]
    if target.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"--output {target} lies in --input {source}; the next run would play it too")
    played = SUFFIXES | _MIDI
    found = find_sound_files(source, played)
    if not found:
        raise ValueError(f"{source} holds no sound files, nor MIDI ({', '.join(sorted(played))})")
    if target.is_file():
        raise ValueError(f"--output {target} is a file; for a folder as input name a folder")
    # The suffix stays in the name, so that take.wav and take.mp3 do not overwrite each other.
    names = [path.relative_to(source) for path in found]
    return [(path, target / name.with_name(f"{name.name}_{instrument}.wav")) for path, name in zip(found, names)]


def _recording_only_flags(args: argparse.Namespace) -> str:
    """Return the given flags that apply to recordings only, separated by commas."""
    has_gate = args.gate_offset != _DEFAULTS.gate_offset
    given = {"--causal": args.causal, "--no_fit": args.no_fit, "--gate_offset": has_gate}
    return ", ".join(flag for flag, is_given in given.items() if is_given)


def _warn_of_ignored_flags(jobs: list[tuple[Path, Path]], args: argparse.Namespace) -> None:
    n_midi = sum(_is_midi(source) for source, _ in jobs)
    if n_midi and (flags := _recording_only_flags(args)):
        log.warning("%s: for recordings only, without effect on %d MIDI files here", flags, n_midi)


def transfer_all(jobs: list[tuple[Path, Path]], model: NeuralGuitar, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Transfer every file and return the reports; failed files are logged and skipped."""
    reports = []
    for (source, target), outcome in zip(jobs, _play_all(jobs, model, args)):
        if isinstance(outcome, str):
            log.error("transfer.py: %s", outcome)
            continue
        reports.append({"input": str(source), "output": str(target), **outcome})
        print(f"{target}: {describe_transfer(outcome)}")
    return reports


def _play_all(
    jobs: list[tuple[Path, Path]], model: NeuralGuitar, args: argparse.Namespace
) -> Iterator[dict[str, Any] | str]:
    """Yield the result of ``_play_job`` for each job, in order; several processes are used for many jobs."""
    n_workers = min(args.num_workers, len(jobs) // 2)  # at least 2 jobs per process, because it takes seconds to start
    if n_workers < 2 or next(model.parameters()).device.type != "cpu":
        yield from (_play_job(job, model, args) for job in jobs)
        return
    pool = ProcessPoolExecutor(n_workers, get_context("spawn"), _init_worker)
    try:
        yield from pool.map(functools.partial(_play_job, model=model, args=args, has_bar=False), jobs)
    except BrokenProcessPool as error:
        raise ValueError("a worker process died, probably out of memory; try --num_workers 1") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _init_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process handles Ctrl-C
    torch.set_num_threads(1)


def _play_job(
    job: tuple[Path, Path], model: NeuralGuitar, args: argparse.Namespace, has_bar: bool = True
) -> dict[str, Any] | str:
    """Transfer one file; return the report, or an error message."""
    try:
        return transfer_file(*job, model, args, has_bar).report
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        said = str(error) or "not enough memory"  # a MemoryError has no message
        return said if str(job[0]) in said else f"{job[0]}: {said}"


def _read_blend(text: str) -> tuple[str, float]:
    instrument, _, share = text.partition(":")
    try:
        return instrument, float(share)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{text}' should be an instrument and its share, as violin:0.4") from error


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_parser("Play a voice on an instrument.", "(--input PATH | --controls PATH) --output PATH [flags]")
    group = parser.add_argument_group("files")
    given = group.add_mutually_exclusive_group(required=True)
    given.add_argument("--input", type=Path, help="a recording, a MIDI file, or a folder of them")
    given.add_argument("--controls", type=Path, help="curves to play, written by --export_controls")
    add = group.add_argument
    add("--output", type=Path, required=True, help="the result, or a folder for the results")
    add("--stems", action="store_true", help="also write the harmonic and the noise part")
    add("--midi", type=Path, help="write the notes, with bends, as a MIDI file")
    add("--export_controls", type=Path, help="write the curves that are played as CSV, to be edited")
    add("--report", type=Path, help="write a report as JSON")
    add("--num_workers", type=int, default=torch.get_num_threads(), help="processes for a folder (default: all cores)")
    add("--device", default="auto", help="auto, cpu, cuda, mps (default: auto)")
    add = parser.add_argument_group("instrument").add_argument
    add("--instrument", help="a shipped model (default: trumpet)")
    add("--checkpoint", type=Path, help="your own model instead, such as checkpoints/latest.pth")
    add("--blend", type=_read_blend, help="mix in a shipped model: violin:0.4 is 40 %% violin")
    add("--articulation", choices=ARTICULATIONS, help="follow the voice's loudness, or pluck each note")
    _add_options(parser)
    args = parser.parse_args(argv)
    if args.num_workers < 1:
        parser.error("--num_workers must be at least 1")
    if args.causal and (args.controls or _is_midi(args.input)):
        parser.error("--causal plays a recording, not curves or notes")
    if args.instrument and args.checkpoint:
        parser.error("give --instrument or --checkpoint, not both: a checkpoint knows its instrument")
    try:
        args.options = TransferOptions(**{name: getattr(args, name) for name in _OPTIONS}, fit=not args.no_fit)
        if args.causal:
            require_causal_options(args.options)
    except ValueError as error:
        parser.error(str(error))
    if args.input and _is_midi(args.input) and (flags := _recording_only_flags(args)):
        parser.error(f"{flags}: for recordings only; the notes of a MIDI file are played as they are written")
    if args.controls:
        if args.controls.is_dir():
            parser.error(f"--controls {args.controls} is a folder; name a file of curves")
        kept = dataclasses.replace(_DEFAULTS, noise_balance=args.noise_balance, output_rate=args.output_rate)
        if args.options != kept:
            parser.error("--controls are played unchanged: only --noise_balance and --output_rate count")
    return args


_OPTIONS = tuple(field.name for field in dataclasses.fields(TransferOptions) if field.name != "fit")


def _add_options(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``TransferOptions`` except --articulation, and --causal and --normalize."""
    group = parser.add_argument_group("melody")

    def add(name: str, kind: type, text: str) -> None:
        group.add_argument(f"--{name}", type=kind, default=getattr(_DEFAULTS, name), help=text)

    add("semitones", float, "shift, instead of fitting the register by whole octaves")
    add("transpose", float, "semitones added to the register")
    group.add_argument("--fold", action="store_true", help="move notes that are out of range into it, by octaves")
    add("autotune", float, "0 to 1: correct each note towards the nearest note of --key")
    add("key", str, "key of the result, such as 'F# minor' (default: chromatic)")
    add("smoothing", float, "seconds over which pitch and loudness are smoothed within a note")
    add("gate_offset", float, "dB: higher silences more, lower plays softer notes")
    add("pluck_repeat", float, "seconds after which a held note is plucked again (default: never)")
    add("harmony", str, "further parts: third, sixth, octave, third_below, ...; separated by commas")
    add("ensemble", int, "players for each part, slightly detuned and delayed (default: 1)")
    group.add_argument("--no_fit", action="store_true", help="keep pitch and loudness as measured")
    group.add_argument("--causal", action="store_true", help="play as live.py does: no look-ahead, up to 1,975 Hz")
    group = parser.add_argument_group("sound")
    add("loudness_offset", float, "dB louder or softer, which also makes it brighter or darker")
    add("noise_balance", float, "dB: more or less breath relative to the tone")
    add("output_rate", int, "Hz of the result, up to 48000 (default: the model's)")
    group.add_argument("--normalize", action="store_true", help="to -16 LUFS, true peak below -1 dB (in memory)")


@as_command("stopped; finished files are kept")
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    device = get_device(args.device)
    model = load_model(args.checkpoint or pretrained_path(args.instrument or "trumpet"), device)
    if args.blend:
        instrument, share = args.blend
        model = BlendedModel(model, load_model(pretrained_path(instrument), device), share)
    jobs = plan_files(args.controls or args.input, args.output, model.instrument)
    if args.controls is None and args.input.is_dir() and (args.midi or args.export_controls):
        raise ValueError(f"--midi and --export_controls take one recording, and --input {args.input} is a folder")
    require_free_targets(jobs, args)
    _warn_of_ignored_flags(jobs, args)
    reports = transfer_all(jobs, model, args)
    if args.report and reports:
        write_text(args.report, json.dumps(reports, indent=2) + "\n")
    if reports:
        suggest("app.py")
    return 0 if len(reports) == len(jobs) else 1


if __name__ == "__main__":
    raise SystemExit(main())
