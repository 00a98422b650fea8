"""Kill a training again and again, with SIGKILL at random moments, and see that nothing is lost.

    ./venv/bin/python scripts/kill_train.py --kills 50

A small model is trained twice on a few tones made here: once undisturbed, once killed and started
again by the same command. Every start must find a readable ``latest.pth``, no half-written file may
stay, and in the end weights and optimizer must be those of the undisturbed run, to the bit.
"""

import argparse
import json
import logging
import os
import random
import signal
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
import torch  # noqa: E402

import train  # noqa: E402
from checkpoint import LATEST, read_checkpoint  # noqa: E402
from config import DEFAULT_CONFIG_PATH, Config, load_config  # noqa: E402
from data import Recording, extractor_settings, save_recording  # noqa: E402

_SAVE_EVERY_MINUTES = 0.001
_STEPS_PER_EPOCH = 100  # of the corpus that is made here
_STEPS_PER_KILL = 60  # at most; trained by a run before it is killed
_JITTER_SECONDS = 0.1
log = logging.getLogger("kill_train")


@dataclass
class Report:
    kills: int = 0
    in_training: int = 0  # kills that came after the run had saved something new
    half_files: set[tuple[str, int]] = field(default_factory=set)  # name and time: left by a kill during a save
    last_saved: int = 0  # step
    steps_lost: list[int] = field(default_factory=list)  # by each kill: trained, but not saved


def write_corpus(folder: Path, config: Config) -> None:
    """Write six processed recordings of two seconds, each a tone that fades."""
    n_frames = config.audio.seconds_to_frames(2.0)
    n_samples = config.audio.frames_to_samples(n_frames)
    folder.mkdir(parents=True)
    for number in range(6):
        f0 = 200.0 + 60 * number
        phase = 2 * torch.pi * f0 * torch.arange(n_samples) / config.audio.sample_rate
        audio = sum(torch.sin(k * phase) / k for k in range(1, 7)) * torch.linspace(0.3, 0.01, n_samples)
        recording = Recording(
            "trumpet",
            f0=torch.full((1, n_frames, 1), f0),
            loudness=torch.linspace(-15, -45, n_frames)[None, :, None],
            periodicity=torch.ones(1, n_frames, 1),
            audio=audio[None],
            source={"file": f"{number}.wav", "sha256": f"{number}"},
            extractor=extractor_settings(config, "trumpet"),
        )
        save_recording(folder / f"{number}.pt", recording)


def write_config(path: Path) -> Config:
    """Write a config.json with a small model, whose steps take milliseconds and which still has dropout."""
    content = json.loads(DEFAULT_CONFIG_PATH.read_text())
    small = {"hidden_size": 8, "num_layers": 2, "dropout": 0.1, "n_harmonics": 8, "n_noise_bands": 9}
    content["base"]["model"] |= small
    content["base"]["loss"] |= {"fft_sizes": [256], "hop_sizes": [128], "win_lengths": [256]}
    content["base"]["train"] |= {"batch_size": 1, "crop_seconds": 0.1, "log_every_steps": 1}
    content["base"]["train"]["phrases_every_epochs"] = 1000
    path.write_text(json.dumps(content))
    return load_config(path)


def start_training(folder: Path, name: str, epochs: int) -> BaseProcess:
    """Start ``train.py`` on its own flags in a process of its own, saving after almost every step.

    The process is forked, so that it is killed while it trains and saves and not while it imports.
    """
    given = {
        "data_dir": folder / "data", "config": folder / "config.json", "checkpoint_dir": folder / name,
        "runs_dir": folder / "runs", "run_name": name, "wandb_mode": "disabled", "device": "cpu",
        "epochs": epochs, "save_every_minutes": _SAVE_EVERY_MINUTES,
    }  # fmt: skip
    argv = [part for flag, value in given.items() for part in (f"--{flag}", str(value))]
    process = get_context("fork").Process(target=_train, args=(argv, folder / f"{name}.log"))
    process.start()
    return process


def _train(argv: list[str], log_path: Path) -> None:
    with log_path.open("w") as file:
        os.dup2(file.fileno(), 2)
        os._exit(train.main(argv))


def kill_often(folder: Path, epochs: int, n_kills: int, generator: random.Random) -> Report:
    """Start the training and kill it, ``n_kills`` times, then let it end.

    Raises:
        ValueError: a start failed, or a file that was left could not be read.
    """
    report = Report()
    for _ in range(n_kills):
        process = start_training(folder, "killed", epochs)
        _wait_for_a_moment(process, folder, report.last_saved, generator)
        process.kill()
        process.join()
        if process.exitcode != -signal.SIGKILL:
            raise ValueError(f"start {report.kills + 1} failed:\n{(folder / 'killed.log').read_text()}")
        _look_at_the_remains(folder, report)
    _finish(start_training(folder, "killed", epochs), folder / "killed.log")
    return report


def _wait_for_a_moment(process: BaseProcess, folder: Path, saved: int, generator: random.Random) -> None:
    """Wait until a random step is trained, one in four times for none, and then for a random part of a second."""
    step = saved + generator.choice((0, 1, 1, 1)) * generator.randint(1, _STEPS_PER_KILL)
    while process.is_alive() and step > saved and _last_step(folder) < step:
        time.sleep(0.002)
    time.sleep(generator.uniform(0, _JITTER_SECONDS))


def _last_step(folder: Path) -> int:
    """Return the last step in the metrics of the run that is killed."""
    path = folder / "runs" / "killed" / "metrics.jsonl"
    if not path.exists():
        return 0
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 1000))
        lines = file.read().split(b"\n")[1:-1]  # the first and the last may be cut
    return json.loads(lines[-1])["step"] if lines else 0


def _look_at_the_remains(folder: Path, report: Report) -> None:
    latest = folder / "killed" / LATEST
    saved = read_checkpoint(latest)["step"] if latest.exists() else 0
    trained = _last_step(folder)
    report.half_files |= {(path.name, path.stat().st_mtime_ns) for path in (folder / "killed").glob("*.part")}
    report.kills += 1
    report.in_training += saved > report.last_saved
    report.last_saved = saved
    report.steps_lost.append(max(0, trained - saved))


def _finish(process: BaseProcess, log_path: Path) -> None:
    process.join()
    if process.exitcode != 0:
        raise ValueError(f"the training failed:\n{log_path.read_text()}")


def same_training(one: dict, other: dict) -> bool:
    """Say whether two checkpoints hold the same counters, weights and optimizer, to the bit."""
    counters = ("epoch", "step", "position_in_epoch", "metrics")
    if any(one[name] != other[name] for name in counters) or one["model"].keys() != other["model"].keys():
        return False
    weights = all(torch.equal(weight, other["model"][name]) for name, weight in one["model"].items())
    moments, others = one["optimizer"]["state"], other["optimizer"]["state"]
    return weights and all(
        torch.equal(value, others[number][name]) for number, state in moments.items() for name, value in state.items()
    )


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Kill a small training at random moments; it must not matter.")
    parser.add_argument("--kills", type=int, default=50, help="default 50")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default 0)")
    args = parser.parse_args(argv)
    if args.kills < 1:
        parser.error("--kills must be at least 1")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)  # a forked copy of torch's threads would hang
    epochs = -(-args.kills * _STEPS_PER_KILL // _STEPS_PER_EPOCH) + 1
    try:
        with tempfile.TemporaryDirectory() as name:
            return compare(Path(name), epochs, args.kills, random.Random(args.seed))
    except ValueError as error:
        log.error("kill_train.py: %s", error)
        return 1
    except KeyboardInterrupt:
        log.error("kill_train.py: stopped")
        return 130


def compare(folder: Path, epochs: int, n_kills: int, generator: random.Random) -> int:
    """Train with and without kills, print the figures, and return 0 if both came to the same."""
    write_corpus(folder / "data", write_config(folder / "config.json"))
    _finish(start_training(folder, "undisturbed", epochs), folder / "undisturbed.log")
    report = kill_often(folder, epochs, n_kills, generator)
    one, other = (read_checkpoint(folder / run / LATEST) for run in ("undisturbed", "killed"))
    same, left = same_training(one, other), list((folder / "killed").glob("*.part"))
    print(
        f"{report.kills} kills, {report.in_training} of them after a new save, {len(report.half_files)} in the middle "
        f"of one; every start succeeded. Lost by a kill: {statistics.median(report.steps_lost):g} steps in the middle, "
        f"{max(report.steps_lost)} at most, of {other['step']}. Half files left: {len(left)}. "
        f"Same weights and optimizer as undisturbed: {'yes, to the bit' if same else 'NO'}"
    )
    return 0 if same and not left else 1


if __name__ == "__main__":
    raise SystemExit(main())
