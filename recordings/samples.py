"""Index of a folder of sampled notes and phrases: parsed names, measurements and the side of the split.

Four naming schemes are supported: the Philharmonia Orchestra's sound samples (``trumpet_As4_15_forte_normal.mp3``),
Karoryfer's Shinyguitar (``a2_vl3_rr1_1.flac``), VSCO 2 (``sus_v3_f_g3.flac``, named one octave low) and FreePats
(``A#3.flac``). Names can be wrong, so the pitch of every note is measured. Files whose pitch differs from their name by
more than 50 cents (after the player's constant offset) are left out and listed, as are copies of another file.

The split depends only on the name (``assign_role``), so that no model is ever trained on held-out recordings.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import librosa
import numpy as np
import soundfile as sf
import soxr
from scipy.sparse.csgraph import connected_components

from sound.atomic_files import write_text
from sound.audio_files import find_sound_files

SAMPLE_RATE = 48_000  # Hz, of everything that is loaded
SUFFIXES = {".mp3", ".flac", ".wav", ".ogg"}
DYNAMICS = {  # dB relative to the loudest, a typical range; levels of the files are not reliable in most collections
    "pianissimo": -30.0,
    "piano": -24.0,
    "mezzo-piano": -18.0,
    "mezzo-forte": -12.0,
    "forte": -6.0,
    "fortissimo": 0.0,
    "crescendo": -6.0,
    "decrescendo": -6.0,
    "cresc-decresc": -6.0,
}
PLAIN = {"normal", "arco-normal", "non-vibrato", "molto-vibrato", "arco-tenuto", "tenuto"}  # one steady pitch
ODD = {
    "slap-tongue",
    "pizz-quasi-guitar",
    "fluttertonguing",
    "harmonic",
    "harmonic-glissando",
    "natural-harmonic",
    "subtone",
}  # not the instrument's plain tone
TOLERANCE = 50.0  # cents, maximum difference between a note and its name
SILENCE = 2.0**-15  # amplitude, one step of 16 bits
COPY_RESIDUAL = 0.004  # energy left after one file is subtracted from another; two takes leave 0.0075 and more
VERSION = 4  # of the index

_PHILHARMONIA = re.compile(r"([a-z-]+)_([A-G]s?\d)_([^_]+)_([^_]+)_([^_]+)")
_SHINY_NOTE = re.compile(r"([a-g]b?\d)_vl(\d)_rr(\d)_1")
_SHINY_RELEASE = re.compile(r"([a-g]b?\d)_release_rr(\d)_1")
_SHINY_NOISE = re.compile(r"(mute|perc)_?(?:strings?)?(\d)_rr(\d)_1")
_VSCO = re.compile(r"sus_v\d_([fp])_([a-g](?:sharp)?\d)")
_FREEPATS = re.compile(r"[A-G]#?\d")
_SHINY_PITCHES = (37, 40, 42, 45, 48, 51, 54, 57, 60, 63, 66, 69, 72, 75, 78, 81, 84)


@dataclass(frozen=True)
class Sample:
    """One recorded note or phrase; measurements are 0 until ``build_index`` has read the file."""

    path: str  # relative to the folder of the index
    instrument: str
    kind: str  # note, phrase, release, noise
    midi: int  # pitch by name; -1 for a noise
    dynamic: str  # a key of DYNAMICS, or layer1 to layer4
    length: str  # as named: 025, 05, 1, 15, long, very-long, phrase, or ring
    articulation: str
    round_robin: int
    role: str  # model, held_out, recogniser
    seconds: float = 0.0
    f0: float = 0.0  # Hz, median
    level: float = 0.0  # dB re full scale, RMS of the loud part
    peak: float = 0.0  # amplitude
    brightness: float = 0.0  # Hz, centroid of the loud part's power spectrum


@dataclass(frozen=True)
class Index:
    """Samples of a folder, sorted by path, and the files left out with reasons."""

    folder: Path
    samples: tuple[Sample, ...]
    left_out: tuple[tuple[str, str], ...]  # (path, reason)

    def select(self, role: str = "model", kind: str = "note") -> list[Sample]:
        """Return the samples of one role and kind."""
        return [s for s in self.samples if s.role == role and s.kind == kind]


# --- names ----------------------------------------------------------------------------------------


def parse_pitch(name: str) -> int:
    """Return the MIDI pitch of a name such as ``As4``, ``A#4``, ``bb3`` or ``asharp3``."""
    return int(librosa.note_to_midi(name.replace("sharp", "#").replace("s", "#")))


# E3, A3, A4, G5 and A5: at the recogniser's other pitches there are almost no trumpet recordings.
_TRUMPET_RECOGNISER = (52, 57, 69, 79, 81)
# Near-copies of notes that train the recogniser or are held out (correlation over 0.97 after the onset).
_NEAR_COPIES = (
    "saxophone_D4_05_piano_normal",
    "saxophone_E4_1_mezzo-forte_normal",
    "saxophone_F4_05_piano_normal",
)


def assign_role(instrument: str, collection: str, midi: int, round_robin: int = 1) -> str:
    """Return the side of the split of a note: model, held_out or recogniser.

    Args:
        instrument: from the file name.
        collection: philharmonia, shinyguitar, vsco or freepats.
        midi: pitch from the file name (for shinyguitar that of the note; -1 for noises).
        round_robin: number of the take.
    """
    if collection in ("vsco", "freepats"):
        return "held_out"
    if collection == "shinyguitar":
        if round_robin < 4 or midi not in _SHINY_PITCHES:
            return "model"
        return "recogniser" if _SHINY_PITCHES.index(midi) % 2 else "held_out"
    if midi % 12 == 3:
        return "held_out"
    if instrument not in ("trumpet", "saxophone", "violin", "flute"):
        return "recogniser"
    return "recogniser" if midi % 6 == 0 or (instrument == "trumpet" and midi in _TRUMPET_RECOGNISER) else "model"


def parse_name(path: str) -> Sample | None:
    """Parse a file name; return None if no collection names files so."""
    stem = Path(path).stem
    if match := _PHILHARMONIA.fullmatch(stem):
        instrument, note, length, dynamic, articulation = match.groups()
        midi, plain = parse_pitch(note), length != "phrase" and articulation in PLAIN and dynamic in DYNAMICS
        plain = plain and not dynamic.endswith(("crescendo", "cresc"))
        role = "recogniser" if stem in _NEAR_COPIES else assign_role(instrument, "philharmonia", midi)
        return Sample(path, instrument, "note" if plain else "phrase", midi, dynamic, length, articulation, 1, role)
    if match := _SHINY_NOTE.fullmatch(stem):
        midi, take = parse_pitch(match[1]), int(match[3])
        role = assign_role("guitar", "shinyguitar", midi, take)
        return Sample(path, "guitar", "note", midi, f"layer{match[2]}", "ring", "pluck", take, role)
    if match := _SHINY_RELEASE.fullmatch(stem):
        return Sample(
            path, "guitar", "release", parse_pitch(match[1]), "layer2", "ring", "release", int(match[2]), "model"
        )
    if match := _SHINY_NOISE.fullmatch(stem):
        return Sample(path, "guitar", "noise", -1, f"layer{match[2]}", "ring", match[1], int(match[3]), "model")
    if match := _VSCO.fullmatch(stem):
        midi = parse_pitch(match[2]) + 12  # the names are one octave low
        return Sample(
            path, "trumpet", "note", midi, {"f": "forte", "p": "piano"}[match[1]], "long", "normal", 1, "held_out"
        )
    if _FREEPATS.fullmatch(stem):
        return Sample(path, "guitar", "note", parse_pitch(stem), "layer3", "ring", "pluck", 1, "held_out")
    return None


# --- sound ----------------------------------------------------------------------------------------


def load_sample(path: Path) -> np.ndarray:
    """Read a recording as mono float32 [N] at SAMPLE_RATE, without the digital silence at its ends.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not sound, or silent.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no recording {path}; download it again")
    try:
        audio, rate = sf.read(path, dtype="float32", always_2d=True)
    except sf.LibsndfileError as error:
        raise ValueError(f"{path} cannot be read as sound ({error.error_string.strip()}); download it again") from error
    audio = np.ascontiguousarray(audio.mean(axis=1))
    loud = np.flatnonzero(np.abs(audio) >= SILENCE)
    if not len(loud):
        raise ValueError(f"{path} holds only silence; leave it out")
    audio = audio[loud[0] : loud[-1] + 1]
    return audio if rate == SAMPLE_RATE else soxr.resample(audio, rate, SAMPLE_RATE, quality="VHQ")


def measure_envelope(audio: np.ndarray, hop: int, window: int) -> np.ndarray:
    """Return the RMS [T] over windows of `window` samples centred on each multiple of `hop`."""
    power = np.concatenate([[0.0], np.cumsum(np.square(audio, dtype=np.float64))])
    centres = np.arange(0, len(audio), hop)
    begin, end = np.maximum(centres - window // 2, 0), np.minimum(centres + window // 2, len(audio))
    return np.sqrt(np.maximum(power[end] - power[begin], 0) / np.maximum(end - begin, 1))


def measure_f0(
    audio: np.ndarray, around: float, hop: int, span: float = 14.0, rate: int = SAMPLE_RATE
) -> tuple[np.ndarray, np.ndarray]:
    """Measure f0 by normalised autocorrelation (Talkin, RAPT, 1995) within `span` semitones of `around`.

    Args:
        audio: [N] at `rate`.
        around: expected f0 in Hz.
        hop: samples between frames; frame t is centred on sample t * hop.
        span: semitones.
        rate: Hz.

    Returns:
        f0 [T] in Hz, and the correlation [T] at its period, 1 for a perfectly periodic tone.
    """
    shortest, longest = rate / around / 2 ** (span / 12), rate / around * 2 ** (span / 12)
    low, high = max(int(shortest), 2), int(longest) + 2
    window = max(round(2.5 * rate / around), round(0.025 * rate))
    n_frames, size = len(range(0, len(audio), hop)), window + high
    n_fft = 1 << (size + high - 1).bit_length()
    padded = np.pad(audio.astype(np.float32), (size // 2, size + hop))
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop][:n_frames]
    f0, strength = np.zeros(n_frames), np.zeros(n_frames)
    lags = np.arange(low - 1, high)
    for start in range(0, n_frames, 256):
        block = frames[start : start + 256]
        whole, head = np.fft.rfft(block, n_fft), np.fft.rfft(block[:, :window], n_fft)
        products = np.fft.irfft(whole * head.conj(), n_fft)[:, lags]
        power = np.cumsum(np.pad(np.square(block, dtype=np.float64), ((0, 0), (1, 0))), axis=1)
        energy = power[:, lags + window] - power[:, lags]
        r = products / np.sqrt(np.maximum(energy * power[:, [window]], 1e-12))  # [t, lags]
        inner = r[:, 1:-1]
        peaks = (inner >= r[:, :-2]) & (inner >= r[:, 2:])
        best = np.where(peaks, inner, -1.0).max(axis=1, keepdims=True)
        chosen = np.argmax(peaks & (inner >= best - 0.03), axis=1) + 1  # the shortest period among the best
        rows = np.arange(len(block))
        left, middle, right = r[rows, chosen - 1], r[rows, chosen], r[rows, chosen + 1]
        curve = left - 2 * middle + right
        shift = np.where(curve < -1e-9, 0.5 * (left - right) / np.where(curve < -1e-9, curve, 1.0), 0.0)
        f0[start : start + 256] = rate / (lags[chosen] + np.clip(shift, -0.5, 0.5))
        strength[start : start + 256] = np.where(best[:, 0] > 0, middle, 0.0)
    return f0, strength


def measure_sample(sample: Sample, audio: np.ndarray) -> Sample:
    """Return `sample` with the measurements of its sound [N]."""
    hop = SAMPLE_RATE // 50
    envelope = measure_envelope(audio, hop, 2 * hop)
    loud = envelope > envelope.max() * 10 ** (-15 / 20)
    if sample.kind == "note" and sample.length == "ring":  # the first second of a plucked note, after its attack
        loud = (np.arange(len(envelope)) >= 5) & (np.arange(len(envelope)) < 55)
        loud = loud if loud.any() else np.ones(len(envelope), bool)
    level = 20 * np.log10(np.sqrt(np.mean(envelope[loud] ** 2)) + 1e-9)
    spectrum = np.abs(np.fft.rfft(audio)) ** 2
    brightness = float(spectrum @ np.fft.rfftfreq(len(audio), 1 / SAMPLE_RATE) / max(spectrum.sum(), 1e-12))
    f0 = 0.0
    if sample.kind == "note":
        around = 440 * 2 ** ((sample.midi - 69) / 12)
        track, strength = measure_f0(audio, around, hop)
        sure = loud & (strength > 0.8) if (loud & (strength > 0.8)).any() else loud
        f0 = float(np.median(track[sure]))
    return replace(
        sample,
        seconds=len(audio) / SAMPLE_RATE,
        f0=f0,
        level=float(level),
        peak=float(np.abs(audio).max()),
        brightness=brightness,
    )


# --- copies ---------------------------------------------------------------------------------------


def find_copies(sounds: Sequence[np.ndarray], rate: int) -> list[tuple[int, int]]:
    """Return the pairs (i, j) of sounds [n] that are the same recording, one of them perhaps shortened.

    Sounds are aligned by cross-correlation. A pair is a copy if the difference, over their common part, has almost no
    energy.
    """
    size = round(0.25 * rate)
    heads = np.zeros((len(sounds), size), np.float32)
    for i, sound in enumerate(sounds):
        peak = np.abs(sound).max()
        onset = int(np.argmax(np.abs(sound) > 0.1 * peak))
        head = sound[onset : onset + size]
        heads[i, : len(head)] = head / max(np.sqrt(head @ head), 1e-9)
    spectra = np.fft.rfft(heads, 2 * size)
    pairs = []
    for i in range(len(sounds) - 1):
        similar = np.fft.irfft(spectra[i].conj() * spectra[i + 1 :], 2 * size).max(axis=1)
        for j in np.flatnonzero(similar > 0.9) + i + 1:
            if _subtract(sounds[i], sounds[j]) < COPY_RESIDUAL:
                pairs.append((i, int(j)))
    return pairs


def _subtract(a: np.ndarray, b: np.ndarray) -> float:
    """Return the share of the shorter sound's energy that remains after the aligned other one is subtracted."""
    a, b = (a, b) if len(a) <= len(b) else (b, a)
    n_fft = 1 << (len(a) + len(b)).bit_length()
    shift = int(np.argmax(np.fft.irfft(np.fft.rfft(b, n_fft) * np.fft.rfft(a, n_fft).conj(), n_fft)))
    shift = shift - n_fft if shift > n_fft // 2 else shift  # a[n] lies at b[n + shift]
    begin, end = max(0, -shift), min(len(a), len(b) - shift)
    a, b = a[begin:end], b[begin + shift : end + shift]
    if end - begin < 0.8 * (len(a) + begin):
        return 1.0
    return float(1 - (a @ b) ** 2 / max((a @ a) * (b @ b), 1e-18))


# --- the index ------------------------------------------------------------------------------------


def build_index(folder: Path, instrument: str, cache: Path | None = None) -> Index:
    """Index the recordings of one instrument in `folder`, searched recursively.

    Args:
        folder: folder of recordings.
        instrument: such as "trumpet"; other instruments are ignored.
        cache: JSON file of the index, read if it matches the files, else written.

    Raises:
        FileNotFoundError: the folder does not exist, or has no recording of the instrument.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; download recordings with scripts/download_samples.py")
    paths = find_sound_files(folder, SUFFIXES)
    named = [s for s in (parse_name(p.relative_to(folder).as_posix()) for p in paths) if s]
    named = [s for s in named if s.instrument == instrument]
    if not named:
        raise FileNotFoundError(
            f"{folder} has no recordings of the {instrument} with a known name; see recordings/samples.py for the names"
        )
    sizes = "".join(f"{s.path} {(folder / s.path).stat().st_size}\n" for s in named)
    key = hashlib.sha256(f"{VERSION} {instrument}\n{sizes}".encode()).hexdigest()
    if cache is not None and cache.is_file():
        content = json.loads(cache.read_text(encoding="utf-8"))
        if content.get("key") == key:
            return Index(folder, tuple(Sample(**s) for s in content["samples"]), tuple(map(tuple, content["left_out"])))
    index = _measure_all(folder, named)
    if cache is not None:
        content = {"key": key, "samples": [asdict(s) for s in index.samples], "left_out": index.left_out}
        write_text(cache, json.dumps(content, indent=1))
    return index


def _measure_all(folder: Path, named: Sequence[Sample]) -> Index:
    samples, sounds, left_out = [], [], []
    for sample in named:
        if sample.articulation in ODD:
            left_out.append((sample.path, f"articulation {sample.articulation}"))
            continue
        try:
            audio = load_sample(folder / sample.path)
        except ValueError as error:
            left_out.append((sample.path, str(error)))
            continue
        samples.append(measure_sample(sample, audio))
        sounds.append(soxr.resample(audio, SAMPLE_RATE, 12_000, quality="MQ"))
    wrong = dict(find_wrong_dynamics(samples)) | dict(find_mislabelled(samples))
    groups = _group(len(samples), find_copies(sounds, 12_000))
    for group in groups:
        group.sort(
            key=lambda i: (samples[i].path in wrong, samples[i].role == "model", -samples[i].seconds, samples[i].path)
        )
        for i in group[1:]:
            wrong.setdefault(samples[i].path, f"copy of {samples[group[0]].path}")
    left_out += wrong.items()
    return Index(folder, tuple(s for s in samples if s.path not in wrong), tuple(sorted(left_out)))


def find_mislabelled(samples: Iterable[Sample]) -> list[tuple[str, str]]:
    """Return (path, reason) of the notes over TOLERANCE from their name plus any player's offset."""
    notes = [s for s in samples if s.kind == "note"]
    cents = np.array([1200 * np.log2(max(s.f0, 1.0) / 440) - 100 * (s.midi - 69) for s in notes])
    offsets = np.array(find_offsets(cents))
    wrong = np.abs(cents[:, None] - offsets).min(axis=1) > TOLERANCE if notes else []
    players = " or ".join(f"{offset:+.0f}" for offset in offsets)
    return [
        (s.path, f"its pitch is {c:+.0f} cents from its name, the player's offset is {players}")
        for s, c, is_wrong in zip(notes, cents, wrong, strict=True)
        if is_wrong
    ]


def find_offsets(cents: np.ndarray) -> list[float]:
    """Return the players' constant offsets in cents: peaks of the histogram with over a fifth of the notes.

    Args:
        cents: [n] distance from the named pitches. A collection may have several players, or one on several days.
    """
    grid = np.arange(-80, 81)
    count = (np.abs(cents[:, None] - grid) <= 20).sum(axis=0)  # within 20 cents
    offsets = []
    while count.max(initial=0) > max(0.2 * len(cents), 0 if offsets else -1):
        top = np.flatnonzero(count == count.max())
        offsets.append(float(grid[top[len(top) // 2]]))
        count = np.where(np.abs(grid - offsets[-1]) <= 40, 0, count)
    return offsets or [0.0]


def find_wrong_dynamics(samples: Iterable[Sample]) -> list[tuple[str, str]]:
    """Return (path, reason) of the soft notes that are too bright: muted, or of another dynamic than named.

    Brightness rises with loudness on every instrument. A soft note is too bright above 1.2 times the median of the loud
    notes near its pitch, or 1.5 times that of the soft ones. If more than a third of a series (notes of one length and
    dynamic) are too bright, the whole series is left out.
    """
    notes = [s for s in samples if s.kind == "note" and s.dynamic in DYNAMICS]
    loud = [s for s in notes if DYNAMICS[s.dynamic] >= DYNAMICS["forte"]]
    soft = [s for s in notes if DYNAMICS[s.dynamic] < DYNAMICS["mezzo-forte"]]
    wrong, series = {}, {}
    for s in soft:
        series.setdefault((s.length, s.dynamic), []).append(s.path)
        for others, factor, name in ((loud, 1.2, "forte"), (soft, 1.5, "other soft notes")):
            near = [n.brightness / n.f0 for n in others if n is not s and abs(n.midi - s.midi) <= 2]
            if near and s.brightness / s.f0 > factor * np.median(near):
                wrong[s.path] = f"{s.dynamic}, but brighter than {name} ({s.brightness:.0f} Hz)"
    for (length, dynamic), paths in series.items():
        if len(paths) >= 5 and sum(path in wrong for path in paths) > len(paths) / 3:
            for path in paths:
                wrong.setdefault(path, f"{dynamic} of length {length}, most of which are too bright")
    return list(wrong.items())


def _group(n: int, pairs: list[tuple[int, int]]) -> list[list[int]]:
    """Return the connected components of at least two samples."""
    connected = np.zeros((n, n), bool)
    for i, j in pairs:
        connected[i, j] = True
    labels = connected_components(connected, directed=False)[1]
    groups = (np.flatnonzero(labels == label).tolist() for label in np.unique(labels))
    return [group for group in groups if len(group) > 1]
