"""Melodies that cover an instrument, as struck notes with curves of pitch and level, and as the MIDI file of them.

``render_dataset.py`` renders them. A file of 30 s holds one phrase in each of six registers and one at each of six
dynamic levels; six files in a row pair every register with every level.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import mido
import numpy as np

from recordings import brightness as timbre
from recordings.score import ARCS, FILE_SECONDS, N_LEVELS, RHYTHMS, SCALES

LEVEL_STEP = 6.0  # dB between neighbouring dynamic levels
SILENT = -84.0  # dB, the last step of expression before zero
CONTROL_SECONDS = 0.0025  # grid of wheel and expression
GAP = 0.006  # s from a tone's end to the next, four of FluidSynth's blocks: within one the old note gets the new level
TICKS_PER_SECOND = 2000
WHEEL_RANGE = 12  # semitones either way
RING = 2.0  # s, a last note that rings is at least so long
VIBRATO_LEVEL = 4.0  # dB a semitone: a vibrato's high side is the loud and bright one
SLUR_SPAN = 6  # semitones that one struck note may be moved over before its timbre suffers

SHAPES = (  # (share of the note, dB): swell in, swell out, both, forte-piano, dying away
    ((0, -16), (0.9, 0)),
    ((0.1, 0), (1, -18)),
    ((0, -14), (0.5, 0), (1, -14)),
    ((0, 0), (0.1, 0), (0.25, -12), (1, -3)),
    ((0.2, 0), (1, -36)),
)
STYLES = {  # share of notes joined to the one before, and of notes cut short
    "legato": (0.75, 0.0),
    "detached": (0.1, 0.9),
    "mixed": (0.4, 0.4),
    "long": (0.3, 0.2),
}
FILE_STYLES = ("legato", "legato", "detached", "mixed", "mixed", "long")  # of the phrases of a file, in any order

Rng = np.random.Generator
Points = list[tuple[float, float]]  # (s from the tone's start, dB)
Moves = list[tuple[float, float, float]]  # (middle in s from the tone's start, semitones, length in s)


@dataclass(frozen=True)
class Instrument:
    """How one instrument is played; pairs are ranges to draw from."""

    program: int  # General MIDI, counted from 0
    low: int  # MIDI pitch
    high: int
    slurs: float  # factor on a style's share of joined notes
    join: tuple[float, float]  # s, the glide of a slur or hammer-on
    slide: tuple[float, float]  # s, a glide that is heard as one
    slides: float  # share of joined notes
    dip: float  # dB, level lost in the middle of a join
    release: tuple[float, float]  # s, from a held note to silence
    vibrato_depth: tuple[float, float]  # semitones
    vibrato_centre: float  # 0: around the note; 1: above it, as a fretted string
    droop: float  # dB, level lost along a plain note, beside what the samples lose
    swells: float  # share of long notes with a shape
    scoops: float  # share of notes that come from below
    falls: float  # share of last notes that drop away
    bends: float  # share of long notes bent up, half of them back again
    mutes: float  # share of phrases that are palm-muted
    rings: float  # share of last notes that ring until they are silent
    noise: float  # dB from the tone's peak, of breath at its start or of the finger that leaves the string
    noise_at_end: bool
    brightness: timbre.Brightness


INSTRUMENTS = {
    "trumpet": Instrument(
        56,
        52,
        84,
        1.0,
        (0.02, 0.045),
        (0.1, 0.25),
        0.08,
        3.0,
        (0.08, 0.3),
        (0.08, 0.4),
        0.0,
        2.0,
        0.7,
        0.1,
        0.2,
        0.0,
        0.0,
        0.0,
        -36.0,
        False,
        timbre.Brightness((-60, -30, -9, 0), (-60, -47, -40, -29)),
    ),
    "guitar": Instrument(
        25,
        40,
        79,
        0.5,
        (0.006, 0.012),
        (0.05, 0.16),
        0.35,
        0.0,
        (0.03, 0.12),
        (0.05, 0.14),
        1.0,
        0.0,
        0.0,
        0.06,
        0.0,
        0.2,
        0.2,
        0.6,
        -36.0,
        True,
        timbre.Brightness((-60, -30, 0), (-54, -40, -17)),
    ),
}


@dataclass(frozen=True)
class Tone:
    """One struck note, silent from its end on."""

    start: float  # s in the file
    seconds: float
    key: int  # MIDI
    velocity: int
    offset: float  # semitones above the key when struck
    moves: Moves
    vibrato: tuple[float, float, float, float]  # onset in s, rate in Hz, depth in semitones, centre
    levels: Points
    dark: float = 0.0  # dB, as if it were softer by so much, in its brightness only
    noise: tuple[float, float, float] | None = None  # start in s from the tone's, length in s, dB from the tone's peak


def compute_curves(tone: Tone) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return times [n] in s from the tone's start, pitch [n] (MIDI, fractional) and expression [n] in dB."""
    times = np.arange(0, tone.seconds, CONTROL_SECONDS)
    pitch = np.full(len(times), float(tone.key + tone.offset))
    for middle, semitones, seconds in tone.moves:
        u = np.clip((times - middle) / seconds + 0.5, 0, 1)
        pitch += semitones * u * u * (3 - 2 * u)
    onset, rate, depth, centre = tone.vibrato
    swing = np.sin(2 * np.pi * rate * (times - onset) - centre * np.pi / 2) + centre
    depths = depth * np.clip((times - onset) / 0.3, 0, 1)
    level = np.interp(times, *zip(*tone.levels, strict=True))
    return times, pitch + depths * swing, level + VIBRATO_LEVEL * depths * (swing - centre - 1)


def draw_rhythm(rng: Rng, seconds: float, style: str, shortest_end: float = 0.3) -> list[float]:
    """Return durations in s that add up to `seconds`; the last note takes what is left, `shortest_end` or more."""
    beat, durations, left = 60 / rng.uniform(60, 132), [], seconds
    while left:
        cell = (rng.uniform(1.2, 3.5) / beat,) if style == "long" else RHYTHMS[rng.integers(len(RHYTHMS))]
        for duration in (beats * beat for beats in cell if left):
            durations.append(left if left < duration + shortest_end else duration)
            left -= durations[-1]
    return durations


def draw_melody(rng: Rng, low: int, high: int, n_notes: int) -> list[int]:
    """Return `n_notes` MIDI pitches within [low, high]: steps and leaps in a random key, drawn along an arc."""
    key, scale, arc = rng.integers(12), SCALES[rng.integers(len(SCALES))], ARCS[rng.integers(len(ARCS))]
    ladder = [p for p in range(low, high + 1) if (p - key) % 12 in scale]
    targets = [arc(i / max(n_notes - 1, 1)) * (len(ladder) - 1) for i in range(n_notes)]
    rung, melody = round(targets[0]), []
    for target in targets:
        melody.append(ladder[rung])
        way = np.sign(target - rung) if rng.random() < 0.5 else rng.choice((-1, 1))
        rung += int(way * rng.choice(5, p=(0.06, 0.62, 0.18, 0.08, 0.06)))
        rung = min(max(rung, 0), len(ladder) - 1)
    restful = [p for p in ladder if (p - key) % 12 in (0, 3, 4, 7)] or ladder
    return [*melody[:-1], min(restful, key=lambda p: abs(p - melody[-1]))]


def draw_runs(rng: Rng, melody: Sequence[int], joined: float) -> list[slice]:
    """Cut a melody into runs played with one stroke: one note, or several that differ and span few semitones."""
    starts = [0]
    for i in range(1, len(melody)):
        run = melody[starts[-1] : i + 1]
        fits = melody[i] != melody[i - 1] and len(run) < 7 and max(run) - min(run) <= SLUR_SPAN
        if not (fits and rng.random() < joined):
            starts.append(i)
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], len(melody)], strict=True)]


def draw_levels(rng: Rng, ins: Instrument, held: float, joins: Sequence[float], decay: float) -> Points:
    """Return the level up to `held`: a shape if it is long, a dip at each join, `decay` dB lost after the last."""
    shaped = not decay and held > 0.7 and rng.random() < ins.swells
    plain = ((0, 0), (joins[-1] / held if joins else 0, 0), (1, -ins.droop - decay))
    shape = SHAPES[rng.integers(len(SHAPES))] if shaped else plain
    times, levels = [share * held for share, _ in shape], [level for _, level in shape]
    points = dict(zip(times, levels, strict=True))
    for join in joins:
        for t, drop in ((join - 0.025, 0), (join, ins.dip), (join + 0.03, 0)):
            points[t] = float(np.interp(t, times, levels)) - drop
    return sorted((t, level) for t, level in {**points, held: levels[-1]}.items() if t <= held)


def draw_decay(rng: Rng, ins: Instrument, seconds: float, last: bool, muted: bool) -> float:
    """Return the dB that a note of `seconds` loses before it ends, beside what its samples lose."""
    if muted:  # a palm takes 60 dB in some 0.4 to 1 s
        return min(rng.uniform(60, 150) * seconds, 60.0)
    return rng.uniform(45, 60) if last and seconds > 1 and rng.random() < ins.rings else 0.0


def draw_noise(
    rng: Rng, ins: Instrument, held: float, release: float, parted: bool
) -> tuple[float, float, float] | None:
    """Return breath noise at the start of a blown tone, a finger's at the end of a stopped string, or none."""
    level = ins.noise + rng.uniform(-6, 3)
    if ins.noise_at_end:
        return (held, release, level) if parted else None
    return (0.0, min(rng.uniform(0.03, 0.08), held), level)


def draw_ornament(rng: Rng, ins: Instrument, pitch: int, onset: float, held: float, last: bool) -> Moves:
    """Return what decorates the note `pitch`, held from `onset` to `held`: a fall, a bend (and back), or nothing."""
    length = held - onset
    if last and length > 0.45 and rng.random() < ins.falls:
        seconds = rng.uniform(0.15, 0.35)
        return [(held - seconds / 4, -min(rng.uniform(1, 4), pitch - ins.low), seconds)]
    if length > 0.5 and pitch + 2 <= ins.high and rng.random() < ins.bends:
        rise, seconds = int(rng.integers(1, 3)), rng.uniform(0.1, 0.25)
        back = [(onset + 0.65 * length, -rise, seconds)] if rng.random() < 0.5 else []
        return [(onset + 0.08 + seconds / 2, rise, seconds), *back]
    return []


def draw_joins(rng: Rng, ins: Instrument, pitches: Sequence[int], joins: Sequence[float]) -> Moves:
    """Return the glides from each pitch of a run to the next: short, or long enough to be heard as a slide."""
    glides = [rng.uniform(*(ins.slide if rng.random() < ins.slides else ins.join)) for _ in joins]
    room = np.diff(joins, prepend=0.0)
    return [(t, pitches[i + 1] - pitches[i], min(glides[i], room[i])) for i, t in enumerate(joins)]


def play_run(
    rng: Rng,
    ins: Instrument,
    pitches: Sequence[int],
    durations: Sequence[float],
    start: float,
    level: float,
    short: float,
    last: bool,
    muted: bool,
) -> Tone:
    """Return the tone that plays `pitches` with one stroke, `level` dB from the loudest; a share `short` is cut."""
    joins, total = np.cumsum(durations)[:-1].tolist(), float(sum(durations)) - GAP
    onset = joins[-1] if joins else 0.0
    parted = last or rng.random() < short
    held = onset + (total - onset) * (rng.uniform(0.4, 0.75) if parted and not last else 1.0)
    release = min(rng.uniform(*ins.release), 0.4 * (held - onset)) if parted else 0.03
    held = min(held, total - release)
    decay = draw_decay(rng, ins, held - onset, last, muted)
    levels = draw_levels(rng, ins, held, joins, decay)
    levels.append((held + release, SILENT if parted else levels[-1][1] - 18))
    depth = rng.uniform(*ins.vibrato_depth) if held - onset > 0.6 and rng.random() < 0.7 else 0.0
    vibrato = (onset + rng.uniform(0.15, 0.45), rng.uniform(4.5, 6.5), depth, ins.vibrato_centre)
    scoop = min(rng.uniform(0.5, 2), pitches[0] - ins.low) * (durations[0] > 0.25 and rng.random() < ins.scoops)
    moves = [(0.06, scoop, 0.1), *draw_joins(rng, ins, pitches, joins)]
    moves += draw_ornament(rng, ins, pitches[-1], onset, held, last)
    key = (max(pitches) + min(pitches) + 1) // 2
    offset = pitches[0] - key - scoop + 0.06 * rng.standard_normal()  # nobody plays perfectly in tune
    velocity = round(127 * 10 ** (level / 40))  # sound fonts have 40 log10
    dark = rng.uniform(6, 14) if muted else 0.0
    noise = draw_noise(rng, ins, held, release, parted and not decay)
    return Tone(start, held + release, key, velocity, offset, moves, vibrato, levels, dark, noise)


def compose_phrase(
    rng: Rng, ins: Instrument, style: str, register: int, level: float, start: float, seconds: float
) -> list[Tone]:
    """Compose a phrase in one of the registers 0 to 5 that sounds from `start` for at most `seconds`."""
    edges = np.linspace(ins.low, ins.high, N_LEVELS + 1)
    low, high = max(edges[register] - 3, ins.low), min(edges[register + 1] + 3, ins.high)
    muted = rng.random() < ins.mutes
    durations = draw_rhythm(rng, seconds, style, RING if ins.rings and not muted else 0.3)
    melody = draw_melody(rng, math.ceil(low), math.floor(high), len(durations))
    joined, short = STYLES[style]
    tones = []
    for run in draw_runs(rng, melody, 0.0 if muted else joined * ins.slurs):
        onset, accent = start + sum(durations[: run.start]), min(level + rng.uniform(-2, 2), 0.0)
        last = run.stop == len(melody)
        tones.append(play_run(rng, ins, melody[run], durations[run], onset, accent, short, last, muted))
    return tones


def compose_file(rng: Rng, ins: Instrument, index: int) -> list[Tone]:
    """Compose file `index` of a set: six phrases, each with a rest after it, FILE_SECONDS in all."""
    slots = rng.uniform(0.75, 1.25, N_LEVELS)
    starts = 0.2 + np.cumsum([0, *slots]) * (FILE_SECONDS - 0.2) / slots.sum()
    tones = []
    for i, (register, style) in enumerate(zip(rng.permutation(N_LEVELS), rng.permutation(FILE_STYLES), strict=True)):
        level = LEVEL_STEP * ((register + index) % N_LEVELS - N_LEVELS + 1)
        rest = rng.uniform(0.15, 0.5) if rng.random() < 0.4 else rng.uniform(0.5, 2.0)
        start, seconds = float(starts[i]), float(starts[i + 1] - starts[i] - rest)
        tones += compose_phrase(rng, ins, str(style), int(register), level, start, seconds)
    return tones


def list_messages(tone: Tone) -> list[tuple[float, mido.Message]]:
    """Return (s, message) of one tone; expression 0, then all-sound-off, leave nothing to ring into the next."""
    times, pitch, level = compute_curves(tone)
    wheel = np.round((pitch - tone.key) * 8192 / WHEEL_RANGE).astype(int).tolist()
    assert max(map(abs, wheel)) < 8192, f"{tone} leaves the wheel's range"
    expression = np.clip(np.round(127 * 10 ** (level / 40)), 1, 127).astype(int).tolist()
    messages = []
    for i, t in enumerate(tone.start + times):
        if i == 0 or wheel[i] != wheel[i - 1]:
            messages.append((t, mido.Message("pitchwheel", pitch=wheel[i])))
        if i == 0 or expression[i] != expression[i - 1]:
            messages.append((t, mido.Message("control_change", control=11, value=expression[i])))
    messages.insert(2, (tone.start, mido.Message("note_on", note=tone.key, velocity=tone.velocity)))
    end, off = tone.start + tone.seconds, tone.start + tone.seconds + GAP / 2
    return [
        *messages,
        (end, mido.Message("control_change", control=11, value=0)),
        (off, mido.Message("note_off", note=tone.key)),
        (off, mido.Message("control_change", control=120)),
    ]


def write_midi(tones: Sequence[Tone], program: int, seconds: float, settings: str) -> bytes:
    """Return a MIDI file of `seconds` that plays the tones, with `settings` as its text."""
    controls = ((7, 127), (101, 0), (100, 0), (6, WHEEL_RANGE), (38, 0))
    head = [mido.Message("control_change", control=control, value=value) for control, value in controls]
    timed = [(0.0, m) for m in [mido.Message("program_change", program=program), *head]]
    timed += [m for tone in tones for m in list_messages(tone)] + [(seconds, mido.MetaMessage("end_of_track"))]
    track, now = mido.MidiTrack([mido.MetaMessage("text", text=settings)]), 0
    for t, message in timed:
        tick = round(t * TICKS_PER_SECOND)
        track.append(message.copy(time=tick - now))
        now = tick
    buffer = io.BytesIO()
    mido.MidiFile(type=0, ticks_per_beat=TICKS_PER_SECOND // 2, tracks=[track]).save(file=buffer)  # 120 beats a minute
    return buffer.getvalue()
