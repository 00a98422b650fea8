"""Corpus of one instrument: check a folder of processed recordings, split it for validation, measure statistics."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from config import Config
from data import FORMAT_VERSION, extractor_settings, find_recordings, load_recording, require_sane_curves
from recordings.crops import Span
from sound.atomic_files import write_text
from sound.plucks import measure_plucks, melody_plucks

RECORDING_ENDS = "ends"  # boundary of a split that holds out the end of each recording
MIN_WHOLE_TAKES = 5  # with fewer takes, the end of each is held out instead of whole takes
_INDEX = ".index.json"  # cache of read_corpus, so that it opens only new files
# Limits of measure_statistics, so that time and memory do not grow with the data.
_STATISTICS_RECORDINGS = 1000
_STATISTICS_FRAMES = 4_000_000
_BANDWIDTH_SHARE = 0.1  # a model's bandwidth is what this share of the time reaches


@dataclass(frozen=True)
class Corpus:
    """Recordings of one instrument, split so that training and validation share no sound."""

    folder: Path
    instrument: str
    training: tuple[Span, ...]
    validation: tuple[Span, ...]
    boundary: str | None = None  # takes with a sha256 up to this one are held out; or RECORDING_ENDS

    def validation_digest(self) -> str:
        """Return a sha256 that identifies the held-out sound."""
        spans = sorted((os.path.relpath(span.path, self.folder), span[1:]) for span in self.validation)
        return hashlib.sha256(repr(spans).encode()).hexdigest()


class _IndexLine(NamedTuple):
    """Index entry of a file: what the split needs, and a stamp that detects changes."""

    stamp: tuple[int, int, int]  # size in bytes, modification time in ns, inode
    instrument: str
    sha256: str
    n_frames: int


def read_corpus(data_dir: Path, config: Config, boundary: str | None = None) -> Corpus:
    """Check the processed files that are new since the last call, and split all files of a folder.

    Copies of one take (URMP reuses takes byte for byte) stay on the same side of the split. With fewer
    than five takes, the end of each is held out instead of whole takes.

    Args:
        data_dir: folder of processed files, searched recursively.
        config: settings that the files must have been made with, and the fraction to hold out.
        boundary: that of the corpus that an earlier training used. Recordings it trained on then stay in
            training, even if recordings have been added.

    Raises:
        ValueError: there are no files, one is damaged or stale, or they belong to several instruments.
    """
    spans: dict[str, list[Span]] = {}
    instruments: dict[str, Path] = {}
    for path, entry in _read_entries(data_dir, config):
        instruments.setdefault(entry.instrument, path)
        spans.setdefault(entry.sha256, []).append(Span(path, 0, entry.n_frames))
    if len(instruments) > 1:
        named = ", ".join(f"{name} ({path.name})" for name, path in instruments.items())
        raise ValueError(f"{data_dir} mixes instruments: {named}; a model learns one, use a folder for each")
    return Corpus(data_dir, next(iter(instruments)), *split_takes(spans, config.train.val_fraction, boundary))


def _read_entries(data_dir: Path, config: Config) -> list[tuple[Path, _IndexLine]]:
    """Return (path, index entry) of each file; open only files that the index lacks or that have changed."""
    known = _load_index(data_dir / _INDEX, config)
    entries, n_new = [], 0
    for path in tqdm(find_recordings(data_dir), desc="reading recordings", unit="file", delay=2, disable=None):
        status = path.stat()
        stamp = (status.st_size, status.st_mtime_ns, status.st_ino)
        entry = known.get(str(path.relative_to(data_dir)))
        if entry is None or entry.stamp != stamp:
            recording = load_recording(path, config)
            require_sane_curves(path, recording)
            entry = _IndexLine(stamp, recording.instrument, recording.source["sha256"], recording.n_frames)
            n_new += 1
        entries.append((path, entry))
    if n_new or len(entries) != len(known):
        _save_index(data_dir, config, entries)
    return entries


def _load_index(path: Path, config: Config) -> dict[str, _IndexLine]:
    """Return the index, empty if it is missing, unreadable or made with other settings."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        entries = {name: _IndexLine(tuple(stamp), *rest) for name, (stamp, *rest) in content["files"].items()}
        expected = [FORMAT_VERSION, _settings_of(entries.values(), config)]
        return entries if [content["format_version"], content["extractors"]] == expected else {}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}


def _save_index(data_dir: Path, config: Config, entries: list[tuple[Path, _IndexLine]]) -> None:
    files = {str(path.relative_to(data_dir)): entry for path, entry in entries}
    content = {"format_version": FORMAT_VERSION, "extractors": _settings_of(files.values(), config), "files": files}
    # The index only saves time: without it (read-only folder, full disk) all files are opened again.
    with contextlib.suppress(OSError):
        write_text(data_dir / _INDEX, json.dumps(content), shared=True)


def _settings_of(entries: Iterable[_IndexLine], config: Config) -> dict[str, Any]:
    return {name: extractor_settings(config, name) for name in sorted({entry.instrument for entry in entries})}


def split_takes(
    takes: dict[str, list[Span]], val_fraction: float, boundary: str | None
) -> tuple[tuple[Span, ...], tuple[Span, ...], str | None]:
    """Return (training spans, validation spans, boundary) for recordings grouped by the sha256 of their take."""
    # Sorting by hash is as good as random, and stable when recordings are added or renamed.
    digests = sorted(takes)
    if boundary not in (None, RECORDING_ENDS) and boundary >= digests[-1]:  # it would hold out everything
        boundary = None
    if boundary == RECORDING_ENDS or (boundary is None and len(digests) < MIN_WHOLE_TAKES):
        pairs = [_cut_end(span, val_fraction) for digest in digests for span in takes[digest]]
        return tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs if pair[1].n_frames), RECORDING_ENDS
    if boundary is None:
        n_held_out = min(max(1, round(val_fraction * len(digests))), len(digests) - 1) if val_fraction > 0 else 0
        boundary = digests[n_held_out - 1] if n_held_out else ""
    held_out = [span for digest in digests if digest <= boundary for span in takes[digest]]
    training = [span for digest in digests if digest > boundary for span in takes[digest]]
    return tuple(training), tuple(held_out), boundary


def split_boundary(checkpoint: dict[str, Any]) -> str | None:
    """Return the split boundary that a checkpoint stores, for ``read_corpus``; None if it stores none."""
    return (checkpoint["schedule"] or {}).get("boundary")


def _cut_end(span: Span, fraction: float) -> tuple[Span, Span]:
    n_kept = span.n_frames - round(fraction * span.n_frames)
    return Span(span.path, 0, n_kept), Span(span.path, n_kept, span.n_frames - n_kept)


def measure_statistics(spans: Sequence[Span], config: Config) -> dict[str, Any]:
    """Measure statistics of the training data, which voices are fitted to; large sets are sampled evenly.

    Returns:
        ``f0_quantiles`` in Hz and ``loudness_quantiles`` in dB, each at 0, 1, ... 100 % of the voiced frames.
        ``bandwidth`` in Hz, reached in a tenth of the time, which is enough to learn that band from; only if
        the recordings state a bandwidth. ``plucks``, a ``PluckTable``; only for a plucked instrument.

    Raises:
        ValueError: no frame has a pitch.
    """
    f0, loudness, bandwidths, plucks = [], [], [], []
    frame_rate, window = config.audio.frame_rate, config.features.loudness_window / config.audio.feature_rate
    chosen = spans[:: -(-len(spans) // _STATISTICS_RECORDINGS)]
    every = -(-sum(span.n_frames for span in chosen) // _STATISTICS_FRAMES)
    for span in chosen:
        recording = load_recording(span.path)
        if recording.bandwidth is not None:
            bandwidths.append((recording.bandwidth, span.n_frames))
        frames = slice(span.first_frame, span.first_frame + span.n_frames, every)
        voiced = recording.periodicity[0, frames, 0] >= config.features.periodicity_threshold
        voiced &= recording.loudness[0, frames, 0] > config.features.loudness_floor
        f0.append(recording.f0[0, frames, 0][voiced])
        loudness.append(recording.loudness[0, frames, 0][voiced])
        if config.instrument(recording.instrument).articulation == "plucked":
            here = slice(span.first_frame, span.first_frame + span.n_frames)
            curves = (values[0, here, 0].numpy() for values in (recording.f0, recording.loudness))
            plucks += melody_plucks(*curves, frame_rate, window)
    if sum(map(len, f0)) == 0:
        raise ValueError("no frame of the training data has a pitch; use recordings of single notes")
    steps = np.linspace(0, 1, 101)
    return {
        "f0_quantiles": np.quantile(torch.cat(f0).numpy(), steps).tolist(),
        "loudness_quantiles": np.quantile(torch.cat(loudness).numpy(), steps).tolist(),
        **({"bandwidth": _bandwidth_reached(bandwidths, _BANDWIDTH_SHARE)} if bandwidths else {}),
        **({"plucks": measure_plucks(plucks, frame_rate, window).to_dict()} if plucks else {}),
    }


def _bandwidth_reached(bandwidths: list[tuple[float, int]], share: float) -> float:
    """Return the widest bandwidth that at least ``share`` of the time reaches.

    Args:
        bandwidths: (bandwidth in Hz, number of frames) of each recording.
        share: 0..1.
    """
    bandwidths = sorted(bandwidths, reverse=True)
    times = np.cumsum([time for _, time in bandwidths])
    return float(bandwidths[int(np.searchsorted(times, share * times[-1]))][0])
