"""The note gate: which frames of a recording are notes, from how loud and how periodic they are.

Curves have one value a frame, [T].
"""

import numpy as np
from scipy import ndimage

from config import Config, TransferConfig

_NOISE_QUANTILE = 0.2  # of the loudness of frames without a pitch: the recording's noise floor
_PEAK_QUANTILE = 0.95  # of the loudness of all frames: its loud frames
_NEVER_GATED = 15.0  # dB under the loud frames that are played however high the noise floor


def find_voiced(
    loudness: np.ndarray, periodicity: np.ndarray, can_sound: np.ndarray, config: Config, gate_offset: float = 0.0
) -> np.ndarray:
    """Decide which frames are sung.

    A note begins where the pitch is sure and goes on while it is likely; it must stand out of the
    recording's own noise floor, at its end less than at its beginning. Clicks are dropped, short gaps closed.

    Args:
        loudness: [T] dB.
        periodicity: [T] 0..1.
        can_sound: bool [T], false where the pitch is known not to be a note.
        gate_offset: dB on the threshold.

    Returns:
        bool [T].
    """
    settings = config.transfer
    pitched = _hysteresis(periodicity, settings.voiced_periodicity, settings.sustained_periodicity) & can_sound
    noise = noise_floor(loudness, pitched, config)
    peak = float(np.quantile(loudness, _PEAK_QUANTILE))
    threshold = max(noise + settings.gate_above_noise, peak - settings.gate_below_peak)
    # However noisy, what is loud is played: a hum over a fan is still a melody.
    threshold = min(threshold, peak - _NEVER_GATED) + gate_offset
    loud = _hysteresis(loudness, threshold, threshold - settings.gate_hysteresis)
    return _clean_runs(pitched & loud, settings, config.audio.frame_rate)


def noise_floor(loudness: np.ndarray, pitched: np.ndarray, config: Config) -> float:
    """Return the level of the recording's own noise in dB, from the frames without a pitch."""
    unpitched = loudness[~pitched]
    if len(unpitched) == 0:
        return config.features.loudness_floor
    return float(np.quantile(unpitched, _NOISE_QUANTILE))


def _hysteresis(values: np.ndarray, begin: float, end: float) -> np.ndarray:
    """Return bool [T]: runs over ``end`` that somewhere exceed ``begin``."""
    runs, count = ndimage.label(values > end)
    strong = np.unique(runs[values > begin])
    return np.isin(runs, strong[strong > 0]) if count else np.zeros(len(values), dtype=bool)


def _clean_runs(voiced: np.ndarray, settings: TransferConfig, frame_rate: float) -> np.ndarray:
    """Close gaps and drop notes that are too short to be meant: bool [T]."""
    closed = ~_drop_short(~voiced, round(settings.max_gap_seconds * frame_rate), keep_ends=True)
    return _drop_short(closed, round(settings.min_voiced_seconds * frame_rate))


def _drop_short(mask: np.ndarray, n_frames: int, keep_ends: bool = False) -> np.ndarray:
    """Clear runs of true of at most ``n_frames``; ``keep_ends`` spares runs at either end of the recording."""
    runs, count = ndimage.label(mask)
    lengths = np.bincount(runs, minlength=count + 1)
    short = lengths <= n_frames
    if keep_ends:
        short[[runs[0], runs[-1]]] = False
    return mask & ~short[runs]
