"""SwiftF0 (arXiv 2508.18440), a small pitch tracker more accurate than CREPE ``full`` on low guitar notes.

Optional: it requires the package ``swift-f0``, which includes the weights and runs them with onnxruntime. It is used
for instrument recordings only (``"crepe_model": "swift-f0"`` of an instrument in ``config.json``); voices use CREPE.
"""

import numpy as np

_RATE = 16000  # Hz
_GLIDE = 0.03  # relative to f0, half a semitone; a larger change between frames is a leap and is not interpolated


def track_f0(audio: np.ndarray, hop_length: int, f0_min: float, f0_max: float) -> tuple[np.ndarray, np.ndarray]:
    """Return f0 (Hz) and confidence (0..1) of audio [N] at 16 kHz, float32 [ceil(N / hop_length)].

    SwiftF0 has one frame per 16 ms. Glides are interpolated between frames; leaps use the nearest frame.

    Raises:
        ValueError: the package is not installed, or the audio has no samples.
    """
    try:
        import swift_f0
    except ImportError as error:
        raise ValueError(
            "the pitch tracker swift-f0 is not installed; run ./venv/bin/python -m pip install swift-f0"
        ) from error
    if not len(audio):
        raise ValueError("the audio holds no samples")
    measured = swift_f0.SwiftF0(threads=1).detect(audio, _RATE, f0_min, f0_max)
    position = np.arange(-(-len(audio) // hop_length)) * hop_length / _RATE / swift_f0.core.FRAME_PERIOD
    nearest = np.clip(np.round(position).astype(int), 0, len(measured.pitch_hz) - 1)
    f0, here = np.interp(position, np.arange(len(measured.pitch_hz)), measured.pitch_hz), measured.pitch_hz[nearest]
    f0 = np.where(np.abs(f0 - here) < _GLIDE * here, f0, here)
    return f0.astype(np.float32), measured.confidence[nearest].astype(np.float32)
