"""Kill a training or preprocessing at random times (SIGKILL), and check that only time is lost.

    ./venv/bin/python benchmarks/kills.py train --kills 50
    ./venv/bin/python benchmarks/kills.py preprocess --kills 50 --num_workers 1

The command runs once without kills. Then it is started and killed ``--kills`` times, and finally runs to its end. Every
file under its final name must be readable after each kill, no partial file may remain, and the result (files, weights,
optimizer) must be bit-identical to that without kills.

The exit code is 0 if all checks passed, else 1. ``--seed`` determines the times.
"""

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import soundfile
import torch
from tqdm import tqdm

import preprocess
import train
from checkpoint import LATEST, read_checkpoint
from config import DEFAULT_CONFIG_PATH, Config, load_config
from data import Recording, extractor_settings, load_recording, save_recording
from sound.console import as_command, command_parser

_STEPS_PER_EPOCH, _STEPS_PER_KILL = 100, 60  # of the training; maximum number of steps before a kill
_MAX_DELAY = 0.1  # s, from a random step to the kill


def start(main: Callable[[list[str]], int], flags: dict[str, object], log_path: Path) -> BaseProcess:
    """Start a command as the leader of a process group, forked so that its imports are already done."""
    argv = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    process = get_context("fork").Process(target=_lead, args=(main, argv, log_path))
    process.start()
    return process


def _lead(main: Callable[[list[str]], int], argv: list[str], log_path: Path) -> None:
    os.setsid()
    tqdm.set_lock(threading.RLock())  # the inherited one is shared with the parent and would stay locked after a kill
    file = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os._exit(main(argv))


def kill(process: BaseProcess, log_path: Path) -> bool:
    """Kill a process and its workers; return False if it had already ended without an error.

    Raises:
        RuntimeError: the process had failed.
    """
    if process.is_alive():
        os.killpg(process.pid, signal.SIGKILL)
    process.join()
    if process.exitcode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"a run failed:\n{log_path.read_text()}")
    return process.exitcode != 0


def finish(process: BaseProcess, log_path: Path) -> None:
    """Wait until a process ends.

    Raises:
        RuntimeError: the process failed.
    """
    process.join()
    if process.exitcode:
        raise RuntimeError(f"a run failed:\n{log_path.read_text()}")


# --- training -------------------------------------------------------------------------------------


def write_corpus(folder: Path, config: Config) -> None:
    """Write six processed recordings of 2 s, each a decaying tone."""
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
    """Write a config.json with a small model with dropout, whose steps take milliseconds."""
    content = json.loads(DEFAULT_CONFIG_PATH.read_text())
    small = {"hidden_size": 8, "num_layers": 2, "dropout": 0.1, "n_harmonics": 8, "n_noise_bands": 9}
    content["base"]["model"] |= small
    content["base"]["loss"] |= {"fft_sizes": [256], "hop_sizes": [128], "win_lengths": [256]}
    content["base"]["train"] |= {"batch_size": 1, "crop_seconds": 0.1, "log_every_steps": 1}
    content["base"]["train"]["phrases_every_epochs"] = 1000
    path.write_text(json.dumps(content))
    return load_config(path)


def start_training(folder: Path, name: str, epochs: int) -> BaseProcess:
    """Start train.py, saving after almost every step."""
    flags = {
        "data_dir": folder / "data",
        "config": folder / "config.json",
        "checkpoint_dir": folder / name,
        "runs_dir": folder / "runs",
        "run_name": name,
        "wandb_mode": "disabled",
        "device": "cpu",
        "epochs": epochs,
        "save_every_minutes": 0.001,
    }
    return start(train.main, flags, folder / f"{name}.log")


def kill_training(folder: Path, args: argparse.Namespace) -> tuple[str, bool]:
    """Train with and without kills; return a summary, and True if both results are equal."""
    rng, epochs = random.Random(args.seed), -(-args.kills * _STEPS_PER_KILL // _STEPS_PER_EPOCH) + 1
    write_corpus(folder / "data", write_config(folder / "config.json"))
    finish(start_training(folder, "undisturbed", epochs), folder / "undisturbed.log")
    latest, log_path = folder / "killed" / LATEST, folder / "killed.log"
    saved, lost, in_saves = 0, [], set()
    for _ in tqdm(range(args.kills), unit="kill", disable=None):
        process = start_training(folder, "killed", epochs)
        step = saved + rng.choice((0, 1, 1, 1)) * rng.randint(1, _STEPS_PER_KILL)
        while process.is_alive() and step > saved and _last_step(folder) < step:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, _MAX_DELAY))
        if not kill(process, log_path):
            raise RuntimeError(f"the training ended before kill {len(lost) + 1}")
        saved = read_checkpoint(latest)["step"] if latest.exists() else 0
        lost.append(max(0, _last_step(folder) - saved))
        in_saves |= {(path.name, path.stat().st_mtime_ns) for path in latest.parent.glob("*.part")}
    finish(start_training(folder, "killed", epochs), log_path)
    one, other = (read_checkpoint(folder / run / LATEST) for run in ("undisturbed", "killed"))
    same, n_left = is_same_training(one, other), len(list(latest.parent.glob("*.part")))
    words = (
        f"{len(in_saves)} in the middle of a save; {statistics.median(lost):g} steps lost by the median kill, "
        f"{max(lost)} at most, of {other['step']}; half-written files left: {n_left}; weights and optimizer "
        f"{'equal' if same else 'DIFFER FROM'} those of the uninterrupted run"
    )
    return words, same and not n_left


def _last_step(folder: Path) -> int:
    """Return the last step in the metrics of the killed run."""
    path = folder / "runs" / "killed" / "metrics.jsonl"
    if not path.exists():
        return 0
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 1000))
        lines = file.read().split(b"\n")[1:-1]  # the first and the last line may be incomplete
    return json.loads(lines[-1])["step"] if lines else 0


def is_same_training(one: dict, other: dict) -> bool:
    """Return True if the counters, weights and optimizers of two checkpoints are bit-identical."""
    counters = ("epoch", "step", "position_in_epoch", "metrics")
    if any(one[name] != other[name] for name in counters) or one["model"].keys() != other["model"].keys():
        return False
    weights = all(torch.equal(weight, other["model"][name]) for name, weight in one["model"].items())
    moments, others = one["optimizer"]["state"], other["optimizer"]["state"]
    return weights and all(
        torch.equal(value, others[number][name]) for number, state in moments.items() for name, value in state.items()
    )


# --- preprocessing --------------------------------------------------------------------------------


def write_recordings(folder: Path, count: int, seconds: float, rng: np.random.Generator) -> None:
    """Write tones with vibrato, rests and some noise, at 44.1 kHz."""
    folder.mkdir(parents=True)
    time_axis = np.arange(round(seconds * 44_100)) / 44_100
    for number in range(count):
        phase = 2 * np.pi * rng.uniform(150, 900) * (time_axis + 0.002 * np.sin(2 * np.pi * 5 * time_axis))
        tone = sum(np.sin(k * phase) / k for k in range(1, 6)) * (time_axis % 0.8 < 0.6)
        sound = 0.2 * tone + 0.001 * rng.standard_normal(len(tone))
        soundfile.write(folder / f"rendered_trumpet_{number:03}.wav", sound, 44_100)


def kill_preprocessing(folder: Path, args: argparse.Namespace) -> tuple[str, bool]:
    """Process recordings with and without kills, in rounds; return a summary, and True if all results are equal."""
    rng, seen = np.random.default_rng(args.seed), Counter()
    source, peace, target, log_path = (folder / name for name in ("raw", "undisturbed", "killed", "log"))
    write_recordings(source, args.recordings, args.seconds, rng)

    def run(output_dir: Path) -> BaseProcess:
        """Start preprocess.py and wait until it writes a file or ends."""
        before = set(output_dir.rglob("*"))
        flags = {"input_dir": source, "output_dir": output_dir, "num_workers": args.num_workers}
        process = start(preprocess.main, flags, log_path)
        while process.is_alive() and set(output_dir.rglob("*")) <= before:
            time.sleep(0.002)
        return process

    process, began = run(peace), time.monotonic()
    finish(process, log_path)
    seconds, expected = time.monotonic() - began, read_all(peace)
    with tqdm(total=args.kills, unit="kill", disable=None) as bar:
        while seen["kills"] < args.kills:
            process = run(target)
            process.join(rng.uniform(0, seconds / 2))
            killed = kill(process, log_path)
            finished = list(target.rglob("*.pt"))
            for path in finished:
                load_recording(path)
            seen["kills"] += killed
            seen["between"] += killed and 0 < len(finished) < args.recordings
            seen["in a write"] += killed and any(target.rglob("*.part"))
            bar.update(killed)
            if not killed:
                seen["rounds"] += 1
                seen["wrong"] += read_all(target) != expected
                shutil.rmtree(target)
    finish(run(target), log_path)
    seen["rounds"] += 1
    seen["wrong"] += read_all(target) != expected
    words = (
        f"{seen['between']} between the first file and the last, {seen['in a write']} in the middle of a write; "
        f"{seen['rounds'] - seen['wrong']} of {seen['rounds']} complete results equal the uninterrupted one"
    )
    return words, not seen["wrong"]


def read_all(folder: Path) -> dict[str, bytes]:
    """Return the content of every file in a folder, by name."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_parser("Kill a command at random times and compare its result.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("train", "preprocess"):
        command = commands.add_parser(name)
        command.add_argument("--kills", type=int, default=50, help="number of kills (default: 50)")
        command.add_argument("--seed", type=int, default=0, help="seed of the times (default: 0)")
    command.add_argument("--num_workers", type=int, default=2, help="processes of preprocess.py (default: 2)")
    command.add_argument("--recordings", type=int, default=12, help="default 12")
    command.add_argument("--seconds", type=float, default=4.0, help="length of each recording (default: 4)")
    args = parser.parse_args(argv)
    for name in ("kills", "num_workers", "recordings", "seconds"):
        if getattr(args, name, 1) <= 0:
            parser.error(f"--{name} should be more than 0")
    return args


@as_command()
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    torch.set_num_threads(1)  # forked copies of torch's threads would hang
    with tempfile.TemporaryDirectory(prefix="kills_") as name:
        run = kill_training if args.command == "train" else kill_preprocessing
        words, is_right = run(Path(name), args)
    print(f"{args.kills} kills, {words}")
    return 0 if is_right else 1


if __name__ == "__main__":
    raise SystemExit(main())
