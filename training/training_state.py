"""State of a training between two steps: model, optimizer, data and progress.

It is saved to checkpoints and resumed from them; ``trainer.py`` does the steps.
"""

import copy
import dataclasses
import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from checkpoint import (
    crop_order_changes,
    inference_weights,
    load_weights,
    make_checkpoint,
    makes_losses_incomparable,
)
from config import Config, TrainConfig, training_changes
from model import NeuralGuitar, build_model
from recordings.corpus import Corpus, measure_statistics
from recordings.crops import CropDataset, Span, build_dataset

log = logging.getLogger("train")


def build_optimizer(model: nn.Module, settings: TrainConfig) -> torch.optim.Adam:
    """Return Adam; fused, because that reads the weights once instead of once per operation."""
    return torch.optim.Adam(model.parameters(), lr=settings.learning_rate, fused=True)


class WeightAverage:
    """Exponential moving average of a model's weights.

    Averaging over the last steps (Polyak and Juditsky, SIAM J. Control Optim. 1992) removes the noise of single
    gradients, so the average is nearer the minimum of the loss than the current weights, like after a decay of the
    learning rate. The decay rises to ``decay`` until about step 9 / (1 - decay), so that the initial weights soon lose
    their influence.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        for module in self.model.modules():
            if isinstance(module, nn.RNNBase):
                module.flatten_parameters()  # cuDNN needs contiguous weights; the copy is not

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Update the average with a model's weights after step number ``step``."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for average, weight in zip(self.model.parameters(), model.parameters()):
            average.lerp_(weight, 1 - decay)


@dataclasses.dataclass
class TrainingProgress:
    epoch: int = 0  # complete epochs
    step: int = 0  # optimizer steps in total
    position_in_epoch: int = 0  # crops done in the unfinished epoch
    loss_sum: float = 0.0  # over ``loss_count`` of those crops
    loss_count: int = 0  # all of them, unless the loss changed in the unfinished epoch
    best_val_loss: float = float("inf")  # training loss if nothing is held out
    epochs_since_best: int = 0
    first_val_loss: float | None = None  # the first one comparable with the best

    def __str__(self) -> str:
        """Return the position in the training as text, with epochs counted from 1."""
        place = f"in epoch {self.epoch + 1}" if self.position_in_epoch else f"after epoch {self.epoch}"
        return f"{place}, at step {self.step}"

    def reset_best(self) -> None:
        """Reset the best loss, because later losses are not comparable with it."""
        self.best_val_loss, self.epochs_since_best, self.first_val_loss = float("inf"), 0, None


class TrainingState:
    """Model, optimizer, data and progress: the contents of a checkpoint."""

    def __init__(self, config: Config, corpus: Corpus, device: torch.device, seed: int) -> None:
        self.config = config
        self.device = device
        self.seed = seed
        torch.manual_seed(seed)
        self.model: NeuralGuitar = build_model(config, corpus.instrument).to(device)
        self.optimizer = build_optimizer(self.model, config.train)
        self.average = WeightAverage(self.model, config.train.ema_decay) if config.train.ema_decay else None
        self.set_corpus(corpus)
        self.progress = TrainingProgress()
        self.run_name: str | None = None
        self.wandb_id: str | None = None
        self.changes: dict[str, str] = {}  # settings that a resume changed: {name: "old -> new"}
        self.phrases: dict[str, Span | None] = {}  # from choose_phrases

    def set_corpus(self, corpus: Corpus) -> None:
        """Use these recordings from the next epoch on."""
        self.corpus = corpus
        self.training: CropDataset = build_dataset(corpus.training, corpus.instrument, self.config, self.seed)
        self.validation: CropDataset = build_dataset(corpus.validation, corpus.instrument, self.config)
        self.statistics = measure_statistics(corpus.training, self.config)
        for model in (self.model, self.eval_model):
            model.limit_bandwidth(self.statistics.get("bandwidth"))

    @property
    def eval_model(self) -> NeuralGuitar:
        """Model to validate, play and export: the one with averaged weights, if there is one."""
        return self.average.model if self.average else self.model

    def switch_corpus(self, corpus: Corpus) -> None:
        """Continue with these recordings; if the held-out ones differ from the current ones, reset the best loss."""
        if corpus.validation != self.corpus.validation:  # losses over different recordings are not comparable
            self.progress.reset_best()
        if corpus != self.corpus:
            self.set_corpus(corpus)

    def resume(self, checkpoint: dict[str, Any], path: Path) -> None:
        """Resume from a checkpoint; log settings that have changed since, and apply them.

        Raises:
            ValueError: its weights do not fit the model.
        """
        load_weights(self.model, checkpoint["model"], path)
        if self.average:
            load_weights(self.average.model, inference_weights(checkpoint), path)
        self._load_optimizer(checkpoint["optimizer"], path)
        metrics, schedule = (checkpoint[name] or {} for name in ("metrics", "schedule"))
        reached = {name: checkpoint[name] for name in ("epoch", "step", "position_in_epoch")} | metrics
        names = {field.name for field in dataclasses.fields(TrainingProgress)}
        known = {name: value for name, value in reached.items() if name in names and value is not None}
        self.progress = TrainingProgress(**{"loss_count": checkpoint["position_in_epoch"] or 0, **known})
        position = self.progress.position_in_epoch = min(self.progress.position_in_epoch, len(self.training))
        self.run_name, self.wandb_id = checkpoint["run_name"], checkpoint["wandb_id"]
        changes = training_changes(checkpoint["config"], self.config)
        reordered = crop_order_changes(checkpoint, self.seed, len(self.training))
        self.changes = changes | reordered
        if changed := ", ".join(f"{name} {change}" for name, change in self.changes.items()):
            log.info("settings changed since the last save, applied from now on: %s", changed)
        if position < len(self.training) and any(name.startswith("loss.") for name in changes):
            self.progress.loss_sum, self.progress.loss_count = 0.0, 0  # never the mean of two losses
        if reordered and position:
            log.info("the unfinished epoch continues in another order: some of its crops repeat, others are skipped")
        held_out = self.corpus.validation_digest()
        regrouped = schedule.get("validation", held_out) != held_out
        if regrouped or makes_losses_incomparable(checkpoint, changes, self.average is not None):
            log.info("validation losses are no longer comparable with earlier ones: the best loss is reset")
            self.progress.reset_best()

    def _load_optimizer(self, saved: Any, path: Path) -> None:
        """Adopt the moments of a saved optimizer; its settings are those of the configuration."""
        moments = saved.get("state") if isinstance(saved, dict) else None
        if isinstance(moments, dict) and all(isinstance(entry, dict) for entry in moments.values()):
            found = {n: {name: getattr(x, "shape", None) for name, x in entry.items()} for n, entry in moments.items()}
            shapes = {number: weight.shape for number, weight in enumerate(self.model.parameters())}
            wanted = {n: {"step": torch.Size(), "exp_avg": shape, "exp_avg_sq": shape} for n, shape in shapes.items()}
            if found.items() <= wanted.items():
                return self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        raise ValueError(f"{path} holds no optimizer state of this model; --no_resume starts a new training")

    def to_checkpoint(self) -> dict[str, Any]:
        """Return the state, for ``checkpoint.save_checkpoint``."""
        progress = dataclasses.asdict(self.progress)
        counters = {name: progress.pop(name) for name in ("epoch", "step", "position_in_epoch")}
        return make_checkpoint(
            self.config,
            self.corpus.instrument,
            **counters,
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            average=self.average.model.state_dict() if self.average else None,
            schedule={
                "learning_rate": self.config.train.learning_rate_at(self.progress.step),
                "n_crops": len(self.training),
                "boundary": self.corpus.boundary,
                "validation": self.corpus.validation_digest(),
                "phrases": list(self.phrases),
            },
            rng={"seed": self.seed},
            wandb_id=self.wandb_id,
            run_name=self.run_name,
            statistics=self.statistics,
            metrics=progress,
        )
