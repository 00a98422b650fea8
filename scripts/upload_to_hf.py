"""Upload processed recordings to the Hugging Face Hub, as a data set that train.py can stream.

    HF_TOKEN=hf_... ./venv/bin/python scripts/upload_to_hf.py --repo_id user/name --data_dir data/processed/trumpet

The data set is private unless ``--public`` is given. Files go up in few large commits, each with an index and a card
that describe just what is there, so that a stopped upload is a smaller data set, not a broken one. Run the same command
again and it sends what is missing. Nothing on the Hub is deleted unless ``--delete_missing`` is given.
"""

import argparse
import logging
from pathlib import Path

from config import DEFAULT_CONFIG_PATH, DEFAULT_PRESET, load_config
from recordings.data_card import HUB_LICENCES
from recordings.hub_client import check_repo_id, connect_to_hub
from recordings.hub_upload import CARD, Upload, open_data_set, read_folder
from sound.console import as_command

log = logging.getLogger("upload_to_hf")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Upload processed recordings to the Hugging Face Hub.")
    parser.add_argument("--repo_id", required=True, help="user/name of the data set; made if there is none")
    parser.add_argument("--data_dir", type=Path, default=Path("data/processed"), help="default: data/processed")
    parser.add_argument("--licence", help=f"of the recordings, for the card: {', '.join(HUB_LICENCES)}, or in words")
    parser.add_argument("--public", action="store_true", help="everybody may see it (default: private)")
    parser.add_argument("--delete_missing", action="store_true", help="delete recordings there that are not here")
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG_PATH, help="default: config.json")
    parser.add_argument("--config_name", default=DEFAULT_PRESET, help=f"preset (default {DEFAULT_PRESET})")
    args = parser.parse_args(argv)
    if args.public and not args.licence:
        parser.error("a public data set needs a --licence")
    try:
        check_repo_id(args.repo_id)
    except ValueError as error:
        parser.error(str(error))
    return args


def upload(args: argparse.Namespace) -> None:
    """Do what the command line asks for.

    Raises:
        ValueError, OSError: what keeps it from being done.
    """
    api = connect_to_hub(write=True)
    local = read_folder(args.data_dir, load_config(args.config, args.config_name))
    open_data_set(api, args.repo_id, not args.public)
    job = Upload(api, args.repo_id, local, args.data_dir, args.licence)
    if args.licence is None and CARD not in job.texts:
        log.warning("no --licence is given: the card says unknown")
    job.run(args.delete_missing)
    url = f"{api.endpoint}/datasets/{args.repo_id}"
    print(f"{url}: {len(job.missing)} recordings uploaded, {len(job.there)} were there")
    if job.surplus:
        fate = "deleted there" if args.delete_missing else "there but not here, and kept"
        print(f"{len(job.surplus)} {fate}")


@as_command("stopped; the same command goes on from here")
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    upload(args)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
