"""Check whether a folder of processed recordings is fit to train on.

    ./venv/bin/python scripts/inspect_dataset.py --data_dir data/processed/guitar --html out/guitar.html

Reports the amount of sound, the coverage of the instrument's range and dynamics, and takes that harm a model of single
notes (chords, clipping, silence, hum, bleed, reverb, telephone sound, copies). With ``--annotations`` of GuitarSet or
URMP, also reports octave errors of the pitch tracker. Thresholds are in ``config.json`` (``inspect``) and in
``recordings/inspection.py``.

The exit code is 0 if the set is fit (perhaps with advice), 1 if there are problems, 2 if it cannot be inspected.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from config import DEFAULT_CONFIG_PATH, DEFAULT_PRESET, Config, load_config
from data import Recording, extractor_settings, find_recordings, load_recording, require_sane_curves
from recordings.inspection import (
    Finding,
    RecordingMeasurement,
    judge_coverage,
    judge_duplicates,
    judge_faulty_takes,
    judge_octave_errors,
    list_faults,
    measure_coverage,
    measure_dynamics,
    measure_for_inspection,
)
from recordings.inspection_report import write_inspection_page
from recordings.pitch_annotations import count_octave_errors, find_annotations, read_annotation
from sound.console import as_command, command_parser, suggest
from sound.crepe import note_name


@dataclass(frozen=True)
class Inspection:
    """Measurements and findings of a set."""

    data_dir: Path
    recordings: list[RecordingMeasurement]
    findings: list[Finding]
    octave_errors: tuple[int, int]  # frames with an octave error, frames compared with an annotation

    @property
    def is_fit(self) -> bool:
        return not any(finding.is_problem for finding in self.findings)

    @property
    def verdict(self) -> str:
        n_problems = sum(finding.is_problem for finding in self.findings)
        if n_problems:
            return f"not fit to train on yet: {n_problems} problem{'s' if n_problems > 1 else ''}"
        return "fit to train on" + (", with advice" if self.findings else "")


def inspect(data_dir: Path, config: Config, annotations: Path | None = None) -> Inspection:
    """Measure and judge all recordings of a folder.

    Raises:
        ValueError: there are no readable processed files, or they belong to several instruments.
    """
    annotated = find_annotations(annotations) if annotations else {}
    if annotations and not annotated:
        raise ValueError(f"{annotations} holds neither F0s_*.txt (URMP) nor *.jams (GuitarSet)")
    measured, unreadable, stale, errors = [], [], [], np.zeros(2, int)
    for path in tqdm(find_recordings(data_dir), unit="file", desc="inspect", leave=False, disable=None):
        try:
            recording = load_recording(path)
            require_sane_curves(path, recording)
        except ValueError as error:
            unreadable.append(str(error))
            continue
        if recording.extractor != extractor_settings(config, recording.instrument):
            stale.append(path.name.removesuffix(".pt"))
        measured.append(measure_for_inspection(path, recording, config))
        annotation = annotated.get(Path(recording.source.get("file", "")).stem)
        if annotation:
            errors += compare_pitch(recording, annotation, config)
    if not measured:
        raise ValueError(f"{data_dir} holds no readable processed file; {unreadable[0]}")
    instruments = sorted({each.instrument for each in measured})
    if len(instruments) > 1:
        raise ValueError(f"{data_dir} mixes {', '.join(instruments)}; a model learns one, use a folder for each")
    findings = [Finding(True, text) for text in unreadable]
    if stale:
        text = f"{len(stale)} of {len(measured)} recordings were made with other settings, or by an earlier version"
        findings.append(Finding(True, f"{text}; run preprocess.py again", tuple(stale)))
    findings += judge_coverage(measured, config) + judge_faulty_takes(measured, config) + judge_duplicates(measured)
    findings += judge_octave_errors(tuple(errors.tolist()), bool(annotated), config)
    findings.sort(key=lambda finding: not finding.is_problem)
    return Inspection(data_dir, measured, findings, tuple(errors.tolist()))


def compare_pitch(recording: Recording, annotation: Path, config: Config) -> tuple[int, int]:
    """Return (frames with an octave error, frames compared) of one recording."""
    audio = recording.extractor["audio"]
    truth = read_annotation(annotation, recording.n_frames, audio["hop_length"] / audio["sample_rate"])
    voiced = recording.periodicity[0, :, 0].numpy() >= config.features.periodicity_threshold
    return count_octave_errors(truth, recording.f0[0, :, 0].numpy(), voiced)


# --- text -----------------------------------------------------------------------------------------


def summarise(found: Inspection, config: Config) -> list[tuple[str, str]]:
    """Return the measurements of the set as (name, value)."""
    recordings = found.recordings
    instrument = config.instrument(recordings[0].instrument)
    seconds, voiced = (sum(getattr(each, name) for each in recordings) for name in ("seconds", "voiced_seconds"))
    rows = [
        ("recordings", f"{len(recordings)} of {recordings[0].instrument}"),
        ("total", f"{seconds / 60:.1f} min"),
        ("voiced", f"{voiced / 60:.1f} min"),
    ]
    if voiced:
        least = config.inspect.min_seconds_per_note
        inside, covered, _ = measure_coverage(recordings, instrument, least, config.audio.frame_rate)
        span = f"{note_name(instrument.f0_min)} to {note_name(instrument.f0_max)}"
        rows += [
            ("inside " + span, f"{inside:.0%}"),
            ("notes covered", f"{covered.sum()} of {len(covered)}"),
            ("soft to loud", f"{measure_dynamics(recordings):.0f} dB"),
        ]
    if found.octave_errors[1]:
        rows.append(("octave errors", f"{found.octave_errors[0] / found.octave_errors[1]:.1%}"))
    return rows


def format_text(found: Inspection, config: Config) -> str:
    """Format the result for a terminal."""
    lines = [f"{found.data_dir}: " + ", ".join(f"{name} {value}" for name, value in summarise(found, config))]
    for finding in found.findings:
        lines.append(f"{'problem' if finding.is_problem else 'advice'}: {finding.text}")
        lines += [f"    {name}" for name in finding.recordings[:5]]
        lines += [f"    and {len(finding.recordings) - 5} more"] * (len(finding.recordings) > 5)
    return "\n".join([*lines, f"verdict: {found.verdict}"])


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_parser("Check processed recordings before training.")
    parser.add_argument("--data_dir", type=Path, required=True, help="folder of processed files (.pt)")
    parser.add_argument("--html", type=Path, help="write a report with pictures to this file")
    parser.add_argument("--annotations", type=Path, help="folder with URMP's F0s_*.txt or GuitarSet's *.jams")
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG_PATH, help="settings (default: config.json)")
    parser.add_argument("--config_name", default=DEFAULT_PRESET, help=f"preset (default: {DEFAULT_PRESET})")
    args = parser.parse_args(argv)
    for flag in ("data_dir", "annotations"):
        folder = getattr(args, flag)
        if folder is not None and not folder.is_dir():
            parser.error(f"--{flag} {folder} is not a folder")
    return args


@as_command(failure=2)
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    config = load_config(args.config, args.config_name)
    found = inspect(args.data_dir, config, args.annotations)
    if args.html:
        faults = list_faults(config)
        marks = {each.name: [name for name, (test, _) in faults.items() if test(each)] for each in found.recordings}
        write_inspection_page(args.html, found, summarise(found, config), marks, config)
    print(format_text(found, config))
    if found.is_fit:
        preset = "solo" if args.config_name == DEFAULT_PRESET else args.config_name
        folders = args.data_dir, f"checkpoints/{args.data_dir.name}"
        suggest("train.py --data_dir {} --checkpoint_dir {} --config_name {}", *folders, preset)
    return 0 if found.is_fit else 1


if __name__ == "__main__":
    raise SystemExit(main())
