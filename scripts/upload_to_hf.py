"""Upload processed recordings to the Hugging Face Hub, as a data set that train.py can train on during the download.

    HF_TOKEN=hf_... ./venv/bin/python scripts/upload_to_hf.py --repo_id user/name --data_dir data/processed/trumpet

The data set is private unless ``--public`` is given. Only the processed files, an index and a card are uploaded;
``--dry_run`` lists them. An interrupted upload leaves the data set unchanged; the same command then sends the missing
files. Nothing on the Hub is deleted unless ``--delete_missing`` is given.
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
    parser.add_argument("--repo_id", required=True, type=check_repo_id, help="data set, user/name; created if missing")
    parser.add_argument(
        "--data_dir", type=Path, default=Path("data/processed"), help="folder (default: data/processed)"
    )
    parser.add_argument("--licence", help=f"licence of the recordings: {', '.join(HUB_LICENCES)}, or other text")
    parser.add_argument("--public", action="store_true", help="make a new data set public (default: private)")
    parser.add_argument("--delete_missing", action="store_true", help="delete recordings that are not in --data_dir")
    parser.add_argument("--dry_run", action="store_true", help="only list the files, without access to the Hub")
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG_PATH, help="settings (default: config.json)")
    parser.add_argument("--config_name", default=DEFAULT_PRESET, help=f"preset (default: {DEFAULT_PRESET})")
    args = parser.parse_args(argv)
    if args.public and not args.licence:
        parser.error("--public needs --licence, the licence of the recordings or of the samples used to make them")
    return args


def run(args: argparse.Namespace) -> None:
    """Upload the folder, or list its files.

    Raises:
        ValueError, OSError: the folder or the data set cannot be used.
    """
    local = describe_folder(args.data_dir, load_config(args.config, args.config_name))
    if args.dry_run:
        print(*(entry.file for entry in local.recordings), INDEX_FILE, CARD, sep="\n")
        return
    api = HfApi()
    sent, others = upload(api, args.repo_id, args.data_dir, local, args.licence, args.public, args.delete_missing)
    n_unchanged = len(local.recordings) - len(sent)
    print(f"{api.endpoint}/datasets/{args.repo_id}: {len(sent)} recordings uploaded, {n_unchanged} unchanged")
    if others:
        result = "deleted from the Hub" if args.delete_missing else f"kept on the Hub that are not in {args.data_dir}"
        print(f"{len(others)} recordings {result}")
    suggest("train.py --hf_repo_id {}", args.repo_id)


@as_command("stopped; the same command continues from here")
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    run(args)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
