"""Download the trumpet or other instruments of URMP to data/raw/urmp/<instrument>_only.

    ./venv/bin/python download_trumpet_data.py                                   # trumpet
    ./venv/bin/python download_trumpet_data.py --instruments trumpet,sax,oboe
    ./venv/bin/python download_trumpet_data.py --local_archive ~/Downloads/Dataset.tar.gz
    ./venv/bin/python download_trumpet_data.py --source_dir ~/Dataset            # already unpacked

URMP (Li, Liu, Dinesh, Duan, Sharma, IEEE TMM 2019; CC0) is an archive of 12 GB, mostly video, on Dryad, doi
10.5061/dryad.ng3r749. Its separated tracks are AuSep_<track>_<code>_<piece number>_<piece>.wav at 48 kHz, with
annotated pitches in F0s_<same>.txt. Only these files are unpacked, in one pass over the archive.
"""

import argparse
import logging
import re
from pathlib import Path

import requests
from tqdm.contrib.logging import logging_redirect_tqdm

from recordings.archives import checksum_text, install_dataset, is_done
from recordings.resumable_download import DataError, DownloadSource
from sound.console import as_command, command_parser, suggest

log = logging.getLogger(__name__)

PAGE = "https://datadryad.org/dataset/doi:10.5061/dryad.ng3r749"
ARCHIVE = "Dataset.tar.gz"
URL = "https://datadryad.org/downloads/file_stream/99348"
FACTS_URL = "https://datadryad.org/api/v2/files/99348"  # Dryad's public API: name, size and digest of that file
INSTRUMENTS = {
    "trumpet": "tpt",
    "saxophone": "sax",
    "oboe": "ob",
    "bassoon": "bn",
    "trombone": "tbn",
    "horn": "hn",
    "tuba": "tba",
    "clarinet": "cl",
    "flute": "fl",
    "violin": "vn",
    "viola": "va",
    "cello": "vc",
    "double_bass": "db",
}
TRACK_FILE = re.compile(r"(?:AuSep_(\d+)_([a-z]+)_(\d+)_\w+\.wav|F0s_(\d+)_([a-z]+)_(\d+)_\w+\.txt)", re.ASCII)
# The third track of piece 15 is named tpt, but its folder is named tbn and its annotated pitches (MIDI 51 to 65) are
# mostly below a trumpet's range. It is left out because its instrument is uncertain.
DOUBTFUL = {(15, 3)}  # piece, track
RATIO = 0.05  # of the archive, for one instrument: at most 34 tracks of about 2 minutes at 48 kHz and 24 bit


def place_track(name: str) -> Path | None:
    """Return a track's path below the unpacking folder, as trumpet/trumpet_only/AuSep_1_tpt_05_Entertainer.wav.

    Return None for files that are not a track of a known instrument.
    """
    match = TRACK_FILE.fullmatch(re.split(r"[/\\]", name)[-1])
    if not match:
        return None
    track, code, piece = (group for group in match.groups() if group)
    if (int(piece), int(track)) in DOUBTFUL:
        return None
    instrument = next((key for key, value in INSTRUMENTS.items() if value == code), None)
    return Path(instrument, f"{instrument}_only", match[0]) if instrument else None


def published_checksum() -> str | None:
    """Return the archive's digest from Dryad's API, None if the answer does not have the documented form."""
    try:
        facts = requests.get(FACTS_URL, timeout=10).json()
        is_known = facts["path"] == ARCHIVE and facts["digestType"] in ("md5", "sha-256")
        return checksum_text(facts["digest"]) if is_known else None
    except (requests.RequestException, argparse.ArgumentTypeError, KeyError, TypeError, ValueError):
        return None


def download_urmp(args: argparse.Namespace) -> None:
    by_hand = (
        f"Dryad blocks many scripts: download {ARCHIVE} (12 GB) from {PAGE} in a browser and give "
        "--local_archive PATH, or give a mirror as --url."
    )
    local, md5 = args.local_archive or args.source_dir, args.md5
    waiting = not all(is_done(args.output_dir, instrument) for instrument in args.instruments)
    if waiting and not (md5 or local) and args.url == URL:
        md5 = published_checksum()
    if waiting and not (md5 or args.source_dir):
        log.info("no md5 of this archive is known (--md5 sets one); its CRC is checked during unpacking")
    ratio = 0.0 if args.source_dir else RATIO * min(len(args.instruments), 5)
    source = DownloadSource(args.url, ARCHIVE, md5, ratio, by_hand)
    install_dataset(source, args.output_dir, args.instruments, place_track, local, args.keep_archive)


def instruments_text(text: str) -> tuple[str, ...]:
    """Return the instruments in text such as "trumpet,sax" or "all"; the codes of the file names also work."""
    names = {code: name for name, code in INSTRUMENTS.items()} | {name: name for name in INSTRUMENTS}
    words = list(INSTRUMENTS) if text == "all" else [word.strip() for word in text.split(",")]
    for word in (word for word in words if word not in names):
        raise argparse.ArgumentTypeError(f"unknown instrument {word!r}; choose from {', '.join(INSTRUMENTS)} or all")
    return tuple(dict.fromkeys(names[word] for word in words))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_parser("Download instruments of URMP (Dryad, 12 GB, CC0).")
    add = parser.add_argument
    add("--instruments", type=instruments_text, default=("trumpet",), metavar="trumpet,sax,...|all")
    add("--output_dir", type=Path, default=Path("data/raw/urmp"), help="parent folder of trumpet_only, ...")
    origin = parser.add_mutually_exclusive_group()
    origin.add_argument("--url", default=URL, help=f"mirror of {ARCHIVE}")
    origin.add_argument("--local_archive", type=Path, metavar="PATH", help=f"{ARCHIVE} on disk, instead of a download")
    origin.add_argument("--source_dir", type=Path, metavar="DIR", help="unpacked URMP on disk, instead of a download")
    add("--md5", type=checksum_text, help="md5 or sha256 of the archive")
    add("--keep_archive", action="store_true", help="keep the downloaded archive after unpacking")
    args = parser.parse_args(argv)
    for path, is_right, kind in ((args.local_archive, Path.is_file, "file"), (args.source_dir, Path.is_dir, "folder")):
        if path and not is_right(path):
            parser.error(f"{path} is not a {kind}")
    return args


@as_command("stopped; the partial download is kept, the same command resumes it", errors=(DataError,))
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    with logging_redirect_tqdm():
        download_urmp(args)
    suggest("preprocess.py --input_dir {} --output_dir data/processed/urmp", args.output_dir)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
