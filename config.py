"""Configuration: what there is to tune, read from ``config.json``.

``config.json`` holds ``base`` (all numbers), ``presets`` (only what differs from the base) and
``instruments``. ``load_config`` lays a preset over the base and builds the dataclasses of ``settings.py``; a
section, key or preset that nobody knows is an error that lists what exists, so that a typing
mistake can never train the wrong model.
"""

import dataclasses
import json
import typing
from pathlib import Path
from typing import Any

import torch

from settings import (
    AudioConfig,
    Config,
    FeatureConfig,
    InspectConfig,
    InstrumentConfig,
    LossConfig,
    ModelConfig,
    PageConfig,
    TrainConfig,
    TransferConfig,
)

DEFAULT_CONFIG_PATH = Path(__file__).parent / "config.json"
DEFAULT_PRESET = "tiny"
ARCHITECTURE = ("audio", "features", "model")  # the sections that trained weights depend on
_SECTIONS = {
    "audio": AudioConfig,
    "features": FeatureConfig,
    "model": ModelConfig,
    "loss": LossConfig,
    "train": TrainConfig,
    "transfer": TransferConfig,
    "inspect": InspectConfig,
    "page": PageConfig,
}


def load_config(path: str | Path = DEFAULT_CONFIG_PATH, preset: str = DEFAULT_PRESET) -> Config:
    """Read ``config.json`` and lay a preset over its base.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not JSON, or an unknown or missing section, key or preset.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    _require_keys(str(path), content, ("base", "presets", "instruments"))
    for name in ("base", "presets", "instruments"):
        _require_object(f"'{name}' of {path}", content[name])
    if preset not in content["presets"]:
        raise ValueError(f"unknown preset '{preset}'; {path.name} has {_listed(content['presets'])}")
    sections = _overlay(content["base"], content["presets"][preset], f"preset '{preset}'")
    return config_from_dict({"preset": preset, "instruments": content["instruments"], **sections})


def config_from_dict(values: dict[str, Any]) -> Config:
    """Build a Config from plain dicts, as ``config_to_dict`` makes them; every key must be known and present."""
    _require_keys("the configuration", values, ("preset", "instruments", *_SECTIONS))
    sections = {name: _build(kind, name, values[name]) for name, kind in _SECTIONS.items()}
    instruments = {
        name: _build(InstrumentConfig, f"instruments.{name}", entry) for name, entry in values["instruments"].items()
    }
    return Config(preset=values["preset"], instruments=instruments, **sections)


def config_to_dict(config: Config) -> dict[str, Any]:
    """Return a Config as plain dicts, lists and numbers (for a checkpoint)."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def adopt_settings(saved: dict[str, Any], current: Config) -> Config:
    """Return ``current`` with the saved settings that a trained model depends on: audio, features and model.

    A setting that is newer than the saved ones keeps its current value, and so does ``crepe_model``: f0 is in Hz
    whoever measures it, and a model trained on what ``full`` heard plays a voice that ``tiny`` hears.

    Raises:
        ValueError: a saved setting is unknown to this version.
    """
    _require_object("the saved configuration", saved)
    for name in ARCHITECTURE:
        _require_object(f"section '{name}'", saved.get(name))
    sections = {name: {**dataclasses.asdict(getattr(current, name)), **saved[name]} for name in ARCHITECTURE}
    sections["features"]["crepe_model"] = current.features.crepe_model
    adopted = {name: _build(_SECTIONS[name], name, values) for name, values in sections.items()}
    return dataclasses.replace(current, preset=saved["preset"], **adopted)


def adopt_instrument(saved: dict[str, Any], name: str, current: Config) -> Config:
    """Return ``current`` with a trained instrument, if it lacks it, and with the CREPE that heard its recordings.

    Raises:
        ValueError: neither the saved configuration nor the current one knows the instrument.
    """
    _require_object("section 'instruments'", entries := saved.get("instruments", {}))
    if name not in entries:
        current.instrument(name)
        return current
    entry = {"crepe_model": None, **entries[name]}  # earlier versions had none
    known = current.instruments.get(name) or _build(InstrumentConfig, f"instruments.{name}", entry)
    known = dataclasses.replace(known, crepe_model=entry["crepe_model"] or saved["features"]["crepe_model"])
    return dataclasses.replace(current, instruments={**current.instruments, name: known})


def architecture_differences(one: Config, other: Config) -> list[str]:
    """List what makes the weights of one configuration unusable in another, as "model.hidden_size 512 -> 1024"."""
    differences = []
    for section in ARCHITECTURE:
        old, new = dataclasses.asdict(getattr(one, section)), dataclasses.asdict(getattr(other, section))
        differences += [f"{section}.{key} {old[key]} -> {new[key]}" for key in old if old[key] != new[key]]
    return differences


def training_changes(saved: dict[str, Any], config: Config) -> dict[str, str]:
    """Return which settings of the loss and the training differ from saved ones: name to "old -> new".

    ``epochs`` is left out: it says when to stop, not how to train.
    """
    now = config_to_dict(config)
    return {
        f"{section}.{key}": f"{saved[section][key]} -> {value}"
        for section in ("loss", "train")
        for key, value in now[section].items()
        if key != "epochs" and key in saved[section] and saved[section][key] != value
    }


def get_device(name: str = "auto") -> torch.device:
    """Return the device to work on: ``auto`` is the GPU where there is one, else the CPU.

    Raises:
        ValueError: the name is unknown, or this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device '{name}' cannot be used here; try auto or cpu") from error
    return device


def _overlay(base: dict, changes: dict, origin: str) -> dict:
    _require_object(origin, changes)
    for name, values in (*base.items(), *changes.items()):
        _require_object(f"section '{name}' of {origin}", values)
    unknown = [name for name in changes if name not in base]
    if unknown:
        raise ValueError(f"{origin} has unknown section {_listed(unknown)}; known are {_listed(base)}")
    merged = {name: {**values, **changes.get(name, {})} for name, values in base.items()}
    for name in changes:
        _require_keys(f"section '{name}' of {origin}", merged[name], tuple(base[name]))
    return merged


def _build(kind: type, section: str, values: dict) -> Any:
    names = tuple(field.name for field in dataclasses.fields(kind))
    _require_keys(f"section '{section}'", values, names)
    for name, expected in typing.get_type_hints(kind).items():
        if not _fits(values[name], expected):
            wanted = expected.__name__ if isinstance(expected, type) else expected
            raise ValueError(f"{section}.{name} is {values[name]!r}, but should be of the kind {wanted}")
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def _fits(value: Any, kind: Any) -> bool:
    if typing.get_origin(kind) is tuple:
        return isinstance(value, (list, tuple)) and all(_fits(entry, typing.get_args(kind)[0]) for entry in value)
    if typing.get_args(kind):  # int | None
        return any(_fits(value, each) for each in typing.get_args(kind))
    return isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)


def _require_object(where: str, values: Any) -> None:
    if not isinstance(values, dict):
        raise ValueError(f"{where} should be an object {{...}}, but is {str(values)[:40]}")


def _require_keys(where: str, values: Any, allowed: tuple[str, ...]) -> None:
    if not isinstance(values, dict):
        raise ValueError(f"{where} should be an object with {_listed(allowed)}")
    unknown = [key for key in values if key not in allowed]
    missing = [key for key in allowed if key not in values]
    if unknown:
        raise ValueError(f"{where} has unknown key {_listed(unknown)}; known are {_listed(allowed)}")
    if missing:
        raise ValueError(f"{where} lacks {_listed(missing)}")


def _listed(names: Any) -> str:
    return ", ".join(names)
