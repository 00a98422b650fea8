"""Recordings that arrive from the Hugging Face Hub while training goes on.

The index of the data set is read first, so the split is that of the same folder on a local disk, whatever the order
in which the files come. One thread fetches what training needs first; each file is compared with its sha256, for the
client compares only sizes, and read before it is trained on.
"""

import dataclasses
import functools
import itertools
import json
import logging
import math
import shutil
import threading
import time
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from huggingface_hub import HfApi
from huggingface_hub.utils import disable_progress_bars
from huggingface_hub.utils import logging as client_logging

from config import Config
from data import extractor_settings, list_recordings, load_recording
from recordings.corpus import Corpus, split_takes
from recordings.crops import ProcessRanks, Span
from recordings.hub_client import INDEX_FILE, HubError, HubFile, HubIndex, UnreachableError, ask_hub, read_text
from sound.atomic_files import hash_file, write_text

NOTE_FILE = "hub.json"  # which data set a folder holds: {"repo_id", "revision", "index"}
_ATTEMPTS = 3  # for a file that arrives damaged
_MAX_REPEATS = 8  # of a recording in an epoch while others are missing

log = logging.getLogger("hub")


class HubRecordings:
    """The recordings of a data set on the Hub, which arrive in a folder while training goes on.

    ``ready`` lists those that are here, whole and checked; ``failed`` says why a file will not come. Processes may
    share the folder: one at a time fetches a file, the others find it there.
    """

    def __init__(self, repo_id: str, folder: Path, config: Config, boundary: str | None = None) -> None:
        """Learn what there is, check what is here, and begin to fetch the rest; ``boundary`` as of ``read_corpus``.

        Raises:
            HubError: there is no such data set, it does not fit the configuration, or the folder is used otherwise.
            OSError: the folder cannot be written.
        """
        disable_progress_bars()  # training has its own
        client_logging.set_verbosity_error()
        self.repo_id, self.folder, self._api = repo_id, folder, HfApi()
        self._address = f"{self._api.endpoint}/datasets/{repo_id}"
        folder.mkdir(parents=True, exist_ok=True)
        self._revision, self.index = self._open_index()
        self.corpus = corpus_from_index(self.index, folder, config, repo_id, boundary)
        self.ready = [folder / entry.file for entry in self.index.recordings if self._is_whole(entry)]
        self.failed: dict[Path, str] = {}
        self.in_trouble = False  # the Hub does not answer
        self._closing = threading.Event()
        log.info("%d of %d recordings are in %s", len(self.ready), len(self.index.recordings), folder)
        self._thread = threading.Thread(target=self._fetch_all, name="hub", daemon=True)
        self._thread.start()

    @property
    def finished(self) -> bool:
        """Whether nothing more will come."""
        return not self._thread.is_alive()

    def close(self) -> None:
        """Fetch nothing more; what is here stays."""
        self._closing.set()
        self._thread.join(timeout=5)  # a request under way may take longer: the thread ends with the process

    def common_corpus(self, ranks: ProcessRanks, device: torch.device) -> Corpus:
        """Return the corpus as far as it is here on every machine; all ranks have to ask together.

        What is there to train on comes several times, so that epochs are not many and short while the data arrives.
        """
        paths, ready = sorted(self.folder / entry.file for entry in self.index.recordings), set(self.ready)
        counts = ranks.all_reduce(torch.tensor([float(path in ready) for path in paths], device=device)).tolist()
        here = {path for path, count in zip(paths, counts) if count == ranks.size}
        training, validation = (
            tuple(span for span in side if span.path in here) for side in (self.corpus.training, self.corpus.validation)
        )
        n_repeats = min(len(self.corpus.training) - len(training), (_MAX_REPEATS - 1) * len(training))
        training += tuple(itertools.islice(itertools.cycle(training), n_repeats))
        return dataclasses.replace(self.corpus, training=training, validation=validation)

    def wait_for_first(self, ranks: ProcessRanks, device: torch.device) -> None:
        """Wait for a recording to train on and, unless there is trouble, one held out, on every machine.

        Raises:
            HubError: none will come.
        """
        while True:
            no_hope = self.in_trouble or all(span.path in self.failed for span in self.corpus.validation)
            votes = torch.tensor([float(self.finished), float(no_hope)], device=device)
            n_over, n_without_hope = ranks.all_reduce(votes).tolist()  # first: what comes meanwhile is seen below
            corpus = self.common_corpus(ranks, device)
            if corpus.training and (corpus.validation or n_without_hope or n_over == ranks.size):
                return
            if n_over == ranks.size:
                reasons = "; ".join(dict.fromkeys(self.failed.values())) or "the machines have none in common"
                raise HubError(f"{self.repo_id}: there is no recording to train on: {reasons}")
            time.sleep(0.1)

    def _open_index(self) -> tuple[str, HubIndex]:
        """Return the revision of the data set and its index; without network, those of the last time."""
        path, known, index = self.folder / NOTE_FILE, None, None
        if path.is_file():
            try:
                note = json.loads(path.read_text(encoding="utf-8"))
                origin, known, index = note["repo_id"], note["revision"], HubIndex.from_json(note["index"], str(path))
            except (ValueError, LookupError, TypeError, RecursionError) as error:
                raise HubError(f"{path} is damaged; delete the folder and run the same command again") from error
            if origin != self.repo_id:
                raise HubError(f"{self.folder} holds {origin!r:.99}; give another --data_dir for {self.repo_id}")
        elif list_recordings(self.folder):
            raise HubError(f"{self.folder} holds other recordings; give an empty --data_dir for {self.repo_id}")
        try:
            info = ask_hub(lambda: self._api.dataset_info(self.repo_id, timeout=30), self._address, 1 if index else 8)
            if known == info.sha:
                return known, index
            text = ask_hub(lambda: read_text(self._api, self.repo_id, INDEX_FILE, info.sha), self._address)
        except UnreachableError as error:
            if index is None:
                raise
            log.warning("%s; going on with what is in %s", error, self.folder)
            return known, index
        if text is None:
            raise HubError(f"{self._address} holds no {INDEX_FILE}; scripts/upload_to_hf.py makes it")
        index = HubIndex.from_json(text, self.repo_id)
        write_text(path, json.dumps({"repo_id": self.repo_id, "revision": info.sha, "index": text}), shared=True)
        return info.sha, index

    def _is_whole(self, entry: HubFile) -> bool:
        path = self.folder / entry.file
        try:
            return path.stat().st_size == entry.n_bytes and hash_file(path) == entry.sha256
        except FileNotFoundError:  # perhaps another process is fetching it
            return False

    def _fetch_all(self) -> None:
        # One recording to begin with, then all that the validation loss needs, so that it is soon that of the whole.
        training, validation = ([span.path for span in side] for side in (self.corpus.training, self.corpus.validation))
        entries, here = {self.folder / entry.file: entry for entry in self.index.recordings}, set(self.ready)
        for path in (path for path in dict.fromkeys([*training[:1], *validation, *training]) if path not in here):
            try:
                fault = self._fetch(entries[path])
            except (HubError, OSError, NotImplementedError) as error:  # refused, a full disk, a disk without locks
                if not self._closing.is_set():
                    log.error("%s; no more recordings will come, %d are here to train on", error, len(self.ready))
                    self.failed[path] = str(error)
                return
            if self._closing.is_set():
                return
            if fault:
                log.warning("%s/%s is left out: %s", self._address, entries[path].file, fault)
                self.failed[path] = fault
            else:
                self.ready.append(path)

    def _fetch(self, entry: HubFile) -> str:
        """Fetch a file, again if it arrives damaged, and return why it cannot be trained on, or nothing."""
        fault = ""
        for _ in range(_ATTEMPTS):
            try:
                is_over = lambda: self._closing.is_set() or self._is_whole(entry)  # noqa: E731
                with FileLock(self.folder / ".lock").acquire(cancel_check=is_over):
                    fault = self._download(entry)
            except Timeout:  # another process has fetched it
                fault = self._find_fault(entry)
            if not fault or self._closing.is_set():
                break
        return fault

    def _download(self, entry: HubFile) -> str:
        """Fetch a file that is not here whole, and return why it cannot be trained on, or nothing."""
        where = {"repo_type": "dataset", "revision": self._revision, "local_dir": self.folder}
        try:
            if not self._is_whole(entry):
                # What a killed process left; without notes of its own the client replaces what is damaged.
                shutil.rmtree(self.folder / ".cache" / "huggingface" / "download", ignore_errors=True)
                download = functools.partial(self._api.hf_hub_download, self.repo_id, entry.file, **where)
                address = f"{self._address}/resolve/{self._revision}/{entry.file}"
                ask_hub(download, address, math.inf, self._closing.wait, self._report_trouble)
                self._report_trouble(None)
            fault = self._find_fault(entry)
        except (HubError, OSError) as error:
            # The client's own complaint about a wrong size is a plain OSError without a number.
            if type(error) is not HubError and (type(error) is not OSError or error.errno is not None):
                raise
            fault = str(error)
        if fault:
            (self.folder / entry.file).unlink(missing_ok=True)
        return fault

    def _find_fault(self, entry: HubFile) -> str:
        """Return why a file that has arrived cannot be trained on, or nothing."""
        if not self._is_whole(entry):
            return f"{entry.file} arrived damaged"
        try:
            recording = load_recording(self.folder / entry.file)
        except ValueError as error:
            return str(error)
        expected = self.index.instrument, entry.n_frames, entry.take
        found = recording.instrument, recording.n_frames, recording.source["sha256"]
        return "" if found == expected else f"{entry.file} is not what {INDEX_FILE} says"

    def _report_trouble(self, problem: str | None) -> None:
        if problem and not self.in_trouble:
            log.warning("%s; meanwhile %d recordings are here to train on", problem, len(self.ready))
        elif self.in_trouble and not problem:
            log.info("the Hub answers again")
        self.in_trouble = problem is not None


def corpus_from_index(
    index: HubIndex, folder: Path, config: Config, origin: str, boundary: str | None = None
) -> Corpus:
    """Split a data set as ``read_corpus`` splits the same files on disk.

    Raises:
        HubError: it was measured with other settings than the configuration's.
        ValueError: an instrument that config.json does not know.
    """
    config.instrument(index.instrument)
    if index.extractor != json.loads(json.dumps(extractor_settings(config, index.instrument))):
        raise HubError(
            f"{origin} was measured with other settings than preset {config.preset} of config.json has now; "
            f"train the preset that it was made for (--config_name), or upload it anew"
        )
    takes: dict[str, list[Span]] = {}
    for entry in sorted(index.recordings, key=lambda entry: folder / entry.file):
        takes.setdefault(entry.take, []).append(Span(folder / entry.file, 0, entry.n_frames))
    return Corpus(folder, index.instrument, *split_takes(takes, config.train.val_fraction, boundary))
