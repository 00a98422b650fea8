"""What a training shows: figures, sounds and pictures, in a folder of its own and on Weights & Biases.

``runs/<name>/`` holds all of it without an account: ``metrics.jsonl`` (one JSON object a line), the
held-out phrases as wav and png, and ``index.html``, a page that shows and plays them and loads nothing
from elsewhere. W&B gets the same. Neither may ever stop a training: a failure is one line in the log.
"""

import html
import json
import logging
import math
import secrets
import time
from collections.abc import Callable
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
from training import wandb_run
from training.held_out_phrases import HeldOutPhrase, draw_phrase, load_loudest_passage, play_phrase

_MAX_POINTS = 1000  # of a curve on the page
_TEMPLATE = Path(__file__).parent / "run_page.html"
_ADJECTIVES = ("amber", "brisk", "calm", "deep", "early", "fair", "gentle", "keen", "late", "mellow", "quiet", "silver")
_NOUNS = ("anthem", "ballad", "cadence", "chorale", "echo", "fanfare", "fugue", "minuet", "prelude", "refrain", "waltz")
log = logging.getLogger("train")


def choose_run_name(runs_dir: Path, wanted: str | None = None) -> str:
    """Return a name that no run in ``runs_dir`` has: the wanted one, numbered if taken, or two random words."""
    stem = wanted or f"{secrets.choice(_ADJECTIVES)}-{secrets.choice(_NOUNS)}"
    name, number = stem, 2
    while (runs_dir / name).exists():
        name, number = f"{stem}-{number}", number + 1
    return name


# --- the run --------------------------------------------------------------------------------------


class ExperimentLog:
    """One training's folder under ``runs/`` and, once started, its W&B run."""

    def __init__(
        self, folder: Path, config: Config, corpus: Corpus, phrases: dict[str, Span | None], resumed_at: int = 0
    ) -> None:
        """Open the folder; what it holds of steps after ``resumed_at`` will be trained again, and goes.

        ``phrases`` are those of ``choose_phrases``.
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
            "config": config_to_dict(config),
            "training_recordings": len(corpus.training),
            "validation_recordings": len(corpus.validation),
        }
        self._try_to(self._open, resumed_at)
        self._try_to(self._append, {"kind": "start", "step": resumed_at, "time": time.time(), **about})

    def start_wandb(self, mode: str | None, project: str, run_id: str) -> None:
        """Start or resume the W&B run with this id; no login is ever asked for."""
        chosen = wandb_run.choose_mode(mode)
        if chosen == "disabled":
            return
        self._wandb = self._try_to(wandb_run.start_run, chosen, project, run_id, self.folder, self.config)
        if self._wandb is None and chosen == "online":
            log.info("W&B cannot be reached: this run is kept offline")
            self._try_to(wandb_run.stop_service)
            chosen = "offline"
            self._wandb = self._try_to(wandb_run.start_run, chosen, project, run_id, self.folder, self.config)
        if self._wandb is not None and chosen == "offline":
            hint = "" if mode else " (`wandb login` once, and the next run is online)"
            log.info("W&B is offline%s; to upload this run%s", hint, wandb_run.describe_upload(self.folder, run_id))

    def log_step(self, epoch: int, step: int, values: dict[str, float]) -> None:
        """Record a training step; how fast steps come is added."""
        now = time.monotonic()
        if self._last_step is not None and step > self._last_step[0]:
            values = {**values, "steps_per_second": (step - self._last_step[0]) / (now - self._last_step[1])}
        self._last_step = (step, now)
        self._record({"kind": "step", "step": step, "epoch": epoch, **values})

    def log_epoch(self, epoch: int, step: int, train_loss: float, validation: StftLoss) -> None:
        """Record a complete epoch, and bring the page up to date."""
        values = {
            "epoch_train_loss": train_loss,
            "val_loss": validation.total,
            "val_spectral_convergence": validation.spectral_convergence,
            "val_log_magnitude": validation.log_magnitude,
        }
        self._record({"kind": "epoch", "step": step, "epoch": epoch, **_finite(values)})
        self._try_to(write_run_page, self.folder)

    def log_phrases(self, epoch: int, step: int, model: NeuralGuitar, corpus: Corpus) -> None:
        """Play the phrases that are in ``corpus`` by now; save the sounds and their pictures."""
        self._try_to(self._log_phrases, epoch, step, model, {*corpus.validation, *corpus.training})
        self._last_step = None  # the time that this took is not training time

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
        write_run_page(self.folder)
        if self._wandb is not None:
            self._send(wandb_run.make_media(self.folder, shown) | {"step": step, "epoch": epoch})

    def finish(self, exit_code: int) -> None:
        """Bring the page up to date and close the W&B run."""
        self._try_to(write_run_page, self.folder)
        if self._wandb is not None:
            self._try_to(self._wandb.finish, exit_code)

    def _record(self, record: dict[str, Any]) -> None:
        self._try_to(self._append, record)
        if self._wandb is not None:
            self._send({name: value for name, value in record.items() if name != "kind" and value is not None})

    def _send(self, values: dict[str, Any]) -> None:
        """Give values to W&B; what it does not take stays in the folder alone, and the next are tried again."""
        self._try_to(self._wandb.log, values)

    def _open(self, resumed_at: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        kept = [record for record in read_metrics(self.folder) if record["step"] <= resumed_at]
        write_text(self.folder / "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in kept))

    def _append(self, record: dict[str, Any]) -> None:
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def _try_to(self, action: Callable[..., Any], *arguments: Any) -> Any:
        """Call ``action``; if it fails, log the reason once and return None, so that no training stops for it."""
        try:
            return action(*arguments)
        except Exception as error:  # whatever a full disk, a network or W&B's own service may come up with
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            if reason not in self._reported:
                log.warning("not tracked, training goes on: %s", reason)
            self._reported.add(reason)
            return None


def _finite(values: dict[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


# --- the page -------------------------------------------------------------------------------------


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the records of a run, oldest first; a last line that a crash cut short is left out."""
    path = folder / "metrics.jsonl"
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def write_run_page(folder: Path) -> None:
    """Make ``index.html`` of what is in a run's folder."""
    records = read_metrics(folder)
    steps = [record for record in records if record["kind"] == "step"]
    content = {
        "name": folder.name,
        "start": next((record for record in reversed(records) if record["kind"] == "start"), {}),
        "steps": steps[:: -(-len(steps) // _MAX_POINTS) or 1],
        "epochs": [record for record in records if record["kind"] == "epoch"],
        "phrases": [record for record in records if record["kind"] == "phrases"],
    }
    # "<" would end the script in which the data stands.
    data = json.dumps(content).replace("<", "\\u003c")
    page = _TEMPLATE.read_text(encoding="utf-8").replace("{{name}}", html.escape(folder.name)).replace("{{data}}", data)
    write_text(folder / "index.html", page)
