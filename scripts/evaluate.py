"""Evaluate a model: how well it resynthesises held-out recordings of its instrument, and how well it plays voices.

    ./venv/bin/python scripts/evaluate.py --checkpoint checkpoints/pretrained/trumpet.pth --input examples \\
        --data_dir data/processed/trumpet --snr 20 --html out/trumpet.html

``--data_dir`` holds processed recordings, of which only those that train.py holds out are used, or sound files that no
training has used, which are all used. The tables also list an untrained model, the recording or voice itself and, with
``--baseline``, other checkpoints of any sample rate. With the same files and seed, a machine gives the same figures.
"""

import argparse
import json
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from checkpoint import load_model, read_checkpoint
from config import get_device
from evaluation.judging import (
    MODEL,
    UNTRAINED,
    evaluate_takes,
    evaluate_voice,
    expand_folders,
    read_takes,
)
from evaluation.scorecard_page import Exhibit, build_scorecard_page
from evaluation.scorecard_tables import check_targets, format_tables, format_targets
from model import NeuralGuitar, build_model
from sound.atomic_files import hash_file, write_text
from sound.console import as_command, command_parser, suggest
from voice.instrument_fit import ARTICULATIONS, TransferOptions

log = logging.getLogger("evaluate")


def load_models(args: argparse.Namespace) -> dict[str, NeuralGuitar]:
    """Return {name in the tables: model}.

    Raises:
        FileNotFoundError, ValueError: a checkpoint cannot be read, or a baseline plays another instrument.
    """
    device = get_device(args.device)
    models = {MODEL: load_model(args.checkpoint, device)}
    for path in args.baseline:
        if path.stem in models:
            raise ValueError(f"two baselines are called {path.stem}; rename one, because tables use these names")
        models[path.stem] = load_model(path, device)
        if models[path.stem].instrument != models[MODEL].instrument:
            raise ValueError(
                f"--baseline {path} plays {models[path.stem].instrument}, but --checkpoint {models[MODEL].instrument}"
            )
    models[UNTRAINED] = build_untrained(models[MODEL], args.seed).to(device)
    return models


def build_untrained(model: NeuralGuitar, seed: int) -> NeuralGuitar:
    """Return the same model with the initial weights of a seed."""
    with torch.random.fork_rng(devices=[]):  # without devices=[], it initialises every GPU and warns
        torch.manual_seed(seed)
        untrained = build_model(model.settings, model.instrument)
    untrained.settings, untrained.instrument = model.settings, model.instrument
    untrained.statistics = model.statistics
    return untrained.eval()


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_parser("Evaluate a model on held-out recordings and on voices.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="model to evaluate")
    parser.add_argument("--input", type=Path, nargs="+", default=[], help="voices: sound files, or folders of them")
    parser.add_argument("--data_dir", type=Path, help="recordings of the instrument; held-out ones are resynthesised")
    parser.add_argument(
        "--baseline", type=Path, nargs="+", default=[], help="other checkpoints to list in the same tables"
    )
    parser.add_argument(
        "--articulation", choices=ARTICULATIONS, help="how voices are played (default: that of the instrument)"
    )
    parser.add_argument("--snr", type=float, help="also evaluate each voice with white noise at this SNR in dB")
    parser.add_argument("--targets", action="store_true", help="compare with the targets; exit with 1 on a miss")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--html", type=Path, help="write a page with sounds and pictures to this file")
    parser.add_argument("--seed", type=int, default=0, help="seed of noise and frame selection (default: 0)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps (default: auto)")
    args = parser.parse_args(argv)
    if not args.input and not args.data_dir:
        parser.error("give voices as --input, recordings as --data_dir, or both")
    if args.snr is not None and not -20 <= args.snr <= 100:
        parser.error("--snr must be between -20 and 100 dB")
    return args


def run(args: argparse.Namespace) -> tuple[dict[str, Any], list[Exhibit], int]:
    """Evaluate the models of the command line.

    Returns:
        (report, sounds and pictures for the page, number of voices that failed).

    Raises:
        FileNotFoundError, ValueError: a model or recording cannot be used.
    """
    models = load_models(args)
    model, voices = models[MODEL], expand_folders(args.input)
    trained = read_checkpoint(args.checkpoint)
    takes = read_takes(args.data_dir, model, trained) if args.data_dir else []
    resynthesis, exhibits, real = evaluate_takes(takes, models, args.seed)
    options = TransferOptions(articulation=args.articulation)
    played, failed = [], 0
    for path in tqdm(voices, desc="voices", unit="file", leave=False):
        try:
            judged = evaluate_voice(path, models, real, args.snr, args.seed, options)
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            said = str(error) or "not enough memory"
            log.error("evaluate.py: %s", said if str(path) in said else f"{path}: {said}")
            failed += 1
            continue
        played += [row for rows, _ in judged for row in rows]
        exhibits += [exhibit for _, exhibit in judged]
    judged = {"recordings": [take.name for take in takes], "resynthesis": resynthesis, "transfer": played}
    return {**describe(args, trained, models), **judged}, exhibits, failed


def describe(args: argparse.Namespace, content: dict[str, Any], models: dict[str, NeuralGuitar]) -> dict[str, Any]:
    """Return the report's description of the evaluated model, whose checkpoint is ``content``, and of the options."""
    model = models[MODEL]
    return {
        "checkpoint": args.checkpoint.name,
        "sha256": hash_file(args.checkpoint),
        "instrument": model.instrument,
        "preset": content["preset"],
        "epoch": content["epoch"],
        "step": content["step"],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "plucked": args.articulation != "follow"
        and model.settings.instrument(model.instrument).articulation == "plucked",
        "baselines": [_describe_baseline(path) for path in args.baseline],
        "snr": args.snr,
        "seed": args.seed,
        "torch": torch.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _describe_baseline(path: Path) -> str:
    content = read_checkpoint(path)
    return f"{path.name}, preset `{content['preset']}` after {content['step']:,} steps"


@as_command("stopped; nothing was written")
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    report, exhibits, failed = run(args)
    report["targets"], untrained = check_targets(report, MODEL), check_targets(report, UNTRAINED)
    report["untrained_targets"] = untrained
    print(format_tables(report))
    if args.targets:
        print(f"\n{format_targets(report['targets'])}")
        missed = sum(not target["met"] for target in untrained if not target["sanity"])
        print(f"\nThe untrained model misses {missed} of {sum(not target['sanity'] for target in untrained)}.")
    if args.json:
        write_text(args.json, json.dumps(report, indent=2, allow_nan=False) + "\n")
    if args.html:
        write_text(args.html, build_scorecard_page(report, exhibits))
        print(f"\nPage with sounds and pictures: {args.html}")
    suggest("transfer.py --input examples/hum.wav --checkpoint {} --output out/hum.wav", args.checkpoint)
    missed = args.targets and not all(target["met"] for target in report["targets"])
    return 1 if failed or missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
