"""Transfer: a voice in, an instrument out that plays the same notes with the same dynamics.

    ./venv/bin/python transfer.py --input examples/hum.wav --instrument trumpet --output out/hum_trumpet.wav

The voice's pitch and loudness are measured, fitted to the instrument (register by whole octaves,
loudness to what the model heard in training), gated (where nothing is sung the instrument is
silent), and played by the model.
"""

import argparse
import contextlib
import dataclasses
import json
import logging
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from tqdm import tqdm

from audio_files import Scratch, resample_blocks, slices
from checkpoint import load_model, pretrained_path
from conditioning import Progress, TransferOptions, fit, fit_register, listen
from config import get_device
from curves import Curves, Melody, read_curves, replacing, shape_notes, write_curves
from features import SUFFIXES, Features, prepare_audio, read_blocks
from live import StreamingTransfer, curves_of
from midi import make_melody, play_one_at_a_time, read_midi, share_of_chords, write_midi
from model import NeuralGuitar, Sound
from player import play

_STEMS = ("harmonic", "noise")
_MIDI = {".mid", ".midi"}
_BLOCK_SAMPLES = 2**20  # in memory at once, of either part
_CAUSAL_SAMPLES = 16000  # of the voice between two reports of progress
_DEFAULTS = TransferOptions()
_UNHEARD = {  # what a report says where no voice was measured
    "semitones": 0.0, "share_out_of_range": 0.0, "loudness_gain": 0.0,
    "share_too_high": 0.0, "share_polyphonic": 0.0, "mains_hum": None,
}  # fmt: skip
log = logging.getLogger("transfer")


@dataclass(frozen=True)
class Transfer:
    """The result: sound at ``sample_rate``, and everything it was made of.

    The sound is kept on disk if it is long. ``audio``, ``harmonic`` and ``noise`` read all of it; ``blocks`` does
    not.
    """

    stems: tuple[Scratch, Scratch]  # [N], harmonic and noise part, before ``gain``
    gain: float  # linear, by which the peak is limited
    sample_rate: int
    features: Features  # measured in the input
    curves: Curves  # fitted to the instrument
    report: dict[str, Any]

    @property
    def harmonic(self) -> np.ndarray:
        """The harmonic part, [N]."""
        return self.stems[0][:] * self.gain

    @property
    def noise(self) -> np.ndarray:
        """The noise part, [N]."""
        return self.stems[1][:] * self.gain

    @property
    def audio(self) -> np.ndarray:
        """The sum, [N]."""
        return self.harmonic + self.noise

    def blocks(self, *numbers: int) -> Iterator[np.ndarray]:
        """Yield the sum of some stems, 0 and 1 (both, if none is named), in blocks [n]."""
        stems = [self.stems[number] for number in numbers or (0, 1)]
        for part in slices(len(stems[0]), _BLOCK_SAMPLES):
            yield sum(stem[part] * self.gain for stem in stems)


def transfer(
    audio: np.ndarray,
    sample_rate: int,
    model: NeuralGuitar,
    options: TransferOptions = _DEFAULTS,
    seed: int = 0,
    progress: Progress | None = None,
) -> Transfer:
    """Play a voice on the model's instrument.

    Args:
        audio: [N] mono, or [N, C].
        sample_rate: of ``audio``, Hz.
        model: from ``checkpoint.load_model``.
        options: what a person can choose.
        seed: of the noise part. Same input, options and seed, same bits.
        progress: is told each step before it begins, and the share done; it may raise to cancel.

    Raises:
        SilentError, NoMelodyError: there is nothing to play.
        ValueError: no samples, or samples that are no sound.
    """
    mono = np.asarray(audio, dtype=np.float32).reshape(len(audio), -1).mean(axis=1) if len(audio) else np.zeros(0)
    voice = prepare_audio(mono, sample_rate, model.settings.audio.feature_rate)
    return transfer_blocks([voice], model, options, seed, progress)


def transfer_blocks(
    blocks: Iterable[np.ndarray],
    model: NeuralGuitar,
    options: TransferOptions = _DEFAULTS,
    seed: int = 0,
    progress: Progress | None = None,
) -> Transfer:
    """Play a voice that comes in blocks, [n] each at the features' rate, in memory that hardly depends on its length.

    Arguments and errors are those of ``transfer``, and so is the result.
    """
    tell = progress or _tell_nobody
    started, config = time.perf_counter(), model.settings
    assert config is not None, "transfer needs a model from checkpoint.load_model"
    step = "Listening to the voice"
    tell(step, 0.0)
    audio = Scratch(blocks)
    audio.append(np.zeros(-len(audio) % config.audio.feature_hop_length))
    device = next(model.parameters()).device
    features, melody, heard = listen(audio, config, device, options.gate_offset, lambda share: tell(step, 0.6 * share))
    tell(f"Fitting the melody to the {model.instrument}", 0.6)
    curves, fitting = fit(melody, model, options)
    result = render(model, features, curves, options, seed, {**fitting, **heard}, started, tell)
    tell("Done", 1.0)
    return result


def transfer_causal(
    blocks: Iterable[np.ndarray],
    model: NeuralGuitar,
    options: TransferOptions = _DEFAULTS,
    seed: int = 0,
    progress: Progress | None = None,
) -> Transfer:
    """Play a voice as ``live.StreamingTransfer`` plays it, without a look at the whole recording.

    Arguments as in ``transfer_blocks``; the sound is in time with the voice.

    Raises:
        ValueError: no samples, or an option that needs the whole recording.
    """
    tell, started = progress or _tell_nobody, time.perf_counter()
    stream, frames, stems = StreamingTransfer(model, options, seed), [], (Scratch(), Scratch())
    tell(f"Playing the {model.instrument}", 0.0)
    voice, hop_length = Scratch(blocks), model.audio.hop_length
    n_frames = model.audio.samples_to_frames(len(voice))
    voice.append(np.zeros(-len(voice) % hop_length + stream.latency))
    for part in slices(len(voice), _CAUSAL_SAMPLES):
        for frame, sound in stream.advance(voice[part]):
            frames.append(frame)
            for stem, samples in zip(stems, sound):
                stem.append(samples[0].cpu().numpy())
        tell(f"Playing the {model.instrument}", part.stop / len(voice))
    curves, seconds = curves_of(frames[:n_frames]), n_frames * hop_length / stream.rate
    report = {
        "instrument": model.instrument,
        "seconds": round(seconds, 3),
        **_UNHEARD,
        "semitones": stream.fitting.semitones,
        "loudness_gain": stream.fitting.gain,
        "share_gated": float((curves.gate == 0).mean()),
        "peak_gain": 0.0,
        "times_real_time": seconds / (time.perf_counter() - started),
    }
    features = Features(*map(torch.tensor, zip(*(frame.heard for frame in frames[:n_frames]))))
    return Transfer(stems, 1.0, model.audio.sample_rate, features, curves, report)


def _tell_nobody(step: str, share: float) -> None:
    pass


def transfer_midi(
    path: Path, model: NeuralGuitar, options: TransferOptions = _DEFAULTS, seed: int = 0
) -> Transfer:
    """Play a MIDI file on the model's instrument, in its own register unless notes lie out of range.

    Raises:
        FileNotFoundError, ValueError: see ``midi.read_midi``.
    """
    started, config = time.perf_counter(), model.settings
    notes, bends = read_midi(path)
    played = play_one_at_a_time(notes, config.transfer.midi_gap_seconds)
    plucked = config.instrument(model.instrument).model == "NeuralGuitar"
    melody = make_melody(played, bends, model.statistics["loudness_quantiles"][95], plucked, config)
    if options.semitones is None:
        options = dataclasses.replace(options, semitones=0.0)
        if fit(melody, model, dataclasses.replace(options, fit=False, fold=False))[1]["share_out_of_range"]:
            options = dataclasses.replace(options, semitones=fit_register(melody.f0[melody.voiced], model))
    curves, fitting = fit(melody, model, dataclasses.replace(options, fit=False))
    done = {**_UNHEARD, **fitting, "share_polyphonic": share_of_chords(notes, config.audio.frame_rate)}
    return render(model, _as_features(melody), curves, options, seed, done, started)


def transfer_curves(
    melody: Melody, model: NeuralGuitar, options: TransferOptions = _DEFAULTS, seed: int = 0
) -> Transfer:
    """Play curves, as ``curves.read_curves`` reads them, as they stand.

    Of the options only ``noise_balance`` and ``output_rate`` count.
    """
    started = time.perf_counter()
    return render(model, _as_features(melody), shape_notes(melody, model.settings), options, seed, _UNHEARD, started)


def _as_features(melody: Melody) -> Features:
    curves = (melody.f0, melody.loudness, melody.periodicity)
    return Features(*(torch.from_numpy(values.astype(np.float32)) for values in curves))


# --- playing --------------------------------------------------------------------------------------


def render(
    model: NeuralGuitar,
    features: Features,
    curves: Curves,
    options: TransferOptions,
    seed: int,
    done: dict[str, Any],
    started: float,
    tell: Progress = _tell_nobody,
) -> Transfer:
    """Play curves on the model and make the sound ready; ``done`` is what the report says of the curves."""
    sample_rate = options.output_rate or model.settings.audio.sample_rate
    played = play_told(model, curves, options.noise_balance, seed, tell)
    stems, peak = keep(played, model.settings.audio.sample_rate, sample_rate)
    gain = min(1.0, 10 ** (model.settings.transfer.max_peak / 20) / max(peak, 1e-9))
    seconds = len(stems[0]) / sample_rate
    report = {
        "instrument": model.instrument,
        "seconds": round(seconds, 3),
        **done,
        "share_gated": float((curves.gate == 0).mean()),
        "peak_gain": 20 * float(np.log10(gain)),
        "times_real_time": seconds / (time.perf_counter() - started),
    }
    return Transfer(stems, gain, sample_rate, features, curves, report)


def play_told(
    model: NeuralGuitar, curves: Curves, noise_balance: float, seed: int, tell: Progress
) -> Iterator[Sound]:
    """Play curves as ``player.play`` does, and tell how far it is."""
    n_samples, n_done = model.settings.audio.frames_to_samples(len(curves.f0)), 0
    tell(f"Playing the {model.instrument}", 0.65)
    for sound, _ in play(model, curves, noise_balance, seed):
        n_done += sound.harmonic.shape[1]
        yield sound
        if n_done < n_samples:
            tell(f"Playing the {model.instrument}", 0.65 + 0.35 * n_done / n_samples)


def keep(played: Iterable[Sound], from_rate: int, to_rate: int) -> tuple[tuple[Scratch, Scratch], float]:
    """Keep what is played, at another rate; return both parts, and the peak of their sum."""
    raw = Scratch(), Scratch()
    for sound in played:
        for stem, part in zip(raw, sound):
            stem.append(part[0].cpu().numpy())
    stems = raw if from_rate == to_rate else tuple(_resampled(stem, from_rate, to_rate) for stem in raw)
    parts = slices(len(stems[0]), _BLOCK_SAMPLES)
    return stems, max(float(np.abs(stems[0][part] + stems[1][part]).max()) for part in parts)


def _resampled(stem: Scratch, from_rate: int, to_rate: int) -> Scratch:
    blocks = (stem[part] for part in slices(len(stem), _BLOCK_SAMPLES))
    return Scratch(resample_blocks(blocks, from_rate, to_rate))


def describe(report: dict[str, Any]) -> str:
    """Say in one line what a transfer did."""
    parts = [
        f"shifted {report['semitones']:+g} st",
        f"{100 * report['share_out_of_range']:.0f} % of frames out of range",
        f"{100 * report['share_gated']:.0f} % gated",
        f"loudness {report['loudness_gain']:+.0f} dB",
    ]
    if report["share_too_high"] > 0.01:
        parts.append(f"{100 * report['share_too_high']:.0f} % too high to hear and left silent")
    if report["mains_hum"] is not None:
        parts.append("mains hum taken out")
    if report["share_polyphonic"] > 0.3:
        parts.append("several notes at once: one line of them is played")
    if report["peak_gain"] < 0:
        parts.append(f"turned down {-report['peak_gain']:.1f} dB")
    return ", ".join([*parts, f"{report['times_real_time']:.1f} x faster than real time"])


# --- files ----------------------------------------------------------------------------------------


def transfer_file(source: Path, target: Path, model: NeuralGuitar, args: argparse.Namespace) -> Transfer:
    """Transfer one file to another, with stems beside it, and curves and notes, if asked for."""
    if args.controls:
        result = transfer_curves(read_curves(source, model.settings), model, args.options)
    elif source.suffix.lower() in _MIDI:
        result = transfer_midi(source, model, args.options)
    else:
        blocks = read_blocks(source, model.settings.audio.feature_rate)
        with _progress_bar() as show:
            play_voice = transfer_causal if args.causal else transfer_blocks
            result = play_voice(blocks, model, args.options, progress=show)
    write_blocks(target, result.blocks(), result.sample_rate)
    if args.stems:
        for number, name in enumerate(_STEMS):
            write_blocks(target.with_stem(f"{target.stem}_{name}"), result.blocks(number), result.sample_rate)
    if args.export_controls:
        write_curves(args.export_controls, result.curves, model.settings.audio.frame_rate)
    if args.midi:
        write_midi(args.midi, result.curves, model.settings)
    return result


@contextlib.contextmanager
def _progress_bar() -> Iterator[Progress]:
    """Give a progress that draws a bar on a terminal, if it takes more than some seconds."""
    shape = "{desc}: {bar} {n:.0f} %, {remaining} left"
    with tqdm(total=100, delay=3, leave=False, disable=None, bar_format=shape) as bar:

        def show(step: str, share: float) -> None:
            bar.set_description(step, refresh=False)
            bar.update(100 * share - bar.n)

        yield show


def write_audio(path: Path, audio: np.ndarray, sample_rate: int) -> None:
    """Write audio [N] as ``write_blocks`` does."""
    write_blocks(path, [audio], sample_rate)


def write_blocks(path: Path, blocks: Iterable[np.ndarray], sample_rate: int) -> None:
    """Write a sound file under a temporary name, then rename it; the suffix chooses the format.

    Raises:
        ValueError: libsndfile cannot write this format.
        OSError: the disk is full, say; what stood there stays.
    """
    try:
        with replacing(path) as partial, _create(partial, path.suffix[1:].upper(), sample_rate) as file:
            for block in blocks:
                file.write(block)
    except (soundfile.LibsndfileError, TypeError) as error:
        raise OSError(f"{path} could not be written; is the disk full?") from error


def _create(path: Path, kind: str, sample_rate: int) -> soundfile.SoundFile:
    return soundfile.SoundFile(path, "w", sample_rate, channels=1, format=kind)


def refuse_overwriting(jobs: list[tuple[Path, Path]], args: argparse.Namespace) -> None:
    """Raise ValueError if a recording would be replaced by what is written, or one result by another."""
    sources = {source.resolve() for source, _ in jobs}
    beside = [path for path in (args.report, args.export_controls, args.midi) if path]
    written = [target for _, target in jobs] + beside
    if args.stems:
        written += [target.with_stem(f"{target.stem}_{name}") for _, target in jobs for name in _STEMS]
    for path in written:
        if path.resolve() in sources:
            raise ValueError(f"{path} is a recording to be transferred and would be overwritten; name another")
    if len({path.resolve() for path in written}) < len(written):
        raise ValueError("two of the files to be written have the same name; name another")


def plan_files(source: Path, target: Path, instrument: str) -> list[tuple[Path, Path]]:
    """Pair what is to be transferred with where it goes; a folder gives a folder.

    Raises:
        FileNotFoundError, ValueError: nothing to transfer, or a target that cannot be meant.
    """
    if not source.exists():
        raise FileNotFoundError(f"there is no file or folder {source}")
    if source.is_file():
        if target.suffix.lower() not in {".wav", ".flac", ".ogg"}:
            raise ValueError(f"--output {target} should end in .wav, .flac or .ogg")
        return [(source, target)]
    if target.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"--output {target} lies in --input {source}; the next run would play it too")
    found = sorted(path for path in source.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise ValueError(f"{source} holds no sound files ({', '.join(sorted(SUFFIXES))})")
    if target.is_file():
        raise ValueError(f"--output {target} is a file; for a folder as input name a folder")
    # The suffix stays in the name, so that take.wav and take.mp3 do not overwrite each other.
    names = [path.relative_to(source) for path in found]
    return [(path, target / name.with_name(f"{name.name}_{instrument}.wav")) for path, name in zip(found, names)]


def transfer_all(jobs: list[tuple[Path, Path]], model: NeuralGuitar, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Transfer every file; a failed one is named and the rest go on. Returns the reports of those that worked."""
    reports = []
    for source, target in jobs:
        try:
            result = transfer_file(source, target, model, args)
        except (ValueError, OSError) as error:
            message = str(error) if str(source) in str(error) else f"{source}: {error}"
            log.error("transfer.py: %s", message)
            continue
        reports.append({"input": str(source), "output": str(target), **result.report})
        print(f"{target}: {describe(result.report)}", file=sys.stdout)
    return reports


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Play a voice on an instrument.")
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--input", type=Path, help="a recording, a folder of them, or a MIDI file")
    given.add_argument("--controls", type=Path, help="curves to play, as --export_controls writes them")
    parser.add_argument("--output", type=Path, required=True, help="the result, or a folder for them")
    parser.add_argument("--instrument", help="a shipped model, such as trumpet (the default)")
    parser.add_argument("--checkpoint", type=Path, help="your own model instead, such as checkpoints/latest.pth")
    _add_options(parser)
    parser.add_argument("--causal", action="store_true", help="as live.py plays it: nothing is known of what follows")
    parser.add_argument("--stems", action="store_true", help="also write the harmonic and the noise part")
    parser.add_argument("--export_controls", type=Path, help="write what is played as curves that can be edited (CSV)")
    parser.add_argument("--midi", type=Path, help="write the notes, with bends, as a MIDI file")
    parser.add_argument("--report", type=Path, help="write what was done as JSON")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps (default auto)")
    args = parser.parse_args(argv)
    if args.instrument and args.checkpoint:
        parser.error("give --instrument or --checkpoint, not both: a checkpoint knows its instrument")
    try:
        args.options = TransferOptions(**{name: getattr(args, name) for name in _OPTIONS}, fit=not args.no_fit)
    except ValueError as error:
        parser.error(f"--{error}")
    if args.controls:
        kept = dataclasses.replace(_DEFAULTS, noise_balance=args.noise_balance, output_rate=args.output_rate)
        if args.options != kept:
            parser.error("--controls are played as they stand: only --noise_balance and --output_rate count")
    return args


_OPTIONS = tuple(field.name for field in dataclasses.fields(TransferOptions) if field.name != "fit")


def _add_options(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each of the TransferOptions."""

    def add(name: str, kind: type, text: str) -> None:
        parser.add_argument(f"--{name}", type=kind, default=getattr(_DEFAULTS, name), help=text)

    add("semitones", float, "shift by this much instead of fitting the register by whole octaves")
    add("transpose", float, "semitones on top of the register")
    parser.add_argument("--no_fit", action="store_true", help="leave pitch and loudness as measured")
    parser.add_argument("--fold", action="store_true", help="move notes that are out of range into it, by octaves")
    add("autotune", float, "0 to 1: how far each note is moved onto the nearest note of --key")
    add("key", str, "chromatic (the default), or a key of what is played, such as 'F# minor'")
    add("smoothing", float, "seconds over which pitch and loudness are smoothed inside a note")
    add("loudness_offset", float, "dB louder or softer, and brighter or darker with it")
    add("gate_offset", float, "dB: higher leaves more silent, lower plays softer notes")
    add("noise_balance", float, "dB: more breath, or less, against the tone")
    add("output_rate", int, "Hz of the result, up to 48000")


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        model = load_model(args.checkpoint or pretrained_path(args.instrument or "trumpet"), get_device(args.device))
        jobs = plan_files(args.controls or args.input, args.output, model.instrument)
        if args.controls is None and args.input.is_dir() and (args.midi or args.export_controls):
            raise ValueError(f"--midi and --export_controls take one recording, and --input {args.input} is a folder")
        refuse_overwriting(jobs, args)
        reports = transfer_all(jobs, model, args)
        if args.report and reports:
            _write_report(args.report, reports)
    except (ValueError, OSError) as error:
        log.error("transfer.py: %s", error)
        return 1
    except KeyboardInterrupt:
        log.error("transfer.py: stopped; what is written stays")
        return 130
    return 0 if len(reports) == len(jobs) else 1


def _write_report(path: Path, reports: list[dict[str, Any]]) -> None:
    with replacing(path) as partial:
        partial.write_text(json.dumps(reports, indent=2) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
