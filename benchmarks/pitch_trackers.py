"""Compare pitch trackers on sound whose pitch is known: a voice with its annotation, instruments rendered from MIDI.

    ./venv/bin/python benchmarks/pitch_trackers.py --voice examples/hum.wav --rendered data/raw/rendered/trumpet

Each tracker gets the sound clean and with white noise, seeded, so many dB below the mean power of the recording. As in
melody extraction (Salamon et al., IEEE Signal Processing Magazine, 2014) its pitch counts wherever one is sung or
played, also where it is not sure, and its voicing separately. A tracker that is not installed is left out. To compare
one more, write its ``build_...`` and add it to ``TRACKERS``.
"""

import argparse
import contextlib
import importlib.util
import io
import json
import logging
import statistics
import sys
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from checkpoint import load_model, pretrained_path
from config import load_config
from evaluation.scorecard import AUDIBLE_LEVEL, add_noise
from features import bridge_f0, extract_features, extract_loudness, pad_to_frames
from measuring import describe_machine, format_table
from playing.live_graph import LiveGraph, shown_values
from recordings.pitch_annotations import count_octave_errors, read_voice_annotation
from sound.audio_files import load_audio
from sound.console import as_command, command_parser

CONFIG = load_config()
RATE, HOP = CONFIG.audio.feature_rate, CONFIG.audio.feature_hop_length
FRAME = HOP / RATE  # s
LOW, LOW_NAME = 146.83, "D3"  # Hz; rendered notes below it are also judged separately
_FEWEST = 100  # frames of such notes that are worth a column
_CONFIDENT = 0.5  # confidence from which swift-f0 and pesto-pitch claim a pitch
log = logging.getLogger("pitch_trackers")


# --- trackers -------------------------------------------------------------------------------------


class Tracked(NamedTuple):
    step: float  # s between frames, the first of which is at 0
    f0: np.ndarray  # [n] Hz, or 0
    voiced: np.ndarray  # [n] whether the tracker claims a pitch


Track = Callable[[np.ndarray], Tracked]  # of float32 [N] at RATE


def build_crepe(model: str) -> Track:
    """Return this project's CREPE, with Viterbi search and bridged gaps; ``model`` is "tiny" or "full"."""
    config = replace(CONFIG, features=replace(CONFIG.features, crepe_model=model))

    def track(audio: np.ndarray) -> Tracked:
        f0, _, periodicity = (values.numpy() for values in extract_features(audio, config))
        return Tracked(FRAME, f0, periodicity >= config.features.periodicity_threshold)

    return track


def build_live() -> Track:
    """Return the live graph's CREPE tiny, each frame by itself: no Viterbi search, no bridged gaps."""
    graph = LiveGraph(load_model(pretrained_path("trumpet")))
    shift = graph.reach // HOP  # frames; the newest frame lies ``reach`` samples before the end of the voice

    @torch.inference_mode()
    def track(audio: np.ndarray) -> Tracked:
        padded = np.pad(audio, (-graph.reach % HOP, graph.reach)).astype(np.float32)
        state, noise, frames = graph.initial_state(), torch.zeros(graph.config.audio.hop_length), []
        for voice in torch.from_numpy(padded[: len(padded) // HOP * HOP]).split(HOP):
            _, shown, state = graph(voice, noise, graph.controls(), state)
            frames.append(shown_values(shown))
        f0, periodicity = (np.array([frame[name] for frame in frames[shift:]]) for name in ("f0", "periodicity"))
        return Tracked(FRAME, f0, periodicity >= CONFIG.features.periodicity_threshold)

    return track


def build_swift_f0() -> Track:
    """Return SwiftF0 (arXiv 2508.18440), with a frame every 16 ms."""
    import swift_f0

    detector = swift_f0.SwiftF0(threads=1)

    def track(audio: np.ndarray) -> Tracked:
        result = detector.detect(audio, RATE)
        return Tracked(swift_f0.core.FRAME_PERIOD, result.pitch_hz, result.confidence >= _CONFIDENT)

    return track


def build_torchfcpe() -> Track:
    """FCPE: where it claims no pitch it gives none; gaps are bridged as CREPE's are."""
    with torchaudio_set_aside(), contextlib.redirect_stdout(io.StringIO()):
        import torchfcpe

        model = torchfcpe.spawn_bundled_infer_model("cpu")

    def track(audio: np.ndarray) -> Tracked:
        f0 = model.infer(torch.from_numpy(audio)[None, :, None], RATE)[0, :, 0].numpy()
        return Tracked(FRAME, bridge_f0(f0, f0 > 0), f0 > 0)

    return track


def build_pesto() -> Track:
    """Return PESTO (Riou et al., ISMIR 2023)."""
    with torchaudio_set_aside():
        import pesto

    model = pesto.load_model("mir-1k_g7", 1000 * FRAME, sampling_rate=RATE)

    @torch.inference_mode()
    def track(audio: np.ndarray) -> Tracked:
        f0, confidence, _ = model(torch.from_numpy(audio), RATE, convert_to_freq=True, return_activations=False)
        return Tracked(FRAME, f0.numpy(), confidence.numpy() >= _CONFIDENT)

    return track


@contextlib.contextmanager
def torchaudio_set_aside() -> Iterator[None]:
    """Replace torchaudio, which trackers import but do not need here, and which may fail to load on a CPU."""
    names = ("torchaudio", "torchaudio.transforms")
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    sys.modules.update({name: types.ModuleType(name) for name in names})
    sys.modules[names[1]].Resample = None  # already at the trackers' rate
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]
        sys.modules.update(before)


TRACKERS: dict[str, tuple[str, Callable[[], Track]]] = {  # module of a package: the package's name, how it is built
    "crepe_tiny": ("", lambda: build_crepe("tiny")),
    "crepe_full": ("", lambda: build_crepe("full")),
    "live": ("", build_live),
    "swift_f0": ("swift-f0", build_swift_f0),
    "torchfcpe": ("torchfcpe", build_torchfcpe),
    "pesto": ("pesto-pitch", build_pesto),
}


def to_grid(tracked: Tracked, n_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Return f0 and voicing [T], a frame each FRAME seconds, of the nearest frame; a glide is interpolated."""
    position = np.arange(n_frames) * FRAME / tracked.step
    nearest = np.clip(np.round(position).astype(int), 0, len(tracked.f0) - 1)
    f0 = np.interp(position, np.arange(len(tracked.f0)), tracked.f0)
    is_glide = np.abs(f0 - tracked.f0[nearest]) < 0.03 * f0  # half a semitone; else a leap, or an octave error
    return np.where(is_glide, f0, tracked.f0[nearest]), tracked.voiced[nearest]


# --- sound whose pitch is known -------------------------------------------------------------------


class Clip(NamedTuple):
    audio: np.ndarray  # [T * HOP] at RATE
    f0: np.ndarray  # [T] Hz, 0 in frames that do not count
    silent: np.ndarray  # [T] True where nothing is sung or played


def read_voice(path: Path) -> Clip:
    """Read a recording and its annotation in the same folder.

    Raises:
        FileNotFoundError, ValueError: one of them is missing, or cannot be read.
    """
    audio = pad_to_frames(load_audio(path, RATE), HOP)
    f0 = read_voice_annotation(path, len(audio) // HOP, FRAME)
    if f0 is None:
        raise FileNotFoundError(f"{path} has no annotation {path.stem}_f0.csv in its folder (rows of seconds and Hz)")
    return Clip(audio, f0, f0 == 0)


def read_take(path: Path) -> Clip:
    """Read a take of render_dataset.py; of the f0 in its JSON file, the audible frames count."""
    audio = pad_to_frames(load_audio(path, RATE), HOP)
    truth = np.array(json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["f0"])  # 100 a second
    f0 = np.pad(truth, (0, max(len(audio) // HOP - len(truth), 0)))[: len(audio) // HOP]
    return Clip(audio, np.where(extract_loudness(audio, CONFIG) > AUDIBLE_LEVEL, f0, 0.0), f0 == 0)


def read_sounds(args: argparse.Namespace) -> dict[str, list[Clip]]:
    """Return the clips of each sound, by name.

    Raises:
        FileNotFoundError, ValueError: a sound or its pitch cannot be read.
    """
    sounds = {path.stem: [read_voice(path)] for path in args.voice}
    for folder in args.rendered:
        paths = sorted(folder.glob("*.flac"))[: args.takes]
        if not paths:
            raise FileNotFoundError(f"{folder} holds no flac files; scripts/render_dataset.py writes some")
        sounds[folder.resolve().name] = [read_take(path) for path in paths]
    return sounds


def list_truths(name: str, clips: list[Clip], is_rendered: bool) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return true f0 and silent frames, [T] of all clips, of a sound, and of its low notes if it has enough."""
    truth, silent = (np.concatenate([getattr(clip, field) for clip in clips]) for field in ("f0", "silent"))
    low = np.where(truth < LOW, truth, 0.0)
    truths = {name: (truth, silent), f"{name} under {LOW_NAME}": (low, silent)}
    return truths if is_rendered and np.count_nonzero(low) >= _FEWEST else {name: (truth, silent)}


# --- figures --------------------------------------------------------------------------------------

FIGURES = {  # of the frames that have a true pitch, unless it says otherwise
    "within_50_cents": "Share of the sung or played frames within 50 cents, %",
    "octave_errors": "Share of them that are whole octaves off, %",
    "found": "Share of them in which a pitch is claimed, %",
    "median_cents": "Median error of those within 50 cents, in cents",
    "false_alarms": "Share of the silent frames in which a pitch is claimed, %",
}


def judge(truth: np.ndarray, silent: np.ndarray, f0: np.ndarray, voiced: np.ndarray) -> dict[str, float]:
    """Compare f0 with the truth, both in Hz and [T], 0 for no pitch; NaN where there is nothing to judge."""
    counted = truth > 0
    cents = np.abs(1200 * np.log2(np.maximum(f0[counted], 1e-3) / truth[counted]))
    near = cents[cents <= 50]
    wrong, _ = count_octave_errors(truth, f0, f0 > 0)
    return {
        "within_50_cents": _percent(len(near), len(cents)),
        "octave_errors": _percent(wrong, len(cents)),
        "found": _percent(int(voiced[counted].sum()), len(cents)),
        "median_cents": float(np.median(near)) if len(near) else float("nan"),
        "false_alarms": _percent(int(voiced[silent].sum()), int(silent.sum())),
    }


def _percent(part: int, whole: int) -> float:
    return 100 * part / whole if whole else float("nan")


def mix(audio: np.ndarray, snr: float | None, seed: int) -> np.ndarray:
    """Return a sound with noise, or as it is if ``snr`` is None; turned down where it would clip."""
    mixed = audio if snr is None else add_noise(audio, snr, seed)
    return mixed / max(1.0, float(np.abs(mixed).max()))


def measure_time(track: Track, audio: np.ndarray) -> float:
    """Return the processor time in s for a second of sound, the median of three runs."""
    times = []
    for _ in range(3):
        before = time.process_time()
        track(audio)
        times.append(time.process_time() - before)
    return statistics.median(times) / (len(audio) / RATE)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_parser("Compare pitch trackers on sound whose pitch is known.")
    parser.add_argument(
        "--voice", type=Path, nargs="+", default=[], help="recordings, each with NAME_f0.csv in its folder"
    )
    parser.add_argument("--rendered", type=Path, nargs="+", default=[], help="folders made by render_dataset.py")
    parser.add_argument("--takes", type=int, default=6, help="first takes of each folder (default: %(default)s)")
    parser.add_argument("--snr", type=float, nargs="*", default=[20, 10, 0], help="SNR in dB (default: 20 10 0)")
    parser.add_argument("--trackers", nargs="+", choices=TRACKERS, default=list(TRACKERS), help="default: all")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise (default: %(default)s)")
    args = parser.parse_args(argv)
    if not args.voice and not args.rendered:
        parser.error("give a --voice or a --rendered folder, or both")
    if args.takes < 1 or args.seed < 0 or not all(-100 <= snr <= 200 for snr in args.snr):
        parser.error("--takes should be at least 1, --seed at least 0, --snr between -100 and 200")
    names = [path.stem for path in args.voice] + [folder.resolve().name for folder in args.rendered]
    if len(set(names)) < len(names):
        parser.error(f"two sounds have the same name: {', '.join(names)}")
    return args


@as_command()
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    torch.set_num_threads(1)
    sounds, snrs = read_sounds(args), [None, *args.snr]
    rendered = {folder.resolve().name for folder in args.rendered}
    truths = {name: list_truths(name, clips, name in rendered) for name, clips in sounds.items()}
    lengths = {part: np.count_nonzero(f0) * FRAME for parts in truths.values() for part, (f0, _) in parts.items()}
    rows: dict[str, list[list[str]]] = {figure: [] for figure in FIGURES}
    for name in tqdm(args.trackers, unit="tracker", disable=None):
        package, build = TRACKERS[name]
        if package and not importlib.util.find_spec(name):
            log.info("%s is not installed: ./venv/bin/python -m pip install %s", name, package)
            continue
        track = build()
        judged: dict[str, list[dict[str, float]]] = {part: [] for part in lengths}
        for sound, clips in sounds.items():
            for snr in snrs:
                mixed = [mix(clip.audio, snr, args.seed + number) for number, clip in enumerate(clips)]
                curves = [to_grid(track(audio), len(audio) // HOP) for audio in mixed]
                f0, voiced = map(np.concatenate, zip(*curves))
                for part, (truth, silent) in truths[sound].items():
                    judged[part].append(judge(truth, silent, f0, voiced))
        seconds = measure_time(track, next(iter(sounds.values()))[0].audio)
        label = f"{package} {version(package)}" if package else name
        for figure in FIGURES:
            cells = [" / ".join(f"{row[figure]:.1f}" for row in judged[part]) for part in lengths]
            rows[figure].append([label, *cells, f"{seconds:.2g}"])
    heads = ["tracker", *(f"{part}, {seconds:.0f} s" for part, seconds in lengths.items()), "core s / s"]
    conditions = " / ".join("clean" if snr is None else f"{snr:g} dB" for snr in snrs)
    tables = [f"{title}; {conditions}:\n\n{format_table(heads, rows[figure])}" for figure, title in FIGURES.items()]
    print("\n\n".join([describe_machine(), *tables]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
