"""Pitch trackers that ``compare_trackers.py`` compares: each a function from sound to f0, on one grid of frames.

CREPE is this project's own, as ``preprocess.py`` has it. The others are no requirements; of those packages that are not
installed nothing is imported. To compare one more, write its ``build_...`` and add it to ``TRACKERS``.
"""

import contextlib
import importlib.util
import io
import logging
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import NamedTuple

import numpy as np
import torch

from config import load_config
from features import bridge_f0, extract_features

CONFIG = load_config()
RATE, HOP = CONFIG.audio.feature_rate, CONFIG.audio.feature_hop_length
FRAME = HOP / RATE  # s
_SURE = 0.5  # confidence from which swift-f0 and pesto-pitch claim a pitch
log = logging.getLogger("compare_trackers")


class Heard(NamedTuple):
    step: float  # s between frames, the first of which is at 0
    f0: np.ndarray  # [n] Hz, or 0
    voiced: np.ndarray  # [n] whether the tracker claims a pitch


Track = Callable[[np.ndarray], Heard]  # float32 [N] at RATE


@dataclass(frozen=True)
class Tracker:
    """One row of the table."""

    name: str  # of the package, where it is not this project's own
    build: Callable[[], Track]
    module: str = ""  # of the package

    @property
    def label(self) -> str:
        return f"{self.name} {version(self.name)}" if self.module else self.name


def build_crepe(model: str) -> Callable[[], Track]:
    """Return what builds this project's CREPE, with Viterbi search and bridges, with the weights "tiny" or "full"."""
    config = replace(CONFIG, features=replace(CONFIG.features, crepe_model=model))

    def track(audio: np.ndarray) -> Heard:
        f0, _, periodicity = (values.numpy() for values in extract_features(audio, config))
        return Heard(FRAME, f0, periodicity >= config.features.periodicity_threshold)

    return lambda: track


def build_swift_f0() -> Track:
    """SwiftF0 (arXiv 2508.18440): a frame each 16 ms."""
    import swift_f0

    detector = swift_f0.SwiftF0(threads=1)

    def track(audio: np.ndarray) -> Heard:
        result = detector.detect(audio, RATE)
        return Heard(swift_f0.core.FRAME_PERIOD, result.pitch_hz, result.confidence >= _SURE)

    return track


def build_torchfcpe() -> Track:
    """FCPE: where it claims no pitch it gives none; there it is bridged, as CREPE's is."""
    with torchaudio_set_aside(), contextlib.redirect_stdout(io.StringIO()):  # it talks
        import torchfcpe

        model = torchfcpe.spawn_bundled_infer_model("cpu")

    def track(audio: np.ndarray) -> Heard:
        f0 = model.infer(torch.from_numpy(audio)[None, :, None], RATE)[0, :, 0].numpy()
        return Heard(FRAME, bridge_f0(f0, f0 > 0), f0 > 0)

    return track


def build_pesto() -> Track:
    """PESTO (Riou et al., ISMIR 2023)."""
    with torchaudio_set_aside():
        import pesto

    model = pesto.load_model("mir-1k_g7", 1000 * FRAME, sampling_rate=RATE)

    @torch.inference_mode()
    def track(audio: np.ndarray) -> Heard:
        f0, confidence, _ = model(torch.from_numpy(audio), RATE, convert_to_freq=True, return_activations=False)
        return Heard(FRAME, f0.numpy(), confidence.numpy() >= _SURE)

    return track


@contextlib.contextmanager
def torchaudio_set_aside() -> Iterator[None]:
    """Let modules be imported that name torchaudio but need none of it here: it may not load beside a CPU build."""
    names = ("torchaudio", "torchaudio.transforms")
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    sys.modules.update({name: types.ModuleType(name) for name in names})
    sys.modules[names[1]].Resample = None  # the rate is theirs already
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]
        sys.modules.update(before)


TRACKERS = {
    "crepe_tiny": Tracker("CREPE `tiny`", build_crepe("tiny")),
    "crepe_full": Tracker("CREPE `full`", build_crepe("full")),
    "swift_f0": Tracker("swift-f0", build_swift_f0, "swift_f0"),
    "torchfcpe": Tracker("torchfcpe", build_torchfcpe, "torchfcpe"),
    "pesto": Tracker("pesto-pitch", build_pesto, "pesto"),
}


def find_installed(keys: list[str]) -> list[Tracker]:
    """Return those of the trackers that are installed; the log says how to get the others.

    Raises:
        ValueError: none of them is.
    """
    found = []
    for tracker in (TRACKERS[key] for key in keys):
        if not tracker.module or importlib.util.find_spec(tracker.module):
            found.append(tracker)
        else:
            log.info("%s is missing: install it and it has a row", tracker.name)
    if not found:
        raise ValueError("none of the trackers is installed")
    return found


def to_grid(heard: Heard, n_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Return f0 and voicing [T], a frame each FRAME seconds, of the nearest frame; of a glide, between two frames."""
    position = np.arange(n_frames) * FRAME / heard.step
    nearest = np.clip(np.round(position).astype(int), 0, len(heard.f0) - 1)
    f0 = np.interp(position, np.arange(len(heard.f0)), heard.f0)
    is_glide = np.abs(f0 - heard.f0[nearest]) < 0.03 * f0  # half a semitone; else a leap, or an octave error
    return np.where(is_glide, f0, heard.f0[nearest]), heard.voiced[nearest]
