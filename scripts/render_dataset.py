"""Compose melodies and render them dry as training sound: on recordings of a real instrument, or with FluidSynth.

    ./venv/bin/python scripts/render_dataset.py --instrument guitar --samples data/raw/samples/guitar_shiny \\
        --minutes 40 --output_dir data/raw/rendered/guitar
    ./venv/bin/python scripts/render_dataset.py --instrument trumpet --minutes 15 --output_dir data/raw/rendered/trumpet

With ``--samples`` a sampler (``recordings/sampler.py``) plays the recordings that ``scripts/download_samples.py``
fetches. Without, a sound font is the fallback that needs no download; its tone is made as bright as it is loud
(``recordings/soundfont.py``). Either way the whole range and all dynamics are played, one note at a time, rests are
digital silence, and a JSON file beside each take holds its notes and f0.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from recordings.rendering import render_samples, render_soundfont
from recordings.score import FILE_SECONDS, PLAYING
from recordings.soundfont import SOUNDFONT, VOICES
from sound.console import as_command, command_parser, suggest


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_parser(__doc__)
    parser.add_argument("--instrument", choices=sorted(PLAYING), required=True)
    parser.add_argument("--samples", type=Path, help="folder of recordings of the instrument (default: a sound font)")
    parser.add_argument("--minutes", type=float, default=15.0, help="how much, in files of 30 s (%(default)g)")
    parser.add_argument("--output_dir", type=Path, required=True, help="such as data/raw/rendered/trumpet")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other melodies (%(default)s)")
    parser.add_argument("--soundfont", type=Path, help=f"a General MIDI .sf2 (this machine's {SOUNDFONT})")
    args = parser.parse_args(argv)
    if not 0 < args.minutes <= 500 or args.seed < 0:
        parser.error("--minutes must be over 0 and up to 500, --seed at least 0")
    if args.samples is None and args.instrument not in VOICES:
        parser.error(f"the sound font plays {', '.join(sorted(VOICES))}; for {args.instrument} give --samples")
    return args


@as_command("stopped; the files that are written are whole, the same command goes on from here")
def main(argv: Sequence[str] | None = None) -> int:
    """Write the set that the command line asks for and say what was written."""
    args = parse_args(argv)
    if args.samples:
        written, skipped = render_samples(args.samples, args.instrument, args.minutes, args.output_dir, args.seed)
    else:
        logging.info("without --samples a sound font plays, which sounds less like the instrument than recordings")
        written, skipped = render_soundfont(args.instrument, args.minutes, args.output_dir, args.seed, args.soundfont)
    minutes = (written + skipped) * FILE_SECONDS / 60
    print(f"{written} written, {skipped} skipped: {minutes:g} minutes of {args.instrument} in {args.output_dir}")
    suggest(f"preprocess.py --input_dir {args.output_dir} --output_dir data/processed/{args.instrument}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
