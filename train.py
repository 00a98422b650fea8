"""Train an instrument from processed recordings.

    ./venv/bin/python train.py --data_dir data/processed/trumpet
    ./venv/bin/torchrun --nproc_per_node=4 train.py --data_dir data/processed/trumpet
    ./venv/bin/python train.py --hf_repo_id user/name

Writes ``checkpoints/latest.pth`` and ``model_epoch_N.pth`` after every epoch, ``best.pth`` when the
validation loss reaches a new minimum, and metrics, sounds and pictures under ``runs/``. The same
command resumes from ``latest.pth``, also within an epoch. Ctrl-C and SIGTERM finish the current step
and save.
"""

import argparse
import dataclasses
import logging
import os
import shlex
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import count
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: spinning threads are slow on a busy machine

import torch
from filelock import FileLock, Timeout

from checkpoint import BEST, LATEST, archive_checkpoints, checkpoint_config, read_checkpoint, remove_partial_files
from config import (
    DEFAULT_CONFIG_PATH,
    DEFAULT_PRESET,
    Config,
    architecture_differences,
    get_device,
    is_file_name,
    load_config,
    require_name,
    short_repr,
)
from model import NeuralGuitar
from recordings.corpus import MIN_WHOLE_TAKES, RECORDING_ENDS, Corpus, read_corpus, split_boundary
from recordings.crops import SINGLE_PROCESS, ProcessRanks, process_group, read_ranks
from sound.console import as_command, command_parser
from training.experiment_log import ExperimentLog, choose_run_name
from training.held_out_phrases import choose_phrases
from training.trainer import PRECISIONS, Trainer, TrainingStopped, compilable_layers, is_compile_error
from training.wandb_run import MODES, new_run_id

log = logging.getLogger("train")
_OVERRIDES = ("batch_size", "epochs", "val_fraction", "patience", "save_every_minutes")  # flags over config.json


@contextmanager
def stopping_on_signals(trainer: Trainer) -> Iterator[None]:
    """Stop the training after the current step on Ctrl-C or SIGTERM; a second signal, over 1 s later, stops at once."""
    requested_at = None

    def request_stop(number: int, frame: Any) -> None:
        nonlocal requested_at
        if requested_at is None:
            requested_at = time.monotonic()
        elif time.monotonic() - requested_at > 1.0:  # torchrun forwards a Ctrl-C that the terminal has also sent
            raise KeyboardInterrupt
        trainer.stop_requested = True

    before = {number: signal.signal(number, request_stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def lock_checkpoint_dir(folder: Path) -> Iterator[None]:
    """Lock a folder against other trainings; the operating system releases the lock of a killed process.

    Raises:
        ValueError: another training uses the folder.
        OSError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        lock = FileLock(folder / ".lock")
        lock.acquire(blocking=False)
    except Timeout as error:
        message = f"another training writes to {folder}; stop it first, or give another --checkpoint_dir"
        raise ValueError(message) from error
    except OSError as error:
        raise OSError(f"--checkpoint_dir {folder} cannot be written ({error.strerror}); give another") from error
    try:
        yield
    finally:
        lock.release()


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_parser("Train an instrument, or resume the training in --checkpoint_dir.")
    add = parser.add_argument_group("data").add_argument
    add("--data_dir", type=Path, help="processed recordings (.pt); with --hf_repo_id, the folder to download to")
    add("--hf_repo_id", help="data set on the Hugging Face Hub, user/name: train while it downloads")
    add("--val_fraction", type=float, help="fraction of the recordings held out (default: config.json)")
    add("--num_workers", type=int, default=0, help="processes that load crops (default: 0)")
    add = parser.add_argument_group("training").add_argument
    add("--config", type=Path, default=DEFAULT_CONFIG_PATH, help="settings (default: config.json)")
    add("--config_name", default=DEFAULT_PRESET, help=f"preset (default: {DEFAULT_PRESET})")
    add("--batch_size", type=int, help="crops per step, over all processes (default: config.json)")
    add("--epochs", type=int, help="total number of epochs, including those before a resume (default: config.json)")
    add("--patience", type=int, help="stop after N epochs without a lower validation loss (default: never)")
    add("--seed", type=int, default=0, help="seed of weights, crops and noise (default: 0)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    add("--precision", choices=PRECISIONS, default="float32", help="precision of the decoder (default: float32)")
    add("--compile", action="store_true", help="use torch.compile for the layers around the GRU (slow start)")
    add("--debug", action="store_true", help="name the operation that produces a NaN (slower)")
    add = parser.add_argument_group("checkpoints").add_argument
    add("--checkpoint_dir", type=Path, default=Path("checkpoints"), help="folder (default: checkpoints)")
    add("--no_resume", action="store_true", help="start from scratch; the old checkpoints move to previous_1")
    add("--save_every_minutes", type=float, help="interval between saves within an epoch (default: config.json)")
    add = parser.add_argument_group("log").add_argument
    add("--run_name", help="name of the run, in runs/ and on W&B (default: two random words)")
    add("--runs_dir", type=Path, default=Path("runs"), help="folder of the run pages (default: runs)")
    add("--wandb_mode", choices=MODES, help="W&B mode (default: online if a key is configured, else offline)")
    add("--wandb_project", default="neural-guitar", help="W&B project (default: neural-guitar)")
    args = parser.parse_args(argv)
    _check_flags(parser, args)
    return args


def _check_flags(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.data_dir is None and args.hf_repo_id is None:
        parser.error("give --data_dir, a folder of processed recordings, or --hf_repo_id")
    for name, least in (("batch_size", 1), ("epochs", 1), ("patience", 1), ("num_workers", 0), ("seed", 0)):
        if getattr(args, name) is not None and getattr(args, name) < least:
            parser.error(f"--{name} must be at least {least}")
    if args.val_fraction is not None and not 0 <= args.val_fraction < 1:
        parser.error("--val_fraction must be at least 0 and less than 1")
    if args.save_every_minutes is not None and not args.save_every_minutes > 0:
        parser.error("--save_every_minutes must be more than 0")
    if args.run_name is not None and not is_file_name(args.run_name):
        parser.error(f"--run_name is {short_repr(args.run_name)}, but must be a folder name, such as trumpet-2")


def read_config(args: argparse.Namespace) -> Config:
    """Return the configuration, with the values of the flags that are given."""
    config = load_config(args.config, args.config_name)
    flags = {name: getattr(args, name) for name in _OVERRIDES if getattr(args, name) is not None}
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **flags))


def build_trainer(
    args: argparse.Namespace, ranks: ProcessRanks = SINGLE_PROCESS, at_exit: ExitStack | None = None
) -> Trainer:
    """Return the trainer of the command line, resumed from its checkpoint if there is one.

    Args:
        args: from ``parse_args``.
        ranks: rank of this process.
        at_exit: gets a callback that stops a download.

    Raises:
        ValueError: the flags, the recordings and the checkpoint do not fit together.
    """
    config = read_config(args)
    latest = args.checkpoint_dir / LATEST
    checkpoint = read_checkpoint(latest) if latest.exists() and not args.no_resume else None
    if checkpoint:
        _require_same_training(checkpoint, latest, config)
        config = _keep_val_fraction(checkpoint, latest, config)
    device = get_device(ranks.device_name(args.device))
    boundary = split_boundary(checkpoint) if checkpoint else None
    whole, next_corpus = open_corpus(args, config, boundary, ranks, device, at_exit or ExitStack())
    corpus = next_corpus() if next_corpus else whole
    if checkpoint and (before := checkpoint["instrument"]) != corpus.instrument:
        raise _wrong_training_error(latest, [f"instrument {before} -> {corpus.instrument}"], corpus.instrument)
    if boundary == RECORDING_ENDS and len({span.path for span in whole.training}) >= MIN_WHOLE_TAKES:
        log.info(
            "the end of each recording stays held out, because this training began with fewer than %d", MIN_WHOLE_TAKES
        )
    if config.train.patience is not None and not corpus.validation:
        raise ValueError(
            "--patience needs a validation loss, but no recordings are held out; give --val_fraction, and "
            "--no_resume if a training has begun without it"
        )
    trainer = Trainer(config, corpus, args.checkpoint_dir, device, args.seed, ranks, args.num_workers)
    trainer.next_corpus = next_corpus
    trainer.phrases = choose_phrases(whole, (checkpoint["schedule"] or {}).get("phrases") or () if checkpoint else ())
    trainer.precision = PRECISIONS[args.precision]
    if args.compile:
        _compile(trainer.model)
    if ranks.is_first:
        remove_partial_files(args.checkpoint_dir)
        if args.no_resume and (kept_in := archive_checkpoints(args.checkpoint_dir)):
            log.info("the old checkpoints are in %s", kept_in)
    n_parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    log.info(
        "%s, preset %s, %d parameters, %d + %d crops (training + validation), on %s",
        corpus.instrument,
        config.preset,
        n_parameters,
        len(trainer.training),
        len(trainer.validation),
        trainer.device,
    )
    if checkpoint:
        trainer.resume(checkpoint, latest)
        log.info("resumed %s: %s", latest, trainer.progress)
    if not corpus.validation:
        log.info("no recordings are held out: the best checkpoint is the one with the lowest training loss")
    return trainer


def _compile(model: NeuralGuitar) -> None:
    layers = compilable_layers(model)
    for layer in layers:
        layer.compile()
    if not layers:
        log.info("--compile: this preset has no layers to compile except the GRU")


def open_corpus(
    args: argparse.Namespace,
    config: Config,
    boundary: str | None,
    ranks: ProcessRanks,
    device: torch.device,
    at_exit: ExitStack,
) -> tuple[Corpus, Callable[[], Corpus] | None]:
    """Return the whole corpus and, if it is being downloaded, a function that returns the part available so far."""
    if args.hf_repo_id is None:
        return read_corpus(args.data_dir, config, boundary), None
    from recordings.hub_dataset import HubRecordings  # 0.5 s to import

    folder = args.data_dir or Path("data/hub") / args.hf_repo_id.replace("/", "--")
    recordings = HubRecordings(args.hf_repo_id, folder, config, boundary)
    at_exit.callback(recordings.close)
    recordings.wait_for_first(ranks, device)
    return recordings.corpus, lambda: recordings.common_corpus(ranks, device)


def _wrong_training_error(path: Path, differences: list[str], instrument: str) -> ValueError:
    folder = path.parent
    root = folder if folder.parent in (Path(), folder) else folder.parent
    free = next(new for n in count(1) if not (new := root / (instrument if n == 1 else f"{instrument}_{n}")).exists())
    return ValueError(
        f"{path} belongs to another training: {'; '.join(differences)}. Replace it with --no_resume, "
        f"or keep it and give --checkpoint_dir {free}"
    )


def _require_same_training(checkpoint: dict[str, Any], path: Path, config: Config) -> None:
    differences = architecture_differences(checkpoint_config(checkpoint, path, config), config)
    if checkpoint["optimizer"] is None:
        differences.append("it was exported for use and cannot be trained further")
    if differences:
        raise _wrong_training_error(path, differences, checkpoint["instrument"])


def _keep_val_fraction(checkpoint: dict[str, Any], path: Path, config: Config) -> Config:
    """Return the configuration with the checkpoint's val_fraction: a new one could hold out recordings trained on."""
    loss, saved = (checkpoint["config"].get(section) for section in ("loss", "train"))
    before = saved.get("val_fraction") if isinstance(loss, dict) and isinstance(saved, dict) else None
    if not (isinstance(before, int | float) and 0 <= before < 1):
        raise ValueError(f"{path} lacks the settings of its training; --no_resume starts a new one")
    if before == config.train.val_fraction:
        return config
    log.info("val_fraction stays %g: a resumed training keeps its split; --no_resume starts a new one", before)
    return dataclasses.replace(config, train=dataclasses.replace(config.train, val_fraction=before))


def open_experiment_log(trainer: Trainer, args: argparse.Namespace) -> None:
    """Open the folder of the run and its W&B run; a resumed training continues its earlier run."""
    name = trainer.run_name
    is_own = is_file_name(name) and (name == args.run_name or (args.runs_dir / name).is_dir())
    if name is not None and not is_own:  # an untrusted name, from a checkpoint of unknown origin
        require_name("the name of the run (if you chose it, give it again with --run_name)", name)
    trainer.run_name = name or choose_run_name(args.runs_dir, args.run_name)
    trainer.wandb_id = trainer.wandb_id or new_run_id()
    if args.run_name not in (None, trainer.run_name):
        log.info("a resumed training keeps its name: %s", trainer.run_name)
    if trainer.ranks.is_first:
        folder = args.runs_dir / trainer.run_name
        trainer.experiment_log = ExperimentLog(
            folder,
            trainer.config,
            trainer.corpus,
            trainer.phrases,
            trainer.progress.step,
            trainer.changes,
            trainer.checkpoint_dir / LATEST,
        )
        log.info("to watch the training, open %s", folder / "index.html")
        trainer.experiment_log.start_wandb(args.wandb_mode, args.wandb_project, trainer.wandb_id)


def run_training(trainer: Trainer, args: argparse.Namespace) -> int:
    """Train to the end or until a signal stops it; return the exit code."""
    epochs = trainer.config.train.epochs
    if trainer.progress.epoch >= epochs:
        log.info("epoch %d of %d is already done; increase --epochs to continue", trainer.progress.epoch, epochs)
        log.info("%s", describe_result(trainer))
        return 0
    exit_code = 1
    with stopping_on_signals(trainer):
        open_experiment_log(trainer, args)
        try:
            trainer.run(epochs)
            exit_code = 0
            log.info("%s", describe_result(trainer))
        except TrainingStopped:
            log.info("stopped %s, and saved; the same command resumes from here", trainer.progress)
            exit_code = 130
        finally:
            if trainer.experiment_log:
                trainer.experiment_log.finish(exit_code)
    return exit_code


def describe_result(trainer: Trainer) -> str:
    """Return a sentence that names the best checkpoint and the command that plays it."""
    path = trainer.checkpoint_dir / BEST
    if path.is_file():
        judged_by = "validation" if trainer.corpus.validation else "training"
        result = f"{path} is from epoch {read_checkpoint(path)['epoch']}, with the lowest {judged_by} loss"
    else:
        path = trainer.checkpoint_dir / LATEST
        result = f"{path} is from epoch {trainer.progress.epoch}, the last"
    return (
        f"{result}; to listen: ./venv/bin/python transfer.py --input examples/hum.wav "
        f"--checkpoint {shlex.quote(str(path))} --output out/hum_{trainer.corpus.instrument}.wav"
    )


@as_command("stopped at once; the last checkpoint is intact")
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    ranks = read_ranks()
    if not ranks.is_first:
        logging.getLogger().setLevel(logging.ERROR)
    with (
        lock_checkpoint_dir(args.checkpoint_dir) if ranks.is_first else nullcontext(),
        process_group(ranks, get_device(ranks.device_name(args.device))),
        torch.autograd.set_detect_anomaly(args.debug),
        ExitStack() as at_exit,
    ):
        try:
            return run_training(build_trainer(args, ranks, at_exit), args)
        except torch.OutOfMemoryError as error:
            raise ValueError(f"{error} Reduce --batch_size; the last checkpoint is intact") from error
        except RuntimeError as error:
            if not is_compile_error(error):
                raise
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"torch.compile failed; train without --compile: {reason}") from error


if __name__ == "__main__":
    raise SystemExit(main())
