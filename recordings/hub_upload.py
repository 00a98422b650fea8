"""Upload a folder of processed recordings to a data set on the Hugging Face Hub, in one commit.

The commit includes an index and a card that match the files. An interrupted upload leaves the data set unchanged;
files that have arrived are not sent again.
"""

import logging
import re
from dataclasses import replace
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, DatasetCard, HfApi
from tqdm import tqdm

from config import Config
from data import extractor_settings, find_recordings, load_recording
from recordings.hub_client import INDEX_FILE, HubError, HubFile, HubIndex, ask_hub, read_text
from sound.atomic_files import hash_file

CARD = "README.md"
HUB_LICENCES = ("cc0-1.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "mit", "apache-2.0")
_MARKS = ("<!-- statistics -->", "<!-- /statistics -->")  # around the text that each upload replaces
log = logging.getLogger("upload_to_hf")

_CARD = f"""---
tags: [audio, ddsp, {{instrument}}]
---

# {{repo_id}}

Recordings of one instrument, {{instrument}}, measured for training a DDSP instrument (Engel et al., ICLR 2020): f0,
A-weighted loudness and sound, one `.pt` file each, listed with their settings in `{INDEX_FILE}`. Train on them while
they download: `./venv/bin/python train.py --hf_repo_id {{repo_id}}`

{_MARKS[0]}
{_MARKS[1]}
"""


def describe_folder(data_dir: Path, config: Config) -> HubIndex:
    """Return the index of a folder of processed files.

    Raises:
        ValueError: there are no files, one is damaged, stale or badly named, or they belong to several instruments.
    """
    entries: list[HubFile] = []
    played: dict[str, Path] = {}
    for path in tqdm(find_recordings(data_dir), desc="reading", unit="file", disable=None):
        recording = load_recording(path, config)
        played.setdefault(recording.instrument, path)
        name, take, size = path.relative_to(data_dir).as_posix(), recording.source["sha256"], path.stat().st_size
        entries.append(HubFile(name, hash_file(path), size, recording.n_frames, take))
    if len(played) > 1:
        named = ", ".join(f"{name} ({path})" for name, path in played.items())
        raise ValueError(f"{data_dir} holds several instruments: {named}; a data set has one, give its folder")
    (instrument,) = played
    index = HubIndex(instrument, extractor_settings(config, instrument), tuple(entries))
    return HubIndex.from_json(index.to_json(), str(data_dir))  # checks it as a download would


def upload(
    api: HfApi, repo_id: str, data_dir: Path, local: HubIndex, licence: str | None, public: bool, delete_missing: bool
) -> tuple[list[HubFile], list[HubFile]]:
    """Create the data set if it does not exist, and update it; files that are not in its index stay.

    Returns:
        (files sent, files that are on the Hub but not in the folder).

    Raises:
        HubError: the Hub refuses or cannot be reached, or the data set would mix instruments or settings.
    """

    # Each attempt plans the commit again: an earlier one may have succeeded although its answer was lost.
    def commit() -> tuple[list[HubFile], list[HubFile]]:
        api.create_repo(repo_id, repo_type="dataset", private=not public, exist_ok=True)
        info = api.dataset_info(repo_id)
        if not public and not info.private:
            log.warning("%s already exists and is public", repo_id)
        there, names = {file.rfilename for file in info.siblings}, {entry.file.lower() for entry in local.recordings}
        texts = {name: read_text(api, repo_id, name) for name in (INDEX_FILE, CARD)}
        try:
            old = HubIndex.from_json(texts[INDEX_FILE], repo_id) if texts[INDEX_FILE] else replace(local, recordings=())
        except HubError as error:
            if not delete_missing:
                raise HubError(f"{error}; --delete_missing replaces it") from error
            old = replace(local, recordings=())
        known = [entry for entry in old.recordings if entry.file in there]
        others = [entry for entry in known if entry.file.lower() not in names]
        if others and not delete_missing and (old.instrument, old.extractor) != (local.instrument, local.extractor):
            raise HubError(
                f"{repo_id} holds {len(others)} other recordings ({old.instrument}), of another instrument or made "
                f"with other settings; choose another --repo_id, or replace them with --delete_missing"
            )
        kept = () if delete_missing else tuple(others)
        index = replace(local, recordings=tuple(sorted((*local.recordings, *kept), key=lambda entry: entry.file)))
        written = {INDEX_FILE: index.to_json(), CARD: write_card(index, repo_id, licence, texts[CARD])}
        unchanged = {(entry.file, entry.sha256) for entry in known}
        sent = [entry for entry in local.recordings if (entry.file, entry.sha256) not in unchanged]
        operations = [CommitOperationAdd(entry.file, data_dir / entry.file) for entry in sent]
        operations += [CommitOperationAdd(name, text.encode()) for name, text in written.items()]
        operations += [CommitOperationDelete(entry.file) for entry in others if delete_missing]
        api.create_commit(repo_id, operations, commit_message=f"Add {len(sent)} recordings", repo_type="dataset")
        return sent, others

    return ask_hub(commit, f"{api.endpoint}/datasets/{repo_id}")


def write_card(index: HubIndex, repo_id: str, licence: str | None, old: str | None) -> str:
    """Return the data card; an old one keeps the text outside the marks, and its licence unless a new one is given."""
    card = DatasetCard(old or _CARD.format(repo_id=repo_id, instrument=index.instrument))
    if licence is not None or card.data.license is None:
        known = licence is not None and licence.lower() in HUB_LICENCES
        card.data.license = licence.lower() if known else "other" if licence else "unknown"
        card.data.license_name = None if known else licence
    audio, n_takes = index.extractor["audio"], len({entry.take for entry in index.recordings})
    minutes = sum(entry.n_frames for entry in index.recordings) * audio["hop_length"] / audio["sample_rate"] / 60
    statistics = (
        f"{len(index.recordings):,} recordings ({n_takes:,} different), {minutes:.1f} minutes at "
        f"{audio['sample_rate']:,} Hz. Licence: {card.data.get('license_name') or card.data.license}."
    )
    card.text = re.sub(
        f"({_MARKS[0]}).*?({_MARKS[1]})", lambda m: f"{m[1]}\n{statistics}\n{m[2]}", card.text, flags=re.S
    )
    return str(card)
