"""Voicing: which frames of a recording belong to notes, from loudness and periodicity."""

import numpy as np
from scipy import ndimage

from config import Config, TransferConfig

_NOISE_QUANTILE = 0.2  # loudness quantile of the frames without a pitch, taken as the noise floor
_PEAK_QUANTILE = 0.95  # loudness quantile of all frames, taken as the peak level
_NEVER_GATED = 15.0  # dB below the peak level, played however high the noise floor


def find_voiced(
    loudness: np.ndarray, periodicity: np.ndarray, can_sound: np.ndarray, config: Config, gate_offset: float = 0.0
) -> np.ndarray:
    """Return True where something is sung.

    Both periodicity and loudness have hysteresis: a note needs a higher value to begin than to continue. The
    loudness threshold follows the recording's noise floor. Clicks are dropped and short gaps closed.

    Args:
        loudness: [T] dB.
        periodicity: [T] 0..1.
        can_sound: bool [T], False where a pitch is known not to be a note.
        config: settings of the model.
        gate_offset: dB, added to the loudness threshold.

    Returns:
        bool [T].
    """
    settings = config.transfer
    pitched = _hysteresis(periodicity, settings.voiced_periodicity, settings.sustained_periodicity) & can_sound
    noise = noise_floor(loudness, pitched, config)
    peak = float(np.quantile(loudness, _PEAK_QUANTILE))
    threshold = max(noise + settings.gate_above_noise, peak - settings.gate_below_peak)
    # Loud frames are played at any noise floor: a hum over the noise of a fan is still a melody.
    threshold = min(threshold, peak - _NEVER_GATED) + gate_offset
    loud = _hysteresis(loudness, threshold, threshold - settings.gate_hysteresis)
    return _clean_runs(pitched & loud, settings, config.audio.frame_rate)


def noise_floor(loudness: np.ndarray, pitched: np.ndarray, config: Config) -> float:
    """Return the recording's noise floor in dB, from the frames without a pitch."""
    unpitched = loudness[~pitched]
    if len(unpitched) == 0:
        return config.features.loudness_floor
    return float(np.quantile(unpitched, _NOISE_QUANTILE))


def _hysteresis(values: np.ndarray, begin: float, end: float) -> np.ndarray:
    """Return True in runs above ``end`` that exceed ``begin`` somewhere: bool [T]."""
    runs, count = ndimage.label(values > end)
    strong = np.unique(runs[values > begin])
    return np.isin(runs, strong[strong > 0]) if count else np.zeros(len(values), dtype=bool)


def _clean_runs(voiced: np.ndarray, settings: TransferConfig, frame_rate: float) -> np.ndarray:
    """Close short gaps and drop short notes: bool [T]."""
    closed = ~_drop_short(~voiced, round(settings.max_gap_seconds * frame_rate), keep_ends=True)
    return _drop_short(closed, round(settings.min_voiced_seconds * frame_rate))


def _drop_short(mask: np.ndarray, n_frames: int, keep_ends: bool = False) -> np.ndarray:
    """Clear runs of True of at most ``n_frames``, except, with ``keep_ends``, at either end of the recording."""
    runs, count = ndimage.label(mask)
    lengths = np.bincount(runs, minlength=count + 1)
    short = lengths <= n_frames
    if keep_ends:
        short[[runs[0], runs[-1]]] = False
    return mask & ~short[runs]
