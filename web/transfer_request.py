"""Requests of the web page: available instruments, limits, and the steps from a recording to output files.

The page's button and the endpoint ``/transfer`` both call ``answer_request``. This module does not import gradio, so
that a request can be tested without a server.

A request runs in a separate thread and reports its current step. The caller polls it and checks for cancellation and
the time limit; the thread then stops at its next step.
"""

import contextvars
import dataclasses
import hashlib
import json
import logging
import os
import re
import threading
import time
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from checkpoint import BEST, LATEST, PRETRAINED_DIR, load_model, read_checkpoint
from config import PageConfig
from model import NeuralGuitar
from playing.loudness import measure_loudness, normalize_loudness
from playing.offline_transfer import ProgressCallback, measure_blocks, transfer_curves, transfer_measured, transfer_midi
from sound.atomic_files import write_text
from sound.audio_files import load_audio, read_blocks, write_audio, write_blocks
from sound.feature_plots import plot_features, save_figure
from voice.curves import Curves, read_curves, shape_notes, write_curves
from voice.instrument_fit import InstrumentProfile, TransferOptions
from voice.melody import MeasuredVoice, find_melody
from voice.midi import read_midi, write_midi
from voice.note_finder import SungNote, find_notes

try:
    from spaces import GPU as borrow_gpu  # a Hugging Face ZeroGPU Space allocates its GPU per call
except ImportError:

    def borrow_gpu(function: Callable) -> Callable:
        return function


STEPS = ("Fetching the instrument", "Listening to your recording", "Playing your melody")
FETCH, LISTEN, PLAY = range(len(STEPS))
StepCallback = Callable[[int], None]  # called with each step before it begins
_LISTENING_SHARE = 0.6  # share of a transfer after which the voice is measured
_ON_ZERO_GPU = bool(os.environ.get("SPACES_ZERO_GPU"))  # GPU work then runs in another process
_MAX_MESSAGE = 300  # characters; may include untrusted input
_POLL_SECONDS = 0.25  # s, interval at which a cancel is checked
_MIN_EPOCHS = 10  # minimum for a training to be preselected
_FIRST_INSTRUMENT = "trumpet"  # of the shipped instruments
log = logging.getLogger("app")


# --- instruments ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class PlayableModel:
    """Model that can be selected."""

    name: str  # shipped name, or a training's file relative to the checkpoint folder, such as "trumpet/best"
    sound: str  # such as "trumpet"
    label: str  # shown to users
    path: Path
    is_trained: bool = True  # enough epochs, and a much lower loss than after the first


@dataclass
class ModelCollection:
    """Available instruments. A file is cached, and read again when it changes."""

    checkpoint_dir: Path
    device: torch.device
    checkpoint: Path | None = None  # listed first
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _models: dict[Path, tuple[int, NeuralGuitar]] = field(default_factory=dict)
    _described: dict[Path, tuple[int, PlayableModel]] = field(default_factory=dict)

    def find(self) -> list[PlayableModel]:
        """Return the playable models; the first one is preselected.

        The shipped models come first, unless the newest training is trained well enough. Trainings are sorted by
        date, newest first, with the best checkpoint before the latest. ``checkpoint`` comes before all others.
        """
        shipped = sorted(PRETRAINED_DIR.glob("*.pth"), key=lambda path: (path.stem != _FIRST_INSTRUMENT, path.stem))
        found = [PlayableModel(path.stem, path.stem, path.stem.capitalize(), path) for path in shipped]
        trained = [one for path in find_trainings(self.checkpoint_dir) if (one := self._describe(path))]
        newest = [one for one in trained if one.path.parent == trained[0].path.parent]  # its best may be an early epoch
        found = trained + found if any(one.is_trained for one in newest) else found + trained
        if self.checkpoint and (first := self._describe(self.checkpoint)):
            others = [one for one in found if one.path.resolve() != self.checkpoint.resolve()]
            return [dataclasses.replace(first, name="checkpoint"), *others]
        return found

    def _describe(self, path: Path) -> PlayableModel | None:
        try:
            return self._read(self._described, path, lambda path: describe_training(path, self.checkpoint_dir))
        except (ValueError, OSError) as error:
            log.warning("app.py: %s", error)
            return None

    def choose(self, name: str) -> PlayableModel:
        """Return an instrument by name; the first if the name is empty.

        Raises:
            ValueError: there is no instrument of that name.
        """
        found = self.find()
        chosen = next((instrument for instrument in found if name in ("", instrument.name)), None)
        if chosen is None:
            names = ", ".join(instrument.name for instrument in found) or "none: train one with train.py"
            raise ValueError(f"there is no instrument '{name}' (there is {names})")
        return chosen

    def load(self, instrument: PlayableModel) -> NeuralGuitar:
        """Return an instrument's model; raises the errors of ``checkpoint.load_model``."""
        device = "cpu" if _ON_ZERO_GPU else self.device  # a ZeroGPU device is available only during the transfer
        return self._read(self._models, instrument.path, lambda path: load_model(path, device))

    def _read(self, known: dict[Path, tuple[int, Any]], path: Path, read: Callable[[Path], Any]) -> Any:
        with self._lock:
            changed = path.stat().st_mtime_ns
            if path not in known or known[path][0] != changed:
                known[path] = (changed, read(path))
            return known[path][1]


def find_trainings(checkpoint_dir: Path) -> list[Path]:
    """Return all best.pth and latest.pth under a folder, the most recent training first, best before latest."""
    saved: dict[Path, int] = defaultdict(int)
    for path in (*checkpoint_dir.rglob(LATEST), *checkpoint_dir.rglob(BEST)):
        saved[path.parent] = max(saved[path.parent], path.stat().st_mtime_ns)
    folders = sorted(saved, key=saved.__getitem__, reverse=True)
    return [path for folder in folders for name in (BEST, LATEST) if (path := folder / name).is_file()]


def describe_training(path: Path, checkpoint_dir: Path) -> PlayableModel:
    """Describe the state of a training; raises the errors of ``checkpoint.read_checkpoint``."""
    content = read_checkpoint(path)
    complete = content["epoch"] or 0
    epoch = complete + bool(content["position_in_epoch"])  # the current epoch
    saved = time.strftime("%d %b %Y, %H:%M", time.localtime(path.stat().st_mtime))
    is_inside = path.is_relative_to(checkpoint_dir)
    name = (path.relative_to(checkpoint_dir) if is_inside else Path(path.name)).with_suffix("").as_posix()
    metrics = content["metrics"] or {}
    first, best = metrics.get("first_val_loss"), metrics.get("best_val_loss")
    is_trained = complete > _MIN_EPOCHS and None not in (first, best) and best <= first / 2
    label = f"{content['instrument'].capitalize()}, {name} (epoch {epoch}, {saved})"
    return PlayableModel(name, content["instrument"], label, path, is_trained)


def read_model_card(instrument: PlayableModel) -> str:
    """Return the model card from the checkpoint's folder."""
    card = instrument.path.with_suffix(".md")
    return card.read_text(encoding="utf-8") if card.is_file() else f"**{instrument.label}** has no model card."


# --- one request ----------------------------------------------------------------------------------


class MeasuredTake(NamedTuple):
    """Measurements of a recording that do not depend on the options."""

    voice: MeasuredVoice
    loudness: float  # LUFS


@dataclass
class TakeCache:
    """LRU cache of the measurements of recordings, so that a change of options needs no new measurement."""

    limit: int = 32  # takes, about 0.5 MB per 5 minutes each
    _takes: OrderedDict[tuple, MeasuredTake] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def find(self, key: tuple) -> MeasuredTake | None:
        with self._lock:
            if key in self._takes:
                self._takes.move_to_end(key)
            return self._takes.get(key)

    def keep(self, key: tuple, take: MeasuredTake) -> None:
        with self._lock:
            self._takes[key] = take
            while len(self._takes) > self.limit:
                self._takes.popitem(last=False)


def identify_take(recording: str, model: NeuralGuitar) -> tuple:
    """Return the cache key of a measurement: the file's hash and the model's feature settings."""
    with open(recording, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
    settings = model.settings
    return digest, settings.audio.feature_rate, settings.features, settings.transfer


@dataclass(frozen=True)
class TransferService:
    """State shared by all requests."""

    collection: ModelCollection
    limits: PageConfig
    takes: TakeCache = field(default_factory=TakeCache)


@dataclass(frozen=True)
class TransferRequest:
    """Input, options and output folder of a request."""

    recording: str | None
    instrument: str
    options: TransferOptions
    seed: int
    folder: Path
    normalize: bool = True  # to the usual listening level

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"the seed should be between 0 and {2**31 - 1}, not {self.seed:g}")

    @property
    def title(self) -> str:
        """The recording's name, for use in file names."""
        return re.sub(r"[^\w-]+", "_", Path(self.recording).stem)[:40] or "recording"


class TransferOutcome(NamedTuple):
    """Result of a transfer in plain arrays, because it may come from another process."""

    sound: str  # the instrument's
    stems: dict[str, np.ndarray]  # audio, harmonic and noise: [N] each
    sample_rate: int
    curves: Curves  # as played
    voice_f0: np.ndarray  # Hz [T], as sung
    voice_dynamics: np.ndarray  # dB [T], as sung
    known_notes: list[SungNote] | None  # notes that were plucked or read from a file
    profile: InstrumentProfile
    voice_loudness: float  # LUFS; minus infinity if there is no voice
    report: dict[str, Any]

    @property
    def notes(self) -> list[SungNote]:
        """The played notes."""
        if self.known_notes is not None:
            return self.known_notes
        rate = self.profile.config.audio.frame_rate
        return find_notes(self.curves.f0, self.voice_dynamics, self.curves.voiced, rate)


class RequestCancelled(Exception):
    """Exception raised in a request's thread to end it."""


def answer_request(service: TransferService, request: TransferRequest) -> Iterator[int | TransferOutcome]:
    """Answer a request; yield the current step repeatedly while it runs, and finally the outcome.

    Raises:
        ValueError, OSError: the recording or the instrument cannot be used.
        TimeoutError: the request exceeded the time limit.
    """
    at, cancelled = [FETCH], threading.Event()

    def enter(step: int) -> None:
        if cancelled.is_set():
            raise RequestCancelled
        at[0] = step

    deadline = time.monotonic() + service.limits.max_request_seconds
    job = _run_in_thread(lambda: _perform(service, request, enter))
    try:
        while not job.done():
            if time.monotonic() > deadline:
                raise TimeoutError(f"over {service.limits.max_request_seconds:g} s")
            yield at[0]
            wait([job], timeout=_POLL_SECONDS)
    finally:
        cancelled.set()
    yield job.result()


def _run_in_thread(function: Callable[[], TransferOutcome]) -> Future:
    """Call a function in a daemon thread, which does not prevent the server from stopping."""
    future: Future = Future()
    context = contextvars.copy_context()  # identifies the visitor, whose quota a ZeroGPU call uses

    def run() -> None:
        try:
            future.set_result(context.run(function))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="request", daemon=True).start()
    return future


def _perform(service: TransferService, request: TransferRequest, enter: StepCallback) -> TransferOutcome:
    if request.recording is None:
        raise ValueError("there is no recording yet; sing into the microphone, or upload a file")
    model = service.collection.load(service.collection.choose(request.instrument))
    enter(LISTEN)
    take: MeasuredTake | Path | np.ndarray
    if is_written(request.recording):
        take, key = Path(request.recording), None
        _require_short(take, model, service.limits.max_seconds)
    else:
        take, key = _find_take(service, request.recording, model)
    played = perform_transfer(take, model, request, None if _ON_ZERO_GPU else enter)
    if isinstance(played, Exception):
        raise played
    outcome, measured = played
    if key and measured:
        service.takes.keep(key, measured)
    return outcome


def is_written(recording: str) -> bool:
    """Return True if a file contains notes or curves instead of audio."""
    return Path(recording).suffix.lower() in (".mid", ".midi", ".csv")


def _require_short(written: Path, model: NeuralGuitar, max_seconds: float) -> None:
    """Raise ValueError if notes or curves exceed the maximum duration or cannot be read."""
    if written.suffix.lower() == ".csv":
        seconds = len(read_curves(written, model.settings).f0) / model.settings.audio.frame_rate
    else:
        seconds = max(note.end for note in read_midi(written)[0])
    if seconds > max_seconds:
        raise ValueError(f"{written} lasts longer than the limit of {max_seconds:g} s")


def _find_take(
    service: TransferService, recording: str, model: NeuralGuitar
) -> tuple[MeasuredTake | np.ndarray, tuple]:
    """Return the cached measurements of a recording, or its audio [N] if not cached, and the cache key."""
    key = identify_take(recording, model)
    known = service.takes.find(key)
    return known or load_audio(recording, model.settings.audio.feature_rate, service.limits.max_seconds), key


def find_sung_notes(
    service: TransferService, recording: str | None, model: NeuralGuitar, gate_offset: float
) -> tuple[Curves, list[SungNote]]:
    """Return the curves and notes sung in a recording, not fitted to an instrument.

    Raises:
        ValueError, OSError: the recording cannot be read, or has no melody.
    """
    if recording is None:
        raise ValueError("there is no recording yet; send one")
    take, key = _find_take(service, recording, model)
    if not isinstance(take, MeasuredTake):
        take = _measure_take(take, model, None)
        service.takes.keep(key, take)
    config = model.settings
    _, melody, _ = find_melody(take.voice, config, gate_offset)
    return shape_notes(melody, config), find_notes(melody.f0, melody.loudness, melody.voiced, config.audio.frame_rate)


@borrow_gpu
def perform_transfer(
    take: np.ndarray | MeasuredTake | Path, model: NeuralGuitar, request: TransferRequest, enter: StepCallback | None
) -> tuple[TransferOutcome, MeasuredTake | None] | ValueError | OSError:
    """Play a voice [N], a measured voice, a MIDI file or curves; return the outcome and the measurements.

    Errors are returned, not raised, because a ZeroGPU process can send back return values but not exceptions.
    """
    progress = None if enter is None else lambda _, share: enter(LISTEN if share < _LISTENING_SHARE else PLAY)
    if _ON_ZERO_GPU and torch.cuda.is_available():
        model = model.to("cuda")
    try:
        if isinstance(take, Path) and take.suffix.lower() == ".csv":
            result = transfer_curves(read_curves(take, model.settings), model, request.options, request.seed)
        elif isinstance(take, Path):
            result = transfer_midi(take, model, request.options, request.seed)
        else:
            if not isinstance(take, MeasuredTake):
                take = _measure_take(take, model, progress)
            result = transfer_measured(take.voice, model, request.options, request.seed, progress)
        if request.normalize:
            result = normalize_loudness(result)
    except (ValueError, OSError) as error:
        return error
    measured = take if isinstance(take, MeasuredTake) else None
    outcome = TransferOutcome(
        sound=model.instrument,
        stems={"": result.audio, "_harmonic": result.harmonic, "_noise": result.noise},
        sample_rate=result.sample_rate,
        curves=result.curves,
        voice_f0=result.features.f0.numpy(),
        voice_dynamics=result.features.loudness.numpy(),
        known_notes=result.known_notes,
        profile=InstrumentProfile.of(model),
        voice_loudness=measured.loudness if measured else -np.inf,
        report=result.report,
    )
    return outcome, measured


def _measure_take(voice: np.ndarray, model: NeuralGuitar, progress: ProgressCallback | None) -> MeasuredTake:
    measured = measure_blocks([voice], model, progress or (lambda *_: None))
    return MeasuredTake(measured, measure_loudness(voice, model.settings.audio.feature_rate))


# --- words ----------------------------------------------------------------------------------------


def explain_failure(error: Exception, recording: str | None) -> str:
    """Return a friendly message for an error, without paths of the server."""
    known = {
        "is silent": "I hear only silence. Is the right microphone chosen, and is it switched on?",
        "lasts longer": "This recording is too long to be played in one go. Cut it into parts, and play them in turn.",
        "gate silences": "'Ignore quiet sounds' is set so high that it silences the whole recording. Set it lower.",
        "no samples": "The recording is empty. Record again, or upload another file.",
        "no melody": "I could not hear a melody. Sing or hum a little closer to the microphone, one note at a time.",
        "be read as sound": "This is not a sound file that I can read. Try wav, mp3, m4a, flac, ogg, or a MIDI file.",
        "be read as MIDI": "This MIDI file is damaged. Save it again in the program that it comes from.",
    }
    message = str(error).replace(recording or "\0", "the recording")
    if isinstance(error, TimeoutError):
        return "This took too long, so I stopped. Try a shorter recording."
    if sentence := next((sentence for sign, sentence in known.items() if sign in message), None):
        return sentence
    message = hide_folders(message)
    if isinstance(error, OSError):
        log.error("app.py: %s", message)
        return "The recording could not be read, or the result not written. Please try again."
    message = message if len(message) <= _MAX_MESSAGE else f"{message[:_MAX_MESSAGE]} ..."
    return f"{message[:1].upper()}{message[1:]}.".replace("..", ".")


def hide_folders(message: str) -> str:
    """Return a message with each path reduced to its file name, so that no server folder is shown."""
    return re.sub(r"(?<![^\s'\"])/\S*/", "", message)


# --- files ----------------------------------------------------------------------------------------


def write_sounds(outcome: TransferOutcome, request: TransferRequest) -> list[Path]:
    """Write the sound, its harmonic part and its noise part, named after the recording and the instrument."""
    return [write_sound(outcome, request, part) for part in outcome.stems]


def write_sound(
    outcome: TransferOutcome, request: TransferRequest, part: str, suffix: str = ".wav", bits: int = 24
) -> Path:
    """Write one of ``outcome.stems``."""
    path = request.folder / f"{request.title}_{outcome.sound}{part}{suffix}"
    write_audio(path, outcome.stems[part], outcome.sample_rate, bits)
    return path


def write_notes(outcome: TransferOutcome, request: TransferRequest) -> list[Path]:
    """Write the played notes as MIDI and the curves as CSV."""
    config, name = outcome.profile.config, f"{request.title}_{outcome.sound}"
    midi, curves = request.folder / f"{name}.mid", request.folder / f"{name}_curves.csv"
    write_midi(midi, outcome.notes, outcome.curves, config)
    write_curves(curves, outcome.curves, config.audio.frame_rate)
    return [midi, curves]


def write_package(outcome: TransferOutcome, request: TransferRequest) -> Path:
    """Write all files of a result and the voice to one zip, named after the recording and the instrument."""
    files = [*write_sounds(outcome, request), *write_notes(outcome, request), _draw(outcome, request)]
    report = request.folder / f"{request.title}_{outcome.sound}_report.json"
    write_text(report, json.dumps(outcome.report, indent=2) + "\n")
    if not is_written(request.recording):
        voice = request.folder / f"{request.title}_voice.wav"
        write_blocks(voice, read_blocks(request.recording, outcome.sample_rate), outcome.sample_rate, bits=24)
        files.append(voice)
    package = request.folder / f"{request.title}_{outcome.sound}.zip"
    with zipfile.ZipFile(package, "w") as archive:
        for path in (*files, report):
            archive.write(path, path.name)
    return package


def _draw(outcome: TransferOutcome, request: TransferRequest) -> Path:
    path = request.folder / f"{request.title}_{outcome.sound}.png"
    figure = plot_features(
        outcome.stems[""],
        outcome.sample_rate,
        outcome.curves.f0,
        outcome.curves.loudness,
        outcome.profile.config.audio.frame_rate,
        voiced=outcome.curves.gate > 0,
        second_f0=outcome.voice_f0,
        f0_labels=(outcome.sound, "your voice"),
        title=f"Played on the {outcome.sound}",
        spectrogram=True,
    )
    save_figure(figure, path)
    return path
