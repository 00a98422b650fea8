"""Synthetic sounds, a small model, and files made of them, for all tests; nothing here needs data or a network."""

import dataclasses
import hashlib
import io
import os
import types
import zipfile
from pathlib import Path

import mido
import numpy as np
import pytest

# Before torch is imported: two test processes with two threads each would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

import checkpoint as checkpoint_module
from config import load_config
from data import Recording, extractor_settings, save_recording
from features import extract_features, pad_to_frames
from hub_server import HubServer
from model import build_model
from recordings import hub_client

# Begun first, in this order of the folders, so that no long file is left to one process at the end.
_LONG = ("test_e2e.py", "test_app.py", "test_evaluate.py", "test_export.py", "test_browser.py", "test_live_page.py")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in _LONG)


def harmonic_tone(f0, seconds, sample_rate=16000, n_harmonics=10, amplitude=0.3):
    """Return float32 [N]: harmonics of f0 (Hz, a number or one value a sample) falling as 1/k, none above Nyquist."""
    n_samples = round(seconds * sample_rate)
    f0 = np.broadcast_to(np.asarray(f0, dtype=np.float64), (n_samples,))
    phase = 2 * np.pi * np.cumsum(f0) / sample_rate
    partials = [np.sin(k * phase) / k * (k * f0 < sample_rate / 2) for k in range(1, n_harmonics + 1)]
    return (amplitude * np.sum(partials, axis=0)).astype(np.float32)


def melody(notes=(440.0, 523.3, 659.3), note_seconds=0.4, rest_seconds=0.2, sample_rate=16000):
    """Return float32 [N]: notes (Hz) with faded ends, each followed by a rest over a faint noise floor (-76 dB)."""
    fade = np.clip(np.arange(round(note_seconds * sample_rate)) / (0.02 * sample_rate), 0, 1)
    rest = np.zeros(round(rest_seconds * sample_rate))
    notes = [harmonic_tone(f0, note_seconds, sample_rate) * fade * fade[::-1] for f0 in notes]
    sound = np.concatenate([part for note in notes for part in (note, rest)])
    return (sound + 1.6e-4 * np.random.default_rng(0).standard_normal(len(sound))).astype(np.float32)


def shrink(config):
    """Return a configuration with a small model and a short training."""
    model = dataclasses.replace(config.model, hidden_size=32, n_harmonics=20, n_noise_bands=17)
    train = dataclasses.replace(config.train, batch_size=2, epochs=2, crop_seconds=0.25)
    return dataclasses.replace(config, model=model, train=train)


@pytest.fixture(scope="session")
def config():
    """The shipped configuration, preset tiny."""
    return load_config()


@pytest.fixture(scope="session")
def small_config(config):
    return shrink(config)


@pytest.fixture(scope="session")
def make_recording(config):
    """Return a function that measures audio [N] at 16 kHz into a Recording, as preprocess.py does."""

    def make(audio, instrument="trumpet", name="take.wav"):
        measured = extract_features(audio, config)
        frames = {key: values[None, :, None] for key, values in measured._asdict().items()}
        padded = torch.from_numpy(pad_to_frames(audio, config.audio.hop_length))[None]
        source = {"file": name, "sha256": hashlib.sha256(audio.tobytes()).hexdigest()}
        extractor = extractor_settings(config, instrument)
        return Recording(instrument, **frames, audio=padded, source=source, extractor=extractor)

    return make


@pytest.fixture
def counting_recording(config):
    """Return a function that makes a Recording in which every curve and every sample holds its frame's number."""

    def make(n_frames=100, sha256="0" * 64, instrument="trumpet"):
        frames = torch.arange(n_frames, dtype=torch.float32)
        return Recording(
            instrument,
            f0=(100 + frames)[None, :, None],
            loudness=(-70 + frames / 1000)[None, :, None],
            periodicity=torch.ones(1, n_frames, 1),
            audio=frames.repeat_interleave(config.audio.hop_length)[None],
            source={"file": "counting.wav", "sha256": sha256},
            extractor=extractor_settings(config, instrument),
        )

    return make


@pytest.fixture
def write_takes(tmp_path, counting_recording):
    """Return a function that writes one counting recording for each sha256 and returns the folder."""

    def write(digests, n_frames=200, instrument="trumpet"):
        for number, digest in enumerate(digests):
            save_recording(tmp_path / f"take_{number:02}.pt", counting_recording(n_frames, digest, instrument))
        return tmp_path

    return write


@pytest.fixture
def processed_file(tmp_path, make_recording) -> Path:
    """A processed recording of a synthetic melody, in its own folder."""
    path = tmp_path / "processed" / "melody.wav.pt"
    path.parent.mkdir()
    save_recording(path, make_recording(melody(), name="melody.wav"))
    return path


@pytest.fixture
def write_checkpoint(tmp_path, small_config):
    """Return a function that writes the checkpoint of an untrained small model and returns its path."""

    def write(name="model.pth", instrument="trumpet", config=None, **values):
        config = config or small_config
        torch.manual_seed(0)
        content = {
            "epoch": 1,
            "step": 2,
            "position_in_epoch": 0,
            "model": build_model(config, instrument).state_dict(),
            "statistics": {
                "f0_quantiles": np.geomspace(200, 800, 101).tolist(),
                "loudness_quantiles": np.linspace(-45, -15, 101).tolist(),
            },
            **values,
        }
        path = tmp_path / name
        checkpoint_module.save_checkpoint(path, checkpoint_module.make_checkpoint(config, instrument, **content))
        return path

    return write


def sing(f0: np.ndarray | float, seconds: float = 1.0, level: float = -20.0, rate: int = 16000) -> np.ndarray:
    """Return a buzzy tone of a given pitch (Hz, one value or one a sample) and RMS level (dBFS)."""
    n_samples = int(seconds * rate)
    phase = 2 * np.pi * np.cumsum(np.broadcast_to(f0, n_samples)) / rate
    tone = sum(np.sin(k * phase) / k for k in range(1, 13))
    return (tone / np.sqrt(np.mean(tone**2)) * 10 ** (level / 20)).astype(np.float32)


def pause(seconds: float, level: float = -75.0, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal(int(seconds * 16000))
    return (noise * 10 ** (level / 20)).astype(np.float32)


@pytest.fixture(scope="session")
def song() -> np.ndarray:
    """Three notes of 1 s with rests of 0.5 s over a quiet noise floor; the second is 12 dB softer."""
    return np.concatenate(
        [pause(0.5), sing(220.0), pause(0.5), sing(247.0, level=-32), pause(0.5), sing(196.0), pause(0.5)]
    )


@pytest.fixture(scope="session")
def checkpoint_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained trumpet with the statistics of a trained one."""
    torch.manual_seed(0)
    config = load_config()
    statistics = {
        "f0_quantiles": np.geomspace(165, 1046, 101).tolist(),
        "loudness_quantiles": np.linspace(-50, -12, 101).tolist(),
    }
    model = build_model(config, "trumpet")
    path = tmp_path_factory.mktemp("model") / "trumpet.pth"
    content = checkpoint_module.make_checkpoint(config, "trumpet", model=model.state_dict(), statistics=statistics)
    checkpoint_module.save_checkpoint(path, content)
    return path


def write_notes(path: Path, keys: list[int], velocity: int = 64) -> Path:
    kinds = {"note_on": 0, "note_off": 240}
    each = [(kind, key, ticks) for key in keys for kind, ticks in kinds.items()]
    notes = [mido.Message(kind, note=key, time=ticks, velocity=velocity) for kind, key, ticks in each]
    mido.MidiFile(tracks=[mido.MidiTrack(notes)]).save(path)
    return path


def damaged_pickles():
    """Return bytes on which an unpickler fails in different ways: empty stack, missing operand, unhashable key."""
    return [b"", b"0", b"\x85", b"\x87.", b"(", b"\x80\x02.", b"J\x01", b"}]Ns.", b"some text", bytes(100)]


def zipped(content: bytes) -> bytes:
    """Return the archive that torch.save writes, around any pickle."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", b"3\n")
    return packed.getvalue()


class Bomb:
    """A pickle that writes a file when an unsafe unpickler loads it."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.write_text, (self.target, "code from the file was run")


@pytest.fixture
def bomb(tmp_path):
    """An object that writes a file when an unsafe unpickler loads it, and that file."""
    target = tmp_path / "exploded"
    return Bomb(target), target


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A local Hub for the real client, as if HF_ENDPOINT, HF_HOME and the like had been set at its import.

    The client does not sleep; ``hub.pauses`` lists the pauses.
    """
    with HubServer() as server:
        for name, value in {
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_DISABLE_XET": True,
            "HF_TOKEN_PATH": str(tmp_path / "home" / "token"),
            "HF_HUB_CACHE": str(tmp_path / "home" / "hub"),
        }.items():
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        monkeypatch.setenv("HF_TOKEN", "hf_write")
        clock = types.SimpleNamespace(sleep=server.pauses.append)
        for module in ("huggingface_hub.utils._http", "huggingface_hub.file_download"):
            monkeypatch.setattr(f"{module}.time", clock)
        monkeypatch.setattr(hub_client, "time", clock)
        yield server
