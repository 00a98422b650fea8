"""Start, resume and describe the Weights & Biases run of a training.

Nothing here prompts for a login. ``experiment_log.py`` catches all failures, so that training continues.
"""

import netrc
import os
import secrets
import shlex
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from config import Config, config_to_dict
from training.held_out_phrases import SOUNDS

_HOSTS = ("api.forge.coreweave.com", "api.wandb.ai")  # of W&B, now and before its move
MODES = ("online", "offline", "disabled")
_INIT_SECONDS = 30  # timeout to reach W&B
_START_SECONDS = 120  # timeout for its service process to start
_FINISH_SECONDS = 120  # timeout to send the rest; unsent data stays on disk


def new_run_id() -> str:
    """Return a random W&B id, independent of the seeded generators so that trainings get different ids."""
    return secrets.token_hex(4)


def choose_mode(wanted: str | None) -> str:
    """Return ``wanted``, else ``WANDB_MODE``, else online if a key is configured, else offline."""
    return wanted or os.environ.get("WANDB_MODE", "").strip() or ("online" if has_key() else "offline")


def has_key() -> bool:
    """Return True if a W&B key is in ``WANDB_API_KEY`` or in the netrc file, where ``wandb login`` writes it."""
    if os.environ.get("WANDB_API_KEY", "").strip():
        return True
    own_server = os.environ.get("WANDB_BASE_URL", "").strip()
    hosts = [urllib.parse.urlsplit(own_server).netloc] if own_server else _HOSTS
    try:
        known = netrc.netrc(os.environ.get("NETRC") or Path.home() / ".netrc").hosts
    except (OSError, ValueError, netrc.NetrcParseError):
        return False
    return any(host in known for host in hosts)


def start_run(mode: str, project: str, run_id: str, folder: Path, config: Config) -> Any:
    """Start the W&B run with this id, or resume it if it exists; its files are in ``folder / "wandb"``."""
    import wandb  # slow to import, and not needed to train

    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        if value := os.environ.pop(name).strip():  # W&B rejects a key with a trailing newline, and an empty mode
            os.environ[name] = value
    (folder / "wandb").mkdir(parents=True, exist_ok=True)  # otherwise wandb uses a temporary folder
    settings = wandb.Settings(
        silent=True,
        console="off",
        disable_git=True,
        login_timeout=1,
        init_timeout=_INIT_SECONDS if mode == "online" else _START_SECONDS,
        finish_timeout=_FINISH_SECONDS,
    )
    run = wandb.init(
        mode=mode,
        project=project,
        id=run_id,
        name=folder.name,
        dir=folder,
        resume="allow",
        config=config_to_dict(config),
        settings=settings,
    )
    # Never log(step=...): W&B drops values that a resumed run logs for a step logged before.
    for names, axis in (
        (("train_*", "grad_norm", "learning_rate", "steps_per_second"), "step"),
        (("val_*", "epoch_*", "phrase_*"), "epoch"),
    ):
        run.define_metric(axis)
        for name in names:
            run.define_metric(name, step_metric=axis)
    return run


def stop_service() -> None:
    """Stop W&B's service process, which still holds the run's id after a failed start."""
    import wandb

    wandb.teardown()


def describe_upload(folder: Path, run_id: str) -> str:
    """Return the text ": ./venv/bin/python -m wandb sync ..." with the command that uploads an offline run."""
    parts = folder / "wandb" / f"offline-run-*-{run_id}"
    n_parts = len(list(parts.parent.glob(parts.name)))
    order = f" ({n_parts} parts, in the order of their names)" if n_parts > 1 else ""
    command = f"./venv/bin/python -m wandb sync {shlex.quote(str(parts.parent))}/{parts.name}"
    return f"{order}: {command}"  # the shell expands the asterisk


def make_media(folder: Path, shown: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return {name on W&B: sound or picture} of the phrases."""
    import wandb

    media: dict[str, Any] = {}
    for phrase in shown:
        for name in SOUNDS:
            path = folder / "sounds" / f"{phrase['stem']}_{name}.wav"
            media[f"phrase_{phrase['number']}_{name}"] = wandb.Audio(str(path), caption=f"{phrase['name']}, {name}")
        picture = folder / "pictures" / f"{phrase['stem']}_light.png"
        media[f"phrase_{phrase['number']}_picture"] = wandb.Image(str(picture), caption=phrase["name"])
    return media
