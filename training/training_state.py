"""What a training is between two steps: the model, its optimizer, the data, and how far it has come.

Checkpoints are made of it, and it goes on from them; ``trainer.py`` does the steps.
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
    """Build what makes the steps; fused, it goes through the weights once, not once an operation."""
    return torch.optim.Adam(model.parameters(), lr=settings.learning_rate, fused=True)


class WeightAverage:
    """A copy of a model whose weights follow the model's own, a little each step.

    Averaged over the last steps (Polyak and Juditsky, SIAM J. Control Optim. 1992) they lie nearer the bottom of the
    loss than after any single step, which noise in the gradient throws about: where a learning rate near zero would
    arrive later. The first steps count more, ``decay`` is not reached before step 9 / (1 - decay): else the untrained
    weights would weigh on the average for long.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        for module in self.model.modules():
            if isinstance(module, nn.RNNBase):
                module.flatten_parameters()  # copied one by one; cuDNN wants them in one piece

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights of a model after its ``step``-th step."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for average, weight in zip(self.model.parameters(), model.parameters()):
            average.lerp_(weight, 1 - decay)


@dataclasses.dataclass
class TrainingProgress:
    epoch: int = 0  # complete epochs
    step: int = 0  # optimizer steps in all
    position_in_epoch: int = 0  # crops done in the unfinished epoch
    loss_sum: float = 0.0  # over those crops
    best_val_loss: float = float("inf")  # training loss where nothing is held out
    epochs_since_best: int = 0
    first_val_loss: float | None = None  # of those that compare with the best

    def __str__(self) -> str:
        """Say where the training stands, in the epoch that it counts aloud."""
        place = f"in epoch {self.epoch + 1}" if self.position_in_epoch else f"after epoch {self.epoch}"
        return f"{place}, at step {self.step}"

    def reset_best(self) -> None:
        """Reset the best loss: those to come do not compare with it."""
        self.best_val_loss, self.epochs_since_best, self.first_val_loss = float("inf"), 0, None


class TrainingState:
    """The model, its optimizer, the data and how far it has come: what a checkpoint tells of."""

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
        self.changes: dict[str, str] = {}  # of settings, by a resume: name to "old -> new"
        self.phrases: dict[str, Span | None] = {}  # that are played now and then, by their names

    def set_corpus(self, corpus: Corpus) -> None:
        """Train on these recordings from the next epoch on."""
        self.corpus = corpus
        self.training: CropDataset = build_dataset(corpus.training, corpus.instrument, self.config, self.seed)
        self.validation: CropDataset = build_dataset(corpus.validation, corpus.instrument, self.config)
        self.statistics = measure_statistics(corpus.training, self.config)
        for model in (self.model, self.eval_model):
            model.limit_bandwidth(self.statistics.get("bandwidth"))

    @property
    def eval_model(self) -> NeuralGuitar:
        """The model that is validated, played and exported: that of the averaged weights, if any."""
        return self.average.model if self.average else self.model

    def switch_corpus(self, corpus: Corpus) -> None:
        """Continue with these recordings, which may be those in use; if others are held out, reset the best loss."""
        if corpus.validation != self.corpus.validation:  # losses over other recordings do not compare
            self.progress.reset_best()
        if corpus != self.corpus:
            self.set_corpus(corpus)

    def resume(self, checkpoint: dict[str, Any], path: Path) -> None:
        """Go on from a checkpoint; what has changed since is said and applied.

        Raises:
            ValueError: it holds unusable weights.
        """
        load_weights(self.model, checkpoint["model"], path)
        if self.average:
            load_weights(self.average.model, inference_weights(checkpoint), path)
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        position = min(checkpoint["position_in_epoch"], len(self.training))
        self.progress = TrainingProgress(checkpoint["epoch"], checkpoint["step"], position, **checkpoint["metrics"])
        self.run_name, self.wandb_id = checkpoint["run_name"], checkpoint["wandb_id"]
        changes = training_changes(checkpoint["config"], self.config)
        reordered = crop_order_changes(checkpoint, self.seed, len(self.training))
        self.changes = changes | reordered
        if changed := ", ".join(f"{name} {change}" for name, change in self.changes.items()):
            log.info("changed since the last save, and applied from here on: %s", changed)
        if reordered and position:
            log.info("the unfinished epoch goes on in another order: some of its crops come twice, some not at all")
        held_out = self.corpus.validation_digest()
        regrouped = checkpoint["schedule"].get("validation", held_out) != held_out
        if regrouped or makes_losses_incomparable(checkpoint, changes, self.average is not None):
            log.info("validation losses do not compare with earlier ones any more: the best loss is reset")
            self.progress.reset_best()

    def to_checkpoint(self) -> dict[str, Any]:
        """Return all of it, for ``checkpoint.save_checkpoint``."""
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
