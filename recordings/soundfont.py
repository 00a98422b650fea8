"""Play scores with FluidSynth on a sound font, with a brightness that follows the level as on real instruments.

A sound font has one recording of a note for all dynamics, so a quiet note is an attenuated loud one. Here a
time-varying spectral tilt above a corner frequency follows the score's level. The tilt is computed from the tone's
average spectrum, so that notes made from different samples reach the same share of energy above 4 kHz. It preserves
the tone's A-weighted level.
"""

import hashlib
import io
import math
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import librosa
import mido
import numpy as np
import soundfile as sf
from scipy import signal

from recordings.sampler import FRAME, Truth, describe
from recordings.samples import SAMPLE_RATE
from recordings.score import GAP, PLAYING, Note, Playing, Rng, settle

SOUNDFONT = "FluidR3_GM.sf2"
SOUNDFONT_DIRS = (  # Debian, Fedora and Arch, Homebrew, NixOS, the user's
    "/usr/share/sounds/sf2",
    "/usr/share/soundfonts",
    "/opt/homebrew/share/soundfonts",
    "/usr/local/share/soundfonts",
    "/run/current-system/sw/share/soundfonts",
    "~/.local/share/soundfonts",
    "~/Library/Audio/Sounds/Banks",
)
CONTROL_SECONDS = 0.0025  # time step of pitch wheel and expression
SILENT = -84.0  # dB, the lowest step of expression above zero
TICKS_PER_SECOND = 2000
WHEEL_RANGE = 12  # semitones either way
SLUR_SPAN = 6  # semitones, maximum range of a slur; larger shifts of one sample change its timbre

CORNER = 1200.0  # Hz, where a trumpet's harmonics start to fall
SPLIT = 4000.0  # Hz; brightness is the share of energy above it
SLOPES = np.linspace(-6, 72, 79)  # dB per octave far above the corner, possible tilts; negative ones brighten
WINDOW, HOP = 1024, 256  # samples
PITCH_SLOPE = 3.0  # dB per octave: a high note has fewer harmonics below SPLIT
MIDDLE = 67  # MIDI pitch at which a Brightness is specified


@dataclass(frozen=True)
class Brightness:
    """Share of energy above SPLIT in dB: `shares[i]` at a level of `levels[i]` dB relative to the loudest."""

    levels: tuple[float, ...]  # ascending, up to 0
    shares: tuple[float, ...]  # ascending


@dataclass(frozen=True)
class Voice:
    """Instrument of the sound font."""

    program: int  # General MIDI, counted from 0
    high: int  # highest MIDI pitch with usable samples
    brightness: Brightness


VOICES = {
    "trumpet": Voice(56, 84, Brightness((-60, -30, -9, 0), (-60, -47, -40, -29))),
    "guitar": Voice(25, 79, Brightness((-60, -30, 0), (-54, -40, -17))),
}


# --- from a score to MIDI -------------------------------------------------------------------------


@dataclass(frozen=True)
class Tone:
    """Notes played with one MIDI note, shaped by pitch wheel and expression."""

    notes: tuple[Note, ...]

    @property
    def start(self) -> float:
        return self.notes[0].onset

    @property
    def seconds(self) -> float:
        return self.notes[-1].end + self.notes[-1].fade - self.start

    @cached_property
    def key(self) -> int:
        pitches = [note.midi for note in self.notes]
        return round((max(pitches) + min(pitches)) / 2)

    @cached_property
    def curves(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return times [n] in s from the start, pitch [n] (MIDI, fractional) and level [n] in dB."""
        times = np.arange(0, self.seconds, CONTROL_SECONDS)
        pitch, level = self.notes[0].pitch(times), self.notes[0].levels(times)
        for note in self.notes[1:]:
            at = times - (note.onset - self.start)
            u = np.clip(at / max(note.glide, 0.01) + 0.5, 0, 1)
            u = u * u * (3 - 2 * u)
            at = np.clip(at, 0, note.seconds)
            pitch, level = pitch + (note.pitch(at) - pitch) * u, level + (note.levels(at) - level) * u
        fade = self.seconds - self.notes[-1].fade, self.seconds
        return times, pitch, np.minimum(level, 0) + np.interp(times, fade, (0, SILENT))


def group_tones(score: Sequence[Note]) -> list[Tone]:
    """Return the tones of a score; a slur over more than SLUR_SPAN semitones is split."""
    notes, low, high = [], 0.0, 0.0
    for note in score:
        low, high = (min(low, note.midi), max(high, note.midi)) if note.joined else (note.midi, note.midi)
        if high - low > SLUR_SPAN:
            low = high = note.midi
            note = replace(note, joined=False)
        notes.append(note)
    groups: list[list[Note]] = []
    for note in settle(notes):
        if note.joined:
            groups[-1].append(note)
        else:
            groups.append([note])
    return [Tone(tuple(group)) for group in groups]


def list_messages(tone: Tone) -> list[tuple[float, mido.Message]]:
    """Return (time in s, message) of one tone; expression 0, then all-sound-off, end it before the next."""
    times, pitch, level = tone.curves
    wheel = np.round((pitch - tone.key) * 8192 / WHEEL_RANGE).astype(int).tolist()
    assert max(map(abs, wheel)) < 8192, f"{tone} leaves the wheel's range"
    velocity = max(round(127 * 10 ** (level.max() / 40)), 1)  # sound fonts map velocity to 40 log10 dB
    expression = np.clip(np.round(127 * 10 ** ((level - level.max()) / 40)), 1, 127).astype(int).tolist()
    messages = []
    for i, t in enumerate(tone.start + times):
        if i == 0 or wheel[i] != wheel[i - 1]:
            messages.append((t, mido.Message("pitchwheel", pitch=wheel[i])))
        if i == 0 or expression[i] != expression[i - 1]:
            messages.append((t, mido.Message("control_change", control=11, value=expression[i])))
    messages.insert(2, (tone.start, mido.Message("note_on", note=tone.key, velocity=velocity)))
    end, off = tone.start + tone.seconds, tone.start + tone.seconds + GAP / 2
    return [
        *messages,
        (end, mido.Message("control_change", control=11, value=0)),
        (off, mido.Message("note_off", note=tone.key)),
        (off, mido.Message("control_change", control=120)),
    ]


def write_midi(tones: Sequence[Tone], program: int, seconds: float) -> bytes:
    """Return a MIDI file of `seconds` that plays the tones."""
    controls = ((7, 127), (101, 0), (100, 0), (6, WHEEL_RANGE), (38, 0))
    head = [mido.Message("control_change", control=control, value=value) for control, value in controls]
    timed = [(0.0, m) for m in [mido.Message("program_change", program=program), *head]]
    timed += [m for tone in tones for m in list_messages(tone)] + [(seconds, mido.MetaMessage("end_of_track"))]
    track, now = mido.MidiTrack(), 0
    for t, message in timed:
        tick = round(t * TICKS_PER_SECOND)
        track.append(message.copy(time=tick - now))
        now = tick
    buffer = io.BytesIO()
    mido.MidiFile(type=0, ticks_per_beat=TICKS_PER_SECOND // 2, tracks=[track]).save(file=buffer)  # 120 beats a minute
    return buffer.getvalue()


# --- FluidSynth -----------------------------------------------------------------------------------


def find_program() -> str:
    """Return the path of FluidSynth."""
    if program := shutil.which("fluidsynth"):
        return program
    raise FileNotFoundError(
        "the program fluidsynth is missing; install it with: apt install fluidsynth (macOS: brew install fluid-synth)"
    )


def find_soundfont(path: Path | None) -> Path:
    """Return `path` if given, else the first FluidR3 GM sound font in the usual places."""
    candidates = [path] if path else [Path(folder).expanduser() / SOUNDFONT for folder in SOUNDFONT_DIRS]
    if found := [candidate for candidate in candidates if candidate.is_file()]:
        return found[0]
    raise FileNotFoundError(
        f"the sound font {path or SOUNDFONT} is missing; install one with: apt install "
        "fluid-soundfont-gm (elsewhere: download FluidR3_GM.sf2 and name it with --soundfont)"
    )


def render_midi(midi: bytes, seconds: float, program: str, soundfont: Path) -> np.ndarray:
    """Return the dry sound [seconds * SAMPLE_RATE] of a MIDI file, float64, at FluidSynth's level."""
    with tempfile.TemporaryDirectory() as folder:
        song, wav, shell = (Path(folder, name) for name in ("song.mid", "song.wav", "shell"))
        song.write_bytes(midi)
        shell.write_text("interp 7\n")  # the best interpolation; this file also replaces the user's configuration
        dry = f"-R 0 -C 0 -g 0.5 -r {SAMPLE_RATE} -o synth.default-soundfont= -T wav -O float".split()
        command = [program, "-niq", "-f", shell, *dry, "-F", wav, soundfont, song]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode or not wav.is_file():
            raise OSError(f"fluidsynth failed with {soundfont}: {' '.join(done.stderr.split()) or done.returncode}")
        audio, _ = sf.read(wav, frames=round(seconds * SAMPLE_RATE))  # FluidSynth renders two more seconds
    if len(audio) < round(seconds * SAMPLE_RATE):
        raise OSError(f"fluidsynth stopped after {len(audio) / SAMPLE_RATE:.1f} of {seconds:g} s; is the disk full?")
    return audio.mean(axis=1)


class SoundFont:
    """Player of scores on a sound font, with the interface of ``Sampler``."""

    def __init__(self, instrument: str, path: Path | None = None) -> None:
        self.voice, self.program, self.path = VOICES[instrument], find_program(), find_soundfont(path)
        self.playing: Playing = replace(PLAYING[instrument], high=self.voice.high)

    def play(self, score: list[Note], seconds: float, rng: Rng | None = None) -> tuple[np.ndarray, Truth]:
        """Return the sound [N] of a score, float32 at SAMPLE_RATE, and its ground truth."""
        tones = group_tones(score)
        midi = write_midi(tones, self.voice.program, seconds)
        audio = shape_tones(render_midi(midi, seconds, self.program, self.path), tones, self.voice.brightness)
        truth = Truth(np.zeros(len(audio) // FRAME))
        for tone in tones:
            times, pitch, _ = tone.curves
            first, last = (math.ceil(t * SAMPLE_RATE / FRAME) for t in (tone.start, tone.start + tone.seconds))
            frames = np.arange(first, min(last, len(truth.f0)))
            hertz = 440 * 2 ** ((np.interp(frames * FRAME / SAMPLE_RATE - tone.start, times, pitch) - 69) / 12)
            truth.f0[frames] = hertz
            for note in tone.notes:
                f0 = 440 * 2 ** ((float(np.median(note.pitch(np.linspace(0, note.seconds, 50)))) - 69) / 12)
                truth.notes.append(describe(note, note.end, f0, [self.path.name]))
        return audio.astype(np.float32), truth

    def loudest_peak(self) -> float:
        """Return the peak amplitude of the loudest note in the range at the highest level."""
        keys = range(self.playing.low, self.playing.high + 1)
        score = [Note(0.5 * i, 0.4, key, 0.0, fade=0.04) for i, key in enumerate(keys)]
        peak = float(np.abs(self.play(score, 0.5 * len(score))[0]).max())
        if peak < 1e-4:
            raise OSError(
                f"{self.path} is silent for program {self.voice.program}; give a General MIDI sound font by --soundfont"
            )
        return peak

    def describe(self) -> str:
        """Return the text that identifies the sound font."""
        return f"{self.path.name} sha256 {hashlib.sha256(self.path.read_bytes()).hexdigest()[:16]}"


# --- brightness -----------------------------------------------------------------------------------


def shape_tones(audio: np.ndarray, tones: Sequence[Tone], brightness: Brightness) -> np.ndarray:
    """Return the sound [n] of `tones` with a brightness that follows the level, silent between tones."""
    shaped = np.zeros_like(audio)
    for tone in tones:
        begin, end = (round(t * SAMPLE_RATE) for t in (tone.start, tone.start + tone.seconds + 0.9 * GAP))
        shaped[begin:end] = shape_tone(audio[begin:end], tone.curves[2], tone.key, brightness)
    return shaped


def tilt_gains(slopes: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    """Return linear gains [slopes, frequencies]: 1 at 0 Hz, falling by each slope in dB per octave above CORNER."""
    octaves = 0.5 * np.log2(1 + (frequencies / CORNER) ** 2)
    return 10 ** (-slopes[:, None] * octaves / 20)


def measure_tilts(power: np.ndarray, frequencies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Measure the effect of each of SLOPES on a power spectrum [F] at frequencies [F] in Hz.

    Returns:
        Share of energy above SPLIT in dB, and change of the A-weighted level in dB, both [SLOPES], descending.
    """
    tilted = power * tilt_gains(SLOPES, frequencies) ** 2
    share = tilted[:, frequencies > SPLIT].sum(axis=1) / tilted.sum(axis=1)
    weights = 10 ** (librosa.A_weighting(np.maximum(frequencies, 1), min_db=None) / 10)
    return 10 * np.log10(share + 1e-12), 10 * np.log10(tilted @ weights / (power @ weights))


def choose_slopes(level: np.ndarray, shares: np.ndarray, pitch: float, brightness: Brightness) -> np.ndarray:
    """Return the slope for each level.

    A sample that is too dull for the wanted brightness gets the brightest slope at the loudest level, and the same
    decrease from there.

    Args:
        level: [n] in dB relative to the loudest.
        shares: [SLOPES] from ``measure_tilts``.
        pitch: MIDI.
        brightness: the wanted one.
    """
    wanted = np.interp(level, brightness.levels, brightness.shares) + PITCH_SLOPE * (pitch - MIDDLE) / 12
    loudest = brightness.shares[-1] + PITCH_SLOPE * (pitch - MIDDLE) / 12
    return np.interp(loudest - wanted, min(loudest, shares[0]) - shares, SLOPES)


def shape_tone(audio: np.ndarray, level: np.ndarray, pitch: float, brightness: Brightness) -> np.ndarray:
    """Return one tone [n] with a spectral tilt that follows its level.

    Args:
        audio: [n] at SAMPLE_RATE.
        level: [m] in dB relative to the loudest, evenly spaced over the tone.
        pitch: MIDI.
        brightness: that of the instrument.
    """
    if not audio.any():
        return audio
    frequencies, times, frames = signal.stft(audio, SAMPLE_RATE, nperseg=WINDOW, noverlap=WINDOW - HOP)
    shares, losses = measure_tilts((np.abs(frames) ** 2).sum(axis=1), frequencies)
    level = np.interp(times, np.linspace(0, len(audio) / SAMPLE_RATE, len(level)), level)
    slopes = choose_slopes(level, shares, pitch, brightness)
    makeup = 10 ** (-np.interp(slopes, SLOPES, losses) / 20)
    frames *= tilt_gains(slopes, frequencies).T * makeup
    return signal.istft(frames, SAMPLE_RATE, nperseg=WINDOW, noverlap=WINDOW - HOP)[1][: len(audio)]
