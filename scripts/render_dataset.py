"""Compose melodies and render them dry with FluidSynth: training sound of a real, sampled instrument, no download.

Range and dynamics are covered by construction: a file of 30 s holds one phrase in each of six registers and one at
each of six dynamic levels, and six files in a row pair every register with every level. A slur, hammer-on, slide,
bend, scoop, fall or vibrato is the pitch wheel moving under one struck note; a swell, a palm-muted or ringing note and
every note's end is the expression controller. So one pitch sounds at a time, and a rest is digital silence. timbre.py
then makes the tone as bright as it is loud, which a sound font is not. The MIDI file stays beside each wav: it tells
what was played, and of which settings.

    ./venv/bin/python scripts/render_dataset.py --instrument trumpet --minutes 15 --output_dir data/raw/rendered/trumpet
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from recordings.composition import FILE_SECONDS, INSTRUMENTS
from recordings.soundfont import SOUNDFONT, write_set


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instrument", choices=sorted(INSTRUMENTS), required=True)
    parser.add_argument("--minutes", type=float, default=15.0, help="how much, in files of 30 s (%(default)g)")
    parser.add_argument("--output_dir", type=Path, required=True, help="such as data/raw/rendered/trumpet")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other melodies (%(default)s)")
    parser.add_argument("--soundfont", type=Path, help=f"a General MIDI .sf2 (this machine's {SOUNDFONT})")
    parser.add_argument("--num_workers", type=int, default=2, help="files rendered at a time (%(default)s)")
    args = parser.parse_args(argv)
    if not 0 < args.minutes <= 500 or args.seed < 0 or args.num_workers < 1:
        parser.error("--minutes must be over 0 and up to 500, --seed at least 0, --num_workers at least 1")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Write the set that the command line asks for and say what was written."""
    logging.basicConfig(level=logging.INFO, format="render_dataset.py: %(message)s")
    args = parse_args(argv)
    try:
        written, skipped = write_set(
            args.instrument, args.minutes, args.output_dir, args.seed, args.soundfont, args.num_workers
        )
    except OSError as error:
        logging.error(error)
        return 1
    except KeyboardInterrupt:
        logging.error("interrupted; the files in %s are whole, run again to go on", args.output_dir)
        return 130
    minutes = (written + skipped) * FILE_SECONDS / 60
    print(f"{written} written, {skipped} skipped: {minutes:g} minutes of {args.instrument} in {args.output_dir}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
