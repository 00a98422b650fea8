"""End-to-end tests: the shipped trumpet plays the example, and the pipeline runs from rendering to transfer.

./venv/bin/python test_e2e.py          # takes pytest's flags, such as -k trumpet
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from checkpoint import load_model, pretrained_path, read_checkpoint
from features import extract_features, load_audio
from sound.audio_files import prepare_audio
from sound.console import command_parser
from transfer import TransferResult, transfer

ROOT = Path(__file__).parent
HUM = ROOT / "examples" / "hum.wav"


@pytest.fixture(scope="module")
def hum() -> TransferResult:
    model = load_model(pretrained_path("trumpet"))
    rate = model.settings.audio.feature_rate
    return transfer(load_audio(HUM, rate), rate, model)


def measure(result: TransferResult):
    """Extract the features of the result, as of a recording."""
    config = load_model(pretrained_path("trumpet")).settings
    return extract_features(prepare_audio(result.audio, result.sample_rate, config.audio.feature_rate), config)


@pytest.mark.parametrize("instrument", ["trumpet", "guitar", "saxophone", "violin", "flute"])
def test_a_shipped_model_is_small_and_has_a_card(instrument: str) -> None:
    path = pretrained_path(instrument)
    assert path.stat().st_size < 5_000_000
    assert path.with_suffix(".md").is_file()
    checkpoint = read_checkpoint(path)
    assert checkpoint["optimizer"] is None and checkpoint["preset"] == "wide"


def test_the_trumpet_follows_the_tune(hum: TransferResult) -> None:
    played = hum.curves.gate == 1
    measured = measure(hum)
    periodic = played & (measured.periodicity.numpy() > 0.5)
    assert periodic.sum() > 0.95 * played.sum()
    cents = np.abs(1200 * np.log2(measured.f0.numpy()[periodic] / hum.curves.f0[periodic]))
    # The error of CREPE tiny on a steady tone is 3 to 5 cents.
    assert np.median(cents) < 10 and np.percentile(cents, 95) < 50


def test_the_trumpet_follows_the_dynamics(hum: TransferResult) -> None:
    played = hum.curves.gate == 1
    loudness = measure(hum).loudness.numpy()
    assert np.corrcoef(loudness[played], hum.features.loudness.numpy()[played])[0, 1] > 0.9
    assert np.corrcoef(loudness, hum.features.loudness.numpy())[0, 1] > 0.9


def test_the_pauses_are_silent_and_nothing_clips(hum: TransferResult) -> None:
    level = 10 * np.log10(np.mean(hum.audio.reshape(-1, hum.sample_rate // 100) ** 2, axis=1) + 1e-20)
    pauses = level[hum.curves.gate == 0]
    assert len(pauses) > 100 and np.percentile(pauses, 95) < -60
    assert 0.05 < np.abs(hum.audio).max() <= 10 ** (-1 / 20) + 1e-6


def test_the_register_fits_and_the_bits_repeat(hum: TransferResult) -> None:
    assert hum.report["semitones"] % 12 == 0 and hum.report["share_out_of_range"] < 0.02
    model = load_model(pretrained_path("trumpet"))
    again = transfer(load_audio(HUM, 16000), 16000, model)
    assert np.array_equal(hum.audio, again.audio)


def test_the_readme_line(tmp_path: Path) -> None:
    out = tmp_path / "out" / "hum_trumpet.wav"
    done = python("transfer.py", "--input", HUM, "--instrument", "trumpet", "--output", out)
    said = done.stdout.strip().rpartition(",")[0].partition(": ")[2]  # without the speed
    assert f"\nout/hum_trumpet.wav: {said}, " in (ROOT / "docs" / "transfer.md").read_text()
    audio, rate = soundfile.read(out)
    assert rate == 48000 and abs(len(audio) / rate - soundfile.info(HUM).duration) < 0.02


needs_fluidsynth = pytest.mark.skipif(
    shutil.which("fluidsynth") is None, reason="needs FluidSynth: apt install fluidsynth fluid-soundfont-gm"
)


@needs_fluidsynth
def test_the_pipeline_with_a_stop_in_the_middle(tmp_path: Path) -> None:
    raw, processed, checkpoints = tmp_path / "raw", tmp_path / "processed", tmp_path / "checkpoints"
    python("scripts/render_dataset.py", "--instrument", "trumpet", "--minutes", 1, "--output_dir", raw)
    done = python("preprocess.py", "--input_dir", raw, "--output_dir", processed)
    assert "2 written, 0 skipped, 0 failed" in done.stdout
    recording = next(processed.glob("*.pt"))
    python("visualize_features.py", "--file", recording, "--output_dir", tmp_path / "pictures")
    assert list((tmp_path / "pictures").glob("*.png"))

    train = ["train.py", "--data_dir", processed, "--checkpoint_dir", checkpoints]
    train += ["--runs_dir", tmp_path / "runs", "--wandb_mode", "disabled"]
    python(*train, "--epochs", 2)
    assert read_checkpoint(checkpoints / "latest.pth")["epoch"] == 2
    interrupt_after_epoch(checkpoints / "model_epoch_3.pth", train)
    latest = checkpoints / "latest.pth"
    stopped_at = read_checkpoint(latest)
    done = python(*train, "--epochs", stopped_at["epoch"] + 1)
    assert f"resumed {latest}: " in done.stderr and f"at step {stopped_at['step']}\n" in done.stderr

    out = tmp_path / "mine.wav"
    python("transfer.py", "--input", HUM, "--checkpoint", checkpoints / "latest.pth", "--output", out)
    assert np.abs(soundfile.read(out)[0]).max() > 0.01


def interrupt_after_epoch(checkpoint: Path, command: list) -> None:
    """Start a long training, send SIGINT once ``checkpoint`` exists, and check that it exits cleanly."""
    process = subprocess.Popen(
        [sys.executable, *map(str, command), "--epochs", "100000"], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 180
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    messages = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "Traceback" not in messages, messages


def python(*command: object) -> subprocess.CompletedProcess:
    """Run one of the project's scripts and check that it succeeds."""
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
    return done


if __name__ == "__main__":
    parser = command_parser("Test the shipped models and the whole pipeline; takes two minutes.", "[flags of pytest]")
    sys.exit(pytest.main(["-n", "0", __file__, *parser.parse_known_args()[1]]))
