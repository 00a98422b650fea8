"""Checkpoints: the only code that touches ``*.pth``.

A checkpoint is one dict of plain types and tensors that describes itself: it holds the whole
configuration, so no preset name is needed to load it. It is read with ``weights_only=True``, which
runs no code from the file, and written under a temporary name first, so that a crash or a full disk
never costs the checkpoint that was there.
"""

import os
import pickle
import re
import struct
from pathlib import Path
from typing import Any

import torch

from config import Config, adopt_settings, config_to_dict, load_config
from model import NeuralGuitar, build_model

FORMAT_VERSION = 1
LATEST = "latest.pth"
BEST = "best.pth"
PRETRAINED_DIR = Path(__file__).parent / "checkpoints" / "pretrained"

# What torch's unpickler raises on bytes that are no checkpoint.
_UNREADABLE = (
    RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError,
    struct.error,
)

_KEYS = (
    "format_version",
    "config",
    "preset",
    "instrument",
    "epoch",  # complete epochs
    "step",  # optimizer steps in all
    "position_in_epoch",  # steps done in the unfinished epoch
    "model",
    "optimizer",
    "schedule",
    "rng",
    "average",  # moving average of the weights, if any
    "wandb_id",
    "run_name",
    "statistics",
    "metrics",
)


def make_checkpoint(config: Config, instrument: str, **values: Any) -> dict[str, Any]:
    """Return a checkpoint dict; what is not given is None."""
    described = {
        "format_version": FORMAT_VERSION,
        "config": config_to_dict(config),
        "preset": config.preset,
        "instrument": instrument,
        **values,
    }
    unknown = set(described) - set(_KEYS)
    assert not unknown, f"not part of a checkpoint: {unknown}"
    return {key: described.get(key) for key in _KEYS}


def save_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write a checkpoint; until it is complete, what stood at ``path`` stays.

    Raises:
        OSError: it cannot be written (a full disk, say); nothing is lost.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    try:
        with partial.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        raise OSError(f"{path} could not be written ({error}); what was there is untouched") from error
    finally:
        partial.unlink(missing_ok=True)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU and check its form.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a checkpoint of this project, damaged, or of a newer format.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise ValueError(f"{path} is damaged or not a checkpoint; nothing in it was run") from error
    if not isinstance(checkpoint, dict) or "format_version" not in checkpoint:
        raise ValueError(f"{path} is not a checkpoint of this project")
    if checkpoint["format_version"] != FORMAT_VERSION:
        raise ValueError(f"{path} has format {checkpoint['format_version']}, this version reads {FORMAT_VERSION}")
    if differing := sorted(set(_KEYS) ^ set(checkpoint), key=str):
        raise ValueError(f"{path} lacks or adds {', '.join(map(str, differing))}; it is not whole")
    return checkpoint


def settings_of(checkpoint: dict[str, Any], path: Path) -> Config:
    """Return the configuration of a checkpoint, completed by config.json for what no weight depends on.

    Raises:
        ValueError: the checkpoint has a setting, or an instrument, that this version does not know.
    """
    try:
        settings = adopt_settings(checkpoint["config"], load_config())
        settings.instrument(checkpoint["instrument"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be used by this version: {error}") from error
    return settings


def load_weights(model: NeuralGuitar, checkpoint: dict[str, Any], path: Path) -> None:
    """Fill a model with a checkpoint's weights.

    Raises:
        ValueError: they belong to another architecture.
    """
    try:
        model.load_state_dict(checkpoint["model"])
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise ValueError(f"{path} holds weights of another architecture: {reason}") from error


def load_model(path: str | Path, device: torch.device | str = "cpu") -> NeuralGuitar:
    """Load a trained model, in eval mode, with ``settings``, ``instrument`` and ``statistics``.

    Raises:
        FileNotFoundError, ValueError: see ``read_checkpoint`` and ``load_weights``.
    """
    path = Path(path)
    checkpoint = read_checkpoint(path)
    settings = settings_of(checkpoint, path)
    try:
        model = build_model(settings, checkpoint["instrument"])
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{path} describes a model that cannot be built: {error}") from error
    load_weights(model, checkpoint, path)
    model.settings = settings
    model.instrument = checkpoint["instrument"]
    model.statistics = checkpoint["statistics"]
    return model.to(device).eval()


def pretrained_path(instrument: str) -> Path:
    """Return the shipped model of an instrument.

    Raises:
        ValueError: none is shipped; the message lists those that are.
    """
    path = PRETRAINED_DIR / f"{instrument}.pth"
    if not path.is_file():
        shipped = ", ".join(sorted(found.stem for found in PRETRAINED_DIR.glob("*.pth"))) or "none"
        raise ValueError(f"no model of '{instrument}' is shipped (there is {shipped}); train one and give --checkpoint")
    return path


def keep_newest(checkpoint_dir: Path, count: int) -> None:
    """Delete all but the newest ``count`` files ``model_epoch_N.pth``."""
    numbered = [path for path in checkpoint_dir.iterdir() if re.fullmatch(r"model_epoch_\d+\.pth", path.name)]
    paths = sorted(numbered, key=lambda path: int(path.stem.rpartition("_")[2]))
    for path in paths[: max(0, len(paths) - count)]:
        path.unlink()
