"""Plot waveform, pitch, periodicity and loudness of processed recordings.

    ./venv/bin/python visualize_features.py --file data/processed/trumpet/rendered_trumpet_000.flac.pt
    ./venv/bin/python visualize_features.py --all --data_dir data/processed/trumpet --theme dark

Writes PNG files to ``data/visualization``. ``sound/feature_plots.py`` draws the same plots from arrays.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from matplotlib.figure import Figure
from tqdm import tqdm

from config import DEFAULT_CONFIG_PATH, load_config
from data import Recording, find_recordings, load_recording
from sound.console import as_command, command_parser, suggest
from sound.feature_plots import THEMES, plot_features, save_figure


def plot_recording(recording: Recording, periodicity_threshold: float, title: str = "", theme: str = "light") -> Figure:
    """Plot a processed recording; pitch is shown where periodicity reaches the threshold."""
    sample_rate, hop_length = (recording.extractor["audio"][key] for key in ("sample_rate", "hop_length"))
    return plot_features(
        recording.audio,
        sample_rate,
        recording.f0,
        recording.loudness,
        sample_rate / hop_length,
        periodicity=recording.periodicity,
        periodicity_threshold=periodicity_threshold,
        title=title,
        subtitle=recording.instrument,
        theme=theme,
    )


def visualize_file(source: Path, target: Path, periodicity_threshold: float, theme: str) -> None:
    save_figure(plot_recording(load_recording(source), periodicity_threshold, source.stem, theme), target)


def plan_pictures(data_dir: Path, output_dir: Path) -> list[tuple[Path, Path]]:
    """Return the processed files of a folder with the paths of their pictures, in the same subfolders."""
    paths = find_recordings(data_dir)
    return [(path, (output_dir / path.relative_to(data_dir)).with_suffix(".png")) for path in paths]


def visualize_all(jobs: Iterable[tuple[Path, Path]], periodicity_threshold: float, theme: str) -> dict[str, int]:
    """Plot files, naming each that fails; return the number written and failed."""
    counts = {"written": 0, "failed": 0}
    for source, target in tqdm(jobs, unit="file", desc="visualize", disable=None):
        try:
            visualize_file(source, target, periodicity_threshold, theme)
            counts["written"] += 1
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            counts["failed"] += 1
            tqdm.write(f"failed: {source}: {str(error) or 'not enough memory'}", file=sys.stderr)
    return counts


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_parser("Plot waveform, pitch and loudness of processed recordings.")
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--file", type=Path, help="processed file (.pt)")
    group.add_argument("--all", action="store_true", help="all processed files in --data_dir")
    add = parser.add_argument
    add("--data_dir", type=Path, default=Path("data/processed"), help="folder for --all (default: data/processed)")
    add("--output_dir", type=Path, default=Path("data/visualization"), help="pictures (default: data/visualization)")
    add("--config", type=Path, default=DEFAULT_CONFIG_PATH, help="settings (default: config.json)")
    add("--theme", choices=tuple(THEMES), default="light", help="default: light")
    args = parser.parse_args(argv)
    if args.all and not args.data_dir.is_dir():
        parser.error(f"--data_dir {args.data_dir} is not a folder; create one with preprocess.py")
    return args


@as_command("stopped; finished pictures are kept")
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    threshold = load_config(args.config).features.periodicity_threshold
    if args.file:
        target = args.output_dir / f"{args.file.stem}.png"
        visualize_file(args.file, target, threshold, args.theme)
        print(target)
        return 0
    counts = visualize_all(plan_pictures(args.data_dir, args.output_dir), threshold, args.theme)
    print(", ".join(f"{count} {status}" for status, count in counts.items()), f"in {args.output_dir}")
    folders = args.data_dir, f"checkpoints/{args.data_dir.name}"
    suggest("train.py --data_dir {} --checkpoint_dir {} --config_name solo", *folders)
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
