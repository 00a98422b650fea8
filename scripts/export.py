"""Export a model for other hosts (a plug-in, a phone, a browser): curves and noise in, sound out, block by block.

    ./venv/bin/python scripts/export.py --checkpoint checkpoints/pretrained/trumpet.pth --format onnx \\
        --output out/trumpet.onnx

The file holds decoder and synthesizer as one function without memory (see ``block_model.py``), or with ``--live`` all
that ``live.py`` does, voice in and sound out (see ``live_graph.py``). What must be remembered from block to block goes
out as a tensor and comes back in with the next block: start with zeros, of the shapes in the json file that is written
beside the model. Noise is an input too, uniform in -1..1, so that the host owns the random numbers. docs/export.md has
a host's loop.

    ./venv/bin/python scripts/export.py --page out/live

writes the live page with the shipped instruments as files for any web server.

The file is loaded again and must equal the Python model over consecutive blocks before it takes the name asked for.
"""

import argparse
import logging
from pathlib import Path

from checkpoint import load_model
from playing.export import SUFFIXES, export_model
from sound.console import as_command, command_parser
from web.live_page import write_static_page


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_parser("Export a model, with explicit state, for other hosts.")
    parser.add_argument("--checkpoint", type=Path, help="shipped or from train.py")
    parser.add_argument("--format", choices=tuple(SUFFIXES))
    parser.add_argument("--output", type=Path, help="ends in .onnx or .pt2")
    parser.add_argument("--block_frames", type=int, default=1, help="frames of 10 ms a block (default 1)")
    parser.add_argument("--live", action="store_true", help="voice in instead of curves, one hop of 10 ms a block")
    parser.add_argument("--page", type=Path, help="instead: write the live page and the shipped instruments here")
    args = parser.parse_args(argv)
    if args.page:
        return args
    missing = [name for name in ("checkpoint", "format", "output") if getattr(args, name) is None]
    if missing:
        parser.error(f"--{missing[0]} is missing")
    if args.output.suffix != SUFFIXES[args.format]:
        parser.error(f"--output should end in {SUFFIXES[args.format]}, not '{args.output.name}'")
    if args.output.is_dir():
        parser.error(f"--output {args.output} is a folder; name a file in it")
    if not 1 <= args.block_frames <= 100:
        parser.error("--block_frames should be between 1 and 100")
    if args.live and args.block_frames != 1:
        parser.error("--live has blocks of one frame")
    return args


@as_command("stopped; nothing was replaced", level=logging.WARNING)
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    if args.page:
        write_static_page(args.page)
        print(f"{args.page}: serve this folder by https; scripts/get_live_runtime.py --output {args.page}/vendor")
        return 0
    done = export_model(load_model(args.checkpoint), args.format, args.output, args.block_frames, args.live)
    took, block = done["milliseconds_a_block"], 1000 * args.block_frames * done["hop_length"] / done["sample_rate"]
    print(
        f"{args.output}: {done['bytes'] / 1e6:.1f} MB, equals the Python model to {done['largest_difference']:.1g}, "
        f"{took['median']:.2f} ms a block of {block:g} ms (99 of 100: {took['p99']:.2f} ms), "
        f"{1000 * done['latency_samples'] / done['sample_rate']:g} ms of latency"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
