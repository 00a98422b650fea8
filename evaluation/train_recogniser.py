"""Train the instrument recogniser, test it on unseen recordings, and write its weights and a training record.

    python -m evaluation.train_recogniser --data_dir data/samples

The training data are notes and melodies concatenated from notes: a recogniser trained only on notes confuses a melody
on a real guitar with a saxophone. Recordings differ in room, microphone and codec as well as in instrument, so every
window gets a random room, equaliser, bandwidth and noise, and half of the melodies are MP3-encoded. Notes of sound
fonts (``--fonts``) add other players and rooms. Synthetic tones without an instrument's timbre are the class
``OTHER``; without it, an untrained model would be recognised as some instrument. The same recordings and seed give the
same weights on the same kind of processor. The record ``recogniser.json`` is written next to the weights, with the
files, their sha256 and the figures.
"""

import argparse
import io
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor, nn
from tqdm import tqdm

from evaluation.font_notes import render_notes
from evaluation.recogniser import (
    CLASSES,
    INSTRUMENTS,
    MEL_FREQUENCIES,
    RANGE,
    SAMPLE_RATE,
    WEIGHTS,
    WINDOW,
    Ensemble,
    Recogniser,
    classify,
    cut_windows,
)
from evaluation.recorded_notes import (
    HELD_OUT,
    LIBRARY_RATE,
    RECOGNISER,
    RecordedNote,
    Sound,
    find_notes,
    read_sound,
    string_melody,
)
from sound.atomic_files import hash_file, save_tensors, write_text
from sound.console import as_command, command_parser
from sound.crepe import midi_to_hz

LICENCE = (
    "Learned from recordings under CC BY-SA 3.0 (Philharmonia Orchestra's sound samples) and CC0 (Karoryfer's "
    "Shinyguitar), and from the sound fonts sf_GMbank (public domain) and MuseScore General (MIT); these weights are "
    "offered under CC BY-SA 3.0. Tested, not trained, on VSCO 2 CE's trumpet and on FreePats' Spanish classical guitar "
    "(CC0)."
)
_MELODY_SECONDS = 12.0
_WIDEST_SHIFT = 4.0  # semitones in training melodies: few pitches are recorded, and instruments differ in size
_TEST_MELODIES = 10  # per instrument and room
_CONTEXT = WINDOW // 2  # samples before a window, for the reverberation tail
_N_POINTS = 8  # per equaliser curve
_N_NOISES = 256
_BATCH = 48  # windows per batch
_HIGHEST = {"trombone": 70}  # MIDI; the collection also has pitches that are rarely played, in the trumpet's register
_N_TONES = 30  # melodies of synthetic tones
_FONT_SHARE = 0.4  # share of the windows
_FONT_MELODIES = 15  # per instrument and font
log = logging.getLogger("train_recogniser")


@dataclass(frozen=True)
class Library:
    """Audio of one instrument in one room, from which windows are cut, at 16 kHz."""

    melodies: list[np.ndarray]  # float32 [N]
    takes: list[np.ndarray]  # the recordings, unchanged and shifted slightly down and up


def make_library(sounds: Sequence[Sound], n_melodies: int, rng: np.random.Generator) -> Library:
    """Make melodies and resample the recordings to the sample rate of the recogniser."""
    notes = [sound for sound in sounds if not sound.note.phrase]
    melodies = [_to_windows_rate(string_melody(notes, _MELODY_SECONDS, rng, _WIDEST_SHIFT)) for _ in range(n_melodies)]
    melodies = [_through_mp3(melody, rng) if rng.random() < 0.5 else melody for melody in melodies]
    shifts = [(0.0, -rng.uniform(0.5, 3), rng.uniform(0.5, 3)) for _ in sounds]
    takes = [_to_windows_rate(sound.audio, shift) for sound, three in zip(sounds, shifts) for shift in three]
    return Library(melodies, takes)


def make_tones(number: int, rng: np.random.Generator) -> Library:
    """Make melodies of synthetic tones for ``OTHER``: without an instrument's timbre, like untrained models."""
    tones = [_make_tones(rng) for _ in range(number)]
    return Library(tones, tones)


def _make_tones(rng: np.random.Generator) -> np.ndarray:
    """Return a random melody [N] of harmonic tones with a fixed, nearly flat spectrum, and noise."""
    n_samples, n_notes = round(_MELODY_SECONDS * SAMPLE_RATE), 120
    frames = np.arange(0, n_samples, SAMPLE_RATE // 100)
    note = np.searchsorted(np.cumsum(rng.uniform(0.1, 1.2, n_notes)), frames / SAMPLE_RATE)
    pitches = rng.uniform(40, 84) + np.clip(np.cumsum(rng.integers(-4, 5, n_notes)), -12, 12)
    levels = np.where(rng.random(n_notes) < 0.1, -60.0, rng.uniform(-rng.uniform(0, 15), 0, n_notes))
    vibrato = rng.uniform(0, 0.4) * np.sin(2 * np.pi * rng.uniform(4, 7) * frames / SAMPLE_RATE)
    pitch = gaussian_filter1d(pitches[note], rng.uniform(0.5, 6)) + vibrato
    samples = np.arange(n_samples)
    frequency = np.interp(samples, frames, midi_to_hz(pitch))
    phase = 2 * np.pi * np.cumsum(frequency) / SAMPLE_RATE
    slope, spread = rng.uniform(-1, 0.2), rng.uniform(0, 4)  # exponent of the frequency, dB between harmonics
    tone = np.zeros(n_samples)
    for number in range(1, int(SAMPLE_RATE / 2 / frequency.min()) + 1):
        gain = number**slope * 10 ** (rng.normal(0, spread) / 20)
        tone += gain * np.sin(number * phase) * (number * frequency < SAMPLE_RATE / 2)
    noise = make_noises(n_samples // WINDOW, rng).numpy().ravel() * tone.std() * 10 ** (-rng.uniform(5, 50) / 20)
    gains = 10 ** (np.interp(samples, frames, gaussian_filter1d(levels[note], 2)) / 20)
    return ((tone + noise) * gains).astype(np.float32)


def _to_windows_rate(audio: np.ndarray, semitones: float = 0.0) -> np.ndarray:
    """Resample a sound [N] to the rate of the recogniser, shifting pitch and speed by ``semitones``."""
    return soxr.resample(audio, LIBRARY_RATE * 2 ** (semitones / 12), SAMPLE_RATE).astype(np.float32)


def _through_mp3(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Encode and decode a sound [N] as MP3 of random quality; the codec's delay is not compensated."""
    file = io.BytesIO()
    scaled = 0.7 * audio / max(np.abs(audio).max(), 1e-6)
    soundfile.write(file, scaled, SAMPLE_RATE, format="MP3", compression_level=float(rng.uniform(0.2, 0.95)))
    file.seek(0)
    return soundfile.read(file, dtype="float32")[0]


def draw_batch(libraries: Sequence[Sequence[Library]], size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return sounds [size, _CONTEXT + WINDOW] and their classes [size], with balanced classes."""
    labels = rng.permutation((np.arange(size) + rng.integers(len(libraries))) % len(libraries))
    sounds = np.stack([_draw_crop(_draw_library(libraries[label], rng), rng) for label in labels])
    return torch.from_numpy(sounds), torch.from_numpy(labels)


def _draw_library(libraries: Sequence[Library], rng: np.random.Generator) -> Library:
    """Return the first library (the recordings), or with probability _FONT_SHARE one of the fonts."""
    from_font = len(libraries) > 1 and rng.random() < _FONT_SHARE
    return libraries[rng.integers(1, len(libraries)) if from_font else 0]


def _draw_crop(library: Library, rng: np.random.Generator) -> np.ndarray:
    """Return a random crop [_CONTEXT + WINDOW] of a melody or a recording; the start may lie inside the window."""
    kind = library.melodies if rng.random() < 0.6 else library.takes
    audio = kind[rng.integers(len(kind))]
    n_samples = _CONTEXT + WINDOW
    shortest = min(len(audio), WINDOW // 4)  # minimum length of the sound inside the window
    last = rng.integers(shortest, max(shortest, min(len(audio), len(audio) + WINDOW // 2)) + 1)
    first = last - n_samples
    crop = np.zeros(n_samples, np.float32)
    inside = audio[max(first, 0) : min(last, len(audio))]
    crop[max(-first, 0) : max(-first, 0) + len(inside)] = inside
    return crop


def add_rooms(sounds: Tensor, rng: np.random.Generator) -> Tensor:
    """Apply a random room to every sound [B, _CONTEXT + WINDOW]; return its last WINDOW samples."""
    n_batch, n_samples = sounds.shape
    rooms = np.stack([_draw_room(n_samples, rng) for _ in range(n_batch)])
    # Circular convolution wraps around into the context, which is at least as long as any room response.
    spectrum = torch.fft.rfft(sounds) * torch.fft.rfft(torch.from_numpy(rooms))
    return torch.fft.irfft(spectrum, n_samples)[:, -WINDOW:]


def _draw_room(n_samples: int, rng: np.random.Generator) -> np.ndarray:
    """Return a room impulse response [N]: the direct sound and, in 65 % of cases, exponentially decaying noise."""
    response = np.zeros(n_samples, np.float32)
    if rng.random() < 0.65:
        decay = np.float32(-3 * np.log(10) / SAMPLE_RATE / rng.uniform(0.1, 1.0))
        tail = rng.standard_normal(_CONTEXT, dtype=np.float32) * np.exp(decay * np.arange(_CONTEXT, dtype=np.float32))
        tail[: round(rng.uniform(0.001, 0.02) * SAMPLE_RATE)] = 0
        response[:_CONTEXT] = tail / np.linalg.norm(tail) * 10 ** (-rng.uniform(-5, 25) / 20)
    response[0] = 1
    return response


def make_noises(number: int, rng: np.random.Generator) -> Tensor:
    """Return noises [number, WINDOW] of random colour, RMS 1."""
    spectrum = torch.from_numpy(rng.standard_normal((number, WINDOW + 2), dtype=np.float32)).view(torch.complex64)
    slopes = torch.from_numpy(rng.uniform(-1, 0.2, (number, 1)).astype(np.float32))
    noise = torch.fft.irfft(spectrum * torch.arange(1, WINDOW // 2 + 2).log().mul(slopes).exp(), WINDOW)
    return noise / noise.std(dim=1, keepdim=True)


def make_examples(libraries: Sequence[Sequence[Library]], number: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return log-mel spectra [number, mels, frames] of windows in float16, and their classes [number].

    They are computed once, because rooms and spectra take longer than a training step.

    Args:
        libraries: libraries of each instrument, see ``_draw_library``.
        number: number of windows.
        seed: random seed.
    """
    rng, log_mel = np.random.default_rng(seed), Recogniser().log_mel
    spectra, labels = [], []
    for _ in tqdm(range(-(-number // _BATCH)), desc="drawing windows", unit="batch", mininterval=2):
        sounds, classes = draw_batch(libraries, _BATCH, rng)
        spectra.append(log_mel(add_rooms(sounds, rng)).half())
        labels.append(classes)
    return torch.cat(spectra)[:number], torch.cat(labels)[:number]


def draw_equalisers(number: int, generator: torch.Generator) -> Tensor:
    """Return curves [number, mels] in dB of a random tilt, bumps, band limits and softness of playing."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(number, 1, generator=generator)

    def sometimes(share: float) -> Tensor:
        return (torch.rand(number, 1, generator=generator) < share).float()

    octaves = torch.from_numpy(np.log2(MEL_FREQUENCIES / 800)).float()
    bumps = 4 * torch.randn(number, 1, _N_POINTS, generator=generator)
    level = nn.functional.interpolate(bumps, len(octaves), mode="linear", align_corners=True)[:, 0]
    level += 2.5 * torch.randn(number, 1, generator=generator) * octaves
    level -= sometimes(0.3) * uniform(6, 80) * (octaves - uniform(-0.5, 3.3)).clamp_min(0)
    level -= sometimes(0.15) * uniform(0, 24) * (octaves - uniform(-1.4, 0.9)).clamp_min(0)  # soft playing
    level -= sometimes(0.3) * 24 * (uniform(-4, -2.3) - octaves).clamp_min(0)
    return level


def vary_spectra(spectra: Tensor, noises: Tensor, generator: torch.Generator) -> Tensor:
    """Apply random equalisers and noise to log-mel spectra [B, mels, frames].

    ``noises`` are log-mel spectra [n, mels, frames] to draw from.
    """
    n_batch = len(spectra)
    spectra = spectra + draw_equalisers(n_batch, generator)[:, :, None] / RANGE
    spectra = spectra - spectra.amax(dim=(1, 2), keepdim=True)
    drawn = noises[torch.randint(len(noises), (n_batch,), generator=generator)].float()
    levels = 35 + 60 * torch.rand(n_batch, 1, 1, generator=generator)  # dB from peak to peak
    to_nepers = RANGE / 10 * np.log(10)
    return torch.logaddexp(spectra * to_nepers, (drawn - 1 - levels / RANGE) * to_nepers) / to_nepers


def train(spectra: Tensor, labels: Tensor, n_steps: int, batch_size: int, seed: int) -> Recogniser:
    """Train a recogniser on log-mel spectra [n, mels, frames] with labels [n]."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    recogniser = Recogniser()
    noises = recogniser.log_mel(make_noises(_N_NOISES, np.random.default_rng(seed))).half()
    recogniser = recogniser.train().to(memory_format=torch.channels_last)  # a third faster on CPU
    optimizer = torch.optim.AdamW(recogniser.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, n_steps, pct_start=0.1)
    loss_function = nn.CrossEntropyLoss(label_smoothing=0.05)
    progress = tqdm(range(n_steps), desc="training", unit="step", mininterval=20)
    for step in progress:
        drawn = torch.randint(len(labels), (batch_size,), generator=generator)
        varied = vary_spectra(spectra[drawn].float(), noises, generator)
        with torch.autocast("cpu", torch.bfloat16):  # halves the time
            scores = recogniser.score(varied)
        loss = loss_function(scores.float(), labels[drawn])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            progress.set_postfix(loss=f"{loss.item():.2f}", refresh=False)
    return recogniser.eval().to(memory_format=torch.contiguous_format)


@dataclass(frozen=True)
class Test:
    """Test set of windows from held-out recordings."""

    name: str  # room, and notes or melodies
    instrument: str
    windows: np.ndarray  # float32 [n, WINDOW]


def make_tests(sounds: Sequence[Sound], seed: int) -> list[Test]:
    """Return test windows from the recordings and from melodies made of them, for each instrument and room."""
    rng, tests = np.random.default_rng(seed), []
    for room, instrument in sorted({(sound.note.room, sound.note.instrument) for sound in sounds}):
        chosen = [sound for sound in sounds if (sound.note.room, sound.note.instrument) == (room, instrument)]
        notes = [sound for sound in chosen if not sound.note.phrase]
        melodies = [string_melody(notes, _MELODY_SECONDS, rng) for _ in range(_TEST_MELODIES)]
        for kind, audio in (("notes", [sound.audio for sound in chosen]), ("melodies", melodies)):
            padded = [np.pad(each, (0, max(0, LIBRARY_RATE - len(each)))) for each in audio]
            windows = np.concatenate([cut_windows(each, LIBRARY_RATE) for each in padded])
            tests.append(Test(f"{room} {kind}", instrument, windows))
    return tests


def run_tests(recogniser: nn.Module, tests: Sequence[Test]) -> dict[str, Any]:
    """Return the share of correctly recognised windows of each test, and the counts of all predictions."""
    figures: dict[str, Any] = {}
    for test in tests:
        predicted = classify(recogniser, test.windows).argmax(axis=1)
        counts = np.bincount(predicted, minlength=len(CLASSES))
        figures.setdefault(test.name, {})[test.instrument] = {
            "right": round(counts[INSTRUMENTS.index(test.instrument)] / len(predicted), 3),
            "windows": len(predicted),
            "heard_as": {name: int(count) for name, count in zip(CLASSES, counts) if count},
        }
    return figures


def confusion_matrix(figures: dict[str, Any], names: Sequence[str]) -> list[list[int]]:
    """Return the confusion matrix in windows of the named tests: rows are true instruments, columns predictions."""
    counted = [[figures[name].get(row, {"heard_as": {}})["heard_as"] for name in names] for row in INSTRUMENTS]
    return [[sum(counts.get(column, 0) for counts in row) for column in CLASSES] for row in counted]


def read_sounds(notes: Sequence[RecordedNote], role: str) -> list[Sound]:
    """Read the notes of a role whose instrument is in INSTRUMENTS."""
    chosen = [note for note in notes if note.role == role and note.instrument in INSTRUMENTS]
    sounds = [read_sound(note) for note in tqdm(chosen, desc=f"reading {role}", unit="file", leave=False)]
    return [sound for sound in sounds if sound is not None]


def write_record(
    path: Path,
    args: argparse.Namespace,
    trained: Sequence[Sound],
    tested: Sequence[Sound],
    figures: dict[str, Any],
) -> None:
    """Write the record of the recogniser: training data, settings and test figures."""
    fonts = " ".join(font.name for font in args.fonts)
    record = {
        "licence": LICENCE,
        "split": "recordings.samples.assign_role",
        "instruments": INSTRUMENTS,
        "command": f"python -m evaluation.train_recogniser --data_dir DIR --fonts {fonts}",
        "seed": args.seed,
        "members": args.members,
        "steps": args.steps,
        "batch_size": args.batch_size,
        "melodies": args.melodies,
        "windows": args.windows,
        "torch": torch.__version__,
        "figures": figures,
        "confusion": {name: confusion_matrix(figures, [name]) for name in sorted(figures)},
        "fonts": {font.name: hash_file(font) for font in args.fonts},
        "trained_on": {sound.note.path.name: hash_file(sound.note.path) for sound in trained},
        "tested_on": {sound.note.path.name: hash_file(sound.note.path) for sound in tested},
    }
    write_text(path, json.dumps(record, indent=1) + "\n")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument("--data_dir", type=Path, required=True, help="recorded notes, as download_samples.py writes")
    parser.add_argument(
        "--fonts",
        type=Path,
        nargs="*",
        default=[],
        help="sf_GMbank.sf2 and MuseScore_General_Full.sf3, in Debian: csound-soundfont, musescore-general-soundfont",
    )
    parser.add_argument(
        "--output", type=Path, default=WEIGHTS, help="weights; the record is written next to it (.json)"
    )
    parser.add_argument("--steps", type=int, default=3500, help="optimizer steps (default: 3500)")
    parser.add_argument("--batch_size", type=int, default=48, help="windows per step (default: 48)")
    parser.add_argument("--melodies", type=int, default=40, help="melodies of 12 s per instrument (default: 40)")
    parser.add_argument("--windows", type=int, default=40000, help="training windows of 1 s (default: 40000)")
    parser.add_argument("--members", type=int, default=2, help="networks to average (default: 2)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    return parser.parse_args(argv)


@as_command()
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    notes = find_notes(args.data_dir)
    usual = [note for note in notes if note.pitch <= _HIGHEST.get(note.instrument, 127)]
    trained, tested = read_sounds(usual, RECOGNISER), read_sounds(notes, HELD_OUT)
    rng, libraries = np.random.default_rng(args.seed), []
    for instrument in tqdm(INSTRUMENTS, desc="stringing melodies", unit="instrument"):
        sounds = [sound for sound in trained if sound.note.instrument == instrument]
        if not sounds:
            raise ValueError(f"{args.data_dir} holds no {instrument} to train the recogniser on")
        rooms = [(sounds, args.melodies), *((render_notes(font, instrument), _FONT_MELODIES) for font in args.fonts)]
        libraries.append([make_library(room, n_melodies, rng) for room, n_melodies in rooms if room])
    libraries.append([make_tones(_N_TONES, rng)])
    spectra, labels = make_examples(libraries, args.windows, args.seed)
    seeds = range(args.seed, args.seed + args.members)
    members = [train(spectra, labels, args.steps, args.batch_size, seed) for seed in seeds]
    figures = run_tests(Ensemble(members), make_tests(tested, args.seed))
    states = [member.state_dict() for member in members]
    save_tensors(args.output, {"instruments": list(CLASSES), "states": states})
    write_record(args.output.with_suffix(".json"), args, trained, tested, figures)
    for name, test in figures.items():
        log.info("%s: %s", name, ", ".join(f"{key} {value['right']:.0%}" for key, value in test.items()))
    log.info("%s written; python -m pytest tests/evaluation checks it", args.output)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
