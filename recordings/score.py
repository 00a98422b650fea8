"""Compose monophonic melodies: notes with curves of pitch and level.

Range and dynamics are covered by construction. A file of 30 s has one phrase in each of six registers and at each of
six dynamic levels, and six consecutive files pair every register with every level. Phrases are legato, detached,
mixed, long notes, runs or repeated notes, separated by rests. ``sampler.py`` and ``soundfont.py`` play them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

FILE_SECONDS = 30.0
N_LEVELS = 6  # number of dynamic levels, and of registers
GRID = 0.002  # s, time step of the curves of pitch and level
GAP = 0.006  # s, minimum silence before the next note if it is not slurred; four blocks of FluidSynth

SCALES = (
    (0, 2, 4, 5, 7, 9, 11),
    (0, 2, 3, 5, 7, 8, 10),
    (0, 2, 3, 5, 7, 9, 10),
    (0, 2, 4, 5, 7, 9, 10),
    (0, 2, 3, 5, 7, 8, 11),
    (0, 3, 5, 6, 7, 10),
    (0, 2, 4, 7, 9),
    tuple(range(12)),
)  # semitones above the key
RHYTHMS = ((1,), (1,), (2,), (3,), (0.5, 0.5), (1.5, 0.5), (0.5, 1, 0.5), (0.75, 0.25), (1 / 3,) * 3, (0.25,) * 4)
ARCS = (lambda u: math.sin(math.pi * u), lambda u: 1 - math.sin(math.pi * u), lambda u: u, lambda u: 1 - u)
SWELLS = (  # (share of the note, dB): swell in, swell out, both, forte-piano, dying away
    ((0.0, -16.0), (0.9, 0.0)),
    ((0.1, 0.0), (1.0, -16.0)),
    ((0.0, -14.0), (0.5, 0.0), (1.0, -14.0)),
    ((0.0, 0.0), (0.1, 0.0), (0.3, -12.0), (1.0, -3.0)),
    ((0.2, 0.0), (1.0, -24.0)),
)
STYLES = {  # share of notes slurred to the previous one (sustained instruments), share of shortened notes
    "legato": (0.8, 0.0),
    "detached": (0.0, 0.9),
    "mixed": (0.4, 0.35),
    "long": (0.3, 0.2),
    "runs": (0.5, 0.1),
    "repeated": (0.0, 0.4),
}
FILE_STYLES = tuple(STYLES)  # of a file's phrases, in random order

Rng = np.random.Generator
Move = tuple[float, float, float]  # pitch change: middle in s from the onset, semitones, duration in s


@dataclass(frozen=True)
class Playing:
    """Playing style of an instrument; pairs are ranges to draw from, and the defaults are those of a trumpet."""

    low: int  # MIDI pitch
    high: int  # 94 at most: CREPE tracks up to 1975.5 Hz
    plucked: bool = False
    softest: float = -30.0  # dB, the lowest of the dynamic levels; the highest is 0
    slurs: float = 1.0  # factor on a style's share of joined notes
    glide: tuple[float, float] = (0.02, 0.045)  # s, from one slurred note to the next
    slide: tuple[float, float] = (0.1, 0.22)  # s, an audible glide
    slides: float = 0.08  # share of slurred notes with a slide (plucked: of all notes, a slide on the string)
    fade: tuple[float, float] = (0.03, 0.09)  # s, from a held note to silence: release or damping
    vibrato: float = 0.5  # share of notes of 0.6 s and more
    vibrato_depth: tuple[float, float] = (0.08, 0.35)  # semitones
    vibrato_centre: float = 0.0  # 0: around the note; 1: above it, as on a fretted string
    swells: float = 0.6  # share of notes of 0.7 s and more with a curve of level
    scoops: float = 0.05  # share of notes that start below their pitch
    falls: float = 0.0  # share of last notes whose pitch falls at the end
    bends: float = 0.0  # share of long notes bent up, half of them and back
    rings: float = 0.0  # share of phrases whose last note rings out


_WIND = {"slide": (0.08, 0.2), "fade": (0.03, 0.1), "vibrato": 0.6}
_VIOLIN = {"glide": (0.015, 0.05), "slide": (0.08, 0.22), "fade": (0.05, 0.16), "vibrato_depth": (0.1, 0.45)}
_GUITAR = {"plucked": True, "softest": -20.0, "slurs": 0.0, "glide": (0.0, 0.0), "slide": (0.04, 0.14), "swells": 0.0}
_GUITAR |= {"fade": (0.04, 0.08), "vibrato": 0.35, "vibrato_depth": (0.08, 0.25), "vibrato_centre": 1.0}
PLAYING = {
    "guitar": Playing(40, 84, **_GUITAR, slides=0.07, scoops=0.03, bends=0.1, rings=0.5),
    "trumpet": Playing(52, 86, scoops=0.08, falls=0.12),
    "saxophone": Playing(
        50, 88, **_WIND, glide=(0.015, 0.04), slides=0.1, vibrato_depth=(0.08, 0.4), scoops=0.15, falls=0.15, bends=0.03
    ),
    "violin": Playing(55, 93, **_VIOLIN, slides=0.2, vibrato=0.8, vibrato_centre=-0.5),
    "flute": Playing(60, 94, **_WIND, glide=(0.012, 0.035), slides=0.04, vibrato_depth=(0.06, 0.25), falls=0.05),
}


@dataclass(frozen=True)
class Note:
    """One note. It is silent `fade` s after `onset + seconds`, unless the next note is slurred to it."""

    onset: float  # s in the file
    seconds: float  # duration until the fade
    midi: float  # pitch at the onset
    level: float  # dB, at most 0
    joined: bool = False  # slurred to the previous note, which ends where this one begins
    glide: float = 0.03  # s, of the pitch from the previous note, if joined
    fade: float = 0.06  # s
    moves: tuple[Move, ...] = ()
    vibrato: tuple[float, float, float, float] = (0.0, 5.0, 0.0, 0.0)  # onset in s, rate in Hz, semitones, centre
    shape: tuple[tuple[float, float], ...] = ()  # (s from the onset, dB added to the level)
    accent: str = ""  # "release": noise of the finger leaving the string

    @property
    def end(self) -> float:
        """Return the time in s at which the note starts to fade."""
        return self.onset + self.seconds

    def pitch(self, times: np.ndarray) -> np.ndarray:
        """Return the MIDI pitch [n] at `times` [n] in s from the onset."""
        pitch = np.full(len(times), float(self.midi))
        for middle, semitones, seconds in self.moves:
            u = np.clip((times - middle) / seconds + 0.5, 0, 1)
            pitch += semitones * u * u * (3 - 2 * u)
        onset, rate, depth, centre = self.vibrato
        if depth:
            swing = np.sin(2 * np.pi * rate * (times - onset) - centre * np.pi / 2) + centre
            pitch += depth * np.clip((times - onset) / 0.3, 0, 1) * swing
        return pitch

    def levels(self, times: np.ndarray) -> np.ndarray:
        """Return the level [n] in dB at `times` [n] in s from the onset."""
        if not self.shape:
            return np.full(len(times), self.level)
        at, levels = zip(*self.shape, strict=True)
        return self.level + np.interp(times, at, levels)


def compose_file(rng: Rng, playing: Playing, index: int) -> list[Note]:
    """Compose file `index` of a set: six phrases, each followed by a rest, FILE_SECONDS in total."""
    slots = rng.uniform(0.75, 1.25, N_LEVELS)
    starts = 0.2 + np.cumsum([0, *slots]) * (FILE_SECONDS - 0.2) / slots.sum()
    styles, notes = rng.permutation(FILE_STYLES), []
    for i, register in enumerate(rng.permutation(N_LEVELS)):
        level = playing.softest * (1 - ((register + index) % N_LEVELS) / (N_LEVELS - 1))
        rest = rng.uniform(0.25, 0.5) if rng.random() < 0.4 else rng.uniform(0.5, 1.5)
        start, seconds = float(starts[i]), float(starts[i + 1] - starts[i] - rest)
        notes += compose_phrase(rng, playing, str(styles[i]), int(register), float(level), start, seconds)
    return notes


def compose_phrase(
    rng: Rng, playing: Playing, style: str, register: int, level: float, start: float, seconds: float
) -> list[Note]:
    """Compose a phrase in register 0 to 5 at `level` (dB), from `start` for at most `seconds`."""
    edges = np.linspace(playing.low, playing.high, N_LEVELS + 1)
    low = math.ceil(max(edges[register] - 3, playing.low))
    high = math.floor(min(edges[register + 1] + 3, playing.high))
    ringing = playing.plucked and rng.random() < playing.rings
    durations = draw_rhythm(rng, seconds, style, 2.0 if ringing else 0.3)
    melody = draw_melody(rng, low, high, len(durations), repeat=0.7 if style == "repeated" else 0.06)
    joined, short = STYLES[style]
    arc, drift = rng.uniform(0, 4), rng.normal(0, 0.04, len(melody))  # semitones out of tune
    notes, onset = [], start
    for i, (pitch, duration) in enumerate(zip(melody, durations, strict=True)):
        last = i == len(melody) - 1
        slur = i > 0 and pitch != melody[i - 1] and bool(rng.random() < joined * playing.slurs)
        slur = slur and notes[-1].fade == 0.0
        loud = min(level - arc * abs(2 * i / max(len(melody) - 1, 1) - 1) + rng.normal(0, 1.0), 0.0)
        to_next = not last and rng.random() >= short
        note = draw_note(rng, playing, pitch + float(drift[i]), onset, duration, loud, slur, to_next, last, ringing)
        notes.append(note)
        onset += duration
    return settle(notes)


def settle(notes: Sequence[Note]) -> list[Note]:
    """Hold each note until a next one that is joined to it, and fade all others before the next."""
    settled = []
    for note, after in zip(notes, [*notes[1:], None], strict=True):
        if after is not None and after.joined:
            note = replace(note, seconds=after.onset - note.onset)
        elif note.fade == 0.0:  # held to the next, which has its own attack
            fade = 0.02
            note = replace(note, seconds=max(note.seconds - fade - GAP, 0.03), fade=fade)
        settled.append(note)
    return settled


def draw_note(
    rng: Rng,
    playing: Playing,
    pitch: float,
    onset: float,
    duration: float,
    level: float,
    slur: bool,
    to_next: bool,
    last: bool,
    ringing: bool,
) -> Note:
    """Return one note with ornaments; a fade of 0 means that it is held until the next note."""
    fade = float(rng.uniform(*playing.fade))
    held, accent = duration, ""
    if last:
        held = duration - fade
    elif not to_next:
        held = max(duration * rng.uniform(0.35, 0.75), min(0.06, duration / 2))
        fade = min(fade, duration - held - GAP)
        accent = "release" if playing.plucked and rng.random() < 0.4 else ""
    else:
        fade = 0.0
    if last and ringing:
        fade, held = 0.25, duration - 0.25
    depth = float(rng.uniform(*playing.vibrato_depth)) if held > 0.6 and rng.random() < playing.vibrato else 0.0
    vibrato = (float(rng.uniform(0.15, 0.4)), float(rng.uniform(4.5, 6.5)), depth, playing.vibrato_centre)
    moves = _draw_moves(rng, playing, pitch, held, slur, last)
    shape = ()
    if held > 0.7 and rng.random() < playing.swells:
        shape = tuple((share * held, db) for share, db in SWELLS[rng.integers(len(SWELLS))])
    long_glide = rng.random() < playing.slides and not playing.plucked
    glide = float(min(rng.uniform(*(playing.slide if long_glide else playing.glide)), 0.6 * duration))
    scoop = next((-semitones for middle, semitones, _ in moves if middle <= 0.1), 0.0)  # a rise at the start
    return Note(onset, held, pitch + scoop, level, slur, glide, fade, moves, vibrato, shape, accent)


def _draw_moves(rng: Rng, playing: Playing, pitch: float, held: float, slur: bool, last: bool) -> tuple[Move, ...]:
    """Return the pitch changes of a note: a scoop, a fall, a bend (and back), a slide on the string, or none."""
    if held > 0.25 and not slur and rng.random() < playing.scoops:
        return ((0.06, float(rng.uniform(0.4, 1.5)), 0.1),)
    if last and held > 0.45 and rng.random() < playing.falls:
        seconds = float(rng.uniform(0.12, 0.3))
        return ((held - seconds / 4, -float(rng.uniform(1, 3)), seconds),)
    if held > 0.5 and rng.random() < playing.bends:
        rise, seconds = float(rng.integers(1, 3)), float(rng.uniform(0.1, 0.25))
        back = ((0.65 * held, -rise, seconds),) if rng.random() < 0.5 else ()
        return ((0.08 + seconds / 2, rise, seconds), *back)
    if playing.plucked and held > 0.35 and rng.random() < 2 * playing.slides:
        seconds = float(rng.uniform(*playing.slide)) if rng.random() < 0.5 else 0.01  # else a hammer-on or pull-off
        return ((float(rng.uniform(0.3, 0.6)) * held, float(rng.choice((-2, -1, 1, 2))), seconds),)
    return ()


def draw_rhythm(rng: Rng, seconds: float, style: str, shortest_end: float) -> list[float]:
    """Return durations in s with the sum `seconds`; the last one, the remainder, is at least `shortest_end`."""
    beat, durations, left = 60 / rng.uniform(60, 132), [], seconds
    while left > 0:
        if style == "long":
            cell = (rng.uniform(1.2, 3.5) / beat,)
        elif style == "runs":
            cell = (rng.choice((0.2, 0.25, 0.33)),) * int(rng.integers(4, 9)) + (float(rng.choice((0.5, 1.0))),)
        elif style == "repeated":
            cell = (float(rng.choice((0.25, 0.5, 0.5, 1.0))),) * int(rng.integers(2, 5))
        else:
            cell = RHYTHMS[rng.integers(len(RHYTHMS))]
        for duration in (float(beats * beat) for beats in cell):
            if left <= 0:
                break
            durations.append(left if left < duration + shortest_end else duration)
            left -= durations[-1]
    return durations


def draw_melody(rng: Rng, low: int, high: int, n_notes: int, repeat: float) -> list[int]:
    """Return `n_notes` MIDI pitches within [low, high]: steps and leaps in a random key that follow an arc."""
    key, scale, arc = rng.integers(12), SCALES[rng.integers(len(SCALES))], ARCS[rng.integers(len(ARCS))]
    ladder = [p for p in range(low, high + 1) if (p - key) % 12 in scale]
    targets = [arc(i / max(n_notes - 1, 1)) * (len(ladder) - 1) for i in range(n_notes)]
    rung, melody = round(targets[0]), []
    for target in targets:
        melody.append(ladder[rung])
        way = np.sign(target - rung) if rng.random() < 0.5 else rng.choice((-1, 1))
        step = 0 if rng.random() < repeat else int(rng.choice((1, 2, 3, 4), p=(0.66, 0.19, 0.09, 0.06)))
        rung = min(max(rung + int(way) * step, 0), len(ladder) - 1)
    return melody
