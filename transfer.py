"""Transfer: a voice in, an instrument out that plays the same notes with the same dynamics.

    ./venv/bin/python transfer.py --input examples/hum.wav --instrument trumpet --output out/hum_trumpet.wav

The voice's pitch and loudness are measured, fitted to the instrument (register by whole octaves,
loudness to what the model heard in training), gated (where nothing is sung the instrument is
silent), and played by the model.
"""

import argparse
import json
import logging
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import soundfile
import torch

from checkpoint import load_model, pretrained_path
from conditioning import Curves, Progress, TransferOptions, fit, listen
from config import get_device
from features import Features, load_audio, pad_to_frames, prepare_audio
from model import Controls, NeuralGuitar, Sound

_SUFFIXES = {".wav", ".flac", ".ogg", ".mp3", ".aif", ".aiff"}
_STEMS = ("harmonic", "noise")
_DEFAULTS = TransferOptions()
log = logging.getLogger("transfer")


@dataclass(frozen=True)
class Transfer:
    """The result: sound at ``sample_rate``, and everything it was made of."""

    audio: np.ndarray  # [N]
    harmonic: np.ndarray  # [N], harmonic part of audio
    noise: np.ndarray  # [N], noise part
    sample_rate: int
    features: Features  # measured in the input
    curves: Curves  # fitted to the instrument
    controls: Controls
    report: dict[str, Any]


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
    tell = progress or _tell_nobody
    started = time.perf_counter()
    config = model.settings
    assert config is not None, "transfer needs a model from checkpoint.load_model"
    tell("Listening to the voice", 0.0)
    mono = np.asarray(audio, dtype=np.float32).reshape(len(audio), -1).mean(axis=1) if len(audio) else np.zeros(0)
    mono = pad_to_frames(prepare_audio(mono, sample_rate, config.audio.feature_rate), config.audio.feature_hop_length)
    features, melody, heard = listen(mono, config, next(model.parameters()).device, options.gate_offset)
    tell(f"Fitting the melody to the {model.instrument}", 0.6)
    curves, fitting = fit(melody, model, options)
    tell(f"Playing the {model.instrument}", 0.65)
    result = render(model, features, curves, options, seed, {**fitting, **heard})
    tell("Done", 1.0)
    result.report["times_real_time"] = result.report["seconds"] / (time.perf_counter() - started)
    return result


def _tell_nobody(step: str, share: float) -> None:
    pass


# --- playing --------------------------------------------------------------------------------------


def render(
    model: NeuralGuitar, features: Features, curves: Curves, options: TransferOptions, seed: int, done: dict[str, Any]
) -> Transfer:
    """Play curves on the model and make the sound ready; ``done`` is what the report says of the curves."""
    sound, controls = play(model, curves, options.noise_balance, seed)
    rate = model.settings.audio.sample_rate
    out_rate = options.output_rate or rate
    parts = [resample(part[0].cpu().numpy(), rate, out_rate) for part in sound]
    harmonic, noise, peak_gain = limit_peak(*parts, model.settings.transfer.max_peak)
    report = {
        "instrument": model.instrument,
        "seconds": round(len(harmonic) / out_rate, 3),
        **done,
        "share_gated": float((curves.gate == 0).mean()),
        "peak_gain": peak_gain,
    }
    return Transfer(harmonic + noise, harmonic, noise, out_rate, features, curves, controls, report)


@torch.inference_mode()
def play(model: NeuralGuitar, curves: Curves, noise_balance: float = 0.0, seed: int = 0) -> tuple[Sound, Controls]:
    """Play curves on the model; gated frames are silent in both parts. ``noise_balance`` is in dB."""
    device = next(model.parameters()).device
    f0, loudness, gate = (
        torch.from_numpy(values)[None, :, None].to(device) for values in (curves.f0, curves.loudness, curves.gate)
    )
    harmonic_amplitudes, noise_magnitudes = model.controls(f0, loudness)
    controls = Controls(harmonic_amplitudes * gate, noise_magnitudes * gate * 10 ** (noise_balance / 20))
    return model.synthesize(f0, controls, torch.Generator(device).manual_seed(seed)), controls


def resample(audio: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Return [N] at another rate; N * to_rate / from_rate samples."""
    if from_rate == to_rate:
        return audio
    resampled = librosa.resample(audio, orig_sr=from_rate, target_sr=to_rate, res_type="soxr_hq")
    return librosa.util.fix_length(resampled, size=round(len(audio) * to_rate / from_rate))


def limit_peak(harmonic: np.ndarray, noise: np.ndarray, max_peak: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Return both parts [N], turned down together if their sum would exceed max_peak in dBFS, and the gain in dB."""
    peak = float(np.abs(harmonic + noise).max())
    scale = min(1.0, 10 ** (max_peak / 20) / max(peak, 1e-9))
    return harmonic * scale, noise * scale, 20 * float(np.log10(scale))


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
    if report["peak_gain"] < 0:
        parts.append(f"turned down {-report['peak_gain']:.1f} dB")
    return ", ".join([*parts, f"{report['times_real_time']:.1f} x faster than real time"])


# --- files ----------------------------------------------------------------------------------------


def transfer_file(source: Path, target: Path, model: NeuralGuitar, args: argparse.Namespace) -> Transfer:
    """Transfer one sound file to another, with stems beside it if asked for."""
    rate = model.settings.audio.feature_rate
    options = TransferOptions(semitones=args.semitones, fit=not args.no_fit)
    result = transfer(load_audio(source, rate), rate, model, options)
    write_audio(target, result.audio, result.sample_rate)
    if args.stems:
        for name in _STEMS:
            write_audio(target.with_stem(f"{target.stem}_{name}"), getattr(result, name), result.sample_rate)
    return result


def write_audio(path: Path, audio: np.ndarray, sample_rate: int) -> None:
    """Write a sound file under a temporary name, then rename it; the suffix chooses the format.

    Raises:
        ValueError: libsndfile cannot write this format.
        OSError: the disk is full, say; what stood there stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    try:
        soundfile.write(partial, audio, sample_rate, format=path.suffix[1:].upper())
        os.replace(partial, path)
    except (soundfile.LibsndfileError, TypeError) as error:
        raise OSError(f"{path} could not be written; is the disk full?") from error
    finally:
        partial.unlink(missing_ok=True)


def refuse_overwriting(jobs: list[tuple[Path, Path]], args: argparse.Namespace) -> None:
    """Raise ValueError if a recording would be replaced by a result, a stem or the report."""
    sources = {source.resolve() for source, _ in jobs}
    written = [target for _, target in jobs] + ([args.report] if args.report else [])
    if args.stems:
        written += [target.with_stem(f"{target.stem}_{name}") for _, target in jobs for name in _STEMS]
    for path in written:
        if path.resolve() in sources:
            raise ValueError(f"{path} is a recording to be transferred and would be overwritten; name another")


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
    found = sorted(path for path in source.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if not found:
        raise ValueError(f"{source} holds no sound files ({', '.join(sorted(_SUFFIXES))})")
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
    parser.add_argument("--input", type=Path, required=True, help="a recording, or a folder of them")
    parser.add_argument("--output", type=Path, required=True, help="the result, or a folder for them")
    parser.add_argument("--instrument", help="a shipped model, such as trumpet (the default)")
    parser.add_argument("--checkpoint", type=Path, help="your own model instead, such as checkpoints/latest.pth")
    parser.add_argument("--semitones", type=float, help="transpose by this much instead of fitting the register")
    parser.add_argument("--no_fit", action="store_true", help="leave pitch and loudness as measured")
    parser.add_argument("--stems", action="store_true", help="also write the harmonic and the noise part")
    parser.add_argument("--report", type=Path, help="write what was done as JSON")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps (default auto)")
    args = parser.parse_args(argv)
    if args.instrument and args.checkpoint:
        parser.error("give --instrument or --checkpoint, not both: a checkpoint knows its instrument")
    if args.semitones is not None and not -60 <= args.semitones <= 60:
        parser.error("--semitones should be between -60 and 60")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        model = load_model(args.checkpoint or pretrained_path(args.instrument or "trumpet"), get_device(args.device))
        jobs = plan_files(args.input, args.output, model.instrument)
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
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    try:
        partial.write_text(json.dumps(reports, indent=2) + "\n")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


if __name__ == "__main__":
    raise SystemExit(main())
