"""Download recordings of a real instrument, which scripts/render_dataset.py --samples plays melodies on.

    ./venv/bin/python scripts/download_samples.py --instrument trumpet
    ./venv/bin/python scripts/download_samples.py --instrument flute --local_archive ~/Downloads/Woodwind.zip
    ./venv/bin/python scripts/download_samples.py --instrument guitar --local_dir ~/shinyguitar

Each collection is named with its licence and address. What is there already is not downloaded again.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from tqdm.contrib.logging import logging_redirect_tqdm

from recordings.download_samples import INSTRUMENTS, download_samples
from recordings.resumable_download import DataError
from sound.console import as_command, command_parser, suggest


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_parser(__doc__)
    parser.add_argument("--instrument", choices=sorted(INSTRUMENTS), required=True)
    parser.add_argument(
        "--output_dir", type=Path, default=Path("data/samples"), help="gets a folder for it (%(default)s)"
    )
    parser.add_argument("--local_archive", type=Path, nargs="+", default=[], help="zips that you already have")
    parser.add_argument("--local_dir", type=Path, help="a folder of recordings that you already have")
    args = parser.parse_args(argv)
    for path in args.local_archive:
        if not path.is_file():
            parser.error(f"{path} is no file")
    if args.local_dir and not args.local_dir.is_dir():
        parser.error(f"{args.local_dir} is no folder")
    return args


@as_command("stopped; what has been downloaded is kept, the same command resumes from there", errors=(DataError,))
def main(argv: Sequence[str] | None = None) -> int:
    """Download what the command line asks for and say what to do next."""
    args = parse_args(argv)
    with logging_redirect_tqdm():
        counts = download_samples(args.instrument, args.output_dir, tuple(args.local_archive), args.local_dir)
    folder = args.output_dir / args.instrument
    print(f"{sum(counts.values())} recordings in {folder}")
    if args.instrument != "others":
        suggest(
            f"scripts/render_dataset.py --samples {folder} --instrument {args.instrument} --minutes 30 "
            f"--output_dir data/raw/rendered/{args.instrument}"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
