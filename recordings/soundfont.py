"""Play scores with FluidSynth on a sound font, and make each tone as bright as it is loud, as real instruments are.

A sound font has one recording of a note for all dynamics: a quiet note is the loud one turned down. Here a spectral
tilt above a corner, another one at each moment of the tone, follows the score's level. How far to tilt is found from
the tone's own average spectrum, so that notes of different samples come out alike: with the share of energy above
4 kHz that is asked for. The tone's A-weighted level stays what it was.
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
SOUNDFONT_DIRS = (  # Debian, Fedora and Arch, Homebrew, NixOS, one's own
    "/usr/share/sounds/sf2",
    "/usr/share/soundfonts",
    "/opt/homebrew/share/soundfonts",
    "/usr/local/share/soundfonts",
    "/run/current-system/sw/share/soundfonts",
    "~/.local/share/soundfonts",
    "~/Library/Audio/Sounds/Banks",
)
CONTROL_SECONDS = 0.0025  # grid of wheel and expression
SILENT = -84.0  # dB, the last step of expression before zero
TICKS_PER_SECOND = 2000
WHEEL_RANGE = 12  # semitones either way
SLUR_SPAN = 6  # semitones that one struck note may be moved over before its timbre suffers

CORNER = 1200.0  # Hz, where a trumpet's harmonics begin to fall
SPLIT = 4000.0  # Hz, brightness is the share of energy above it
SLOPES = np.linspace(-6, 72, 79)  # dB an octave far above the corner, what a tilt may be; below 0 brightens
WINDOW, HOP = 1024, 256  # samples
PITCH_SLOPE = 3.0  # dB an octave: a high note has fewer harmonics below SPLIT
MIDDLE = 67  # MIDI pitch that a Brightness is given for


@dataclass(frozen=True)
class Brightness:
    """Share of energy above SPLIT in dB, `shares[i]` where the tone's level is `levels[i]` dB from the loudest."""

    levels: tuple[float, ...]  # ascending, up to 0
    shares: tuple[float, ...]  # ascending


@dataclass(frozen=True)
class Voice:
    """An instrument of the sound font."""

    program: int  # General MIDI, counted from 0
    high: int  # MIDI pitch up to which its samples do
    brightness: Brightness


VOICES = {
    "trumpet": Voice(56, 84, Brightness((-60, -30, -9, 0), (-60, -47, -40, -29))),
    "guitar": Voice(25, 79, Brightness((-60, -30, 0), (-54, -40, -17))),
}


# --- from a score to MIDI -------------------------------------------------------------------------


@dataclass(frozen=True)
class Tone:
    """Notes played with one stroke: MIDI strikes one key, wheel and expression do the rest."""

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
        """Times [n] in s from the start, pitch [n] (MIDI, fractional) and level [n] in dB."""
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
    """Return the tones of a score; a slur over more than SLUR_SPAN semitones is struck anew."""
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
    """Return (s, message) of one tone; expression 0, then all-sound-off, leave nothing to ring into the next."""
    times, pitch, level = tone.curves
    wheel = np.round((pitch - tone.key) * 8192 / WHEEL_RANGE).astype(int).tolist()
    assert max(map(abs, wheel)) < 8192, f"{tone} leaves the wheel's range"
    velocity = max(round(127 * 10 ** (level.max() / 40)), 1)  # sound fonts have 40 log10
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
    """Return the dry sound [seconds * SAMPLE_RATE] of a MIDI file, float64, at FluidSynth's own level."""
    with tempfile.TemporaryDirectory() as folder:
        song, wav, shell = (Path(folder, name) for name in ("song.mid", "song.wav", "shell"))
        song.write_bytes(midi)
        shell.write_text("interp 7\n")  # the best interpolation; its being there shuts out the user's own settings
        dry = f"-R 0 -C 0 -g 0.5 -r {SAMPLE_RATE} -o synth.default-soundfont= -T wav -O float".split()
        command = [program, "-niq", "-f", shell, *dry, "-F", wav, soundfont, song]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode or not wav.is_file():
            raise OSError(f"fluidsynth failed with {soundfont}: {' '.join(done.stderr.split()) or done.returncode}")
        audio, _ = sf.read(wav, frames=round(seconds * SAMPLE_RATE))  # it plays on for two seconds
    if len(audio) < round(seconds * SAMPLE_RATE):
        raise OSError(f"fluidsynth stopped after {len(audio) / SAMPLE_RATE:.1f} of {seconds:g} s; is the disk full?")
    return audio.mean(axis=1)


class SoundFont:
    """Plays scores as ``Sampler`` does."""

    def __init__(self, instrument: str, path: Path | None = None) -> None:
        self.voice, self.program, self.path = VOICES[instrument], find_program(), find_soundfont(path)
        self.playing: Playing = replace(PLAYING[instrument], high=self.voice.high)

    def play(self, score: list[Note], seconds: float, rng: Rng | None = None) -> tuple[np.ndarray, Truth]:
        """Return the sound [N] of a score, float32 at SAMPLE_RATE, and the truth about it."""
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
        """Return the amplitude of the loudest note of the range when it is played as loud as it ever is."""
        keys = range(self.playing.low, self.playing.high + 1)
        score = [Note(0.5 * i, 0.4, key, 0.0, fade=0.04) for i, key in enumerate(keys)]
        peak = float(np.abs(self.play(score, 0.5 * len(score))[0]).max())
        if peak < 1e-4:
            raise OSError(f"{self.path} makes no sound for program {self.voice.program}; name a General MIDI one")
        return peak

    def describe(self) -> str:
        """Return the text by which a file tells which sound font it was rendered from."""
        return f"{self.path.name} sha256 {hashlib.sha256(self.path.read_bytes()).hexdigest()[:16]}"


# --- brightness -----------------------------------------------------------------------------------


def shape_tones(audio: np.ndarray, tones: Sequence[Tone], brightness: Brightness) -> np.ndarray:
    """Return the sound of `tones`, [n] at SAMPLE_RATE, as bright as it is loud; silent between them."""
    shaped = np.zeros_like(audio)
    for tone in tones:
        begin, end = (round(t * SAMPLE_RATE) for t in (tone.start, tone.start + tone.seconds + 0.9 * GAP))
        shaped[begin:end] = shape_tone(audio[begin:end], tone.curves[2], tone.key, brightness)
    return shaped


def tilt_gains(slopes: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    """Return linear gains [slopes, frequencies]: 1 at 0 Hz, falling by each slope in dB an octave above CORNER."""
    octaves = 0.5 * np.log2(1 + (frequencies / CORNER) ** 2)
    return 10 ** (-slopes[:, None] * octaves / 20)


def measure_tilts(power: np.ndarray, frequencies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Measure what each of SLOPES makes of a power spectrum [F] over frequencies [F] in Hz.

    Returns:
        Share of energy above SPLIT in dB and change of the A-weighted level in dB, both [SLOPES], descending.
    """
    tilted = power * tilt_gains(SLOPES, frequencies) ** 2
    share = tilted[:, frequencies > SPLIT].sum(axis=1) / tilted.sum(axis=1)
    weights = 10 ** (librosa.A_weighting(np.maximum(frequencies, 1), min_db=None) / 10)
    return 10 * np.log10(share + 1e-12), 10 * np.log10(tilted @ weights / (power @ weights))


def choose_slopes(level: np.ndarray, shares: np.ndarray, pitch: float, brightness: Brightness) -> np.ndarray:
    """Return the slope for each level, given what SLOPES make of the tone.

    A sample that is too dull to be made as bright as asked for starts from as bright as it gets, and falls as far.
    """
    asked = np.interp(level, brightness.levels, brightness.shares) + PITCH_SLOPE * (pitch - MIDDLE) / 12
    loudest = brightness.shares[-1] + PITCH_SLOPE * (pitch - MIDDLE) / 12
    return np.interp(loudest - asked, min(loudest, shares[0]) - shares, SLOPES)


def shape_tone(audio: np.ndarray, level: np.ndarray, pitch: float, brightness: Brightness) -> np.ndarray:
    """Tilt the spectrum of one tone [n] by its level from moment to moment, and return it [n].

    Args:
        level: [m], dB from the loudest, evenly spread over the tone.
        pitch: MIDI.
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
