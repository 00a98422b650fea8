"""Export a model for other hosts (plug-in, phone, browser), which call it block by block with curves and noise.

    ./venv/bin/python scripts/export.py --checkpoint checkpoints/pretrained/trumpet.pth --format onnx \\
        --output out/trumpet.onnx

The file holds decoder and synthesizer as one stateless function (see ``block_model.py``), or with ``--live`` the whole
chain of ``live.py`` from voice to sound (see ``live_graph.py``). The state is an output tensor that the host passes to
the next block; the first is zeros, with the shapes in the json file written with the model. Noise is also an input,
uniform in -1..1, so that the host controls the random numbers. docs/export.md shows a host's loop.

    ./venv/bin/python scripts/export.py --checkpoint checkpoints/pretrained/trumpet.pth --format neutone \\
        --output out/trumpet_neutone

writes the whole chain as a model of the Neutone plug-in to a folder (experimental; needs neutone_sdk).

    ./venv/bin/python scripts/export.py --page out/live

writes the live page with the shipped instruments as files for any web server.

Before the file gets its final name, it is loaded and compared with the Python model over consecutive blocks.
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
    parser.add_argument("--checkpoint", type=Path, help="checkpoint, shipped or from train.py")
    parser.add_argument("--format", choices=(*SUFFIXES, "neutone"), help="file format")
    parser.add_argument("--output", type=Path, help="file to write, .onnx or .pt2; for neutone a new folder")
    parser.add_argument("--block_frames", type=int, default=1, help="frames of 10 ms per block (default: 1)")
    parser.add_argument("--live", action="store_true", help="the input is the voice, not curves; 10 ms per block")
    parser.add_argument("--page", type=Path, help="instead, write the live page and the shipped instruments here")
    args = parser.parse_args(argv)
    if args.page:
        return args
    missing = [name for name in ("checkpoint", "format", "output") if getattr(args, name) is None]
    if missing:
        parser.error(f"--{missing[0]} is missing")
    if args.format == "neutone":
        if args.output.exists():
            parser.error(f"--output {args.output} exists; give the name of a new folder")
        return args
    if args.output.suffix != SUFFIXES[args.format]:
        parser.error(f"--output must end in {SUFFIXES[args.format]}, not '{args.output.name}'")
    if args.output.is_dir():
        parser.error(f"--output {args.output} is a folder; give the name of a file in it")
    if not 1 <= args.block_frames <= 100:
        parser.error("--block_frames must be between 1 and 100")
    if args.live and args.block_frames != 1:
        parser.error("--live needs --block_frames 1")
    return args


def export_neutone(checkpoint: Path, folder: Path) -> None:
    try:
        from playing import neutone_export
    except ImportError as error:
        raise ValueError(f"{error}: --format neutone needs a separate environment, see docs/export.md") from error
    neutone_export.export_neutone(load_model(checkpoint), folder)


@as_command("stopped; existing files are unchanged", level=logging.WARNING)
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    if args.page:
        write_static_page(args.page)
        print(
            f"{args.page}: serve this folder over https; to include the runtime: "
            f"scripts/get_live_runtime.py --output {args.page}/vendor"
        )
        return 0
    if args.format == "neutone":
        export_neutone(args.checkpoint, args.output)
        print(f"{args.output}/model.nm: load it in Neutone FX (*load your own*); the SDK's checks have passed")
        return 0
    done = export_model(load_model(args.checkpoint), args.format, args.output, args.block_frames, args.live)
    took, block = done["milliseconds_a_block"], 1000 * args.block_frames * done["hop_length"] / done["sample_rate"]
    print(
        f"{args.output}: {done['bytes'] / 1e6:.1f} MB, equals the Python model to {done['largest_difference']:.1g}, "
        f"{took['median']:.2f} ms per block of {block:g} ms (99th percentile: {took['p99']:.2f} ms), "
        f"latency {1000 * done['latency_samples'] / done['sample_rate']:g} ms"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
