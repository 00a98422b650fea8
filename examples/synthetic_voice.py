"""A synthetic voice: the glottis as a source of pulses and breath, and the vocal tract as a filter that moves.

The source is the Liljencrants-Fant flow derivative, rendered at four times the sample rate so that its corners do not
alias; each pulse has its own period (jitter), strength (shimmer) and shape: a soft voice is lax and its spectrum steep.
Aspiration noise passes while the glottis is open. The filter is a cascade of formants with a nasal pole and zero, which
glides from syllable to syllable; lip radiation is the derivative in the source.

References: Fant, Liljencrants, Lin, STL-QPSR 4/1985 (LF model); Fant, STL-QPSR 2-3/1995 (its shape Rd); Klatt, JASA 67,
1980, and Klatt and Klatt, JASA 87, 1990 (formant synthesis, aspiration); Fujimura, JASA 34, 1962 (the antiformant of
/m/).
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.signal import resample_poly

SAMPLE_RATE, OVERSAMPLING = 44_100, 4  # Hz; the source is rendered this many times finer
FRAME_HOP = 441  # samples between two shapes of the vocal tract
N_FFT = 4096  # a frame and the 83 ms ring of its formants
JITTER, SHIMMER = 0.0045, 0.03  # standard deviation of a pulse's instant (in periods) and of its strength (relative)
ASPIRATION = 0.12  # standard deviation of the noise, against a pulse of 1
# Vocal tract: F1..F4 (Hz), their bandwidths (Hz), the nasal zero (Hz; on NASAL_POLE it cancels), gain (dB).
SHAPES = {
    "oo": (340, 820, 2250, 3250, 65, 85, 130, 190, 960, 0),
    "oh": (460, 900, 2380, 3300, 85, 90, 130, 190, 970, -2),
    "ah": (620, 1080, 2520, 3400, 95, 100, 140, 200, 970, -5),
    "m": (280, 1080, 2150, 3050, 85, 280, 260, 300, 840, 0),
    "d": (240, 1650, 2600, 3400, 110, 130, 170, 250, 1000, -14),
    "breath": (560, 1350, 2500, 3500, 250, 220, 260, 300, 1000, 0),
}
HIGH_FORMANTS = np.arange(4300, 20_000, 1000) + np.resize((-50, -200), 16)  # Hz: the rest of the tube, up to Nyquist
NASAL_POLE = (1000.0, 150.0)  # Hz: centre, bandwidth


def solve_lf(rd: np.ndarray) -> np.ndarray:
    """Find the LF pulse of unit period for each Rd (Fant 1995): closure, omega, growth, decay of lf_pulse. [4, n]."""
    ra, rk = (4.8 * rd - 1) / 100, (22.4 + 11.8 * rd) / 100
    rg = rk / (4 * (0.11 * rd / (0.5 + 1.2 * rk) - ra))
    closure, omega = (1 + rk) / (2 * rg), 2 * np.pi * rg
    rest, decay = 1 - closure, 1 / ra
    for _ in range(60):
        decay = (1 - np.exp(-decay * rest)) / ra
    returned = ((1 - np.exp(-decay * rest)) / decay - rest * np.exp(-decay * rest)) / (decay * ra)
    sine, cosine = np.sin(omega * closure), np.cos(omega * closure)
    low, high = np.full_like(rd, -30.0), np.full_like(rd, 80.0)
    for _ in range(60):  # bisect for a growth that gives no net flow
        growth = (low + high) / 2
        opened = -(growth * sine - omega * cosine + omega * np.exp(-growth * closure)) / (sine * (growth**2 + omega**2))
        low, high = np.where(opened > returned, growth, low), np.where(opened > returned, high, growth)
    return np.stack([closure, omega, growth, decay])


def lf_pulse(u: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """Evaluate the flow derivative at the fraction u of its cycle; -1 at closure. [n], [4, n] -> [n]."""
    closure, omega, growth, decay = shape
    opening = -np.exp(growth * (np.minimum(u, closure) - closure)) * np.sin(omega * u) / np.sin(omega * closure)
    rest = np.exp(-decay * (1 - closure))
    closing = -(np.exp(-decay * np.maximum(u - closure, 0)) - rest) / (1 - rest)
    return np.where(u <= closure, opening, closing)


def glottal_source(f0: np.ndarray, amplitude: np.ndarray, rd: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pulse the glottis once a cycle, with jitter and shimmer, and breathe while it is open. All [n_samples]."""
    samples, phase = np.arange(f0.size), np.cumsum(f0) / SAMPLE_RATE
    marks = np.interp(np.arange(1, int(phase[-1])), phase, samples)
    marks += JITTER * rng.standard_normal(marks.size) * SAMPLE_RATE / np.interp(marks, samples, f0)
    strength = np.interp(marks, samples, amplitude) * (1 + SHIMMER * rng.standard_normal(marks.size))
    shape = solve_lf(np.interp(marks, samples, rd))
    fine = np.arange(f0.size * OVERSAMPLING) / OVERSAMPLING
    cycle = np.clip(np.searchsorted(marks, fine, side="right") - 1, 0, marks.size - 2)
    u = np.clip((fine - marks[cycle]) / np.diff(marks)[cycle], 0.0, 1.0)
    flow = resample_poly(strength[cycle] * lf_pulse(u, shape[:, cycle]), 1, OVERSAMPLING)
    opened = np.sin(np.pi * np.minimum(u / shape[0, cycle], 1.0))[::OVERSAMPLING] ** 2
    return flow + ASPIRATION * np.sqrt(amplitude) * rd * (0.25 + 0.75 * opened) * rng.standard_normal(f0.size)


def resonance(centre: np.ndarray, bandwidth: np.ndarray) -> np.ndarray:
    """Respond like Klatt's digital resonator, gain 1 at 0 Hz. [n_frames] each -> complex [n_frames, F]."""
    centre, bandwidth = np.atleast_1d(centre)[:, None], np.atleast_1d(bandwidth)[:, None]
    delay = np.exp(-2j * np.pi * np.arange(N_FFT // 2 + 1) / N_FFT)
    radius = np.exp(-np.pi * bandwidth / SAMPLE_RATE)
    first, second = 2 * radius * np.cos(2 * np.pi * centre / SAMPLE_RATE), -(radius**2)
    return (1 - first - second) / (1 - first * delay - second * delay**2)


def vocal_tract(excitation: np.ndarray, tract: np.ndarray) -> np.ndarray:
    """Filter frame by frame and cross-fade: Hann frames of 20 ms, each through its own formants."""
    n_frames, size = len(tract), 2 * FRAME_HOP
    response = resonance(*NASAL_POLE) / resonance(tract[:, 8], NASAL_POLE[1]) * 10 ** (tract[:, 9:] / 20)
    for formant in range(4):
        response = response * resonance(tract[:, formant], tract[:, 4 + formant])
    response = response * np.prod(resonance(HIGH_FORMANTS, 0.06 * HIGH_FORMANTS), axis=0)
    frames = sliding_window_view(np.pad(excitation, (FRAME_HOP, size)), size)[::FRAME_HOP][:n_frames]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    rings = np.fft.irfft(np.fft.rfft(frames * window, N_FFT) * response, N_FFT)
    audio = np.zeros(n_frames * FRAME_HOP + N_FFT)
    for index, ring in enumerate(rings):
        audio[index * FRAME_HOP : index * FRAME_HOP + N_FFT] += ring
    return audio[FRAME_HOP : FRAME_HOP + excitation.size]
