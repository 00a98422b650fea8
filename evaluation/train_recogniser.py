"""Train the instrument recogniser, test it on unseen recordings, and write its weights and a training record.

    python -m evaluation.train_recogniser --data_dir data/samples

The training data are notes and melodies concatenated from notes: a recogniser trained only on notes confuses a melody
on a real guitar with a saxophone. Recordings differ in room, microphone and codec as well as in instrument, so every
window gets a random room, equaliser, bandwidth and noise, and half of the melodies are MP3-encoded. Notes of sound
fonts (``--fonts``) add other players and rooms. The same recordings and seed give the same weights on the same kind of
processor. The record ``recogniser.json`` is written next to the weights, with the files, their sha256 and the figures.
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
from torch import Tensor, nn
from tqdm import tqdm

from evaluation.font_notes import render_notes
from evaluation.recogniser import INSTRUMENTS, SAMPLE_RATE, WEIGHTS, WINDOW, Ensemble, Recogniser, classify, cut_windows
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
_EQUALISER = 3 / 60  # standard deviation of its points, in units of a log-mel spectrum (1 is 60 dB)
_WIDEST_BAND, _LONGEST_GAP = 10, 10  # maximum mask size in mel bands and in frames
_FONT_SHARE = 0.4  # share of the windows
_FONT_MELODIES = 20  # per instrument and font
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
    labels = rng.permutation(np.arange(size) % len(libraries))
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


def add_variety(sounds: Tensor, noises: Tensor, rng: np.random.Generator) -> Tensor:
    """Apply a random room, equaliser, bandwidth and noise to every sound.

    Args:
        sounds: [B, _CONTEXT + WINDOW].
        noises: [n, WINDOW], RMS 1, to draw from.
        rng: random generator.

    Returns:
        [B, WINDOW], the last WINDOW samples of the sounds.
    """
    n_batch, n_samples = sounds.shape
    gains = np.stack([_draw_equaliser(n_samples, rng) for _ in range(n_batch)])
    rooms = np.stack([_draw_room(n_samples, rng) for _ in range(n_batch)])
    # Circular convolution wraps around into the context, which is at least as long as any room response.
    spectrum = torch.fft.rfft(sounds) * torch.fft.rfft(torch.from_numpy(rooms)) * torch.from_numpy(gains)
    ends = torch.fft.irfft(spectrum, n_samples)[:, -WINDOW:]
    ends = ends / (ends.square().mean(dim=1, keepdim=True).sqrt() + 1e-9)
    levels = torch.from_numpy(10 ** (-rng.uniform(15, 80, (n_batch, 1)).astype(np.float32) / 20))
    return 0.1 * (ends + levels * noises[rng.integers(len(noises), size=n_batch)])


def _draw_equaliser(n_samples: int, rng: np.random.Generator) -> np.ndarray:
    """Return gains [n_samples / 2 + 1] of a random tilt, bumps and band limits, as of microphones and codecs."""
    octaves = np.linspace(np.log2(30 / 800), np.log2(SAMPLE_RATE / 1600), 100)  # from 800 Hz
    points = np.linspace(octaves[0], octaves[-1], _N_POINTS)
    level = rng.normal(0, 2.5) * octaves + np.interp(octaves, points, rng.normal(0, 4, _N_POINTS))
    if rng.random() < 0.4:
        level -= rng.uniform(6, 80) * np.maximum(0, octaves - rng.uniform(-0.5, 3.3))
    if rng.random() < 0.35:  # soft playing: weaker highs
        level -= rng.uniform(0, 12) * np.maximum(0, octaves - rng.uniform(-2, 0))
    if rng.random() < 0.3:
        level -= 24 * np.maximum(0, np.log2(rng.uniform(50, 160) / 800) - octaves)
    frequencies = np.fft.rfftfreq(n_samples, 1 / SAMPLE_RATE)
    return np.interp(frequencies, 800 * 2**octaves, 10 ** (level / 20)).astype(np.float32)


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
    noises, spectra, labels = make_noises(_N_NOISES, rng), [], []
    for _ in tqdm(range(-(-number // _BATCH)), desc="drawing windows", unit="batch", mininterval=2):
        sounds, classes = draw_batch(libraries, _BATCH, rng)
        spectra.append(log_mel(add_variety(sounds, noises, rng)).half())
        labels.append(classes)
    return torch.cat(spectra)[:number], torch.cat(labels)[:number]


def vary_spectra(spectra: Tensor, generator: torch.Generator) -> Tensor:
    """Apply a random equaliser to log-mel spectra [B, mels, frames], and mask a band and a time span (SpecAugment)."""
    n_batch, n_mels, n_frames = spectra.shape
    curves = torch.randn(n_batch, 1, _N_POINTS, generator=generator) * _EQUALISER
    spectra = spectra + nn.functional.interpolate(curves, n_mels, mode="linear").transpose(1, 2)
    spectra = (spectra + 1 - spectra.amax(dim=(1, 2), keepdim=True)).clamp_min(0)
    for axis, size, widest in ((1, n_mels, _WIDEST_BAND), (2, n_frames, _LONGEST_GAP)):
        start = torch.rand(n_batch, 1, 1, generator=generator) * size
        stop = start + torch.rand(n_batch, 1, 1, generator=generator) * widest
        position = torch.arange(size).reshape(1, -1, 1) if axis == 1 else torch.arange(size)
        spectra = spectra.masked_fill((position >= start) & (position < stop), 0)
    return spectra


def train(spectra: Tensor, labels: Tensor, n_steps: int, batch_size: int, seed: int) -> Recogniser:
    """Train a recogniser on log-mel spectra [n, mels, frames] with labels [n]."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    recogniser = Recogniser().train().to(memory_format=torch.channels_last)  # a third faster on CPU
    optimizer = torch.optim.AdamW(recogniser.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, n_steps, pct_start=0.1)
    loss_function = nn.CrossEntropyLoss(label_smoothing=0.05)
    progress = tqdm(range(n_steps), desc="training", unit="step", mininterval=2)
    for step in progress:
        drawn = torch.randint(len(labels), (batch_size,), generator=generator)
        loss = loss_function(recogniser.score(vary_spectra(spectra[drawn].float(), generator)), labels[drawn])
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
        heard = classify(recogniser, test.windows).argmax(axis=1)
        counts = np.bincount(heard, minlength=len(INSTRUMENTS))
        figures.setdefault(test.name, {})[test.instrument] = {
            "right": round(counts[INSTRUMENTS.index(test.instrument)] / len(heard), 3),
            "windows": len(heard),
            "heard_as": {name: int(count) for name, count in zip(INSTRUMENTS, counts) if count},
        }
    return figures


def confusion_matrix(figures: dict[str, Any], names: Sequence[str]) -> list[list[int]]:
    """Return the confusion matrix in windows of the named tests: rows are true instruments, columns predictions."""
    heard = [[figures[name].get(row, {"heard_as": {}})["heard_as"] for name in names] for row in INSTRUMENTS]
    return [[sum(counts.get(column, 0) for counts in row) for column in INSTRUMENTS] for row in heard]


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
    parser.add_argument("--output", type=Path, default=WEIGHTS, help="weights; the record stands beside, as .json")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch_size", type=int, default=48)
    parser.add_argument("--melodies", type=int, default=60, help="of 12 s, strung for each instrument")
    parser.add_argument("--windows", type=int, default=24000, help="of 1 s, drawn once")
    parser.add_argument("--members", type=int, default=2, help="networks whose probabilities are averaged")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


@as_command()
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    notes = find_notes(args.data_dir)
    trained, tested = read_sounds(notes, RECOGNISER), read_sounds(notes, HELD_OUT)
    rng, libraries = np.random.default_rng(args.seed), []
    for instrument in tqdm(INSTRUMENTS, desc="stringing melodies", unit="instrument"):
        sounds = [sound for sound in trained if sound.note.instrument == instrument]
        if not sounds:
            raise ValueError(f"{args.data_dir} holds no {instrument} to train the recogniser on")
        rooms = [(sounds, args.melodies), *((render_notes(font, instrument), _FONT_MELODIES) for font in args.fonts)]
        libraries.append([make_library(room, n_melodies, rng) for room, n_melodies in rooms if room])
    spectra, labels = make_examples(libraries, args.windows, args.seed)
    seeds = range(args.seed, args.seed + args.members)
    members = [train(spectra, labels, args.steps, args.batch_size, seed) for seed in seeds]
    figures = run_tests(Ensemble(members), make_tests(tested, args.seed))
    states = [member.state_dict() for member in members]
    save_tensors(args.output, {"instruments": list(INSTRUMENTS), "states": states})
    write_record(args.output.with_suffix(".json"), args, trained, tested, figures)
    for name, test in figures.items():
        log.info("%s: %s", name, ", ".join(f"{key} {value['right']:.0%}" for key, value in test.items()))
    log.info("%s written; python -m pytest tests/evaluation checks it", args.output)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
