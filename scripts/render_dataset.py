"""Compose melodies and render them as dry training sound, from recordings of a real instrument or with FluidSynth.

    ./venv/bin/python scripts/render_dataset.py --instrument guitar --samples data/raw/samples/guitar_shiny \\
        --minutes 40 --output_dir data/raw/rendered/guitar
    ./venv/bin/python scripts/render_dataset.py --instrument trumpet --minutes 15 --output_dir data/raw/rendered/trumpet

With ``--samples``, a sampler (``recordings/sampler.py``) plays the recordings of ``scripts/download_samples.py``.
Without it, FluidSynth plays a sound font, with a brightness that follows the level (``recordings/soundfont.py``). Both
cover the whole range and all dynamics, one note at a time, with digital silence in the rests. A JSON file with the name
of each take holds its notes and f0.
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
    parser = command_parser(__doc__)
    parser.add_argument("--instrument", choices=sorted(PLAYING), required=True)
    parser.add_argument("--samples", type=Path, help="folder of recordings of the instrument (default: a sound font)")
    parser.add_argument("--minutes", type=float, default=15.0, help="minutes, in files of 30 s (default: %(default)g)")
    parser.add_argument("--output_dir", type=Path, required=True, help="such as data/raw/rendered/trumpet")
    parser.add_argument("--seed", type=int, default=0, help="seed of the melodies (default: %(default)s)")
    parser.add_argument("--soundfont", type=Path, help=f"General MIDI sound font (default: installed {SOUNDFONT})")
    args = parser.parse_args(argv)
    if not 0 < args.minutes <= 500 or args.seed < 0:
        parser.error("--minutes must be more than 0 and at most 500, --seed at least 0")
    if args.samples is None and args.instrument not in VOICES:
        parser.error(f"the sound font plays {', '.join(sorted(VOICES))}; for {args.instrument} give --samples")
    return args


@as_command("stopped; the files written so far are complete, the same command continues from here")
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    if args.samples:
        written, skipped = render_samples(args.samples, args.instrument, args.minutes, args.output_dir, args.seed)
    else:
        logging.info("no --samples: rendering with a sound font, which is less realistic than recordings")
        written, skipped = render_soundfont(args.instrument, args.minutes, args.output_dir, args.seed, args.soundfont)
    minutes = (written + skipped) * FILE_SECONDS / 60
    print(f"{written} written, {skipped} skipped: {minutes:g} minutes of {args.instrument} in {args.output_dir}")
    suggest("preprocess.py --input_dir {} --output_dir data/processed/{}", args.output_dir, args.instrument)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
