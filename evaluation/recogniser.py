"""Instrument recognition by small convolutional networks on log-mel spectra of 1 s windows.

The recogniser evaluates outputs at 16 kHz and at 48 kHz, so it uses only the band up to 8 kHz. Every window is
normalized to the same level and floored at 60 dB below its loudest band, so that neither level nor noise floor
identifies an instrument. It is trained by ``evaluation/train_recogniser.py``, on recordings that no instrument model
is trained on.

    recogniser = load_recogniser()
    recognise(audio, 48000, recogniser).shares["trumpet"]  # share of the windows recognised as a trumpet
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import librosa
import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor, nn

from sound.atomic_files import load_tensors
from sound.audio_files import prepare_audio

INSTRUMENTS = (
    "trumpet",
    "guitar",
    "saxophone",
    "violin",
    "flute",
    "clarinet",
    "oboe",
    "bassoon",
    "trombone",
    "cello",
    "banjo",
    "mandolin",
)
OTHER = "other"  # none of them: a synthesizer that has not learned an instrument
CLASSES = (*INSTRUMENTS, OTHER)
WEIGHTS = Path(__file__).with_name("recogniser.pt")
SAMPLE_RATE = 16000  # Hz
WINDOW = 16000  # samples
HOP = 4000  # samples between window starts
QUIETEST = -60.0  # dBFS: minimum RMS of a window
SOFTEST = -35.0  # dB relative to the loudest window: minimum level, which excludes note tails and noise in pauses
_N_FFT, _FRAME_HOP, _N_MELS = 1024, 320, 64
_FMIN, _FMAX = 60.0, 8000.0  # Hz
RANGE = 60.0  # dB: dynamic range below the loudest band of a window
MEL_FREQUENCIES = librosa.mel_frequencies(_N_MELS + 2, fmin=_FMIN, fmax=_FMAX)[1:-1]  # Hz, of the bands
_CHANNELS = (16, 32, 48, 64, 96)
_BATCH = 64


@dataclass(frozen=True)
class Recognition:
    """Recognition result. Both dicts have every class as a key, and their values sum to 1."""

    shares: dict[str, float]  # share of the windows in which the class is the most probable
    probability: dict[str, float]  # mean over the windows
    n_windows: int  # number of windows classified


class Recogniser(nn.Module):
    """Network from windows of sound [B, WINDOW] at 16 kHz to logits [B, classes]."""

    def __init__(self, instruments: tuple[str, ...] = CLASSES) -> None:
        super().__init__()
        self.instruments = instruments
        filters = librosa.filters.mel(sr=SAMPLE_RATE, n_fft=_N_FFT, n_mels=_N_MELS, fmin=_FMIN, fmax=_FMAX)
        self.register_buffer("filters", torch.from_numpy(filters.T.copy()), persistent=False)  # (F, mels)
        self.register_buffer("window", torch.hann_window(_N_FFT), persistent=False)
        layers, n_in = [], 1
        for n_out in _CHANNELS:
            halve = [nn.MaxPool2d(2)] if layers else []  # the first convolution is strided, which is faster
            convolution = nn.Conv2d(n_in, n_out, 3, stride=1 if layers else 2, padding=1, bias=False)
            layers += [convolution, *halve, nn.BatchNorm2d(n_out), nn.ReLU()]
            n_in = n_out
        self.layers = nn.Sequential(*layers)
        self.dropout = nn.Dropout(0.3)
        # Pitch shifts the harmonics but not the resonances of the body, so pooling is over time only, not frequency.
        self.head = nn.Linear(2 * n_in * (_N_MELS >> len(_CHANNELS)), len(instruments))

    def forward(self, audio: Tensor) -> Tensor:
        """Return logits [B, instruments]."""
        return self.score(self.log_mel(audio))

    def score(self, spectra: Tensor) -> Tensor:
        """Return logits [B, classes] of log-mel spectra [B, mels, frames] at any level."""
        spectra = (spectra + 1 - spectra.amax(dim=(1, 2), keepdim=True)).clamp_min(0)
        maps = self.layers(spectra[:, None])  # (B, channels, mels / 32, frames / 32)
        pooled = torch.cat([maps.mean(dim=3), maps.amax(dim=3)], dim=1)
        return self.head(self.dropout(pooled.flatten(1)))

    def log_mel(self, audio: Tensor) -> Tensor:
        """Return mel band levels [B, mels, frames] in units of RANGE, 1 at a window's maximum."""
        frames = audio.unfold(1, _N_FFT, _FRAME_HOP) * self.window
        power = torch.view_as_real(torch.fft.rfft(frames)).square().sum(dim=-1)  # (B, frames, F)
        level = 10 * torch.log10(power @ self.filters + 1e-20)
        level = level - level.amax(dim=(1, 2), keepdim=True)
        return 1 + level.clamp_min(-2 * RANGE).transpose(1, 2) / RANGE


class Ensemble(nn.Module):
    """Ensemble of recognisers trained from different seeds; their probabilities are averaged."""

    def __init__(self, members: Sequence[Recogniser]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.instruments = members[0].instruments

    def forward(self, audio: Tensor) -> Tensor:
        """Return logits [B, instruments] of windows [B, WINDOW]."""
        return torch.stack([member(audio).softmax(dim=1) for member in self.members]).mean(dim=0).log()


@lru_cache(maxsize=2)
def load_recogniser(path: Path = WEIGHTS) -> Ensemble:
    """Return the trained recogniser, on the CPU.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file does not contain a recogniser.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no file {path}; train a recogniser with python -m evaluation.train_recogniser --data_dir DIR"
        )
    content = load_tensors(path)
    if not isinstance(content, dict) or set(content) != {"instruments", "states"}:
        raise ValueError(f"{path} holds no recogniser; python -m evaluation.train_recogniser writes one")
    members = [Recogniser(tuple(content["instruments"])) for _ in content["states"]]
    for member, state in zip(members, content["states"]):
        member.load_state_dict(state)
    return Ensemble(members).eval()


def recognise(audio: np.ndarray, sample_rate: int, recogniser: Ensemble | None = None) -> Recognition:
    """Recognise the instrument of a sound, in windows of 1 s with a hop of 0.25 s.

    Args:
        audio: [N], mono, at any level.
        sample_rate: Hz, at least 16,000, because the recogniser uses the band up to 8 kHz.
        recogniser: the shipped recogniser if None.

    Raises:
        ValueError: the sound is shorter than a window, silent, not finite, or below 16 kHz.
    """
    recogniser = load_recogniser() if recogniser is None else recogniser
    return summarise(classify(recogniser, cut_windows(audio, sample_rate)), recogniser.instruments)


def cut_windows(audio: np.ndarray, sample_rate: int) -> np.ndarray:
    """Return the windows that are not silent: float32 [n, WINDOW] at 16 kHz.

    Raises:
        ValueError: see ``recognise``.
    """
    if sample_rate < SAMPLE_RATE:
        raise ValueError(f"the sound has {sample_rate} samples a second, the recogniser needs {SAMPLE_RATE} or more")
    seconds = len(audio) / sample_rate
    if seconds < WINDOW / SAMPLE_RATE:
        raise ValueError(f"the sound lasts {seconds:.2f} s, the recogniser needs {WINDOW / SAMPLE_RATE:g} s or more")
    resampled = prepare_audio(audio, sample_rate, SAMPLE_RATE)
    resampled = np.pad(resampled, (0, max(0, WINDOW - len(resampled))))
    windows = sliding_window_view(resampled, WINDOW)[::HOP]
    level = 10 * np.log10(np.mean(windows.astype(np.float64) ** 2, axis=1) + 1e-20)
    windows = windows[level > max(QUIETEST, level.max() + SOFTEST)]
    if len(windows) == 0:
        raise ValueError(
            f"the sound is silent: no second of it reaches {QUIETEST:g} dBFS, the loudest has {level.max():.0f}"
        )
    return windows


@torch.inference_mode()
def classify(recogniser: nn.Module, windows: np.ndarray) -> np.ndarray:
    """Return the probabilities [n, instruments] of windows [n, WINDOW]."""
    batches = torch.from_numpy(np.ascontiguousarray(windows)).split(_BATCH)
    return torch.cat([recogniser(batch).softmax(dim=1) for batch in batches]).numpy()


def summarise(probabilities: np.ndarray, instruments: tuple[str, ...]) -> Recognition:
    """Summarise probabilities [n, instruments] over windows."""
    n_windows = len(probabilities)
    shares = np.bincount(probabilities.argmax(axis=1), minlength=len(instruments)) / n_windows
    mean = probabilities.mean(axis=0, dtype=np.float64)
    return Recognition(
        dict(zip(instruments, shares.tolist())), dict(zip(instruments, (mean / mean.sum()).tolist())), n_windows
    )
