"""Sampler: play a score of single notes on recorded notes, with the ground truth of what sounds.

Nothing is synthesised. Each note is a recording of the nearest pitch, at most 2 semitones away, read at a varying speed
that follows the score's pitch. The dynamic layer is the nearest to the note's level; takes are used in turn.

Plucked notes keep the recorded attack and decay; the next pluck or the score damps them.

Sustained notes are read by the measured phase of their fundamental. Sounds that overlap (two layers of a swell, two
notes of a slur, the end of a loop and its start) then have the same pitch and phase, so that a cross-fade neither beats
nor loses level.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np

from recordings.samples import DYNAMICS, SAMPLE_RATE, Index, Sample, load_sample, measure_envelope, measure_f0
from recordings.score import GRID, Note, Playing, Rng

LAYERS = {"layer1": -15.0, "layer2": -8.0, "layer3": -4.0, "layer4": 0.0}  # dB, peaks of a guitar's dynamic layers
REACH = 2.0  # semitones, maximum distance from a note to its recording
FRAME = 480  # samples per frame of the true f0
MARGIN = 32  # samples of silence around a recording, for the interpolation
OVERLAP = (0.005, 0.015)  # s, overlap of a damped note with the next pluck
DAMPED = 0.02  # s, fade of a plucked note that the next one damps
PREROLL = 0.04  # s of a sustained recording before its onset
CROSS_FADE = 0.05  # s, at a loop
TONGUE = 0.015  # s, overlap of a sustained note with a next one that is not slurred
TAIL = 0.35  # s, longest release of a sustained note
STEADY = 5.0  # dB; a sustained note whose level varies less is played on one layer
VIBRATING = 12.0  # cents, standard deviation above which a recording has vibrato
_NODE = 48  # samples between phase values

_TAPS, _PHASES = 24, 2048  # error of the interpolation: -80 dB up to 15 kHz


def _make_kernel() -> np.ndarray:
    """Return windowed sincs [phases + 1, taps] that interpolate between samples."""
    offsets = np.arange(_TAPS) - (_TAPS // 2 - 1) - np.arange(_PHASES + 1)[:, None] / _PHASES
    window = np.i0(8.0 * np.sqrt(np.maximum(1 - (offsets / (_TAPS / 2)) ** 2, 0))) / np.i0(8.0)
    kernel = np.sinc(offsets) * window
    return (kernel / kernel.sum(axis=1, keepdims=True)).astype(np.float32)


_KERNEL = _make_kernel()


def read_at(padded: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Return the interpolated samples [n] of a recording at fractional `positions` [n], 0 beyond its ends.

    Args:
        padded: recording with MARGIN zeros before and after it.
        positions: in samples from the start of the recording, without the margin.
    """
    out = np.zeros(len(positions), np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(padded, _TAPS)
    last = len(padded) - 2 * MARGIN
    for start in range(0, len(positions), 1 << 15):
        at = np.clip(positions[start : start + (1 << 15)], -_TAPS // 2, last + _TAPS // 2)
        whole = np.floor(at).astype(np.int64)
        phase = np.rint((at - whole) * _PHASES).astype(np.int64)
        taps = windows[whole + MARGIN - (_TAPS // 2 - 1)]
        out[start : start + (1 << 15)] = np.einsum("ij,ij->i", taps, _KERNEL[phase])
    return out


@dataclass
class Recording:
    """Padded sound of a sample, and the measurements that playing it needs."""

    sample: Sample
    audio: np.ndarray  # float32 [N], with MARGIN zeros before and after

    @property
    def n_samples(self) -> int:
        return len(self.audio) - 2 * MARGIN

    @property
    def sound(self) -> np.ndarray:
        """Sound [n_samples] without the margins."""
        return self.audio[MARGIN : MARGIN + self.n_samples]

    @cached_property
    def onset(self) -> int:
        """Return the position in samples where the level first is within 20 dB of its maximum."""
        envelope = measure_envelope(self.sound, 24, 144)
        return 24 * int(np.argmax(envelope > 0.1 * envelope.max()))

    @cached_property
    def deviation(self) -> np.ndarray:
        """Return the ratio of f0 to the median f0 [T], every FRAME samples; 1 where f0 cannot be measured."""
        track, strength = measure_f0(self.sound, self.sample.f0, FRAME, span=7.0)
        ratio = track / self.sample.f0
        sure = (strength > 0.7) & (np.abs(np.log2(ratio)) < 1 / 12)
        if not sure.any():
            return np.ones(len(track))
        ratio = np.interp(np.arange(len(track)), np.flatnonzero(sure), ratio[sure])
        return np.median(np.lib.stride_tricks.sliding_window_view(np.pad(ratio, 2, mode="edge"), 5), axis=1)

    # --- measurements for sustained notes

    @cached_property
    def envelope(self) -> np.ndarray:
        """Return the RMS [T] over 20 ms, every 5 ms."""
        return measure_envelope(self.sound, 240, 960)

    @cached_property
    def phase(self) -> np.ndarray:
        """Return the phase of the fundamental [T] in cycles, every _NODE samples, strictly increasing.

        Where the fundamental is too weak, before and after the tone, the phase is extrapolated at f0.
        """
        sound, f0 = self.sound, self.sample.f0
        n_fft = 1 << (len(sound) + 4800).bit_length()
        spectrum, frequency = np.fft.rfft(sound, n_fft), np.fft.rfftfreq(n_fft, 1 / SAMPLE_RATE)
        band = np.interp(frequency / f0, (0.5, 0.7, 1.35, 1.6), (0, 1, 1, 0))
        full = np.zeros(n_fft, np.complex128)
        full[: len(spectrum)] = 2 * spectrum * band
        wave = np.fft.ifft(full)[: len(sound) : _NODE // 4]
        seconds = np.arange(len(wave)) * (_NODE // 4) / SAMPLE_RATE
        drift = np.unwrap(np.angle(wave * np.exp(-2j * np.pi * f0 * seconds))) / (2 * np.pi)
        speed = np.gradient(drift, seconds)
        strong = (np.abs(wave) > 0.15 * np.quantile(np.abs(wave), 0.8)) & (np.abs(speed) < 0.05 * f0)
        begin, end = longest_run(strong, bridge=80)
        drift[:begin], drift[end:] = drift[begin], drift[end - 1]
        window = np.hanning(83)[1:-1]  # 20 ms
        drift = np.convolve(np.pad(drift, 40, mode="edge"), window / window.sum(), "valid")
        phase = f0 * seconds[::4] + drift[::4]
        return np.maximum.accumulate(phase) + 1e-9 * np.arange(len(phase))

    def phase_at(self, position: float | np.ndarray) -> float | np.ndarray:
        """Return the phase in cycles at positions in samples, extrapolated at f0 beyond the ends."""
        nodes, per_sample = _NODE * np.arange(len(self.phase)), self.sample.f0 / SAMPLE_RATE
        inside = np.clip(position, 0, nodes[-1])
        return np.interp(inside, nodes, self.phase) + (position - inside) * per_sample

    def position_at(self, phase: np.ndarray) -> np.ndarray:
        """Return the positions in samples [n] at phases in cycles [n]."""
        inside = np.clip(phase, self.phase[0], self.phase[-1])
        nodes = _NODE * np.arange(len(self.phase))
        return np.interp(inside, self.phase, nodes) + (phase - inside) * SAMPLE_RATE / self.sample.f0

    @cached_property
    def speed(self) -> np.ndarray:
        """Return the ratio of the fundamental's frequency to f0 [T], every _NODE samples."""
        return np.gradient(self.phase) * SAMPLE_RATE / _NODE / self.sample.f0

    @cached_property
    def sustain(self) -> tuple[int, int, int]:
        """Return (start of the steady part, its end, start of the release) in samples."""
        loud = np.flatnonzero(self.envelope > 10 ** ((self.sample.level - 5) / 20))
        first, last = 240 * int(loud[0]), 240 * int(loud[-1])
        first = max(first, self.onset)
        length = max(last - first, 480)
        return first + min(2880, length // 3), last - min(1920, length // 4), last - 480

    @property
    def held_seconds(self) -> float:
        """Return the time from the onset to the release in s."""
        return (self.sustain[2] - self.onset) / SAMPLE_RATE

    @cached_property
    def vibrates(self) -> bool:
        """Return True if the recording has vibrato."""
        begin, end, _ = self.sustain
        speed = self.speed[begin // _NODE : max(end // _NODE, begin // _NODE + 2)]
        return float(np.std(1200 * np.log2(np.maximum(speed, 0.5)))) > VIBRATING

    @cached_property
    def flat_gain(self) -> np.ndarray:
        """Return the gain [T], every 5 ms, within 4 dB, that flattens the steady part: a loop must not pulsate."""
        begin, end, _ = self.sustain
        window = np.hanning(33)[1:-1]  # 150 ms
        smooth = np.sqrt(np.convolve(np.pad(self.envelope**2, 15, mode="edge"), window / window.sum(), "valid"))
        steady = smooth[begin // 240 : max(end // 240, begin // 240 + 1)]
        gain = np.clip(np.median(steady) / np.maximum(smooth, 1e-9), 10 ** (-4 / 20), 10 ** (4 / 20))
        at = 240 * np.arange(len(gain))
        inside = np.interp(at, (begin - 1440, begin, end, end + 480), (0, 1, 1, 0))
        return gain**inside

    @cached_property
    def loops(self) -> list[tuple[int, int]]:
        """Return up to three loops (end, start) in samples, whole cycles apart, where the sound is most similar."""
        begin, end, _ = self.sustain
        half = round(max(480, 1.5 * SAMPLE_RATE / self.sample.f0))
        found = []
        for share in (1.0, 0.93, 0.86):
            out = int(begin + share * (end - begin))
            first, last = int(self.phase_at(begin)) + 1, int(self.phase_at(begin + 0.55 * (out - begin)))
            cycles = np.arange(first, max(last, first + 1))[:4000]
            cycles = cycles[:: max(1, len(cycles) // 300)]
            starts = self.position_at(cycles + self.phase_at(out) % 1)
            at = np.arange(-half, half)
            here = read_at(self.audio, out + at)
            there = read_at(self.audio, (starts[:, None] + at).ravel()).reshape(len(starts), -1)
            apart = np.sum((there - here) ** 2, axis=1) / (np.sum(there**2, axis=1) + np.sum(here**2) + 1e-12)
            found.append((float(apart.min()), out, int(starts[np.argmin(apart)])))
        found.sort()
        return [(out, back) for apart, out, back in found if apart < max(2 * found[0][0], 0.05)]


def longest_run(good: np.ndarray, bridge: int) -> tuple[int, int]:
    """Return (start, end) of the longest run of True [n], ignoring gaps of up to `bridge`."""
    at = np.flatnonzero(good)
    if not len(at):
        return 0, len(good)
    cuts = np.flatnonzero(np.diff(at) > bridge)
    begins, ends = at[np.concatenate([[0], cuts + 1])], at[np.concatenate([cuts, [len(at) - 1]])] + 1
    best = int(np.argmax(ends - begins))
    return int(begins[best]), int(ends[best])


@dataclass
class Truth:
    """Ground truth: notes as plain dicts, and f0 [T] in Hz every FRAME samples, 0 where nothing sounds."""

    f0: np.ndarray
    notes: list[dict] = field(default_factory=list)


class Sampler:
    """Player of scores on the recordings of an index that have the role `role`."""

    def __init__(self, index: Index, playing: Playing, role: str = "model") -> None:
        self.folder, self.playing = index.folder, playing
        self.notes = index.select(role, "note")
        self.releases = index.select(role, "release")
        if not self.notes:
            raise ValueError(f"{index.folder} has no notes for the role {role}")
        self.pitches = np.array([12 * np.log2(s.f0 / 440) + 69 for s in self.notes])
        self._recordings: dict[str, Recording] = {}
        self._turns: dict[tuple, int] = {}

    def load(self, sample: Sample) -> Recording:
        """Return the recording of a sample, cached."""
        if sample.path not in self._recordings:
            audio = load_sample(Path(self.folder) / sample.path)
            self._recordings[sample.path] = Recording(sample, np.pad(audio, MARGIN))
        return self._recordings[sample.path]

    def take_in_turn(self, candidates: list[Sample], rng: Rng) -> Sample:
        """Return the next of equivalent `candidates` in turn, starting with a random one."""
        key = tuple(s.path for s in candidates)
        turn = self._turns[key] = self._turns.get(key, int(rng.integers(len(candidates)))) + 1
        return candidates[turn % len(candidates)]

    def play(self, score: list[Note], seconds: float, rng: Rng) -> tuple[np.ndarray, Truth]:
        """Return the sound [N] of a score, float32 at SAMPLE_RATE, and its ground truth."""
        self._turns = {}
        audio = np.zeros(round(seconds * SAMPLE_RATE), np.float32)
        truth = Truth(np.zeros(len(audio) // FRAME))
        for i, note in enumerate(score):
            after = score[i + 1].onset if i + 1 < len(score) else None
            if self.playing.plucked:
                self._pluck(note, after, audio, truth, rng)
            elif not note.joined:
                chain = [note]
                while i + len(chain) < len(score) and score[i + len(chain)].joined:
                    chain.append(score[i + len(chain)])
                after = score[i + len(chain)].onset + TONGUE if i + len(chain) < len(score) else seconds
                self._blow(chain, after, audio, truth, rng)
        return audio, truth

    def loudest_peak(self) -> float:
        """Return the peak amplitude of the loudest recording at the highest level."""
        if self.playing.plucked:
            return max(s.peak for s in self.notes)
        loud = [s for s in self.notes if DYNAMICS[s.dynamic] > DYNAMICS["mezzo-forte"]] or self.notes
        return max(s.peak / 10 ** (s.level / 20) for s in loud)

    # --- plucked ----------------------------------------------------------------------------------

    def choose_pluck(self, note: Note, rng: Rng) -> Sample:
        """Return the sample for a plucked note: nearest pitch, then nearest layer, then takes in turn."""
        grid = np.arange(0, note.seconds, GRID)
        pitch = note.pitch(grid)
        middle = (pitch.max() + pitch.min()) / 2 if np.ptp(pitch) > 1 else note.midi
        distance = np.abs(self.pitches - middle)
        if distance.min() > REACH:
            raise ValueError(f"no recording within {REACH:g} semitones of MIDI pitch {middle:.1f}")
        near = self.notes[int(np.argmin(distance))].midi
        candidates = [s for s in self.notes if s.midi == near]
        layer = min({s.dynamic for s in candidates}, key=lambda d: abs(LAYERS[d] - note.level))
        return self.take_in_turn([s for s in candidates if s.dynamic == layer], rng)

    def _pluck(self, note: Note, after: float | None, audio: np.ndarray, truth: Truth, rng: Rng) -> None:
        recording = self.load(self.choose_pluck(note, rng))
        end, fade = note.end, note.fade
        if after is not None and after - (end + fade) < 0.01:  # the next pluck damps it
            fade = DAMPED
            end = after + rng.uniform(*OVERLAP) - fade
        f0 = recording.sample.f0
        start = note.onset - recording.onset / SAMPLE_RATE  # approximate start of the recording
        first, last = max(round(start * SAMPLE_RATE), 0), min(round((end + fade) * SAMPLE_RATE), len(audio))
        times = np.arange(first, last) / SAMPLE_RATE - note.onset
        grid = np.arange(0, times[-1] + 2 * GRID, GRID)
        ratio = np.interp(times, grid, 440 * 2 ** ((note.pitch(grid) - 69) / 12) / f0)
        struck = round(note.onset * SAMPLE_RATE) - first
        positions = np.cumsum(ratio) - ratio
        positions += recording.onset - positions[struck]
        gain = 10 ** ((note.level - LAYERS[recording.sample.dynamic]) / 20)
        sound = gain * read_at(recording.audio, positions)
        u = np.clip((times + note.onset - end) / fade, 0, 1)
        sound *= (0.5 + 0.5 * np.cos(np.pi * u)).astype(np.float32)
        audio[first:last] += sound
        files = [recording.sample.path]
        if note.accent == "release" and self.releases:
            files.append(self._add_release(note, end, audio, rng))
        frames = np.arange(int(np.ceil(note.onset * 100)), min(int((end + fade / 2) * 100), len(truth.f0) - 1) + 1)
        at = np.clip(frames * FRAME - first, 0, len(positions) - 1)
        deviation = recording.deviation[
            np.clip(np.rint(positions[at] / FRAME).astype(int), 0, len(recording.deviation) - 1)
        ]
        truth.f0[frames] = ratio[at] * f0 * deviation
        held = ratio[struck : max(round(end * SAMPLE_RATE) - first, struck + 1)] * f0
        truth.notes.append(describe(note, end, float(np.median(held)), files))

    def _add_release(self, note: Note, end: float, audio: np.ndarray, rng: Rng) -> str:
        """Add the noise of the finger leaving the string, softer after longer notes; return the file's path."""
        nearest = min(abs(s.midi - note.midi) for s in self.releases)
        sample = self.take_in_turn([s for s in self.releases if abs(s.midi - note.midi) == nearest], rng)
        sound = self.load(sample).sound
        level = note.level - 8 - 7 * note.seconds + rng.uniform(-4, 2)
        at = round(end * SAMPLE_RATE)
        sound = sound[: len(audio) - at]
        audio[at : at + len(sound)] += 10 ** (level / 20) * sound * np.linspace(1, 0, len(sound)) ** 0.25
        return sample.path

    # --- sustained --------------------------------------------------------------------------------

    def choose_layers(self, note: Note, rng: Rng) -> list[Recording]:
        """Return the recordings for a sustained note, from the softest layer it needs to the loudest."""
        levels = note.levels(np.arange(0, note.seconds, 0.02))
        if np.ptp(levels) < STEADY:
            return [self._choose_held(note, float(np.median(levels)), rng)]
        wanted = sorted({d for d in DYNAMICS.values() if levels.min() - 3 <= d <= levels.max() + 3})
        chosen = {}
        for level in wanted or [float(levels.mean())]:
            recording = self._choose_held(note, level, rng)
            chosen.setdefault(DYNAMICS[recording.sample.dynamic], recording)
        return [chosen[level] for level in sorted(chosen)]

    def _choose_held(self, note: Note, level: float, rng: Rng) -> Recording:
        """Return the recording nearest in pitch and level, taking turns among takes that are long enough."""
        target = float(np.median(note.pitch(np.arange(0, note.seconds, 0.02))))
        distance = np.abs(self.pitches - target)
        if distance.min() > REACH:
            raise ValueError(f"no recording within {REACH:g} semitones of MIDI pitch {target:.1f}")
        off = np.array([abs(DYNAMICS[s.dynamic] - level) for s in self.notes])
        cost = np.where(distance <= REACH, distance + off / 4, np.inf)
        best = self.notes[int(np.argmin(cost))]
        takes = [self.load(s) for s in self.notes if (s.midi, s.dynamic) == (best.midi, best.dynamic)]
        held = max(note.seconds, 0.5) if note.joined else note.seconds
        penalty = [max(0.0, held - t.held_seconds) + 0.2 * max(0.0, t.held_seconds - 3 * held) for t in takes]
        fitting = [t.sample for t, p in zip(takes, penalty, strict=True) if p <= min(penalty) + 0.15]
        return self.load(self.take_in_turn(fitting, rng))

    def _blow(self, chain: list[Note], after: float, audio: np.ndarray, truth: Truth, rng: Rng) -> None:
        """Play an articulated note and the notes slurred to it, with continuous phase."""
        layers = [self.choose_layers(note, rng) for note in chain]
        first = max(round((chain[0].onset - PREROLL) * SAMPLE_RATE), 0)
        last = min(round(min(chain[-1].end + TAIL, after) * SAMPLE_RATE), len(audio))
        times = np.arange(first, last) / SAMPLE_RATE
        f0 = self._line(chain, layers, times)
        leads = []
        for note, recordings in zip(chain, layers, strict=True):
            middle = float(np.median(note.levels(np.arange(0, note.seconds, 0.02))))
            leads.append(min(recordings, key=lambda r: abs(DYNAMICS[r.sample.dynamic] - middle)))
        plans = [self._plan(i, chain, lead, times, f0, rng) for i, lead in enumerate(leads)]
        deviation = np.ones(len(times))
        for plan, lead in zip(plans, leads, strict=True):
            for begin, end, positions in plan:
                nodes = np.clip(np.rint(positions / _NODE).astype(int), 0, len(lead.speed) - 1)
                deviation[begin:end] = lead.speed[nodes]
        window = np.hanning(962)[1:-1]
        deviation = np.convolve(np.pad(deviation, 480, mode="edge"), window / window.sum(), "valid")[: len(times)]
        f0 = f0 * deviation
        start = plans[0][0]
        phase = np.cumsum(f0) / SAMPLE_RATE
        phase += leads[0].phase_at(float(start[2][0])) - phase[start[0]]
        for i, note in enumerate(chain):
            weights = self._weigh(note, layers[i], times)
            for recording, weight in zip(layers[i], weights, strict=True):
                plan = plans[i] if recording is leads[i] else self._plan(i, chain, recording, times, f0, rng)
                sound = self._read(plan, recording, phase)
                audio[first:last] += sound * self._fade(i, chain, times, after) * weight
        self._record_truth(chain, layers, f0, times, truth)

    def _line(self, chain: list[Note], layers: list[list[Recording]], times: np.ndarray) -> np.ndarray:
        """Return f0 [n] in Hz of the chain, including the glides between notes."""
        pitch = np.zeros(len(times))
        for i, (note, recordings) in enumerate(zip(chain, layers, strict=True)):
            if recordings[0].vibrates:  # avoid two vibratos at once
                note = replace(note, vibrato=(0.0, 5.0, 0.0, 0.0))
            grid = np.arange(-0.3, note.seconds + TAIL + 0.1, GRID)
            curve = note.pitch(np.clip(grid, 0, note.seconds))
            own = np.interp(times - note.onset, grid, curve)
            if i == 0:
                pitch = own
                continue
            glide = note.glide if abs(note.midi - chain[i - 1].midi) <= 5 else min(note.glide, 0.04)
            u = np.clip((times - note.onset) / max(glide, 0.01) + 0.5, 0, 1)
            pitch += (own - pitch) * u * u * (3 - 2 * u)
        return 440 * 2 ** ((pitch - 69) / 12)

    def _plan(
        self, i: int, chain: list[Note], recording: Recording, times: np.ndarray, f0: np.ndarray, rng: Rng
    ) -> list[tuple[int, int, np.ndarray]]:
        """Return how note `i` is read: parts (begin, end, positions [end - begin]), one per jump.

        A jump goes back to the start of a loop or, at the end of the last note, to the recorded release.
        """
        note, is_last = chain[i], i + 1 == len(chain)
        begin, end, release = recording.sustain
        margin = 0 if i == 0 else CROSS_FADE / 2 + 0.01
        a = max(int(np.searchsorted(times, note.onset - (PREROLL if i == 0 else margin))), 0)
        b = len(times) if is_last else int(np.searchsorted(times, note.end + CROSS_FADE / 2 + 0.01))
        stop = int(np.searchsorted(times, note.end)) if is_last else b
        step = f0[a:b] / recording.sample.f0
        walked = np.cumsum(step) - step
        if i == 0:
            struck = min(int(np.searchsorted(times[a:b], note.onset)), b - a - 1)
            offset = recording.onset - walked[struck]
        else:
            offset = begin + rng.uniform(0, 0.25) * max(end - begin, 0)
        parts, at, turn = [], 0, int(rng.integers(3))
        while True:
            positions = walked[at:] + offset
            out, back = recording.loops[turn % len(recording.loops)]
            turn += 1
            over = int(np.searchsorted(positions, out))
            if at + over >= stop - a or out - back < 480:  # the note ends before the loop does
                break
            parts.append((a + at, a + at + over, positions[:over]))
            at += over
            offset = back - walked[at]
        over = max(stop - a - at, 0)
        if is_last and over < len(positions) and positions[over] < release - 0.03 * SAMPLE_RATE:
            parts.append((a + at, a + at + over, positions[:over]))
            at += over
            positions = walked[at:] + release - walked[at]
        parts.append((a + at, b, positions))
        return [part for part in parts if part[1] > part[0]]

    @staticmethod
    def _read(plan: list[tuple[int, int, np.ndarray]], recording: Recording, phase: np.ndarray) -> np.ndarray:
        """Return the sound [n] of a plan, with all parts in phase and cross-fades at the jumps."""
        sound = np.zeros(len(phase), np.float32)
        half = round(CROSS_FADE * SAMPLE_RATE / 2)
        looped = any(later[2][0] < earlier[2][-1] for earlier, later in pairwise(plan))
        for k, (begin, end, positions) in enumerate(plan):
            shift = round(float(recording.phase_at(float(positions[0])) - phase[begin]))
            a = begin - half if k else begin
            b = end + half if k + 1 < len(plan) else end
            a, b = max(a, 0), min(b, len(phase))
            at = recording.position_at(phase[a:b] + shift)
            part = read_at(recording.audio, at)
            if looped:
                part *= np.interp(at / 240, np.arange(len(recording.flat_gain)), recording.flat_gain).astype(np.float32)
            t = np.arange(a, b)
            rise = np.clip((t - begin) / (2 * half) + 0.5, 0, 1) if k else np.ones(b - a)
            fall = np.clip((end - t) / (2 * half) + 0.5, 0, 1) if k + 1 < len(plan) else np.ones(b - a)
            sound[a:b] += part * (np.sin(np.pi / 2 * rise) ** 2 * np.sin(np.pi / 2 * fall) ** 2).astype(np.float32)
        return sound

    @staticmethod
    def _weigh(note: Note, recordings: list[Recording], times: np.ndarray) -> list[np.ndarray]:
        """Return the gain [n] of each layer: its share of the cross-fade, times level over the recording's level."""
        grid = np.arange(-0.1, note.seconds + TAIL + 0.1, 0.005)
        level = np.interp(times - note.onset, grid, note.levels(np.clip(grid, 0, note.seconds)))
        gains = 10 ** (level / 20)
        own = [DYNAMICS[r.sample.dynamic] for r in recordings]
        shares = [np.ones(len(times)) for _ in recordings]
        for j in range(len(own) - 1):
            u = np.clip(((level - own[j]) / (own[j + 1] - own[j]) - 0.2) / 0.6, 0, 1)
            u = u * u * (3 - 2 * u)
            shares[j], shares[j + 1] = shares[j] * (1 - u), shares[j + 1] * u
        return [
            (gains * s / 10 ** (r.sample.level / 20)).astype(np.float32)
            for r, s in zip(recordings, shares, strict=True)
        ]

    @staticmethod
    def _fade(i: int, chain: list[Note], times: np.ndarray, after: float) -> np.ndarray:
        """Return the gain [n] at the start and end of note `i`: a slur's cross-fade, or a release before the next."""
        if i == 0:
            rise = np.clip((times - chain[0].onset + PREROLL) / 0.02, 0, 1)
        else:
            rise = np.clip((times - chain[i].onset) / CROSS_FADE + 0.5, 0, 1)
        if i + 1 < len(chain):
            fall = np.clip((chain[i].end - times) / CROSS_FADE + 0.5, 0, 1)
        else:
            quiet = min(chain[i].end + TAIL, after)
            fall = np.clip((quiet - times) / min(max(quiet - chain[i].end, 0.015), 0.1), 0, 1)
        return (np.sin(np.pi / 2 * rise) ** 2 * np.sin(np.pi / 2 * fall) ** 2).astype(np.float32)

    @staticmethod
    def _record_truth(
        chain: list[Note], layers: list[list[Recording]], f0: np.ndarray, times: np.ndarray, truth: Truth
    ) -> None:
        """Add the f0 and notes of a chain to `truth`."""
        begin, end = chain[0].onset, min(chain[-1].end + 0.03, float(times[-1]))
        frames = np.arange(int(np.ceil(begin * 100)), min(int(end * 100), len(truth.f0) - 1) + 1)
        truth.f0[frames] = f0[np.clip(np.searchsorted(times, frames / 100), 0, len(f0) - 1)]
        for note, recordings in zip(chain, layers, strict=True):
            a, b = np.searchsorted(times, (note.onset, note.end))
            truth.notes.append(
                describe(note, note.end, float(np.median(f0[a : max(b, a + 1)])), [r.sample.path for r in recordings])
            )


def describe(note: Note, end: float, f0: float, files: list[str]) -> dict:
    """Return a note as a dict for the ground truth; times in s, level in dB, f0 in Hz."""
    return {
        "onset": round(note.onset, 4),
        "end": round(end, 4),
        "midi": round(12 * np.log2(f0 / 440) + 69, 3),
        "f0": round(f0, 3),
        "level": round(note.level, 2),
        "joined": note.joined,
        "files": files,
    }
