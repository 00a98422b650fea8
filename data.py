"""Read and write processed recordings, one ``.pt`` file each; ``recordings/crops.py`` cuts training crops from them.

A file is a dict of plain types and tensors, readable with ``torch.load(weights_only=True)``. It stores
the settings it was made with; a file made with other settings is stale and refused. Files are memory
mapped: a crop reads only its own samples, so memory does not grow with the data set.
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from config import Config, require_name
from sound.atomic_files import load_tensors, save_tensors

FORMAT_VERSION = 1
_EXTRACTION_VERSION = 2  # increase it whenever the results of features.py or sound/crepe.py change
_FRAME_KEYS = ("f0", "loudness", "periodicity")
_KEYS = ("format_version", "instrument", *_FRAME_KEYS, "audio", "source", "extractor", "bandwidth")
# Hz, dB, a share, of full scale
_RANGES = {"f0": (1.0, 2e4), "loudness": (-300.0, 100.0), "periodicity": (0.0, 1.0), "audio": (-100.0, 100.0)}
_MAX_RATE, _MAX_HOP = 192_000, 2000  # Hz, samples


@dataclass(frozen=True)
class Recording:
    """A measured recording with T frames and N == T * hop_length samples."""

    instrument: str
    f0: Tensor  # [1, T, 1] Hz, positive
    loudness: Tensor  # [1, T, 1] dB re full scale
    periodicity: Tensor  # [1, T, 1] 0..1
    audio: Tensor  # [1, N] at extractor["audio"]["sample_rate"]
    source: dict[str, str]  # file name and sha256 of the source recording
    extractor: dict[str, Any]  # settings of the measurement
    bandwidth: float | None = None  # Hz; None: up to Nyquist

    @property
    def n_frames(self) -> int:
        return self.f0.shape[1]

    @property
    def bandwidth_share(self) -> float:
        """Bandwidth as a fraction of the Nyquist frequency, 0..1."""
        return 1.0 if self.bandwidth is None else self.bandwidth / (self.extractor["audio"]["sample_rate"] / 2)


def extractor_settings(config: Config, instrument: str) -> dict[str, Any]:
    """Return all settings that processed files of an instrument depend on."""
    config = config.for_recordings_of(instrument)
    return {
        "version": _EXTRACTION_VERSION,
        "audio": dataclasses.asdict(config.audio),
        "features": dataclasses.asdict(config.features),
    }


def save_recording(path: Path, recording: Recording) -> None:
    """Write a processed file atomically.

    Raises:
        OSError: it cannot be written (for example, the disk is full); an existing file is kept.
    """
    save_tensors(path, {"format_version": FORMAT_VERSION, **vars(recording)})


def load_recording(path: Path, config: Config | None = None) -> Recording:
    """Read and check a processed file.

    Args:
        path: the ``.pt`` file.
        config: settings that the file must have been made with; None accepts any.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not a processed file, is damaged, or is stale.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        content = load_tensors(path, mmap=True)
    except ValueError as error:
        raise ValueError(f"{path} is not a readable processed file; run preprocess.py again") from error
    if not isinstance(content, dict) or set(content) != set(_KEYS):
        raise ValueError(f"{path} is not a processed file, or is from an earlier version; run preprocess.py")
    version = content.pop("format_version")
    if not isinstance(version, int) or version != FORMAT_VERSION:
        raise ValueError(f"{path} does not have format version {FORMAT_VERSION}; run preprocess.py again")
    recording = Recording(**content)
    _check_description(path, recording)
    _check_shapes(path, recording)
    if config is not None:
        _require_settings(path, recording, config)
    return recording


def _require_settings(path: Path, recording: Recording, config: Config) -> None:
    """Raise ValueError if a recording was made with other settings."""
    wanted = extractor_settings(config, recording.instrument)
    if recording.extractor == wanted:
        return
    rate = recording.extractor["audio"].get("sample_rate")
    if rate != config.audio.sample_rate:
        raise ValueError(
            f"{path} holds sound at {rate} Hz, but preset {config.preset} needs {config.audio.sample_rate} Hz; "
            f"run ./venv/bin/python preprocess.py --config_name {config.preset} --input_dir RECORDINGS "
            f"--output_dir {path.parent}, or train the preset that the files were made for"
        )
    raise ValueError(f"{path} was made with other settings, or by an earlier version; run preprocess.py again")


def _check_description(path: Path, recording: Recording) -> None:
    source, extractor = recording.source, recording.extractor
    described = (
        isinstance(source, dict)
        and all(isinstance(value, str) and len(value) < 1000 for item in source.items() for value in item)
        and "sha256" in source
        and isinstance(extractor, dict)
        and isinstance(extractor.get("audio"), dict)
        and _is_plain(extractor)
        and _is_within(extractor["audio"].get("hop_length"), _MAX_HOP)
        and _is_within(extractor["audio"].get("sample_rate"), _MAX_RATE)
        and (recording.bandwidth is None or (isinstance(recording.bandwidth, float) and 0 < recording.bandwidth < 1e6))
    )
    if not described:
        raise ValueError(f"{path} has no valid source, extractor or bandwidth; run preprocess.py again")
    require_name(f"the instrument of {path}", recording.instrument)


def _is_plain(settings: dict[str, Any]) -> bool:
    """Return True if settings, and the sections in them, hold nothing but numbers and text."""
    values = [
        entry for value in settings.values() for entry in (value.values() if isinstance(value, dict) else [value])
    ]
    return all(isinstance(value, int | float | str) for value in values)


def _is_within(value: Any, limit: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= limit


def find_wrong_values(recording: Recording, names: Iterable[str]) -> list[str]:
    """Return a phrase for each of the named tensors with NaN or implausible values."""
    problems = []
    for name in names:
        low, high = _RANGES[name]
        values = getattr(recording, name)
        if n_wrong := values.numel() - int(((values >= low) & (values <= high)).sum()):
            problems.append(f"{name} has {n_wrong} values outside {low:g} to {high:g}, or NaN")
    return problems


def require_sane_curves(path: Path, recording: Recording) -> None:
    """Raise ValueError if f0, loudness or periodicity has NaN or implausible values."""
    if problems := find_wrong_values(recording, _FRAME_KEYS):
        raise ValueError(f"{path}: {'; '.join(problems)}; scripts/check_dataset_nans.py finds all such files")


def _check_shapes(path: Path, recording: Recording) -> None:
    tensors = [getattr(recording, key) for key in (*_FRAME_KEYS, "audio")]
    if not all(isinstance(tensor, Tensor) and tensor.dtype == torch.float32 for tensor in tensors):
        raise ValueError(f"{path} does not hold float32 tensors; run preprocess.py again")
    n_frames = tensors[0].numel()
    n_samples = n_frames * recording.extractor["audio"]["hop_length"]
    if n_frames == 0:
        raise ValueError(f"{path} holds no frames; run preprocess.py again")
    if any(tensor.shape != (1, n_frames, 1) for tensor in tensors[:3]) or tensors[3].shape != (1, n_samples):
        shapes = [tuple(tensor.shape) for tensor in tensors]
        raise ValueError(f"{path} holds inconsistent shapes {shapes}; run preprocess.py again")


def list_recordings(data_dir: Path) -> list[Path]:
    """Return the processed files below a folder, sorted, without hidden ones (partial downloads, macOS files)."""
    paths = sorted(data_dir.rglob("*.pt"))
    return [path for path in paths if not any(part.startswith(".") for part in path.relative_to(data_dir).parts)]


def find_recordings(data_dir: Path) -> list[Path]:
    """Return the processed files below a folder, sorted; there is at least one.

    Raises:
        ValueError: the folder holds no processed files.
    """
    paths = list_recordings(data_dir)
    if not paths:
        reason = "holds no .pt files" if data_dir.is_dir() else "is not a folder"
        raise ValueError(f"{data_dir} {reason}; run preprocess.py first")
    return paths
