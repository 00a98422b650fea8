"""A data set of the Hugging Face Hub as a folder on disk: its index, and those of its files that are here.

A file carries its name only when it is whole and checked, so that whoever looks, another process too, can use it.
"""

import json
import logging
import os
import shutil
import tempfile
from pathlib import Path

from huggingface_hub.errors import EntryNotFoundError

from data import list_recordings, load_recording
from recordings.hub_client import (
    HUB_RETRY_POLICY,
    INDEX_FILE,
    HubError,
    HubFile,
    HubIndex,
    HubRetryPolicy,
    UnreachableError,
    connect_to_hub,
    request_with_retries,
)
from sound.atomic_files import hash_file, write_text

NOTE_FILE = "hub.json"  # where the data set comes from, and its index
_INCOMING = ".incoming"  # files that are not checked yet
_SINGLE_TRY = HubRetryPolicy(retries=0)  # where what the Hub said before would do

log = logging.getLogger("hub")


def default_cache_dir(repo_id: str) -> Path:
    """Return the folder that a data set is kept in unless another is given."""
    return Path("data/hub") / repo_id.replace("/", "--")


class DamagedHubFileError(Exception):
    """A file that is not what the index says."""


class HubCache:
    """The folder of one data set."""

    def __init__(self, repo_id: str, folder: Path) -> None:
        self.repo_id = repo_id
        self.folder = folder
        self._api = connect_to_hub()
        self._revision = ""

    def open_index(self) -> HubIndex:
        """Return what the data set holds, by the Hub or, if that cannot be reached, by what it said before.

        Raises:
            HubError: there is no such data set, or the folder is used otherwise.
            OSError: the folder cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        note = self._read_note()
        try:
            retry_policy = _SINGLE_TRY if note else HUB_RETRY_POLICY
            revision = request_with_retries(
                lambda: self._api.dataset_info(self.repo_id, timeout=30).sha, self.repo_id, retry_policy
            )
            if note is None or note["revision"] != revision:
                note = {"repo_id": self.repo_id, "revision": revision, "index": self._download_index(revision)}
                self._write_note(note)
        except UnreachableError as error:
            if note is None:
                raise
            log.warning("%s; going on with what is in %s", error, self.folder)
        index = HubIndex.from_json(note["index"], self.repo_id)
        self._revision = note["revision"]
        return index

    def _write_note(self, note: dict[str, str]) -> None:
        HubIndex.from_json(note["index"], self.repo_id)  # what cannot be used is not kept
        write_text(self.folder / NOTE_FILE, json.dumps(note), shared=True)

    def _read_note(self) -> dict[str, str] | None:
        path = self.folder / NOTE_FILE
        if path.is_file():
            try:
                note = json.loads(path.read_text())
                owner = note["repo_id"], note["revision"], note["index"]
            except (ValueError, LookupError, TypeError) as error:
                raise HubError(f"{path} is damaged; delete the folder and run the same command again") from error
            if owner[0] == self.repo_id:
                return note
            raise HubError(f"{self.folder} holds {owner[0]}; give another --data_dir for {self.repo_id}")
        if list_recordings(self.folder):
            raise HubError(f"{self.folder} holds recordings of its own; give an empty --data_dir for {self.repo_id}")
        return None

    def _download_index(self, revision: str) -> str:
        try:
            with tempfile.TemporaryDirectory() as folder:
                return request_with_retries(
                    lambda: self._download(INDEX_FILE, revision, folder), self.repo_id
                ).read_text()
        except HubError as error:
            if isinstance(error.__cause__, EntryNotFoundError):
                raise HubError(f"{self.repo_id} holds no {INDEX_FILE}; scripts/upload_to_hf.py makes it") from error
            raise

    def _download(self, file: str, revision: str, folder: str | Path) -> Path:
        return Path(
            self._api.hf_hub_download(self.repo_id, file, repo_type="dataset", revision=revision, local_dir=folder)
        )

    def path(self, entry: HubFile) -> Path:
        """Return where a file is, once it is here."""
        return self.folder / entry.file

    def has_file(self, entry: HubFile) -> bool:
        """Return True if a file is here; a broken one is deleted."""
        path = self.path(entry)
        try:
            if path.stat().st_size == entry.n_bytes and hash_file(path) == entry.sha256:
                return True
        except FileNotFoundError:  # perhaps not yet: another process may be fetching it
            return False
        path.unlink(missing_ok=True)  # of an older version, or broken
        return False

    def download(self, entry: HubFile) -> Path:
        """Ask the Hub once for a file, and return where it waits to be accepted."""
        return self._download(entry.file, self._revision, self.folder / _INCOMING)

    def accept(self, arrived: Path, entry: HubFile) -> None:
        """Check a file that was downloaded, and put it under its name.

        Raises:
            DamagedError: it is not what the index says, and deleted.
        """
        self._check(arrived, entry)
        path = self.path(entry)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(arrived, path)

    def _check(self, arrived: Path, entry: HubFile) -> None:
        try:
            if hash_file(arrived) != entry.sha256:
                raise DamagedHubFileError(f"{entry.file} arrived damaged")
            recording = load_recording(arrived)
            if (recording.n_frames, recording.source["sha256"]) != (entry.n_frames, entry.take):
                raise DamagedHubFileError(f"{entry.file} is not what {INDEX_FILE} says")
        except (ValueError, DamagedHubFileError) as error:
            arrived.unlink()
            raise DamagedHubFileError(str(error)) from error

    def clear_incoming(self, all_of_it: bool = False) -> None:
        """Delete what a killed process left unchecked; what it left half may stay, for the client goes on with it."""
        for left in (self.folder / _INCOMING).rglob("*.pt"):
            left.unlink(missing_ok=True)
        if all_of_it:
            shutil.rmtree(self.folder / _INCOMING, ignore_errors=True)
