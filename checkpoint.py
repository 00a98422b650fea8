"""Checkpoints: the only code that touches ``*.pth``.

A checkpoint is one dict of plain types and tensors that describes itself: it holds the whole
configuration, so no preset name is needed to load it. It is read with ``weights_only=True``, which
runs no code from the file, and written under a temporary name first, so that a crash or a full disk
never destroys the previous checkpoint.
"""

import math
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from config import (
    Config,
    adopt_instrument,
    adopt_settings,
    config_to_dict,
    load_config,
    require_name,
    short_list,
    short_repr,
)
from model import NeuralGuitar, build_model
from sound.atomic_files import load_tensors, save_tensors
from sound.plucks import PluckTable

FORMAT_VERSION = 2
LATEST = "latest.pth"
BEST = "best.pth"
PRETRAINED_DIR = Path(__file__).parent / "checkpoints" / "pretrained"

_LOSS_SETTINGS = ("loss.", "train.crop_seconds", "train.ema_decay")  # settings on which a validation loss depends
_COUNTS = ("epoch", "step", "position_in_epoch", "loss_count", "epochs_since_best", "n_crops")
_KINDS = {  # of the values that describe a training, in the checkpoint or in its parts; each may be None
    **dict.fromkeys(("metrics", "rng", "schedule"), dict),
    **dict.fromkeys((*_COUNTS, "seed"), int),
    **dict.fromkeys(("best_val_loss", "first_val_loss"), (int, float)),
    **dict.fromkeys(("run_name", "wandb_id", "boundary", "validation"), str),
    "phrases": list,
}
_MAX_COUNT, _MAX_SEED = 10**12, 2**64
_KEYS = (
    "format_version",
    "config",
    "preset",
    "instrument",
    "epoch",  # complete epochs
    "step",  # optimizer steps in total
    "position_in_epoch",  # crops trained on in the unfinished epoch
    "model",
    "optimizer",
    "schedule",
    "rng",  # all random numbers depend only on the seed and the position in the training
    "average",  # moving average of the weights, if any
    "wandb_id",
    "run_name",
    "statistics",
    "metrics",
)


def make_checkpoint(config: Config, instrument: str, **values: Any) -> dict[str, Any]:
    """Return a checkpoint dict; keys that are not given are None."""
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
    """Write a checkpoint.

    Raises:
        OSError: it cannot be written; the file at ``path`` stays as it was.
    """
    save_tensors(path, checkpoint)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU and check its form.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a checkpoint of this project, damaged, or of a newer format.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # torch's remarks on foreign pickles
            checkpoint = load_tensors(path)
    except ValueError as error:
        raise ValueError(f"{path} is damaged or not a checkpoint; no code in it was run") from error
    if not isinstance(checkpoint, dict) or "format_version" not in checkpoint:
        raise ValueError(f"{path} is not a checkpoint of this project")
    version = checkpoint["format_version"]
    if not isinstance(version, int) or version != FORMAT_VERSION:
        raise ValueError(f"{path} has format {short_repr(version)}, this version reads {FORMAT_VERSION}")
    if differing := _differing_keys(checkpoint, _KEYS):
        raise ValueError(f"{path} lacks or adds {short_list(differing)}; it is not whole")
    _check_description(checkpoint, path)
    return checkpoint


def _differing_keys(given: dict[Any, Any], expected: Iterable[str]) -> list[Any]:
    expected = dict.fromkeys(expected)
    return [key for key in expected if key not in given] + [key for key in given if key not in expected]


def _check_description(checkpoint: dict[str, Any], path: Path) -> None:
    """Raise ValueError if a value that describes the training is of the wrong type or too large."""
    require_name(f"{path}: the instrument", checkpoint["instrument"])
    require_name(f"{path}: the preset", checkpoint["preset"])
    for name, kind in _KINDS.items():
        parts = (checkpoint, *(checkpoint[part] or {} for part in ("metrics", "rng", "schedule")))
        for value in (part[name] for part in parts if name in part):
            limit = _MAX_SEED if name == "seed" else _MAX_COUNT
            is_fit = value is None or (isinstance(value, kind) and (kind is not int or 0 <= value < limit))
            if not is_fit or (kind is list and not all(isinstance(entry, str) for entry in value or ())):
                raise ValueError(f"{path}: {name} is {short_repr(value)}, which no training writes")


def checkpoint_config(checkpoint: dict[str, Any], path: Path, current: Config | None = None) -> Config:
    """Return the configuration of a checkpoint, completed by ``current`` where the weights do not depend on it.

    Args:
        checkpoint: as ``read_checkpoint`` returns it.
        path: its path, for error messages.
        current: the current configuration (default: config.json).

    Raises:
        ValueError: the checkpoint has a setting or an instrument that is unknown to this version.
    """
    try:
        settings = adopt_settings(checkpoint["config"], current or load_config())
        settings = adopt_instrument(checkpoint["config"], checkpoint["instrument"], settings)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be used by this version: {error}") from error
    return settings


def crop_order_changes(checkpoint: dict[str, Any], seed: int, n_crops: int) -> dict[str, str]:
    """Return changes since a checkpoint that alter the order of crops: name to "old -> new"."""
    now = {"seed": seed, "crops an epoch": n_crops}
    rng, schedule = (checkpoint[name] or {} for name in ("rng", "schedule"))
    before = {"seed": rng.get("seed"), "crops an epoch": schedule.get("n_crops")}
    return {name: f"{before[name]} -> {now[name]}" for name in now if before[name] not in (None, now[name])}


def makes_losses_incomparable(checkpoint: dict[str, Any], changes: Iterable[str], is_averaged: bool) -> bool:
    """Return True if validation losses are no longer comparable with those of a checkpoint.

    Args:
        checkpoint: the earlier state of the training.
        changes: the settings that have changed since, such as "loss.eps".
        is_averaged: True if the moving average of the weights is now validated.
    """
    switched = is_averaged != (checkpoint["average"] is not None)
    return switched or any(name.startswith(_LOSS_SETTINGS) for name in changes)


def load_weights(model: NeuralGuitar, weights: dict[str, Any], path: Path) -> None:
    """Fill a model with weights from a checkpoint: ``model`` to train on, ``inference_weights`` to play.

    Raises:
        ValueError: the weights belong to another architecture.
    """
    _copy_weights(model, weights, path)
    if not all(weight.isfinite().all() for weight in model.parameters()):
        raise ValueError(f"{path} holds weights that are not finite (NaN or infinity); use an earlier one")


def _copy_weights(model: NeuralGuitar, weights: dict[str, Any], path: Path) -> None:
    if isinstance(weights, dict) and (differing := _differing_keys(weights, model.state_dict())):
        raise ValueError(f"{path} holds weights of another architecture: it lacks or adds {short_list(differing)}")
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # a copy to the meta device copies nothing
            model.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[-1].strip()[:300]
        raise ValueError(f"{path} holds weights of another architecture: {reason}") from error


def inference_weights(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return the weights that were validated: their moving average, if there is one."""
    return checkpoint["model"] if checkpoint["average"] is None else checkpoint["average"]


def load_model(path: str | Path, device: torch.device | str = "cpu") -> NeuralGuitar:
    """Load a trained model, in eval mode, with ``settings``, ``instrument`` and ``statistics``.

    Raises:
        FileNotFoundError, ValueError: see ``read_checkpoint`` and ``load_weights``.
    """
    path = Path(path)
    checkpoint = read_checkpoint(path)
    settings = checkpoint_config(checkpoint, path)
    try:
        with torch.device("meta"):  # allocates no memory, so that wrong sizes are refused before they can fill it
            described = build_model(settings, checkpoint["instrument"])
    except (ValueError, LookupError, RuntimeError, ArithmeticError) as error:
        raise ValueError(f"{path} describes a model that cannot be built: {error}") from error
    _copy_weights(described, inference_weights(checkpoint), path)
    model = build_model(settings, checkpoint["instrument"])
    load_weights(model, inference_weights(checkpoint), path)
    model.settings = settings
    model.instrument = checkpoint["instrument"]
    model.statistics = _checked_statistics(checkpoint["statistics"], path)
    model.limit_bandwidth(model.statistics.get("bandwidth"))
    return model.to(device).eval()


def _checked_statistics(statistics: Any, path: Path) -> dict[str, Any]:
    limits = {"f0_quantiles": (1.0, 1e5), "loudness_quantiles": (-300.0, 100.0)}  # Hz and dB
    for key, (low, high) in limits.items():
        values = statistics.get(key) if isinstance(statistics, dict) else None
        if not (
            isinstance(values, list)
            and len(values) == 101
            and all(isinstance(value, float) and low <= value <= high for value in values)
        ):
            raise ValueError(f"{path} lacks the statistics of its training data; train.py writes them")
    bandwidth = statistics.get("bandwidth", 1.0)  # checkpoints with sound at the feature rate have none
    if not (isinstance(bandwidth, float) and 0 < bandwidth < math.inf):
        raise ValueError(f"{path} holds a bandwidth of {short_repr(bandwidth)}; it should be a number of Hz over 0")
    if "plucks" in statistics:
        try:
            PluckTable.from_dict(statistics["plucks"])
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return statistics


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


def archive_checkpoints(checkpoint_dir: Path) -> Path | None:
    """Move a training's checkpoints to a new folder ``previous_N``; return it, or None if there are none."""
    old = [checkpoint_dir / LATEST, checkpoint_dir / BEST, *_numbered(checkpoint_dir)]
    old = [path for path in old if path.is_file()]
    if not old:
        return None
    number = 1
    while (folder := checkpoint_dir / f"previous_{number}").exists():
        number += 1
    folder.mkdir()
    for path in old:
        path.rename(folder / path.name)
    return folder


def remove_partial_files(checkpoint_dir: Path) -> None:
    """Delete temporary files that a killed process left."""
    for path in checkpoint_dir.glob("*.pth.part"):
        path.unlink()


def _numbered(checkpoint_dir: Path) -> list[Path]:
    return [path for path in checkpoint_dir.glob("model_epoch_*.pth") if re.fullmatch(r"model_epoch_\d+", path.stem)]


def delete_old_epochs(checkpoint_dir: Path, count: int) -> None:
    """Delete all but the newest ``count`` files ``model_epoch_N.pth``."""
    paths = sorted(_numbered(checkpoint_dir), key=lambda path: int(path.stem.rpartition("_")[2]))
    for path in paths[: max(0, len(paths) - count)]:
        path.unlink()
