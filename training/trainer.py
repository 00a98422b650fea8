"""Training loop: steps, validation, checkpoints and stopping; ``train.py`` is the command line.

Crops, noise and dropout depend only on the seed and the position in the training. A stopped and resumed training
therefore gives the same result as an uninterrupted one and, except for dropout, so does any number of processes.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from checkpoint import BEST, LATEST, delete_old_epochs, save_checkpoint
from config import Config
from loss import MultiResolutionSTFTLoss, StftLoss
from model import GruDecoder, NeuralGuitar, NoiseSource
from recordings.corpus import Corpus
from recordings.crops import SINGLE_PROCESS, CropDataset, ProcessRanks, load_batches
from training.experiment_log import ExperimentLog
from training.training_state import TrainingState

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}  # of the decoder's matrix products in training
log = logging.getLogger("train")


def build_loss(config: Config) -> MultiResolutionSTFTLoss:
    """Return the training loss of a configuration."""
    settings = config.loss
    return MultiResolutionSTFTLoss(
        settings.fft_sizes, settings.hop_sizes, settings.win_lengths, settings.mag_loss_weight, settings.eps
    )


def train_step(
    model: nn.Module,
    loss_function: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: dict[str, Tensor],
    max_grad_norm: float,
    generator: NoiseSource = None,
    weight: float = 1.0,
    precision: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """Do one optimizer step and return its losses and gradient norm as tensors on the device.

    Args:
        model: model, or its distributed wrapper.
        loss_function: returns an ``StftLoss``.
        optimizer: optimizer of the model's parameters.
        batch: tensors [B, ...] by name, as in ``CropDataset``.
        max_grad_norm: the gradient is clipped to this norm.
        generator: source of the synthesizer's noise.
        weight: factor on the loss, to correct for unequal shares when processes average their gradients.
        precision: dtype of the decoder's matrix products; everything else is float32.
    """
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(batch["f0"].device.type, precision, enabled=precision != torch.float32):
        audio = model(batch["f0"], batch["loudness"], generator, batch.get("plucks"))
    loss = loss_function(audio, batch["audio"], batch.get("bandwidth"))
    (weight * loss.total).backward()
    grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
    optimizer.step()
    return {**{f"{name}_loss": value.detach() for name, value in loss._asdict().items()}, "grad_norm": grad_norm}


def compilable_layers(model: NeuralGuitar) -> list[nn.Module]:
    """Return the layers that gain from torch.compile; GRU, synthesis and loss are already fast without it."""
    layers = [model.embedding, model.decoder, getattr(model, "projection", None)]
    return [layer for layer in layers if layer is not None and not isinstance(layer, (GruDecoder, nn.Identity))]


def is_compile_error(error: Exception) -> bool:
    """Return True if an error comes from torch.compile: for example, no compiler is found or the GPU is too old."""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))


class TrainingStopped(Exception):
    """The training stopped on request (Ctrl-C, SIGTERM), after the current step."""


class _PendingStep(NamedTuple):
    """A step whose results have not been read; on a GPU it may still be running."""

    number: int
    positions: range  # in the epoch, of the crops of all ranks
    read: Callable[[], list[float]]  # the three losses, the number of ranks with a stop request, the gradient norm


def _read_later(values: Tensor) -> Callable[[], list[float]]:
    """Return a function that reads values; from a CUDA GPU, start to copy them now, without waiting.

    A copy started at the time of reading would wait for all work queued on the GPU in the meantime.
    """
    if values.device.type != "cuda":
        return values.tolist
    host_values = values.to("cpu", non_blocking=True)
    arrived = torch.cuda.current_stream(values.device).record_event()

    def read() -> list[float]:
        arrived.synchronize()
        return host_values.tolist()

    return read


class Trainer(TrainingState):
    """A training: its state and the loop that advances it."""

    def __init__(
        self,
        config: Config,
        corpus: Corpus,
        checkpoint_dir: Path,
        device: torch.device,
        seed: int,
        ranks: ProcessRanks = SINGLE_PROCESS,
        num_workers: int = 0,
    ) -> None:
        super().__init__(config, corpus, device, seed)
        self.checkpoint_dir = checkpoint_dir
        self.ranks = ranks
        self.num_workers = num_workers
        self.parallel_model = ranks.wrap_model(self.model, device)
        self.loss_function = build_loss(config).to(device)
        self.next_corpus: Callable[[], Corpus] | None = None  # called before each epoch during a download
        self.experiment_log: ExperimentLog | None = None  # only on rank 0
        self.precision: torch.dtype = torch.float32  # of the decoder's matrix products in training
        self.stop_requested = False  # of this process
        self.last_loss = float("nan")
        # Reading a loss synchronises with the GPU, so it is read only after the next step is queued.
        self._max_pending = 1 if device.type == "cuda" else 0
        self._pending: deque[_PendingStep] = deque()
        self._stop_after: int | None = None  # the step after which all ranks stop
        self._last_save = time.monotonic()

    def train_epoch(self) -> float:
        """Train from the current position to the end of the epoch; return the mean loss.

        Raises:
            TrainingStopped: a process received a stop request; the state is saved.
            ValueError: the loss is not finite.
        """
        progress, n_crops = self.progress, len(self.training)
        self.parallel_model.train()
        self.training.set_epoch(progress.epoch)
        order = self.training.order()
        with self._progress_bar(n_crops) as bar:
            for positions, share, batch in self._batches(self.training, order, progress.position_in_epoch):
                self._step(positions, share, batch)
                self._read_pending(self._max_pending)
                bar.set_postfix(loss=f"{self.last_loss:.3f}", refresh=False)
                bar.update()
                if progress.position_in_epoch < n_crops:
                    self._stop_or_save()
        self._read_pending(0)
        mean = progress.loss_sum / progress.loss_count
        progress.epoch, progress.position_in_epoch = progress.epoch + 1, 0
        progress.loss_sum, progress.loss_count = 0.0, 0
        return mean

    def _progress_bar(self, n_crops: int) -> tqdm:
        size = self.config.train.batch_size
        return tqdm(
            desc=f"epoch {self.progress.epoch + 1}",
            unit="it",
            total=-(-n_crops // size),
            initial=self.progress.position_in_epoch // size,
            disable=None if self.ranks.is_first else True,  # None: only on a terminal
        )

    def _batches(
        self, crops: CropDataset, order: np.ndarray, start: int = 0
    ) -> Iterator[tuple[range, range, dict[str, Tensor]]]:
        size = self.config.train.batch_size
        return load_batches(crops, order, start, size, self.ranks, self.device, self.num_workers)

    def _noise_sources(self, *key: int, positions: range) -> list[torch.Generator]:
        return [
            torch.Generator(self.device).manual_seed(_derive_seed(self.seed, *key, position)) for position in positions
        ]

    def _step(self, positions: range, share: range, batch: dict[str, Tensor]) -> None:
        progress, n_ranks = self.progress, self.ranks.size
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.train.learning_rate_at(progress.step)
        torch.manual_seed(_derive_seed(self.seed, progress.step, self.ranks.rank))  # for dropout
        noise = self._noise_sources(progress.epoch, 0, positions=share)
        weight = len(self.ranks.shard(positions)) * n_ranks / len(positions)
        max_grad_norm = self.config.train.max_grad_norm
        model, loss, optimizer = self.parallel_model, self.loss_function, self.optimizer
        try:
            losses = train_step(model, loss, optimizer, batch, max_grad_norm, noise, weight, self.precision)
        except RuntimeError as error:  # --debug: autograd names the operation
            if not torch.is_anomaly_enabled() or "nan values" not in str(error):
                raise
            raise ValueError(self._describe_failure(str(error), progress.step + 1, positions)) from error
        grad_norm = losses.pop("grad_norm")
        stop_requests = torch.full_like(grad_norm, float(self.stop_requested))
        values = self.ranks.all_reduce(
            torch.stack([*(loss * (weight / n_ranks) for loss in losses.values()), stop_requests])
        )
        progress.step += 1
        if self.average:
            self.average.update(self.model, progress.step)
        progress.position_in_epoch = positions.stop
        self._pending.append(_PendingStep(progress.step, positions, _read_later(torch.cat([values, grad_norm[None]]))))

    def _read_pending(self, max_pending: int) -> None:
        """Read the results of all but the newest ``max_pending`` steps."""
        while len(self._pending) > max_pending:
            step = self._pending.popleft()
            loss, convergence, log_magnitude, stop_requests, grad_norm = step.read()
            if not np.isfinite([loss, grad_norm]).all():
                failure = f"the loss is {loss} and the norm of its gradient {grad_norm}"
                raise ValueError(self._describe_failure(failure, step.number, step.positions))
            if stop_requests and self._stop_after is None:
                self._stop_after = step.number + self._max_pending  # the same step on every rank
            self.last_loss = loss
            self.progress.loss_sum += loss * len(step.positions)
            self.progress.loss_count += len(step.positions)
            if self.experiment_log and step.number % self.config.train.log_every_steps == 0:
                learning_rate = self.config.train.learning_rate_at(step.number - 1)
                self.experiment_log.log_step(
                    self.progress.epoch + 1,
                    step.number,
                    {
                        "train_loss": loss,
                        "train_spectral_convergence": convergence,
                        "train_log_magnitude": log_magnitude,
                        "grad_norm": grad_norm,
                        "learning_rate": learning_rate,
                    },
                )

    def _describe_failure(self, failure: str, step: int, positions: range) -> str:
        names = sorted({self.training.path_of(index).name for index in self.training.order()[list(positions)]})
        return (
            f"{failure} at epoch {self.progress.epoch + 1}, step {step}, in a batch of {', '.join(names)}; "
            f"the last checkpoint is intact. A lower learning_rate in config.json may help"
        )

    def _stop_or_save(self) -> None:
        """Stop if requested, and save if the interval has passed; called between two steps of an epoch."""
        stop = self._stop_after is not None and self.progress.step >= self._stop_after
        due = time.monotonic() - self._last_save >= 60 * self.config.train.save_every_minutes
        if stop or (due and self.ranks.is_first):
            self._read_pending(0)
            self.save(LATEST)
        if stop:
            raise TrainingStopped

    @torch.no_grad()
    def validate(self) -> StftLoss:
        """Return the mean losses over the held-out recordings as floats, NaN if there are none."""
        model = self.eval_model.eval()
        sums, n_crops = torch.zeros(3, device=self.device), len(self.validation)
        for positions, share, batch in self._batches(self.validation, np.arange(n_crops)):
            noise = self._noise_sources(0, 1, positions=share)
            audio = model(batch["f0"], batch["loudness"], noise, plucks=batch.get("plucks"))
            losses = torch.stack(self.loss_function(audio, batch["audio"], batch.get("bandwidth")))
            sums += losses * len(self.ranks.shard(positions))
        sums = self.ranks.all_reduce(sums).tolist()
        return StftLoss(*(total / n_crops if n_crops else float("nan") for total in sums))

    def save(self, *names: str) -> None:
        """Save the state under each name; only rank 0 writes."""
        self._last_save = time.monotonic()
        if not self.ranks.is_first:
            return
        checkpoint = self.to_checkpoint()
        for name in names:
            save_checkpoint(self.checkpoint_dir / name, checkpoint)

    def run(self, epochs: int) -> None:
        """Train until ``epochs`` epochs are complete in total, and save after each.

        Raises:
            TrainingStopped: see ``train_epoch``.
            ValueError: the loss is not finite.
            OSError: a checkpoint cannot be written.
        """
        progress, patience = self.progress, self.config.train.patience
        while progress.epoch < epochs:
            if patience is not None and progress.epochs_since_best >= patience:
                log.info("no lower validation loss for %d epochs: the training ends", progress.epochs_since_best)
                return
            if self.next_corpus and progress.position_in_epoch == 0:
                self.switch_corpus(self.next_corpus())
            self._finish_epoch(self.train_epoch(), self.validate())
            stop_requests = self.ranks.all_reduce(torch.tensor(float(self.stop_requested), device=self.device))
            if stop_requests.item() and progress.epoch < epochs:
                raise TrainingStopped

    def _finish_epoch(self, train_loss: float, validation: StftLoss) -> None:
        progress, val_loss = self.progress, validation.total
        judged = val_loss if len(self.validation) else train_loss
        is_best = judged < progress.best_val_loss
        progress.best_val_loss = min(judged, progress.best_val_loss)
        progress.epochs_since_best = 0 if is_best else progress.epochs_since_best + 1
        if progress.first_val_loss is None and len(self.validation):
            progress.first_val_loss = val_loss
        if self.experiment_log:
            self.experiment_log.log_epoch(progress.epoch, progress.step, train_loss, validation)
        self.save(LATEST, f"model_epoch_{progress.epoch}.pth", *([BEST] if is_best else []))
        if self.ranks.is_first:
            delete_old_epochs(self.checkpoint_dir, self.config.train.keep_checkpoints)
        log.info(
            "epoch %d step %d train_loss %.4f%s%s",
            progress.epoch,
            progress.step,
            train_loss,
            f" val_loss {val_loss:.4f}" if len(self.validation) else "",
            " (best)" if is_best else "",
        )
        if self.experiment_log and progress.epoch % self.config.train.phrases_every_epochs == 0:
            self.experiment_log.log_phrases(progress.epoch, progress.step, self.eval_model, self.corpus)


def _derive_seed(*numbers: int) -> int:
    """Return a seed that is different for different numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
