"""Synthesise the example: an original tune hummed by a synthetic voice, as recorded by a phone in a quiet room.

    ./venv/bin/python examples/make_hum.py --output examples/hum.wav

Also writes ``hum_f0.csv``, the true f0 of the voice.

The singing has scoops, portamento, overshoot, delayed vibrato, drift, and a breath before each phrase (noise through
the open mouth). The voice is a source-filter model. The source is the Liljencrants-Fant flow derivative, rendered at
four times the sample rate to avoid aliasing. Pulses vary in period (jitter), strength (shimmer) and shape: a soft voice
is lax, with a steep spectrum. Aspiration noise passes while the glottis is open. The filter is a cascade of formants
with a nasal pole and zero, interpolated from syllable to syllable; the derivative in the source models lip radiation.

References: Sundberg, The Science of the Singing Voice, 1987 (vibrato, onsets, intonation); Fant, Liljencrants, Lin,
STL-QPSR 4/1985 (LF model); Fant, STL-QPSR 2-3/1995 (its shape Rd); Klatt, JASA 67, 1980, and Klatt and Klatt, JASA 87,
1990 (formant synthesis, aspiration); Fujimura, JASA 34, 1962 (the antiformant of /m/).
"""

import argparse
import io
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile as sf
from numpy.lib.stride_tricks import sliding_window_view
from scipy.signal import butter, fftconvolve, resample_poly, sosfilt

from sound.atomic_files import atomic_write, write_text
from sound.console import as_command, command_parser

EIGHTH, REST = 0.22, 0.75  # s: an eighth note; the pause between two phrases, with a breath
LEAD_IN, TAIL = 0.85, 0.70  # s before the first note and after the last
PEAK_DB, NOISE_FLOOR_DB = -10.0, -62.0  # dBFS: highest sample of the voice; RMS of the noise


class Note(NamedTuple):
    midi: int
    start: float  # s
    end: float  # s
    onset: str  # a key of ONSET_DURATION; "" is legato
    vowel: str  # a key of SHAPES
    level: float  # dB below the loudest
    glide: float  # s, portamento from the note before
    scoop: float  # semitones below its pitch, at which the note begins
    first: bool  # of its phrase
    last: bool
    is_long: bool  # swells and has vibrato


# Three phrases: midi, eighths, onset, vowel, level, glide, scoop. A lullaby in A major, E3 to E4.
SCORE = (
    (
        (52, 1, "m", "m", -7, 0.10, 0.8),
        (57, 2, "m", "oo", -4, 0.12, 0.0),
        (61, 1, "", "oo", -4, 0.09, 0.0),
        (59, 2, "d", "oo", -3, 0.08, 0.4),
        (57, 1, "", "oh", -5, 0.10, 0.0),
        (64, 5, "", "ah", -1, 0.22, 0.0),
    ),
    (
        (61, 1, "m", "oo", -5, 0.10, 1.6),
        (62, 2, "", "oh", -2, 0.08, 0.0),
        (64, 1, "d", "ah", 0, 0.08, 0.0),
        (61, 2, "d", "ah", -2, 0.08, 0.5),
        (57, 1, "", "oh", -4, 0.12, 0.0),
        (59, 5, "m", "oh", -3, 0.09, 0.9),
    ),
    (
        (52, 1, "m", "m", -7, 0.10, 1.0),
        (57, 2, "d", "oh", -3, 0.12, 0.0),
        (61, 1, "", "ah", -2, 0.09, 0.0),
        (59, 2, "d", "oh", -4, 0.08, 0.0),
        (56, 1, "", "oo", -6, 0.14, 0.0),
        (57, 6, "m", "oo", -4, 0.10, 0.5),
    ),
)
ONSET_DURATION = {"": 0.0, "m": 0.07, "d": 0.035}  # s with the mouth closed
SAMPLE_RATE, OVERSAMPLING = 44_100, 4  # Hz; oversampling factor of the source
FRAME_HOP = 441  # samples between two shapes of the vocal tract
N_FFT = 4096  # samples: a frame and the 83 ms decay of its formants
JITTER, SHIMMER = 0.0045, 0.03  # standard deviation of a pulse's time (in periods) and strength (relative)
ASPIRATION = 0.12  # standard deviation of the noise, relative to a pulse of 1
# Vocal tract: F1..F4 (Hz), their bandwidths (Hz), the nasal zero (Hz; on NASAL_POLE it cancels), gain (dB).
SHAPES = {
    "oo": (340, 820, 2250, 3250, 65, 85, 130, 190, 960, 0),
    "oh": (460, 900, 2380, 3300, 85, 90, 130, 190, 970, -2),
    "ah": (620, 1080, 2520, 3400, 95, 100, 140, 200, 970, -5),
    "m": (280, 1080, 2150, 3050, 85, 280, 260, 300, 840, 0),
    "d": (240, 1650, 2600, 3400, 110, 130, 170, 250, 1000, -14),
    "breath": (560, 1350, 2500, 3500, 250, 220, 260, 300, 1000, 0),
}
HIGH_FORMANTS = np.arange(4300, 20_000, 1000) + np.resize((-50, -200), 16)  # Hz: higher resonances, up to Nyquist
NASAL_POLE = (1000.0, 150.0)  # Hz: centre, bandwidth


# --- the tune -------------------------------------------------------------------------------------


def schedule() -> list[Note]:
    """Return the notes of the score with times; phrases are REST apart."""
    notes, now = [], LEAD_IN
    for phrase in SCORE:
        for i, (midi, eighths, *how) in enumerate(phrase):
            notes.append(Note(midi, now, now + eighths * EIGHTH, *how, i == 0, i == len(phrase) - 1, eighths > 3))
            now += eighths * EIGHTH
        now += REST
    return notes


def smoothstep(x: np.ndarray) -> np.ndarray:
    """Return a cubic step from 0 (x <= 0) to 1 (x >= 1)."""
    x = np.clip(x, 0.0, 1.0)
    return x * x * (3.0 - 2.0 * x)


def wander(rng: np.random.Generator, n_samples: int, cutoff: float, deviation: float) -> np.ndarray:
    """Return low-pass noise below ``cutoff`` Hz with a standard deviation."""
    low_pass = butter(2, cutoff, fs=SAMPLE_RATE, output="sos")
    noise = sosfilt(low_pass, rng.standard_normal(n_samples + 2 * SAMPLE_RATE))[2 * SAMPLE_RATE :]
    return deviation * noise / np.sqrt(np.mean(noise**2))


def melody(notes: list[Note], time: np.ndarray) -> np.ndarray:
    """Return the pitch in MIDI numbers, with portamento, overshoot, scoops, and a fall at the end of each phrase."""
    step = np.zeros(time.size)
    for before, note in pairwise(notes):
        step += (note.midi - before.midi) * smoothstep((time - note.start) / note.glide + 0.6)
    delay = round(0.028 * SAMPLE_RATE)  # of the larynx, which the singer anticipates
    larynx = butter(2, 8.0, fs=SAMPLE_RATE, output="sos")  # overshoots by 4 %
    semitones = notes[0].midi + sosfilt(larynx, np.pad(step, (0, delay), mode="edge"))[delay:]
    for note in notes:
        since = time - note.start
        semitones -= note.scoop * np.exp(-np.where(since < 0, -since / 0.03, since / 0.06))
        semitones -= 1.2 * note.last * smoothstep((time - note.end + 0.07) / 0.18) * (time < note.end + 0.3)
    return semitones


def pitch_curve(notes: list[Note], time: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return f0 in Hz, with drift, and vibrato from 0.3 s into long notes; without the jitter of single cycles."""
    semitones = melody(notes, time) + wander(rng, time.size, 0.8, 0.08) + wander(rng, time.size, 12.0, 0.035)
    for note in notes:
        since, rate, extent = time - note.start, rng.uniform(5.2, 5.8), note.is_long * rng.uniform(0.35, 0.50)
        depth = extent * smoothstep((since - 0.30) / 0.35) * smoothstep((note.end - time) / 0.12 + 0.5)
        semitones += depth * np.sin(2 * np.pi * rate * since * (1 + 0.02 * since))
    return 440.0 * 2.0 ** ((semitones - 69.0) / 12.0)


def level_curve(notes: list[Note], time: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the level in dB relative to the loudest note, interpolated through rests; long notes swell and fade."""
    nodes = [(note.start + 0.04, note.level) for note in notes]
    nodes += [(0.5 * (note.start + note.end), note.level + 2.0) for note in notes if note.is_long]
    nodes += [(note.end, note.level - 6.0) for note in notes if note.is_long]
    return np.interp(time, *zip(*sorted(nodes), strict=True)) + wander(rng, time.size, 3.0, 0.6)


def voicing(notes: list[Note], time: np.ndarray) -> np.ndarray:
    """Return the linear gain of the voice, 1 within a phrase and 0 in the rests."""
    gain = np.zeros(time.size)
    for note in notes:
        gain += note.first * smoothstep((time - note.start) / 0.06)
        gain -= note.last * smoothstep((time - note.end + 0.12) / 0.16)
    return gain


def breath_curve(notes: list[Note], time: np.ndarray) -> np.ndarray:
    """Return the linear gain of the breath noise, before each phrase and in the burst of each "d"."""
    gain = np.zeros(time.size)
    for note in notes:
        until = note.start - time
        gain += 0.055 * note.first * smoothstep((0.52 - until) / 0.30) * smoothstep((until - 0.08) / 0.09)
        if note.onset == "d":
            since = np.maximum(time - note.start - ONSET_DURATION["d"] + 0.012, 0.0)
            gain += 0.5 * smoothstep(since / 0.003) * np.exp(-since / 0.007)
    return gain


def articulate(notes: list[Note], n_frames: int, rng: np.random.Generator) -> np.ndarray:
    """Return the shape of the vocal tract in each frame, interpolated rows of SHAPES: [n_frames, 10]."""
    nodes = [(LEAD_IN - 0.30, "breath")]
    for note in notes:
        opens = note.start + ONSET_DURATION[note.onset]
        if note.onset:
            nodes += [(note.start - 0.01, note.onset), (opens - 0.01, note.onset)]
        nodes += [(opens + 0.04, note.vowel), (note.end - (0.35 if note.last else 0.05), note.vowel)]
        if note.last:
            nodes += [(note.end, "m"), (note.end + 0.12, "breath"), (note.end + REST - 0.30, "breath")]
    times, shapes = [time for time, _ in nodes], np.transpose([SHAPES[name] for _, name in nodes])
    tract = np.stack([np.interp(np.arange(n_frames) * FRAME_HOP / SAMPLE_RATE, times, row) for row in shapes], axis=1)
    sway = wander(rng, n_frames * FRAME_HOP, 2.0, 0.015)[::FRAME_HOP]
    tract[:, :4] *= 1 + sway[:, None] * np.array([1.0, -0.8, 0.5, 0.3])
    return tract


# --- the voice ------------------------------------------------------------------------------------


def solve_lf(rd: np.ndarray) -> np.ndarray:
    """Return the LF parameters closure, omega, growth and decay, [4, n], of pulses of unit period for Rd [n]."""
    ra, rk = (4.8 * rd - 1) / 100, (22.4 + 11.8 * rd) / 100
    rg = rk / (4 * (0.11 * rd / (0.5 + 1.2 * rk) - ra))
    closure, omega = (1 + rk) / (2 * rg), 2 * np.pi * rg
    rest, decay = 1 - closure, 1 / ra
    for _ in range(60):
        decay = (1 - np.exp(-decay * rest)) / ra
    returned = ((1 - np.exp(-decay * rest)) / decay - rest * np.exp(-decay * rest)) / (decay * ra)
    sine, cosine = np.sin(omega * closure), np.cos(omega * closure)
    low, high = np.full_like(rd, -30.0), np.full_like(rd, 80.0)
    for _ in range(60):  # bisection for the growth that gives no net flow
        growth = (low + high) / 2
        opened = -(growth * sine - omega * cosine + omega * np.exp(-growth * closure)) / (sine * (growth**2 + omega**2))
        low, high = np.where(opened > returned, growth, low), np.where(opened > returned, high, growth)
    return np.stack([closure, omega, growth, decay])


def lf_pulse(u: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """Return the flow derivative [n] at fractions u [n] of a cycle, given ``solve_lf`` parameters; -1 at closure."""
    closure, omega, growth, decay = shape
    opening = -np.exp(growth * (np.minimum(u, closure) - closure)) * np.sin(omega * u) / np.sin(omega * closure)
    rest = np.exp(-decay * (1 - closure))
    closing = -(np.exp(-decay * np.maximum(u - closure, 0)) - rest) / (1 - rest)
    return np.where(u <= closure, opening, closing)


def glottal_source(f0: np.ndarray, amplitude: np.ndarray, rd: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return glottal pulses with jitter and shimmer, plus aspiration noise; all arrays are [n_samples]."""
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
    """Return the response, complex [n_frames, F], of Klatt's digital resonator; its gain at 0 Hz is 1."""
    centre, bandwidth = np.atleast_1d(centre)[:, None], np.atleast_1d(bandwidth)[:, None]
    delay = np.exp(-2j * np.pi * np.arange(N_FFT // 2 + 1) / N_FFT)
    radius = np.exp(-np.pi * bandwidth / SAMPLE_RATE)
    first, second = 2 * radius * np.cos(2 * np.pi * centre / SAMPLE_RATE), -(radius**2)
    return (1 - first - second) / (1 - first * delay - second * delay**2)


def vocal_tract(excitation: np.ndarray, tract: np.ndarray) -> np.ndarray:
    """Filter overlapping Hann frames of 20 ms, each by its own formants, and add them."""
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


# --- the recording --------------------------------------------------------------------------------


def sing(notes: list[Note], rng: np.random.Generator) -> np.ndarray:
    """Return the dry voice without noise, [n_samples], unscaled."""
    n_frames = round((notes[-1].end + TAIL) * SAMPLE_RATE / FRAME_HOP)
    time = np.arange(n_frames * FRAME_HOP) / SAMPLE_RATE
    f0 = pitch_curve(notes, time, rng)  # the first use of rng, so that sung_pitch can repeat it
    level, voice = level_curve(notes, time, rng), voicing(notes, time)
    rd = np.clip(0.8 - 0.11 * level + 0.6 * (1 - voice), 0.7, 2.6)  # a soft voice is lax
    source = glottal_source(f0, voice * 10 ** (level / 20), rd, rng)
    breath = breath_curve(notes, time) * rng.standard_normal(time.size)
    return vocal_tract(source + breath, articulate(notes, n_frames, rng))


def record(voice: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add the reflections of a small room, a phone's high-pass filter and a noise floor; scale to PEAK_DB."""
    time = np.arange(SAMPLE_RATE // 4) / SAMPLE_RATE
    room = 0.012 * rng.standard_normal(time.size) * np.exp(-time / 0.03) * smoothstep((time - 0.002) / 0.01)
    reverberant = voice + fftconvolve(voice, room)[: voice.size]
    audio = sosfilt(butter(2, 70.0, "high", fs=SAMPLE_RATE, output="sos"), reverberant)
    hiss = wander(rng, voice.size, 1200.0, 10 ** (NOISE_FLOOR_DB / 20))
    return audio * 10 ** (PEAK_DB / 20) / np.abs(audio).max() + hiss


def make_hum(seed: int = 0) -> np.ndarray:
    """Render the hum, int16 [n_samples] at SAMPLE_RATE; deterministic for each seed."""
    rng = np.random.default_rng(seed)
    return np.round(record(sing(schedule(), rng), rng) * 32_767).astype(np.int16)


def sung_pitch(seed: int = 0) -> np.ndarray:
    """Return the true pitch every 10 ms, [T, 2]: time in s, and f0 in Hz, 0 where the voice is not full."""
    notes = schedule()
    n_frames = round((notes[-1].end + TAIL) * SAMPLE_RATE / FRAME_HOP)
    time = np.arange(n_frames * FRAME_HOP) / SAMPLE_RATE
    f0 = pitch_curve(notes, time, np.random.default_rng(seed))
    return np.stack([time, f0 * (voicing(notes, time) > 0.9)], axis=1)[::FRAME_HOP]


def save_pitch(path: Path, pitch: np.ndarray) -> None:
    rows = "".join(f"{seconds:.2f},{f0:.3f}\n" for seconds, f0 in pitch)
    write_text(path, f"seconds,f0_hz (0 = not sung)\n{rows}")


def save_wav(path: Path, audio: np.ndarray) -> None:
    buffer = io.BytesIO()
    sf.write(buffer, audio, SAMPLE_RATE, format="WAV", subtype="PCM_16")
    with atomic_write(path) as partial:
        partial.write_bytes(buffer.getvalue())


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_parser(__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="WAV file to write")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the take (default: 0)")
    args = parser.parse_args(argv)
    if args.output.suffix.lower() != ".wav" or args.output.is_dir() or args.seed < 0:
        parser.error(f"--output should be a .wav file and --seed 0 or more, not {args.output} and {args.seed}")
    return args


@as_command()
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    save_wav(args.output, make_hum(args.seed))
    save_pitch(args.output.with_name(f"{args.output.stem}_f0.csv"), sung_pitch(args.seed))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
