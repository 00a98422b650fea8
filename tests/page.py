"""Helpers of the web page's tests: untrained models, tunes, and the pitch of a result."""

import os
import socket
from pathlib import Path

import numpy as np
import soundfile
import torch

from checkpoint import make_checkpoint, save_checkpoint
from config import load_config
from features import extract_features, load_audio
from model import build_model

ROOT = Path(__file__).parent.parent
RATE = 16000


def save_untrained(
    path: Path, instrument: str = "trumpet", epoch: int = 1, when: float | None = None, **values: object
) -> Path:
    """Write an untrained checkpoint with the statistics of a trained one."""
    torch.manual_seed(0)
    config = load_config()
    statistics = {
        "f0_quantiles": np.geomspace(165, 1046, 101).tolist(),
        "loudness_quantiles": np.linspace(-50, -12, 101).tolist(),
    }
    weights = build_model(config, instrument).state_dict()
    reached = {"epoch": epoch, "step": 10 * epoch}
    content = make_checkpoint(config, instrument, model=weights, statistics=statistics, **reached, **values)
    save_checkpoint(path, content)
    if when is not None:
        os.utime(path, (when, when))
    return path


def sing(path: Path, f0: float, seconds: float = 1.0) -> Path:
    """Write a buzzy tone between two short rests."""
    phase = 2 * np.pi * f0 * np.arange(int(seconds * RATE)) / RATE
    tone = 0.05 * sum(np.sin(k * phase) / k for k in range(1, 13))
    soundfile.write(path, np.pad(tone, RATE // 5), RATE)
    return path


def hear(path: str | Path) -> float:
    """Return the median f0 of a sound file in Hz."""
    measured = extract_features(load_audio(path, RATE), load_config())
    return float(np.median(measured.f0.numpy()[measured.periodicity.numpy() > 0.6]))


def cents(one: float, other: float) -> float:
    return 1200 * abs(np.log2(one / other))


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]
