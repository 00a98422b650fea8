"""Upload a folder of processed recordings to a data set on the Hugging Face Hub, in commits of bounded size.

Each commit has an index and a card that describe just what is there, so that a stopped upload is a smaller data set,
not a broken one.
"""

import functools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.hf_api import RepoFile
from tqdm import tqdm

from config import Config
from data import Recording, extractor_settings, find_recordings, load_recording
from recordings.data_card import format_dataset_card
from recordings.hub_client import (
    INDEX_FILE,
    HubError,
    HubFile,
    HubIndex,
    is_safe_name,
    request_with_retries,
)
from sound.atomic_files import hash_file

CARD = "README.md"
BATCH_FILES = 500  # of a commit: the Hub wants few commits, a lost connection should cost little
BATCH_BYTES = 4 << 30

log = logging.getLogger("upload_to_hf")


def describe(path: Path, data_dir: Path, recording: Recording) -> HubFile:
    """Describe one processed file.

    Raises:
        ValueError: a name that not every system can have.
    """
    name = path.relative_to(data_dir).as_posix()
    if not is_safe_name(name):
        raise ValueError(f"{path} cannot be uploaded under its name: no hidden folders, no ':' and no '\\', please")
    return HubFile(
        name,
        sha256=hash_file(path),
        n_bytes=path.stat().st_size,
        n_frames=recording.n_frames,
        take=recording.source["sha256"],
        f0_range=_f0_range(recording),
    )


def _f0_range(recording: Recording) -> tuple[float, float] | None:
    settings = recording.extractor["features"]
    voiced = recording.periodicity >= settings["periodicity_threshold"]
    voiced &= recording.loudness > settings["loudness_floor"]
    if not voiced.any():
        return None
    low, high = torch.quantile(recording.f0[voiced], torch.tensor([0.01, 0.99])).tolist()
    return round(low, 1), round(high, 1)


def read_folder(data_dir: Path, config: Config) -> HubIndex:
    """Describe a folder of processed files.

    Raises:
        ValueError: none, one that is damaged or stale, or several instruments.
    """
    paths = find_recordings(data_dir)
    entries: list[HubFile] = []
    played: dict[str, Path] = {}
    for path in tqdm(paths, desc="reading", unit="file", disable=None):
        recording = load_recording(path, config)
        played.setdefault(recording.instrument, path)
        entries.append(describe(path, data_dir, recording))
    if len(played) > 1:
        named = ", ".join(f"{name} ({path})" for name, path in played.items())
        raise ValueError(f"a data set has one instrument, {data_dir} has several: {named}; give the folder of one")
    (instrument,) = played
    return HubIndex(instrument, extractor_settings(config, instrument), tuple(entries))


class Upload:
    """The folder, and what the Hub has of it."""

    def __init__(self, api: HfApi, repo_id: str, local: HubIndex, data_dir: Path, licence: str | None) -> None:
        self.api, self.repo_id, self.local, self.data_dir, self.licence = api, repo_id, local, data_dir, licence
        self._ask = functools.partial(request_with_retries, repo_id=repo_id)
        self.remote = self._list_files()
        self.texts = {name: self._read_text(name) for name in (INDEX_FILE, CARD) if name in self.remote}
        self.old_index = HubIndex.from_json(self.texts[INDEX_FILE], repo_id) if INDEX_FILE in self.texts else None
        self.there = [entry for entry in local.recordings if self._is_there(entry)]
        self.missing = [entry for entry in local.recordings if not self._is_there(entry)]
        names = {entry.file for entry in local.recordings}
        known = self.old_index.recordings if self.old_index else ()
        self.others = [entry for entry in known if entry.file not in names and self._is_there(entry)]
        self.surplus = sorted(name for name in self.remote if name.endswith(".pt") and name not in names)

    def _list_files(self) -> dict[str, RepoFile]:
        def list_files() -> dict[str, RepoFile]:
            tree = self.api.list_repo_tree(self.repo_id, repo_type="dataset", recursive=True)
            return {file.path: file for file in tree if isinstance(file, RepoFile)}

        return self._ask(list_files)

    def _is_there(self, entry: HubFile) -> bool:
        file = self.remote.get(entry.file)
        return file is not None and file.lfs is not None and file.lfs.sha256 == entry.sha256

    def _read_text(self, name: str) -> str:
        return Path(self._ask(lambda: self.api.hf_hub_download(self.repo_id, name, repo_type="dataset"))).read_text()

    def require_one_kind(self) -> None:
        """Refuse to mix what is here with what the Hub has and keeps.

        Raises:
            HubError: another instrument, or other settings.
        """
        old = self.old_index
        if self.others and (old.instrument, old.extractor) != (self.local.instrument, self.local.extractor):
            raise HubError(
                f"{self.repo_id} holds {len(self.others)} other recordings ({old.instrument}) of another instrument or "
                f"made with other settings: take another --repo_id, or replace them with --delete_missing"
            )

    def run(self, delete_missing: bool) -> None:
        """Bring the Hub up to date.

        Raises:
            HubError: see ``require_one_kind`` and ``hub.ask``.
        """
        if delete_missing:
            self.others = []
        self.require_one_kind()
        done, surplus = [*self.others, *self.there], self.surplus if delete_missing else []
        batches = list(batched(self.missing))
        for number, batch in enumerate(batches, start=1):
            megabytes = sum(entry.n_bytes for entry in batch) / 1e6
            log.info("commit %d of %d: %d files, %.0f MB", number, len(batches), len(batch), megabytes)
            done += batch
            self._commit(batch, done, f"Add {len(batch)} recordings")
        if not batches:
            self._commit([], done, "Update the index and the card")
        if surplus:
            self._ask(lambda: self._delete(surplus))

    def _index_of(self, entries: Sequence[HubFile]) -> HubIndex:
        ordered = tuple(sorted(entries, key=lambda entry: entry.file))
        return HubIndex(self.local.instrument, self.local.extractor, ordered)

    def _commit(self, batch: Sequence[HubFile], done: Sequence[HubFile], message: str) -> None:
        index = self._index_of(done)
        new = {
            INDEX_FILE: index.to_json(),
            CARD: format_dataset_card(index, self.repo_id, self.licence, self.texts.get(CARD)),
        }
        if not batch and new == self.texts:
            return

        def commit() -> None:
            files = [CommitOperationAdd(entry.file, self.data_dir / entry.file) for entry in batch]
            texts = [CommitOperationAdd(name, text.encode()) for name, text in new.items()]
            self.api.create_commit(self.repo_id, [*files, *texts], commit_message=message, repo_type="dataset")

        self._ask(commit)

    def _delete(self, names: Sequence[str]) -> None:
        there = self._list_files()  # anew: an earlier try may have got through
        operations = [CommitOperationDelete(name) for name in names if name in there]
        if operations:
            message = f"Delete {len(operations)} recordings"
            self.api.create_commit(self.repo_id, operations, commit_message=message, repo_type="dataset")


def batched(entries: Sequence[HubFile]) -> Iterator[list[HubFile]]:
    """Cut a list into commits of bounded size."""
    batch: list[HubFile] = []
    for entry in entries:
        if batch and (len(batch) == BATCH_FILES or sum(e.n_bytes for e in batch) + entry.n_bytes > BATCH_BYTES):
            yield batch
            batch = []
        batch.append(entry)
    if batch:
        yield batch


def open_data_set(api: HfApi, repo_id: str, private: bool) -> None:
    """Make the data set if there is none."""
    request_with_retries(lambda: api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True), repo_id)
    if private and not request_with_retries(lambda: api.dataset_info(repo_id), repo_id).private:
        log.warning("%s exists already and is public", repo_id)
