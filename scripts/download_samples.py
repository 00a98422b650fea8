"""Download recordings of a real instrument, for melodies rendered with scripts/render_dataset.py --samples.

    ./venv/bin/python scripts/download_samples.py --instrument trumpet
    ./venv/bin/python scripts/download_samples.py --instrument flute --local_archive ~/Downloads/Woodwind.zip
    ./venv/bin/python scripts/download_samples.py --instrument guitar --local_dir ~/shinyguitar

Logs the licence and address of each collection. Existing files are not downloaded again.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from tqdm.contrib.logging import logging_redirect_tqdm

from recordings.download_samples import INSTRUMENTS, download_samples
from recordings.resumable_download import DataError
from sound.console import as_command, command_parser, suggest


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument("--instrument", choices=sorted(INSTRUMENTS), required=True)
    parser.add_argument(
        "--output_dir", type=Path, default=Path("data/samples"), help="parent folder (default: %(default)s)"
    )
    parser.add_argument("--local_archive", type=Path, nargs="+", default=[], help="zips on disk, used first")
    parser.add_argument("--local_dir", type=Path, help="folder of recordings on disk, used first")
    args = parser.parse_args(argv)
    for path in args.local_archive:
        if not path.is_file():
            parser.error(f"{path} is not a file")
    if args.local_dir and not args.local_dir.is_dir():
        parser.error(f"{args.local_dir} is not a folder")
    return args


@as_command("stopped; the partial download is kept, the same command resumes it", errors=(DataError,))
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    with logging_redirect_tqdm():
        counts = download_samples(args.instrument, args.output_dir, tuple(args.local_archive), args.local_dir)
    folder = args.output_dir / args.instrument
    print(f"{sum(counts.values())} recordings in {folder}")
    if args.instrument != "others":
        suggest(
            "scripts/render_dataset.py --samples {} --instrument {} --minutes 30 --output_dir data/raw/rendered/{}",
            folder,
            args.instrument,
            args.instrument,
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
