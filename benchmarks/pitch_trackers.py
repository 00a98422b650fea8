"""Compare pitch trackers on sound whose pitch is known: a voice with its annotation, instruments rendered from MIDI.

    ./venv/bin/python scripts/compare_trackers.py --voice examples/hum.wav --rendered data/raw/rendered/trumpet

Each hears the sound clean and with white noise, seeded, so many dB below the mean power of the recording. It is judged
as melody extraction is (Salamon et al., IEEE Signal Processing Magazine, 2014): by its pitch wherever one is sung or
played, also where it is not sure of it, and by where it claims one. A tracker that is not installed is left
out, and a line says so.
"""

import argparse
import json
import logging
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from evaluation.scorecard import AUDIBLE_LEVEL, add_noise
from features import extract_loudness, pad_to_frames
from recordings.pitch_annotations import count_octave_errors, read_voice_annotation
from sound.atomic_files import write_text
from sound.audio_files import load_audio
from trackers import CONFIG, FRAME, HOP, RATE, TRACKERS, Track, Tracker, find_installed, to_grid
from voice.midi import read_midi_f0

LOW, LOW_NAME = 146.83, "D3"  # Hz; rendered notes below it are judged by themselves too
_FEWEST = 100  # frames of such notes that are worth a column
log = logging.getLogger("compare_trackers")


# --- sound whose pitch is known -------------------------------------------------------------------


class Clip(NamedTuple):
    audio: np.ndarray  # [T * HOP] at RATE
    f0: np.ndarray  # [T] Hz, 0 in frames that do not count
    silent: np.ndarray  # [T] nothing is sung or played


class Source(NamedTuple):
    name: str
    clips: list[Clip]
    rendered: bool


def read_voice(path: Path) -> Source:
    """Read a recording and the annotation beside it.

    Raises:
        FileNotFoundError, ValueError: one of them is not there, or cannot be read.
    """
    audio = pad_to_frames(load_audio(path, RATE), HOP)
    f0 = read_voice_annotation(path, len(audio) // HOP, FRAME)
    if f0 is None:
        raise FileNotFoundError(f"{path} has no annotation beside it: {path.stem}_f0.csv, rows of seconds and Hz")
    return Source(path.stem, [Clip(audio, f0, f0 == 0)], rendered=False)


def read_rendered(folder: Path, n_takes: int) -> Source:
    """Read the first takes that ``render_dataset.py`` has written to a folder, and what their MIDI files play.

    Raises:
        FileNotFoundError, ValueError: there are none, or one cannot be read.
    """
    paths = sorted(folder.glob("*.wav"))[:n_takes]
    if not paths:
        raise FileNotFoundError(f"{folder} holds no wav files; scripts/render_dataset.py writes some")
    return Source(folder.resolve().name, [read_take(path) for path in paths], rendered=True)


def read_take(path: Path) -> Clip:
    """Read a rendered take; of the notes held, the frames count that can be heard."""
    audio = pad_to_frames(load_audio(path, RATE), HOP)
    f0 = read_midi_f0(path.with_suffix(".mid"), len(audio) // HOP, CONFIG)
    return Clip(audio, np.where(extract_loudness(audio, CONFIG) > AUDIBLE_LEVEL, f0, 0.0), f0 == 0)


def mix(audio: np.ndarray, snr: float | None, seed: int) -> np.ndarray:
    """Return a sound with noise, or as it is if ``snr`` is None; turned down where it would clip."""
    mixed = audio if snr is None else add_noise(audio, snr, seed)
    return mixed / max(1.0, float(np.abs(mixed).max()))


# --- figures --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figures:
    """Of a curve; None where there was nothing to judge. Frames count that have a true pitch."""

    within_50_cents: float | None  # share of the frames that count
    median_cents: float | None  # error of those that are
    octave_errors: float | None  # share of the frames that count
    found: float | None  # share of the frames that count in which a pitch is claimed
    false_alarms: float | None  # share of the silent frames in which a pitch is claimed


def judge(truth: np.ndarray, silent: np.ndarray, f0: np.ndarray, voiced: np.ndarray) -> Figures:
    """Compare f0 with the truth, both in Hz and [T]; 0 is no pitch."""
    counted = truth > 0
    cents = np.abs(1200 * np.log2(np.maximum(f0[counted], 1e-3) / truth[counted]))
    near = cents[cents <= 50]
    wrong, _ = count_octave_errors(truth, f0, f0 > 0)
    return Figures(
        within_50_cents=_share(len(near), len(cents)),
        median_cents=float(np.median(near)) if len(near) else None,
        octave_errors=_share(wrong, len(cents)),
        found=_share(int(voiced[counted].sum()), len(cents)),
        false_alarms=_share(int(voiced[silent].sum()), int(silent.sum())),
    )


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


# --- measuring ------------------------------------------------------------------------------------


def measure(sources: list[Source], tracker: Tracker, snrs: list[float | None], seed: int) -> dict[str, Any]:
    """Return a tracker's figures for each sound and each SNR, and the processor time that a second of sound takes."""
    track, rows = tracker.build(), []
    for source in sources:
        for snr in snrs:
            mixed = [mix(clip.audio, snr, seed + number) for number, clip in enumerate(source.clips)]
            curves = [to_grid(track(audio), len(audio) // HOP) for audio in mixed]
            f0, voiced = map(np.concatenate, zip(*curves))
            for name, truth, silent in list_parts(source):
                rows.append({"sound": name, "snr": snr, **asdict(judge(truth, silent, f0, voiced))})
    return {"tracker": tracker.label, "core_seconds": measure_time(track, sources[0].clips[0].audio), "sounds": rows}


def list_parts(source: Source) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Return names, true f0 and silent frames, [T] of all clips: of a sound, and of its low notes if it has such."""
    truth, silent = (np.concatenate([getattr(clip, name) for clip in source.clips]) for name in ("f0", "silent"))
    low = np.where(truth < LOW, truth, 0.0)
    parts = [(source.name, truth, silent), (f"{source.name} under {LOW_NAME}", low, silent)]
    return parts if source.rendered and np.count_nonzero(low) >= _FEWEST else parts[:1]


def measure_time(track: Track, audio: np.ndarray) -> float:
    """Return the processor time of a second of sound in s, the median of three runs."""
    times = []
    for _ in range(3):
        before = time.process_time()
        track(audio)
        times.append(time.process_time() - before)
    return statistics.median(times) / (len(audio) / RATE)


# --- tables ---------------------------------------------------------------------------------------

TABLES = {  # title, factor
    "within_50_cents": ("Share of the sung or played frames within 50 cents, %", 100),
    "octave_errors": ("Share of them that are whole octaves off, %", 100),
    "found": ("Share of them in which a pitch is claimed, %", 100),
    "median_cents": ("Median error of those within 50 cents, in cents", 1),
    "false_alarms": ("Share of the silent frames in which a pitch is claimed, %", 100),
}


def format_tables(report: dict[str, Any]) -> str:
    """Return a Markdown table for each figure."""
    conditions = " / ".join("clean" if snr is None else f"{snr:g} dB" for snr in report["snrs"])
    tables = {title: format_table(report, figure, factor) for figure, (title, factor) in TABLES.items()}
    return "\n\n".join(f"{title}; {conditions}:\n\n{table}" for title, table in tables.items())


def format_table(report: dict[str, Any], figure: str, factor: float) -> str:
    """Return the table of one figure: a row for each tracker, a column for each sound."""
    heads = [f"{name}, {seconds:.0f} s" for name, seconds in report["seconds"].items()]
    lines = [["tracker", *heads, "core s / s"], ["---"] * (len(heads) + 2)]
    for result in report["trackers"]:
        cells = [
            " / ".join(_format(row[figure], factor) for row in result["sounds"] if row["sound"] == name)
            for name in report["seconds"]
        ]
        lines.append([result["tracker"], *cells, f"{result['core_seconds']:.2g}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _format(value: float | None, factor: float) -> str:
    return "-" if value is None else f"{factor * value:.1f}"


# --- command line ---------------------------------------------------------------------------------


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare pitch trackers on sound whose pitch is known.")
    parser.add_argument("--voice", type=Path, nargs="+", default=[], help="recordings with NAME_f0.csv beside them")
    parser.add_argument("--rendered", type=Path, nargs="+", default=[], help="folders made by render_dataset.py")
    parser.add_argument("--takes", type=int, default=6, help="of each folder, the first so many (default %(default)s)")
    parser.add_argument("--snr", type=float, nargs="*", default=[20, 10, 0], help="dB (default 20 10 0)")
    parser.add_argument("--trackers", nargs="+", choices=TRACKERS, default=list(TRACKERS), help="(default all)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default %(default)s)")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    args = parser.parse_args(argv)
    if not args.voice and not args.rendered:
        parser.error("give a --voice or a --rendered folder, or both")
    if args.takes < 1 or args.seed < 0 or not all(-100 <= snr <= 200 for snr in args.snr):
        parser.error("--takes should be at least 1, --seed at least 0, --snr between -100 and 200")
    return args


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure what the command line asks for.

    Raises:
        FileNotFoundError, ValueError: a sound or its pitch cannot be read, or two sounds have one name.
    """
    sources = [*map(read_voice, args.voice), *(read_rendered(folder, args.takes) for folder in args.rendered)]
    snrs, trackers = [None, *args.snr], find_installed(args.trackers)
    parts = [part for source in sources for part in list_parts(source)]
    seconds = {name: np.count_nonzero(truth) * FRAME for name, truth, _ in parts}
    if len(seconds) < len(parts):
        raise ValueError(f"sounds of the same name cannot be told apart: {', '.join(name for name, *_ in parts)}")
    results = [measure(sources, each, snrs, args.seed) for each in tqdm(trackers, unit="tracker", disable=None)]
    return {"seed": args.seed, "snrs": snrs, "seconds": seconds, "trackers": results}


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    try:
        report = run(args)
        print(format_tables(report))
        if args.json:
            write_text(args.json, json.dumps(report, indent=2, allow_nan=False) + "\n")
    except (ValueError, OSError) as error:
        log.error("compare_trackers.py: %s", error)
        return 1
    except KeyboardInterrupt:
        log.error("compare_trackers.py: stopped; nothing was written")
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
