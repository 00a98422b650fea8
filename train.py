"""Train an instrument from processed recordings.

    ./venv/bin/python train.py --data_dir data/processed/trumpet
    ./venv/bin/python train.py --hf_repo_id user/name

Writes ``checkpoints/latest.pth`` and ``model_epoch_N.pth`` after every epoch and ``best.pth`` when
the validation loss falls. Run the same command again and it goes on from ``latest.pth``, in the
middle of an epoch if it was stopped there (Ctrl-C and SIGTERM finish the step and save).
"""

import argparse
import dataclasses
import logging
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from checkpoint import (
    BEST,
    LATEST,
    keep_newest,
    load_weights,
    make_checkpoint,
    read_checkpoint,
    save_checkpoint,
    set_aside,
    settings_of,
)
from config import (
    DEFAULT_CONFIG_PATH,
    DEFAULT_PRESET,
    Config,
    TrainConfig,
    architecture_differences,
    get_device,
    load_config,
)
from data import Corpus, CropDataset, build_dataset, measure_statistics, read_corpus
from loss import MultiResolutionSTFTLoss
from model import NeuralGuitar, build_model

log = logging.getLogger("train")


class Stopped(Exception):
    """Somebody asked for the end (Ctrl-C, SIGTERM); the step in hand is finished first."""


@dataclasses.dataclass
class Progress:
    epoch: int = 0  # complete epochs
    step: int = 0  # optimizer steps in all
    position_in_epoch: int = 0  # steps done in the unfinished epoch
    best_val_loss: float = float("inf")
    train_losses: list[float] = dataclasses.field(default_factory=list)  # of the unfinished epoch


def learning_rate_at(step: int, settings: TrainConfig) -> float:
    """Return the learning rate; it depends on the step alone, so that training on is the same training."""
    decayed = settings.learning_rate * 0.5 ** (step / settings.learning_rate_half_life)
    return max(decayed, settings.min_learning_rate)


def train_step(
    model: NeuralGuitar,
    loss_function: MultiResolutionSTFTLoss,
    optimizer: torch.optim.Optimizer,
    batch: dict[str, Tensor],
    max_grad_norm: float,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Do one optimizer step and return its losses and gradient norm, still on the device."""
    optimizer.zero_grad(set_to_none=True)
    loss = loss_function(model(batch["f0"], batch["loudness"], generator), batch["audio"])
    loss.total.backward()
    grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
    optimizer.step()
    return {**{f"{name}_loss": value.detach() for name, value in loss._asdict().items()}, "grad_norm": grad_norm}


class Trainer:
    """One training: the model, its optimizer, the data and how far it has come."""

    def __init__(self, config: Config, corpus: Corpus, checkpoint_dir: Path, device: torch.device, seed: int) -> None:
        self.config = config
        self.checkpoint_dir = checkpoint_dir
        self.device = device
        self.seed = seed
        _seed_everything(seed)
        self.model = build_model(config, corpus.instrument).to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=config.train.learning_rate)
        self.loss_function = build_loss(config).to(device)
        self.use(corpus)
        self.next_corpus: Callable[[], Corpus] | None = None  # asked before each epoch, where recordings still arrive
        self.progress = Progress()
        self.stopping = False

    def use(self, corpus: Corpus) -> None:
        """Train on these recordings from the next epoch on."""
        self.corpus = corpus
        self.training: CropDataset = build_dataset(corpus.training, corpus.instrument, self.config, self.seed)
        self.validation: CropDataset = build_dataset(corpus.validation, corpus.instrument, self.config)
        self.statistics = measure_statistics(corpus.training, self.config)

    def _take_on(self, corpus: Corpus) -> None:
        if corpus.validation != self.corpus.validation:  # losses over other recordings do not compare
            self.progress.best_val_loss = float("inf")
        if corpus != self.corpus:
            self.use(corpus)

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.training) // self.config.train.batch_size)

    def resume(self) -> bool:
        """Go on from ``latest.pth``; return False if there is none.

        Raises:
            ValueError: it belongs to another architecture or instrument, or is damaged.
        """
        path = self.checkpoint_dir / LATEST
        if not path.exists():
            return False
        checkpoint = read_checkpoint(path)
        self._require_same_training(checkpoint, path)
        load_weights(self.model, checkpoint, path)
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        _restore_random_state(checkpoint["rng"])
        self.progress = Progress(
            checkpoint["epoch"], checkpoint["step"], checkpoint["position_in_epoch"], **checkpoint["metrics"]
        )
        return True

    def _require_same_training(self, checkpoint: dict[str, Any], path: Path) -> None:
        differences = architecture_differences(settings_of(checkpoint, path), self.config)
        if checkpoint["instrument"] != self.corpus.instrument:
            differences.insert(0, f"instrument {checkpoint['instrument']} -> {self.corpus.instrument}")
        if checkpoint["optimizer"] is None:
            differences.append("it was exported for use and cannot be trained on")
        if differences:
            raise ValueError(
                f"{path} belongs to another training: {'; '.join(differences)}. Start afresh with --no_resume, "
                f"or elsewhere with --checkpoint_dir {self.checkpoint_dir / self.corpus.instrument}"
            )

    def train_epoch(self) -> float:
        """Train to the end of the epoch, from wherever in it this training stands; return the mean loss.

        Raises:
            Stopped: after the step in which ``stopping`` was set.
            ValueError: the loss is not finite.
        """
        progress, settings = self.progress, self.config.train
        self.model.train()
        bar = tqdm(
            self._batches(), desc=f"epoch {progress.epoch + 1}", unit="it",
            initial=progress.position_in_epoch, total=self.steps_per_epoch,
        )
        for batch in bar:
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate_at(progress.step, settings)
            losses = train_step(
                self.model, self.loss_function, self.optimizer, batch, settings.max_grad_norm, self._noise_source()
            )
            self._count_step(losses)
            bar.set_postfix(loss=f"{progress.train_losses[-1]:.3f}")
            if self.stopping and progress.position_in_epoch < self.steps_per_epoch:
                raise Stopped
        mean = float(np.mean(progress.train_losses))
        progress.epoch, progress.position_in_epoch, progress.train_losses = progress.epoch + 1, 0, []
        return mean

    def _count_step(self, losses: dict[str, Tensor]) -> None:
        loss = losses["total_loss"].item()
        if not np.isfinite(loss):
            raise ValueError(
                f"the loss is {loss} at epoch {self.progress.epoch + 1}, step {self.progress.step + 1}; "
                f"the last checkpoint is intact. A lower learning_rate in config.json may help"
            )
        self.progress.step += 1
        self.progress.position_in_epoch += 1
        self.progress.train_losses.append(loss)

    def _batches(self) -> Iterator[dict[str, Tensor]]:
        self.training.set_epoch(self.progress.epoch)
        rest = self.training.order()[self.progress.position_in_epoch * self.config.train.batch_size :]
        yield from self._load(self.training, rest)

    def _load(self, crops: CropDataset, order: list[int] | None = None) -> Iterator[dict[str, Tensor]]:
        # A generator of its own: without one the loader draws from torch's, and a resumed training would differ.
        loader = DataLoader(crops, self.config.train.batch_size, sampler=order, generator=torch.Generator())
        for batch in loader:
            yield {name: value.to(self.device) for name, value in batch.items()}

    def _noise_source(self) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(self.seed * 1_000_003 + self.progress.step)

    @torch.no_grad()
    def validate(self) -> float:
        """Return the mean loss over the held-out recordings; NaN if there are none."""
        self.model.eval()
        total, generator = 0.0, torch.Generator(self.device).manual_seed(self.seed)
        for batch in self._load(self.validation):
            loss = self.loss_function(self.model(batch["f0"], batch["loudness"], generator), batch["audio"])
            total += loss.total.item() * len(batch["audio"])
        return total / len(self.validation) if len(self.validation) else float("nan")

    def save(self, *names: str) -> None:
        """Write the whole state under each name."""
        progress = self.progress
        checkpoint = make_checkpoint(
            self.config,
            self.corpus.instrument,
            epoch=progress.epoch,
            step=progress.step,
            position_in_epoch=progress.position_in_epoch,
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            schedule={"learning_rate": learning_rate_at(progress.step, self.config.train)},
            rng=_random_state(),
            statistics=self.statistics,
            metrics={"best_val_loss": progress.best_val_loss, "train_losses": progress.train_losses},
        )
        for name in names:
            save_checkpoint(self.checkpoint_dir / name, checkpoint)

    def run(self, epochs: int) -> None:
        """Train until ``epochs`` epochs are complete in all, saving after each."""
        while self.progress.epoch < epochs:
            if self.next_corpus and self.progress.position_in_epoch == 0:
                self._take_on(self.next_corpus())
            train_loss = self.train_epoch()
            val_loss = self.validate()
            is_best = val_loss < self.progress.best_val_loss
            self.progress.best_val_loss = min(val_loss, self.progress.best_val_loss)
            self.save(LATEST, f"model_epoch_{self.progress.epoch}.pth", *([BEST] if is_best else []))
            keep_newest(self.checkpoint_dir, self.config.train.keep_checkpoints)
            log.info(
                "epoch %d step %d train_loss %.4f val_loss %.4f%s",
                self.progress.epoch, self.progress.step, train_loss, val_loss, " (best)" if is_best else "",
            )
            if self.stopping and self.progress.epoch < epochs:
                raise Stopped


def build_loss(config: Config) -> MultiResolutionSTFTLoss:
    """Build the training loss of a configuration."""
    settings = config.loss
    return MultiResolutionSTFTLoss(
        settings.fft_sizes, settings.hop_sizes, settings.win_lengths, settings.mag_loss_weight, settings.eps
    )


def _seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _random_state() -> dict[str, Any]:
    version, internal, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": [version, list(internal), gauss],
        "numpy": [keys.tolist(), position, has_gauss, cached],
    }


def _restore_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state(("MT19937", np.array(state["numpy"][0], dtype=np.uint32), *state["numpy"][1:]))


@contextmanager
def stopping_on_signals(trainer: Trainer) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM stop a training after the step in hand; a second Ctrl-C stops at once."""

    def ask_to_stop(number: int, frame: Any) -> None:
        if trainer.stopping:
            raise KeyboardInterrupt
        trainer.stopping = True

    before = {number: signal.signal(number, ask_to_stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train an instrument; goes on from checkpoints/latest.pth.")
    parser.add_argument("--data_dir", type=Path, help="processed recordings (.pt); of a streamed data set, its cache")
    parser.add_argument("--hf_repo_id", help="data set on the Hugging Face Hub, user/name: train while it downloads")
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG_PATH, help="default: config.json")
    parser.add_argument("--config_name", default=DEFAULT_PRESET, help=f"preset (default {DEFAULT_PRESET})")
    parser.add_argument("--batch_size", type=int, help="crops a step (default: config.json)")
    parser.add_argument("--epochs", type=int, help="epochs in all, not further ones (default: config.json)")
    parser.add_argument("--checkpoint_dir", type=Path, default=Path("checkpoints"), help="default: checkpoints")
    parser.add_argument("--no_resume", action="store_true", help="start afresh; the old checkpoints move to previous_1")
    parser.add_argument("--seed", type=int, default=0, help="of weights, crops and noise (default 0)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default auto)")
    args = parser.parse_args(argv)
    if args.data_dir is None and args.hf_repo_id is None:
        parser.error("give --data_dir, a folder of processed recordings, or --hf_repo_id")
    for name in ("batch_size", "epochs"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1")
    if args.seed < 0:
        parser.error("--seed must not be negative")
    return args


def configure(args: argparse.Namespace) -> Config:
    """Return the configuration with the flags laid over it."""
    config = load_config(args.config, args.config_name)
    flags = {name: getattr(args, name) for name in ("batch_size", "epochs") if getattr(args, name) is not None}
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **flags))


def open_corpus(args: argparse.Namespace, config: Config) -> tuple[Corpus, Callable[[], Corpus] | None]:
    """Return the recordings and, where more of them are on their way, how to ask what has come since."""
    if args.hf_repo_id is None:
        return read_corpus(args.data_dir, config), None
    from streaming import HubRecordings, default_cache  # half a second that a training from disk need not wait

    recordings = HubRecordings(args.hf_repo_id, args.data_dir or default_cache(args.hf_repo_id), config)
    recordings.start()
    recordings.wait_for(1)
    return recordings.so_far(), recordings.so_far


def prepare(args: argparse.Namespace) -> Trainer:
    """Build the training that the command line asks for, resumed if it can be."""
    config = configure(args)
    corpus, next_corpus = open_corpus(args, config)
    trainer = Trainer(config, corpus, args.checkpoint_dir, get_device(args.device), args.seed)
    trainer.next_corpus = next_corpus
    latest = args.checkpoint_dir / LATEST
    if args.no_resume and (kept_in := set_aside(args.checkpoint_dir)):
        log.info("the old checkpoints are in %s", kept_in)
    resumed = trainer.resume()
    n_parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    log.info(
        "%s, preset %s, %d parameters, %d + %d crops (training + validation), on %s",
        corpus.instrument, config.preset, n_parameters, len(trainer.training), len(trainer.validation), trainer.device,
    )
    if resumed:
        log.info("resumed %s: epoch %d, step %d", latest, trainer.progress.epoch, trainer.progress.step)
    return trainer


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        return run(prepare(args))
    except (ValueError, OSError) as error:
        log.error("train.py: %s", error)
        return 1
    except KeyboardInterrupt:
        log.error("train.py: stopped at once; the last checkpoint is intact")
        return 130


def run(trainer: Trainer) -> int:
    """Train to the end, or to the signal that stops it; return the exit code."""
    epochs = trainer.config.train.epochs
    if trainer.progress.epoch >= epochs:
        log.info("epoch %d of %d is done already; give more --epochs to go on", trainer.progress.epoch, epochs)
        return 0
    with stopping_on_signals(trainer):
        try:
            trainer.run(epochs)
        except Stopped:
            trainer.save(LATEST)
            log.info("stopped at step %d and saved; the same command goes on from here", trainer.progress.step)
            return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
