"""Upload processed recordings to the Hugging Face Hub, as a data set that train.py trains on while it downloads.

    HF_TOKEN=hf_... ./venv/bin/python scripts/upload_to_hf.py --repo_id user/name --data_dir data/processed/trumpet

The data set is private unless ``--public`` is given. The processed files go up, an index and a card, nothing else
that lies in the folder; ``--dry_run`` lists them. A stopped upload changes nothing there; run the same command again
and it sends what is missing. Nothing on the Hub is deleted unless ``--delete_missing`` is given.
"""

import argparse
from pathlib import Path

from huggingface_hub import HfApi

from config import DEFAULT_CONFIG_PATH, DEFAULT_PRESET, load_config
from recordings.hub_client import INDEX_FILE, check_repo_id
from recordings.hub_upload import CARD, HUB_LICENCES, describe_folder, upload
from sound.console import as_command, command_parser, suggest


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_parser("Upload processed recordings to the Hugging Face Hub.")
    parser.add_argument("--repo_id", required=True, type=check_repo_id, help="user/name; made if there is none")
    parser.add_argument("--data_dir", type=Path, default=Path("data/processed"), help="default: data/processed")
    parser.add_argument("--licence", help=f"of the recordings, for the card: {', '.join(HUB_LICENCES)}, or in words")
    parser.add_argument("--public", action="store_true", help="everybody may see it (default: private)")
    parser.add_argument("--delete_missing", action="store_true", help="delete recordings there that are not here")
    parser.add_argument("--dry_run", action="store_true", help="only list the files, without the Hub")
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG_PATH, help="default: config.json")
    parser.add_argument("--config_name", default=DEFAULT_PRESET, help=f"preset (default {DEFAULT_PRESET})")
    args = parser.parse_args(argv)
    if args.public and not args.licence:
        parser.error("a public data set needs a --licence: that of the recordings or samples it was made from")
    return args


def run(args: argparse.Namespace) -> None:
    """Do what the command line asks for.

    Raises:
        ValueError, OSError: what keeps it from being done.
    """
    local = describe_folder(args.data_dir, load_config(args.config, args.config_name))
    if args.dry_run:
        print(*(entry.file for entry in local.recordings), INDEX_FILE, CARD, sep="\n")
        return
    api = HfApi()
    sent, others = upload(api, args.repo_id, args.data_dir, local, args.licence, args.public, args.delete_missing)
    n_there = len(local.recordings) - len(sent)
    print(f"{api.endpoint}/datasets/{args.repo_id}: {len(sent)} recordings uploaded, {n_there} were there")
    if others:
        print(f"{len(others)} {'deleted there' if args.delete_missing else 'there but not here, and kept'}")
    suggest(f"train.py --hf_repo_id {args.repo_id}")


@as_command("stopped; the same command goes on from here")
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    run(args)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
