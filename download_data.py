"""Download GuitarSet to data/raw/guitarset.

    ./venv/bin/python download_data.py                       # the solo takes: melodies, one pitch at a time
    ./venv/bin/python download_data.py --takes all --annotations

GuitarSet (Xi, Bittner, Pauwels, Ye, Bello, ISMIR 2018; CC BY 4.0) is Zenodo record 3371780.
"""

import argparse
import logging
import re
from pathlib import Path

from tqdm.contrib.logging import logging_redirect_tqdm

from recordings.archives import checksum_text, install_dataset
from recordings.resumable_download import DataError, DownloadSource
from sound.console import as_command, command_parser, suggest

log = logging.getLogger(__name__)

RECORD = "https://zenodo.org/records/3371780"
AUDIO_URL, AUDIO_MD5 = f"{RECORD}/files/audio_mono-mic.zip?download=1", "275966d6610ac34999b58426beb119c3"
JAMS_URL, JAMS_MD5 = f"{RECORD}/files/annotation.zip?download=1", "b39b78e63d3446f2e54ddb7a54df9b10"
TAKES = ("solo", "comp")
TAKE_FILE = re.compile(r"\d\d_[A-Za-z0-9#-]+_(solo|comp)(_mic\.wav|\.jams)")  # 00_BN1-129-Eb_solo_mic.wav


def place_take(name: str) -> Path | None:
    """Return the path of a take or annotation below the unpacking folder, None for other files.

    A take: ``solo/00_BN1-129-Eb_solo_mic.wav``; an annotation: ``solo_annotation/annotation/00_BN1-129-Eb_solo.jams``.
    """
    match = TAKE_FILE.fullmatch(Path(name).name)
    if not match:
        return None
    take = match[1]
    return Path(take, match[0]) if match[2] == "_mic.wav" else Path(f"{take}_annotation", "annotation", match[0])


def by_hand(name: str, local_flag: str, url_flag: str) -> str:
    return f"Or download {name} from {RECORD} in a browser and give {local_flag} PATH; {url_flag} sets a mirror."


def download_guitarset(args: argparse.Namespace) -> None:
    takes = TAKES if args.takes == "all" else (args.takes,)
    if args.takes == "solo":
        log.info("only solo takes are installed; comp takes are strummed chords, without a single pitch (--takes all)")
    share = len(takes) / len(TAKES)
    hint = by_hand("audio_mono-mic.zip", "--local_archive", "--url")
    audio = DownloadSource(args.url, "audio_mono-mic.zip", args.md5, 1.5 * share, hint)
    install_dataset(audio, args.output_dir, takes, place_take, args.local_archive, args.keep_archive)
    if args.annotations:
        hint = by_hand("annotation.zip", "--local_annotations", "--annotations_url")
        jams = DownloadSource(args.annotations_url, "annotation.zip", args.annotations_md5, 10.0 * share, hint)
        groups = tuple(f"{take}_annotation" for take in takes)
        local = args.local_annotations
        install_dataset(jams, args.output_dir, groups, place_take, local, args.keep_archive)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_parser("Download GuitarSet (Zenodo record 3371780, 657 MB, CC BY 4.0).")
    add = parser.add_argument
    add("--takes", choices=(*TAKES, "all"), default="solo", help="solo: melodies; comp: strummed chords; all: both")
    add("--annotations", action="store_true", help="also install the JAMS annotations (39 MB) in OUTPUT_DIR/annotation")
    add("--output_dir", type=Path, default=Path("data/raw/guitarset"), help="default: data/raw/guitarset")
    add("--url", default=AUDIO_URL, help="mirror of audio_mono-mic.zip")
    add("--md5", type=checksum_text, default=AUDIO_MD5, help="md5 or sha256 of the archive, if it is not Zenodo's")
    add("--local_archive", type=Path, metavar="PATH", help="audio_mono-mic.zip on disk, instead of a download")
    add("--annotations_url", default=JAMS_URL, help="mirror of annotation.zip")
    add("--annotations_md5", type=checksum_text, default=JAMS_MD5, help="md5 or sha256 of another annotation.zip")
    add("--local_annotations", type=Path, metavar="PATH", help="annotation.zip on disk, instead of a download")
    add("--keep_archive", action="store_true", help="keep the downloaded archive after unpacking")
    return parser.parse_args(argv)


@as_command("stopped; the partial download is kept, the same command resumes it", errors=(DataError,))
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    with logging_redirect_tqdm():
        download_guitarset(args)
    suggest("preprocess.py --input_dir {} --output_dir data/processed/guitarset", args.output_dir)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
