"""Download the trumpet, or another instrument, of URMP to data/raw/urmp/<instrument>_only.

    ./venv/bin/python download_trumpet_data.py                                   # trumpet
    ./venv/bin/python download_trumpet_data.py --instruments trumpet,sax,oboe
    ./venv/bin/python download_trumpet_data.py --local_archive ~/Downloads/Dataset.tar.gz
    ./venv/bin/python download_trumpet_data.py --source_dir ~/Dataset            # already unpacked

URMP (Li, Liu, Dinesh, Duan, Sharma, IEEE TMM 2019; CC0) is one archive of 12 GB, mostly video, on Dryad, doi
10.5061/dryad.ng3r749. Its separated tracks are AuSep_<track>_<code>_<piece number>_<piece>.wav at 48 kHz, their
annotated pitches F0s_<same>.txt. One pass over the archive takes out only these, so the rest is never unpacked.
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
# The third track of piece 15 is named tpt, its folder says tbn, and its annotated pitches (MIDI 51 to 65) lie mostly
# below a trumpet's range: it belongs to neither until somebody has listened to it.
DOUBTFUL = {(15, 3)}  # piece, track
RATIO = 0.05  # of the archive, for one instrument: at most 34 tracks of about 2 minutes at 48 kHz and 24 bit


def place_track(name: str) -> Path | None:
    """trumpet/trumpet_only/AuSep_1_tpt_05_Entertainer.wav, or None for what is no track of a known instrument."""
    match = TRACK_FILE.fullmatch(re.split(r"[/\\]", name)[-1])
    if not match:
        return None
    track, code, piece = (group for group in match.groups() if group)
    if (int(piece), int(track)) in DOUBTFUL:
        return None
    instrument = next((key for key, value in INSTRUMENTS.items() if value == code), None)
    return Path(instrument, f"{instrument}_only", match[0]) if instrument else None


def published_checksum() -> str | None:
    """Return the digest that Dryad's API states for the archive, None if it does not answer in the documented form."""
    try:
        facts = requests.get(FACTS_URL, timeout=10).json()
        is_known = facts["path"] == ARCHIVE and facts["digestType"] in ("md5", "sha-256")
        return checksum_text(facts["digest"]) if is_known else None
    except (requests.RequestException, argparse.ArgumentTypeError, KeyError, TypeError, ValueError):
        return None


def download_urmp(args: argparse.Namespace) -> None:
    by_hand = (
        f"Dryad refuses many scripts: open {PAGE} in a browser, save {ARCHIVE} (12 GB) and run this again with "
        "--local_archive PATH, or name a mirror by --url."
    )
    local, md5 = args.local_archive or args.source_dir, args.md5
    waiting = not all(is_done(args.output_dir, instrument) for instrument in args.instruments)
    if waiting and not (md5 or local) and args.url == URL:
        md5 = published_checksum()
    if waiting and not (md5 or args.source_dir):
        log.info("No md5 of this archive is known (--md5 names one); its own CRC is checked when it is unpacked")
    ratio = 0.0 if args.source_dir else RATIO * min(len(args.instruments), 5)
    source = DownloadSource(args.url, ARCHIVE, md5, ratio, by_hand)
    install_dataset(source, args.output_dir, args.instruments, place_track, local, args.keep_archive)


def instruments_text(text: str) -> tuple[str, ...]:
    """Names out of "trumpet,sax" or "all"; the codes of the file names are understood too."""
    names = {code: name for name, code in INSTRUMENTS.items()} | {name: name for name in INSTRUMENTS}
    asked = list(INSTRUMENTS) if text == "all" else [word.strip() for word in text.split(",")]
    for word in (word for word in asked if word not in names):
        raise argparse.ArgumentTypeError(f"unknown instrument {word!r}; there are {', '.join(INSTRUMENTS)} and all")
    return tuple(dict.fromkeys(names[word] for word in asked))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_parser("Download instruments of URMP (Dryad, 12 GB, CC0).")
    add = parser.add_argument
    add("--instruments", type=instruments_text, default=("trumpet",), metavar="trumpet,sax,...|all")
    add("--output_dir", type=Path, default=Path("data/raw/urmp"), help="gets trumpet_only, saxophone_only, ...")
    origin = parser.add_mutually_exclusive_group()
    origin.add_argument("--url", default=URL, help=f"a mirror of {ARCHIVE}")
    origin.add_argument("--local_archive", type=Path, metavar="PATH", help=f"{ARCHIVE} that you already have")
    origin.add_argument("--source_dir", type=Path, metavar="DIR", help="an unpacked URMP that you already have")
    add("--md5", type=checksum_text, help="md5 or sha256 that the archive must have")
    add("--keep_archive", action="store_true", help="do not delete the downloaded archive when it is unpacked")
    args = parser.parse_args(argv)
    for path, is_right, kind in ((args.local_archive, Path.is_file, "file"), (args.source_dir, Path.is_dir, "folder")):
        if path and not is_right(path):
            parser.error(f"{path} is no {kind}")
    return args


@as_command("stopped; what has been downloaded is kept, the same command resumes from there", errors=(DataError,))
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    with logging_redirect_tqdm():
        download_urmp(args)
    suggest(f"preprocess.py --input_dir {args.output_dir} --output_dir data/processed/urmp")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
