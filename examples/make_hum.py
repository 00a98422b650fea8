"""Sing the example: a short tune of our own, hummed by a synthetic voice, as a phone in a quiet room records it.

To the score the singer adds scoops, portamento, overshoot, late vibrato and drift, and inhales before each phrase:
noise through the open mouth. The voice is ``synthetic_voice.py``.

    python scripts/make_hum.py --output examples/hum.wav

Beside it ``hum_f0.csv`` says what pitch is sung when.

Reference: Sundberg, The Science of the Singing Voice, 1987 (vibrato, onsets, intonation).
"""

import argparse
import io
import sys
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile as sf
from scipy.signal import butter, fftconvolve, sosfilt

from sound.atomic_files import atomic_write, write_text
from synthetic_voice import FRAME_HOP, SAMPLE_RATE, SHAPES, glottal_source, vocal_tract

EIGHTH, REST = 0.22, 0.75  # s: an eighth note; the pause between two phrases, in which the singer breathes
LEAD_IN, TAIL = 0.85, 0.70  # s before the first note and after the last
PEAK_DB, NOISE_FLOOR_DB = -10.0, -62.0  # dBFS: highest sample of the voice; RMS of the noise


class Note(NamedTuple):  # one sung note
    midi: int
    start: float  # s
    end: float  # s
    onset: str  # a key of ONSET_DURATION; "" is legato
    vowel: str  # a key of SHAPES
    level: float  # dB below the loudest
    glide: float  # s taken to arrive from the note before
    scoop: float  # semitones below, where the note begins
    first: bool  # of its phrase
    last: bool
    is_long: bool  # swells and has vibrato


# Three phrases: midi, eighths, onset, vowel, level, glide, scoop. A lullaby in A major, E3 to E4.
SCORE = (
    ((52, 1, "m", "m", -7, 0.10, 0.8), (57, 2, "m", "oo", -4, 0.12, 0.0), (61, 1, "", "oo", -4, 0.09, 0.0),
     (59, 2, "d", "oo", -3, 0.08, 0.4), (57, 1, "", "oh", -5, 0.10, 0.0), (64, 5, "", "ah", -1, 0.22, 0.0)),
    ((61, 1, "m", "oo", -5, 0.10, 1.6), (62, 2, "", "oh", -2, 0.08, 0.0), (64, 1, "d", "ah", 0, 0.08, 0.0),
     (61, 2, "d", "ah", -2, 0.08, 0.5), (57, 1, "", "oh", -4, 0.12, 0.0), (59, 5, "m", "oh", -3, 0.09, 0.9)),
    ((52, 1, "m", "m", -7, 0.10, 1.0), (57, 2, "d", "oh", -3, 0.12, 0.0), (61, 1, "", "ah", -2, 0.09, 0.0),
     (59, 2, "d", "oh", -4, 0.08, 0.0), (56, 1, "", "oo", -6, 0.14, 0.0), (57, 6, "m", "oo", -4, 0.10, 0.5)),
)  # fmt: skip
ONSET_DURATION = {"": 0.0, "m": 0.07, "d": 0.035}  # s with the mouth shut


def schedule() -> list[Note]:
    """Turn the score into notes with times; phrases are REST apart."""
    notes, now = [], LEAD_IN
    for phrase in SCORE:
        for i, (midi, eighths, *how) in enumerate(phrase):
            notes.append(Note(midi, now, now + eighths * EIGHTH, *how, i == 0, i == len(phrase) - 1, eighths > 3))
            now += eighths * EIGHTH
        now += REST
    return notes


def smoothstep(x: np.ndarray) -> np.ndarray:
    """Rise smoothly from 0 (x <= 0) to 1 (x >= 1)."""
    x = np.clip(x, 0.0, 1.0)
    return x * x * (3.0 - 2.0 * x)


def wander(rng: np.random.Generator, n_samples: int, cutoff: float, deviation: float) -> np.ndarray:
    """Draw slow noise below `cutoff` Hz with the given standard deviation."""
    low_pass = butter(2, cutoff, fs=SAMPLE_RATE, output="sos")
    noise = sosfilt(low_pass, rng.standard_normal(n_samples + 2 * SAMPLE_RATE))[2 * SAMPLE_RATE :]
    return deviation * noise / np.sqrt(np.mean(noise**2))


def melody(notes: list[Note], time: np.ndarray) -> np.ndarray:
    """Glide from note to note a little too far and back, scoop into some, fall off the last. Semitones (MIDI)."""
    step = np.zeros(time.size)
    for before, note in pairwise(notes):
        step += (note.midi - before.midi) * smoothstep((time - note.start) / note.glide + 0.6)
    late = round(0.028 * SAMPLE_RATE)  # the delay of the larynx, which the singer anticipates
    larynx = butter(2, 8.0, fs=SAMPLE_RATE, output="sos")  # overshoots by 4 %
    semitones = notes[0].midi + sosfilt(larynx, np.pad(step, (0, late), mode="edge"))[late:]
    for note in notes:
        since = time - note.start
        semitones -= note.scoop * np.exp(-np.where(since < 0, -since / 0.03, since / 0.06))
        semitones -= 1.2 * note.last * smoothstep((time - note.end + 0.07) / 0.18) * (time < note.end + 0.3)
    return semitones


def pitch_curve(notes: list[Note], time: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Sing the melody with drift, and vibrato 0.3 s into long notes: f0 in Hz, before the jitter of single cycles."""
    semitones = melody(notes, time) + wander(rng, time.size, 0.8, 0.08) + wander(rng, time.size, 12.0, 0.035)
    for note in notes:
        since, rate, extent = time - note.start, rng.uniform(5.2, 5.8), note.is_long * rng.uniform(0.35, 0.50)
        depth = extent * smoothstep((since - 0.30) / 0.35) * smoothstep((note.end - time) / 0.12 + 0.5)
        semitones += depth * np.sin(2 * np.pi * rate * since * (1 + 0.02 * since))
    return 440.0 * 2.0 ** ((semitones - 69.0) / 12.0)


def level_curve(notes: list[Note], time: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Follow the dynamics, through the rests too: dB below the loudest. Long notes swell and fade."""
    nodes = [(note.start + 0.04, note.level) for note in notes]
    nodes += [(0.5 * (note.start + note.end), note.level + 2.0) for note in notes if note.is_long]
    nodes += [(note.end, note.level - 6.0) for note in notes if note.is_long]
    return np.interp(time, *zip(*sorted(nodes), strict=True)) + wander(rng, time.size, 3.0, 0.6)


def voicing(notes: list[Note], time: np.ndarray) -> np.ndarray:
    """Open and close the voice: linear gain, 1 within a phrase and 0 in the rests."""
    gain = np.zeros(time.size)
    for note in notes:
        gain += note.first * smoothstep((time - note.start) / 0.06)
        gain -= note.last * smoothstep((time - note.end + 0.12) / 0.16)
    return gain


def breath_curve(notes: list[Note], time: np.ndarray) -> np.ndarray:
    """Inhale before each phrase, and let go of a little air at each soft "d": linear gain of the noise."""
    gain = np.zeros(time.size)
    for note in notes:
        until = note.start - time
        gain += 0.055 * note.first * smoothstep((0.52 - until) / 0.30) * smoothstep((until - 0.08) / 0.09)
        if note.onset == "d":
            since = np.maximum(time - note.start - ONSET_DURATION["d"] + 0.012, 0.0)
            gain += 0.5 * smoothstep(since / 0.003) * np.exp(-since / 0.007)
    return gain


def articulate(notes: list[Note], n_frames: int, rng: np.random.Generator) -> np.ndarray:
    """Move the vocal tract from syllable to syllable. Rows of SHAPES, [n_frames, 10]."""
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


def sing(notes: list[Note], rng: np.random.Generator) -> np.ndarray:
    """Sing the notes in a dry room without noise. [n_samples], unscaled."""
    n_frames = round((notes[-1].end + TAIL) * SAMPLE_RATE / FRAME_HOP)
    time = np.arange(n_frames * FRAME_HOP) / SAMPLE_RATE
    f0 = pitch_curve(notes, time, rng)  # drawn first, so that the truth can be had without the sound
    level, voice = level_curve(notes, time, rng), voicing(notes, time)
    rd = np.clip(0.8 - 0.11 * level + 0.6 * (1 - voice), 0.7, 2.6)  # soft is lax
    source = glottal_source(f0, voice * 10 ** (level / 20), rd, rng)
    breath = breath_curve(notes, time) * rng.standard_normal(time.size)
    return vocal_tract(source + breath, articulate(notes, n_frames, rng))


def record(voice: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Put the singer in a small room before a phone: reflections, no lows, PEAK_DB, a noise floor."""
    time = np.arange(SAMPLE_RATE // 4) / SAMPLE_RATE
    room = 0.012 * rng.standard_normal(time.size) * np.exp(-time / 0.03) * smoothstep((time - 0.002) / 0.01)
    heard = voice + fftconvolve(voice, room)[: voice.size]
    audio = sosfilt(butter(2, 70.0, "high", fs=SAMPLE_RATE, output="sos"), heard)
    hiss = wander(rng, voice.size, 1200.0, 10 ** (NOISE_FLOOR_DB / 20))
    return audio * 10 ** (PEAK_DB / 20) / np.abs(audio).max() + hiss


def make_hum(seed: int = 0) -> np.ndarray:
    """Render the hum; the same seed gives the same samples. int16 [n_samples] at SAMPLE_RATE."""
    rng = np.random.default_rng(seed)
    return np.round(record(sing(schedule(), rng), rng) * 32_767).astype(np.int16)


def sung_pitch(seed: int = 0) -> np.ndarray:
    """Return what is sung, [T, 2]: seconds, each 10 ms, and f0 in Hz, 0 where the voice is not full."""
    notes = schedule()
    n_frames = round((notes[-1].end + TAIL) * SAMPLE_RATE / FRAME_HOP)
    time = np.arange(n_frames * FRAME_HOP) / SAMPLE_RATE
    f0 = pitch_curve(notes, time, np.random.default_rng(seed))  # the first that ``make_hum`` draws
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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="the .wav file to write")
    parser.add_argument("--seed", type=int, default=0, help="another seed is another take of the same tune")
    args = parser.parse_args(argv)
    if args.output.suffix.lower() != ".wav" or args.output.is_dir() or args.seed < 0:
        parser.error(f"--output must name a .wav file and --seed be 0 or more, not {args.output} and {args.seed}")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        save_wav(args.output, make_hum(args.seed))
        save_pitch(args.output.with_name(f"{args.output.stem}_f0.csv"), sung_pitch(args.seed))
    except OSError as error:
        print(f"make_hum.py: cannot write {args.output}: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("make_hum.py: stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
