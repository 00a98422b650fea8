"""Log metrics, sounds and pictures of a training to a folder and to Weights & Biases.

``runs/<name>/`` holds everything and needs no account: ``metrics.jsonl`` (one JSON object per line), the
held-out phrases as wav and png, and ``index.html``, a self-contained page that shows and plays them.
W&B gets the same data. A failure here never stops a training; it is logged as a warning.
"""

import json
import logging
import math
import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import soundfile

from config import Config, config_to_dict
from loss import StftLoss
from model import NeuralGuitar
from recordings.corpus import Corpus
from recordings.crops import Span
from sound.atomic_files import write_text
from sound.feature_plots import THEMES, save_figure
from sound.report_page import Tile, render_page
from training import wandb_run
from training.held_out_phrases import HeldOutPhrase, draw_phrase, load_loudest_passage, play_phrase

_MAX_POINTS = 1000  # of a curve on the page
_SHOWN_SETTINGS = ("audio", "features", "model", "loss", "train")
_ADJECTIVES = ("amber", "brisk", "calm", "deep", "early", "fair", "gentle", "keen", "late", "mellow", "quiet", "silver")
_NOUNS = ("anthem", "ballad", "cadence", "chorale", "echo", "fanfare", "fugue", "minuet", "prelude", "refrain", "waltz")
log = logging.getLogger("train")


def choose_run_name(runs_dir: Path, wanted: str | None = None) -> str:
    """Return an unused run name in ``runs_dir``: the wanted one, numbered if taken, or two random words."""
    stem = wanted or f"{secrets.choice(_ADJECTIVES)}-{secrets.choice(_NOUNS)}"
    name, number = stem, 2
    while (runs_dir / name).exists():
        name, number = f"{stem[:32]}-{number}", number + 1
    return name


# --- the run --------------------------------------------------------------------------------------


class ExperimentLog:
    """Folder of a training under ``runs/`` and, once started, its W&B run."""

    def __init__(
        self,
        folder: Path,
        config: Config,
        corpus: Corpus,
        phrases: dict[str, Span | None],
        resumed_at: int = 0,
        changes: Mapping[str, str] | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        """Open the folder and delete its records of steps after ``resumed_at``, which will be trained again.

        Args:
            folder: folder of this run.
            config: configuration of the training.
            corpus: recordings of the training.
            phrases: from ``choose_phrases``.
            resumed_at: step, 0 for a new training.
            changes: settings that have changed since the training was saved: {name: "old -> new"}.
            checkpoint: path of the training's checkpoint.
        """
        self.folder = folder
        self.config = config
        self.phrases = phrases
        self._loaded_phrases: dict[str, HeldOutPhrase] = {}
        self._wandb: Any = None
        self._reported: set[str] = set()
        self._last_step: tuple[int, float] | None = None
        about = {
            "instrument": corpus.instrument,
            "preset": config.preset,
            "checkpoint": str(checkpoint) if checkpoint else None,
            "changes": dict(changes or {}),
            "config": config_to_dict(config),
            "training_recordings": len(corpus.training),
            "validation_recordings": len(corpus.validation),
        }
        self._try_to(self._open, resumed_at)
        self._try_to(self._append, {"kind": "start", "step": resumed_at, "time": time.time(), **about})

    def start_wandb(self, mode: str | None, project: str, run_id: str) -> None:
        """Start or resume the W&B run with this id; never prompt for a login."""
        chosen = wandb_run.choose_mode(mode)
        if chosen == "disabled":
            return
        self._wandb = self._try_to(wandb_run.start_run, chosen, project, run_id, self.folder, self.config)
        if self._wandb is None and chosen == "online":
            self._try_to(wandb_run.stop_service)
            chosen = "offline"
            self._wandb = self._try_to(wandb_run.start_run, chosen, project, run_id, self.folder, self.config)
            if self._wandb is not None:
                log.info("W&B cannot be reached: this run is logged offline")
        if self._wandb is None:
            log.info("W&B is not available for this run; all data is in %s", self.folder)
        if self._wandb is not None and chosen == "offline":
            hint = "" if mode or wandb_run.has_key() else " (after `./venv/bin/python -m wandb login`, runs are online)"
            log.info("W&B is offline%s; to upload this run%s", hint, wandb_run.describe_upload(self.folder, run_id))

    def log_step(self, epoch: int, step: int, values: dict[str, float]) -> None:
        """Record the values of a training step, and the steps per second."""
        now = time.monotonic()
        if self._last_step is not None and step > self._last_step[0]:
            values = {**values, "steps_per_second": (step - self._last_step[0]) / (now - self._last_step[1])}
        self._last_step = (step, now)
        self._record({"kind": "step", "step": step, "epoch": epoch, **values})

    def log_epoch(self, epoch: int, step: int, train_loss: float, validation: StftLoss) -> None:
        """Record a complete epoch and update the page."""
        values = {
            "epoch_train_loss": train_loss,
            "val_loss": validation.total,
            "val_spectral_convergence": validation.spectral_convergence,
            "val_log_magnitude": validation.log_magnitude,
        }
        self._record({"kind": "epoch", "step": step, "epoch": epoch, "time": time.time(), **values})
        self._try_to(write_run_page, self.folder, "running")

    def log_phrases(self, epoch: int, step: int, model: NeuralGuitar, corpus: Corpus) -> None:
        """Resynthesise the phrases that ``corpus`` already has; save sounds and pictures."""
        self._try_to(self._log_phrases, epoch, step, model, {*corpus.validation, *corpus.training})
        self._last_step = None  # do not count this as training time

    def _log_phrases(self, epoch: int, step: int, model: NeuralGuitar, available: set[Span]) -> None:
        shown = []
        for number, (name, span) in enumerate(self.phrases.items(), start=1):
            if span not in available:
                continue
            phrase = self._loaded_phrases[name] = self._loaded_phrases.get(name) or load_loudest_passage(
                span, self.config
            )
            sounds, gain = play_phrase(model, phrase)
            stem = f"epoch_{epoch:04}_phrase_{number}"
            for sound, samples in sounds.items():
                path = self.folder / "sounds" / f"{stem}_{sound}.wav"
                path.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(path, samples, self.config.audio.sample_rate)
            for theme in THEMES:
                figure = draw_phrase(phrase, sounds, self.config, theme)
                save_figure(figure, self.folder / "pictures" / f"{stem}_{theme}.png")
            shown.append({"name": phrase.name, "number": number, "stem": stem, "gain": gain})
        self._append({"kind": "phrases", "step": step, "epoch": epoch, "phrases": shown})
        write_run_page(self.folder, "running")
        if self._wandb is not None:
            self._send(wandb_run.make_media(self.folder, shown) | {"step": step, "epoch": epoch})

    def finish(self, exit_code: int) -> None:
        """Update the page and close the W&B run."""
        self._try_to(write_run_page, self.folder, "stopped" if exit_code else "done")
        if self._wandb is not None:
            self._try_to(self._wandb.finish, exit_code)

    def _record(self, record: dict[str, Any]) -> None:
        self._try_to(self._append, record)
        if self._wandb is not None:
            values = {name: value for name, value in record.items() if name not in ("kind", "time")}
            self._send({name: value for name, value in values.items() if math.isfinite(value)})

    def _send(self, values: dict[str, Any]) -> None:
        """Log values to W&B; after a failure, later values are still sent."""
        self._try_to(self._wandb.log, values)

    def _open(self, resumed_at: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)

        def is_kept(record: dict[str, Any]) -> bool:
            # A start at the step of this one: that run stopped before it saved anything.
            superseded = record["kind"] == "start" and record["step"] == resumed_at > 0
            return record["step"] <= resumed_at and not superseded

        kept = filter(is_kept, read_metrics(self.folder))
        write_text(self.folder / "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in kept))

    def _append(self, record: dict[str, Any]) -> None:
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(_without_nan(json.dumps(record)), allow_nan=False) + "\n")

    def _try_to(self, action: Callable[..., Any], *arguments: Any) -> Any:
        """Call ``action``; if it fails, log each reason once and return None, so that training continues."""
        try:
            return action(*arguments)
        except Exception as error:  # disk, network and W&B's service raise many kinds
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            if reason not in self._reported:
                log.warning("logging failed, training continues: %s", reason)
            self._reported.add(reason)
            return None


def _without_nan(text: str) -> Any:
    """Parse JSON as Python writes it; NaN and infinity, which are not valid JSON, become None."""
    return json.loads(text, parse_constant=lambda name: None)


# --- the page -------------------------------------------------------------------------------------


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the records of a run, oldest first, without a last line that a crash truncated."""
    path = folder / "metrics.jsonl"
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            records.append(_without_nan(line))
        except json.JSONDecodeError:
            break
    return records


def write_run_page(folder: Path, state: str = "stopped") -> None:
    """Write ``index.html`` from the data in a run's folder; the state is "running", "stopped" or "done"."""
    records: dict[str, list[dict[str, Any]]] = defaultdict(list)
    changes, epoch = [], 0
    for record in read_metrics(folder):
        records[record["kind"]].append(record)
        if record["kind"] == "epoch":
            epoch = record["epoch"]
        elif changed := record.get("changes"):
            text = ", ".join(f"{name} {change}" for name, change in changed.items()).replace("->", "→")
            changes.append({"step": record["step"], "epoch": epoch, "text": text})
    starts, steps, epochs = records["start"], records["step"], records["epoch"]
    config = starts[-1]["config"] if starts else {}
    page = render_page(
        "training/run_page.html",
        folder.name,
        _describe_starts(starts),
        _make_tiles(starts, steps, epochs, state),
        steps=steps[:: -(-len(steps) // _MAX_POINTS) or 1],
        epochs=epochs,
        phrases=records["phrases"],
        changes=changes,
        settings={section: config[section] for section in _SHOWN_SETTINGS if section in config},
    )
    write_text(folder / "index.html", page)


def _describe_starts(starts: list[dict[str, Any]]) -> list[str]:
    if not starts:
        return []
    first, last = starts[0], starts[-1]
    facts = [
        last["instrument"],
        f"preset {last['preset']}",
        f"{last['training_recordings']} + {last['validation_recordings']} recordings (training + validation)",
        f"started {_format_time(first['time'])}",
    ]
    if last["step"]:
        facts.append(f"resumed {_format_time(last['time'])} at step {last['step']:,}")
    return facts + ([f"saved as {last['checkpoint']}"] if last.get("checkpoint") else [])


def _make_tiles(
    starts: list[dict[str, Any]], steps: list[dict[str, Any]], epochs: list[dict[str, Any]], state: str
) -> list[Tile]:
    last = epochs[-1] if epochs else {}
    best = min((e for e in epochs if e["val_loss"] is not None), key=lambda e: e["val_loss"], default={})
    wanted = f"of {starts[-1]['config']['train']['epochs']:,}" if starts else ""
    return [
        Tile("epochs", _format(last.get("epoch", 0)), wanted),
        Tile("steps", _format((steps or epochs or [{}])[-1].get("step", 0))),
        Tile("training loss", _format(last.get("epoch_train_loss"))),
        Tile("validation loss", _format(last.get("val_loss"))),
        Tile("best validation loss", _format(best.get("val_loss")), f"epoch {best['epoch']:,}" if best else ""),
        _measure_time_left(starts[-1], epochs) if starts and state == "running" else Tile("training", state),
    ]


def _measure_time_left(start: dict[str, Any], epochs: list[dict[str, Any]]) -> Tile:
    """Return the tile of the time left after the last epoch, at the speed since the training was started or resumed."""
    if not epochs or epochs[-1]["step"] <= start["step"]:
        return Tile("time left", "–")
    last, n_epochs = epochs[-1], start["config"]["train"]["epochs"]
    epoch_steps = last["step"] - (epochs[-2]["step"] if len(epochs) > 1 else 0)
    step_seconds = (last["time"] - start["time"]) / (last["step"] - start["step"])
    seconds = (n_epochs - last["epoch"]) * epoch_steps * step_seconds
    hours, minutes = divmod(math.ceil(seconds / 60), 60)
    text = f"{hours} h {minutes} min" if hours else f"{minutes} min"
    return Tile("time left", text, f"until about {_format_time(last['time'] + seconds)}")


def _format_time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _format(value: float | None) -> str:
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
