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

import numpy as np
import soundfile
import torch
from scipy import ndimage, signal

from checkpoint import load_model, pretrained_path
from config import Config, TransferConfig, get_device
from features import Features, bridge_f0, extract_features, load_audio, pad_to_frames, prepare_audio
from model import Controls, NeuralGuitar, Sound

_SUFFIXES = {".wav", ".flac", ".ogg", ".mp3", ".aif", ".aiff"}
_STEMS = ("harmonic", "noise")
log = logging.getLogger("transfer")


@dataclass(frozen=True)
class Curves:
    """A voice's curves as the instrument will play them, [T] each."""

    f0: np.ndarray  # Hz, bridged where nothing is played
    loudness: np.ndarray  # dB re full scale; the floor where nothing is played
    gate: np.ndarray  # 0..1, 0 where the instrument is silent


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
    semitones: float | None = None,
    fit: bool = True,
    seed: int = 0,
) -> Transfer:
    """Play a voice on the model's instrument.

    Args:
        audio: [N] mono, or [N, C].
        sample_rate: of ``audio``, Hz.
        model: from ``checkpoint.load_model``.
        semitones: transpose by this much; None fits the register by whole octaves.
        fit: False plays pitch and loudness as measured (``semitones`` still counts).
        seed: of the noise part. Same input and seed, same bits.

    Raises:
        ValueError: silent, not finite, or without a melody.
    """
    started = time.perf_counter()
    config = model.settings
    assert config is not None, "transfer needs a model from checkpoint.load_model"
    device = next(model.parameters()).device
    mono = np.asarray(audio, dtype=np.float32).reshape(len(audio), -1).mean(axis=1) if len(audio) else np.zeros(0)
    mono = pad_to_frames(prepare_audio(mono, sample_rate, config.audio.feature_rate), config.audio.feature_hop_length)
    gain = _lift(mono, config.transfer.max_loudness_gain)
    lifted = extract_features(mono * 10 ** (gain / 20), config, device)
    gate, too_high = find_notes(mono, lifted, config)
    features = lifted._replace(loudness=lifted.loudness - gain)
    curves, fitting = fit_curves(features, gate, model, semitones, fit)
    sound, controls = play(model, curves, seed)
    n_samples = round(len(mono) * config.audio.sample_rate / config.audio.feature_rate)
    harmonic, noise, peak_gain = _limit_peak(sound, n_samples, config.transfer.max_peak)
    report = {
        "instrument": model.instrument,
        "seconds": round(len(harmonic) / config.audio.sample_rate, 3),
        **fitting,
        "share_gated": float((gate == 0).mean()),
        "share_too_high": float(too_high.mean()),
        "peak_gain": peak_gain,
        "times_real_time": len(harmonic) / config.audio.sample_rate / (time.perf_counter() - started),
    }
    return Transfer(
        harmonic + noise, harmonic, noise, config.audio.sample_rate, features, curves, controls, report
    )


def _lift(audio: np.ndarray, most: float) -> float:
    """Return the gain in dB that brings a quiet recording to full scale, so that the loudness floor hides no note."""
    peak = float(np.abs(audio).max(initial=0.0))
    return float(np.clip(-20 * np.log10(peak), 0.0, most)) if peak > 0 else 0.0


# --- where there are notes ------------------------------------------------------------------------


def find_notes(audio: np.ndarray, features: Features, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Decide which frames the instrument plays.

    A note begins where the pitch is sure and goes on while it is likely; it must stand out of the
    recording's own noise floor. Clicks are dropped, short gaps closed.

    Args:
        audio: [N] at the features' rate.

    Returns:
        The gate, float [T] 0 or 1, and which frames are a tone above CREPE's range, bool [T].

    Raises:
        ValueError: the recording is silent, or no melody can be heard in it.
    """
    settings, floor = config.transfer, config.features.loudness_floor
    loudness, periodicity = features.loudness.numpy(), features.periodicity.numpy()
    if len(loudness) == 0 or loudness.max() <= floor:
        raise ValueError("the recording is silent")
    too_high = find_too_high(audio, config)
    pitched = _hysteresis(periodicity, settings.voiced_periodicity, settings.sustained_periodicity) & ~too_high
    threshold = _gate_threshold(loudness, periodicity, settings, floor)
    gate = _clean_runs(pitched & (loudness > threshold), settings, config.audio.frame_rate)
    if not gate.any():
        if too_high.mean() > 0.05:
            highest = f"{config.features.f0_max:.0f} Hz"
            raise ValueError(f"the melody lies over {highest}, higher than CREPE can hear; sing or whistle lower")
        raise ValueError("no melody can be heard in the recording; sing or hum closer to the microphone")
    return gate.astype(np.float32), too_high


def _hysteresis(values: np.ndarray, begin: float, end: float) -> np.ndarray:
    """Return bool [T]: runs over ``end`` that somewhere exceed ``begin``."""
    runs, count = ndimage.label(values > end)
    strong = np.unique(runs[values > begin])
    return np.isin(runs, strong[strong > 0]) if count else np.zeros(len(values), dtype=bool)


def _gate_threshold(loudness: np.ndarray, periodicity: np.ndarray, settings: TransferConfig, floor: float) -> float:
    """Return the loudness in dB under which nothing is played, from the recording's own noise floor and peak."""
    peak = float(np.quantile(loudness, settings.peak_quantile))
    unpitched = loudness[periodicity < settings.sustained_periodicity]
    noise = float(np.quantile(unpitched, settings.noise_quantile)) if len(unpitched) else floor
    threshold = max(noise + settings.gate_above_noise, peak - settings.gate_below_peak)
    # However noisy, what is loud is played: a hum over a fan is still a melody.
    return min(threshold, peak - settings.never_gated)


def _clean_runs(gate: np.ndarray, settings: TransferConfig, frame_rate: float) -> np.ndarray:
    """Close gaps and drop notes that are too short to be meant: bool [T]."""
    closed = ~_drop_short(~gate, round(settings.max_gap_seconds * frame_rate), keep_ends=True)
    return _drop_short(closed, round(settings.min_voiced_seconds * frame_rate))


def _drop_short(mask: np.ndarray, n_frames: int, keep_ends: bool = False) -> np.ndarray:
    """Clear runs of true of at most ``n_frames``; ``keep_ends`` spares runs at either end of the recording."""
    runs, count = ndimage.label(mask)
    lengths = np.bincount(runs, minlength=count + 1)
    short = lengths <= n_frames
    if keep_ends:
        short[[runs[0], runs[-1]]] = False
    return mask & ~short[runs]


def find_too_high(audio: np.ndarray, config: Config) -> np.ndarray:
    """Find frames that are one tone above CREPE's range, as high whistling is: bool [T].

    CREPE would answer with some lower pitch, sure of itself.
    """
    hop_length, rate = config.audio.feature_hop_length, config.audio.feature_rate
    n_fft = 1024
    padded = np.pad(audio, (n_fft // 2, n_fft // 2))
    _, _, spectrum = signal.stft(padded, rate, nperseg=n_fft, noverlap=n_fft - hop_length, boundary=None, padded=False)
    power = np.abs(spectrum[:, : len(audio) // hop_length]).T ** 2  # (T, F)
    peak = power.argmax(axis=1)
    around = np.clip(peak[:, None] + np.arange(-3, 4), 0, n_fft // 2)
    share = np.take_along_axis(power, around, axis=1).sum(axis=1) / (power.sum(axis=1) + 1e-20)
    return (peak * rate / n_fft > config.features.f0_max * 1.02) & (share > 0.5)


# --- fitting the voice to the instrument ----------------------------------------------------------


def fit_curves(
    features: Features, gate: np.ndarray, model: NeuralGuitar, semitones: float | None, fit: bool
) -> tuple[Curves, dict[str, float]]:
    """Fit measured curves to the model's instrument; return them and what was done, for the report."""
    config = model.settings
    instrument = config.instrument(model.instrument)
    played = gate > 0
    f0 = bridge_f0(features.f0.numpy(), played)
    if semitones is None:
        semitones = fit_register(f0[played], model) if fit else 0.0
    f0 = f0 * 2 ** (semitones / 12)
    loudness = features.loudness.numpy()
    fitted = fit_loudness(loudness, played, model) if fit else loudness
    tolerance = 2 ** (config.transfer.range_tolerance / 12)
    out_of_range = (f0[played] < instrument.f0_min / tolerance) | (f0[played] > instrument.f0_max * tolerance)
    curves = Curves(
        f0=f0.astype(np.float32),
        loudness=np.where(played, fitted, config.features.loudness_floor).astype(np.float32),
        gate=_fade(gate, round(config.transfer.gate_fade_seconds * config.audio.frame_rate)),
    )
    return curves, {
        "semitones": float(semitones),
        "share_out_of_range": float(out_of_range.mean()),
        "loudness_gain": float(np.median((fitted - loudness)[played])),
    }


def fit_register(f0: np.ndarray, model: NeuralGuitar) -> float:
    """Return the whole octaves, in semitones, that bring a melody into the instrument's range.

    Frames outside count, and so, a little, does the distance of the melody from the middle of the
    training data: it decides among octaves that leave equally few outside.
    """
    instrument = model.settings.instrument(model.instrument)
    middle = model.statistics["f0_quantiles"][50]
    distance_cost = model.settings.transfer.octave_distance_cost

    def cost(octaves: int) -> float:
        shifted = f0 * 2.0**octaves
        outside = np.mean((shifted < instrument.f0_min) | (shifted > instrument.f0_max))
        return float(outside + distance_cost * abs(np.log2(np.median(shifted) / middle)))

    return 12.0 * min(range(-5, 6), key=cost)


def fit_loudness(loudness: np.ndarray, played: np.ndarray, model: NeuralGuitar) -> np.ndarray:
    """Map loudness in dB [T] so that the quantiles of the played frames match those of the training data.

    A straight line through the quantiles: it keeps the order and the shape of the dynamics, which a
    full quantile match would bend. Its slope stays near one, so that a steady hum is not torn apart.
    """
    settings = model.settings.transfer
    wanted = np.asarray(model.statistics["loudness_quantiles"])  # at 0, 1, ... 100 %
    percent = np.arange(10, 96, 5)
    found = np.quantile(loudness[played], percent / 100)
    slope = np.std(wanted[percent]) / max(np.std(found), 1e-3)
    slope = np.clip(slope, 1 / settings.max_loudness_slope, settings.max_loudness_slope)
    # Anchored in the upper half: notes, not their fading ends, decide how loud a player seems.
    anchor = np.quantile(loudness[played], settings.loudness_anchor / 100)
    gain = min(wanted[settings.loudness_anchor] - anchor, settings.max_loudness_gain)
    fitted = anchor + gain + slope * (loudness - anchor)
    return np.clip(fitted, model.settings.features.loudness_floor, wanted[-1])


def _fade(gate: np.ndarray, n_frames: int) -> np.ndarray:
    """Round the edges of a gate inward over ``n_frames``: float32 [T], still 0 wherever it was 0."""
    if n_frames < 1:
        return gate.astype(np.float32)
    distance = ndimage.distance_transform_edt(np.pad(gate, 1))[1:-1]
    return np.sin(np.clip(distance / (n_frames + 1), 0, 1) * np.pi / 2).astype(np.float32) ** 2


# --- playing --------------------------------------------------------------------------------------


@torch.inference_mode()
def play(model: NeuralGuitar, curves: Curves, seed: int) -> tuple[Sound, Controls]:
    """Play curves on the model; gated frames are silent in both parts."""
    device = next(model.parameters()).device
    f0, loudness, gate = (
        torch.from_numpy(values)[None, :, None].to(device) for values in (curves.f0, curves.loudness, curves.gate)
    )
    controls = Controls(*(values * gate for values in model.controls(f0, loudness)))
    return model.synthesize(f0, controls, torch.Generator(device).manual_seed(seed)), controls


def _limit_peak(sound: Sound, n_samples: int, max_peak: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Return both parts as [N] arrays, turned down together if their sum would exceed max_peak, and the gain in dB."""
    parts = [part[0, :n_samples].cpu().numpy() for part in sound]
    peak = float(np.abs(parts[0] + parts[1]).max())
    scale = min(1.0, 10 ** (max_peak / 20) / max(peak, 1e-9))
    return parts[0] * scale, parts[1] * scale, 20 * float(np.log10(scale))


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
    result = transfer(load_audio(source, rate), rate, model, args.semitones, not args.no_fit)
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
