"""Download recordings from the Hugging Face Hub during training.

The index of the data set is read first, so the split equals that of the same folder on disk, in whatever order the
files arrive. One thread downloads the files, those that training needs first. Each file is checked against its sha256
(the client checks only the size) and opened before it is used.
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

NOTE_FILE = "hub.json"  # identifies the data set in a folder: {"repo_id", "revision", "index"}
_ATTEMPTS = 3  # downloads of a file that arrives damaged
_MAX_REPEATS = 8  # repeats of a recording in an epoch while others are missing

log = logging.getLogger("hub")


class HubRecordings:
    """Recordings of a data set on the Hub, downloaded to a folder during training.

    ``ready`` lists the complete, checked files; ``failed`` maps a file to the reason why it is left out. Processes may
    share the folder: only one at a time downloads, the others use the files it writes.
    """

    def __init__(self, repo_id: str, folder: Path, config: Config, boundary: str | None = None) -> None:
        """Read the index, check the files in the folder and start downloading the others.

        Args:
            repo_id: data set, user/name.
            folder: download folder.
            config: settings that the files must have been made with.
            boundary: as in ``read_corpus``.

        Raises:
            HubError: the data set does not exist or does not fit the configuration, or the folder holds other data.
            OSError: the folder cannot be written.
        """
        disable_progress_bars()  # training shows its own
        client_logging.set_verbosity_error()
        self.repo_id, self.folder, self._api = repo_id, folder, HfApi()
        self._address = f"{self._api.endpoint}/datasets/{repo_id}"
        folder.mkdir(parents=True, exist_ok=True)
        self._revision, self.index = self._open_index()
        self.corpus = corpus_from_index(self.index, folder, config, repo_id, boundary)
        self.ready = [folder / entry.file for entry in self.index.recordings if self._is_whole(entry)]
        self.failed: dict[Path, str] = {}
        self.in_trouble = False  # True while the Hub does not respond
        self._closing = threading.Event()
        log.info("%d of %d recordings are already in %s", len(self.ready), len(self.index.recordings), folder)
        self._thread = threading.Thread(target=self._fetch_all, name="hub", daemon=True)
        self._thread.start()

    @property
    def finished(self) -> bool:
        """True if no more recordings will arrive."""
        return not self._thread.is_alive()

    def close(self) -> None:
        """Stop downloading; keep the files."""
        self._closing.set()
        self._thread.join(timeout=5)  # a pending request may take longer; the thread ends with the process

    def common_corpus(self, ranks: ProcessRanks, device: torch.device) -> Corpus:
        """Return the part of the corpus that every machine has; all ranks must call this together.

        Training recordings are repeated, so that epochs are not too short while others are missing.
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
        """Wait until every machine has a training recording and, unless the Hub fails, a held-out one.

        Raises:
            HubError: no training recording can be downloaded.
        """
        while True:
            no_validation = self.in_trouble or all(span.path in self.failed for span in self.corpus.validation)
            votes = torch.tensor([float(self.finished), float(no_validation)], device=device)
            # Before common_corpus, so that recordings that arrive in between are seen.
            n_finished, n_without_validation = ranks.all_reduce(votes).tolist()
            corpus = self.common_corpus(ranks, device)
            if corpus.training and (corpus.validation or n_without_validation or n_finished == ranks.size):
                return
            if n_finished == ranks.size:
                reasons = "; ".join(dict.fromkeys(self.failed.values())) or "no recording is on all machines"
                raise HubError(f"{self.repo_id}: there is no recording to train on: {reasons}")
            time.sleep(0.1)

    def _open_index(self) -> tuple[str, HubIndex]:
        """Return (revision, index) of the data set; without a network, those of the last run."""
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
            log.warning("%s; continuing with the files in %s", error, self.folder)
            return known, index
        if text is None:
            raise HubError(f"{self._address} holds no {INDEX_FILE}; upload the data set with scripts/upload_to_hf.py")
        index = HubIndex.from_json(text, self.repo_id)
        write_text(path, json.dumps({"repo_id": self.repo_id, "revision": info.sha, "index": text}), shared=True)
        return info.sha, index

    def _is_whole(self, entry: HubFile) -> bool:
        path = self.folder / entry.file
        try:
            return path.stat().st_size == entry.n_bytes and hash_file(path) == entry.sha256
        except FileNotFoundError:  # not downloaded yet
            return False

    def _fetch_all(self) -> None:
        # One training recording first, then all validation ones, so that the validation loss is soon the final one.
        training, validation = ([span.path for span in side] for side in (self.corpus.training, self.corpus.validation))
        entries, here = {self.folder / entry.file: entry for entry in self.index.recordings}, set(self.ready)
        for path in (path for path in dict.fromkeys([*training[:1], *validation, *training]) if path not in here):
            try:
                fault = self._fetch(entries[path])
            except (HubError, OSError, NotImplementedError) as error:  # refused, a full disk, a disk without locks
                if not self._closing.is_set():
                    log.error("%s; the download ends, training uses the %d recordings here", error, len(self.ready))
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
        """Download a file, again if it arrives damaged; return "" or the reason why it cannot be used."""
        fault = ""
        for _ in range(_ATTEMPTS):
            try:
                is_done = lambda: self._closing.is_set() or self._is_whole(entry)  # noqa: E731
                with FileLock(self.folder / ".lock").acquire(cancel_check=is_done):
                    fault = self._download(entry)
            except Timeout:  # another process has downloaded it
                fault = self._find_fault(entry)
            if not fault or self._closing.is_set():
                break
        return fault

    def _download(self, entry: HubFile) -> str:
        """Download a file unless it is complete; return "" or the reason why it cannot be used."""
        where = {"repo_type": "dataset", "revision": self._revision, "local_dir": self.folder}
        try:
            if not self._is_whole(entry):
                # Partial files of a killed process; without its cache, the client replaces damaged files.
                shutil.rmtree(self.folder / ".cache" / "huggingface" / "download", ignore_errors=True)
                download = functools.partial(self._api.hf_hub_download, self.repo_id, entry.file, **where)
                address = f"{self._address}/resolve/{self._revision}/{entry.file}"
                ask_hub(download, address, math.inf, self._closing.wait, self._report_trouble)
                self._report_trouble(None)
            fault = self._find_fault(entry)
        except (HubError, OSError) as error:
            # The client raises a plain OSError without errno for a wrong size.
            if type(error) is not HubError and (type(error) is not OSError or error.errno is not None):
                raise
            fault = str(error)
        if fault:
            (self.folder / entry.file).unlink(missing_ok=True)
        return fault

    def _find_fault(self, entry: HubFile) -> str:
        """Return "" or the reason why a downloaded file cannot be used."""
        if not self._is_whole(entry):
            return f"{entry.file} arrived damaged"
        try:
            recording = load_recording(self.folder / entry.file)
        except ValueError as error:
            return str(error)
        expected = self.index.instrument, entry.n_frames, entry.take
        found = recording.instrument, recording.n_frames, recording.source["sha256"]
        return "" if found == expected else f"{entry.file} does not match {INDEX_FILE}"

    def _report_trouble(self, problem: str | None) -> None:
        if problem and not self.in_trouble:
            log.warning("%s; until then training uses the %d recordings here", problem, len(self.ready))
        elif self.in_trouble and not problem:
            log.info("the Hub responds again")
        self.in_trouble = problem is not None


def corpus_from_index(
    index: HubIndex, folder: Path, config: Config, origin: str, boundary: str | None = None
) -> Corpus:
    """Split a data set as ``read_corpus`` splits the same files on disk.

    Raises:
        HubError: its files were made with settings that differ from the configuration's.
        ValueError: the instrument is not in config.json.
    """
    config.instrument(index.instrument)
    if index.extractor != json.loads(json.dumps(extractor_settings(config, index.instrument))):
        raise HubError(
            f"{origin} was made with other settings than those of preset {config.preset} in config.json; "
            f"give the preset that it was made for (--config_name), or upload it again"
        )
    takes: dict[str, list[Span]] = {}
    for entry in sorted(index.recordings, key=lambda entry: folder / entry.file):
        takes.setdefault(entry.take, []).append(Span(folder / entry.file, 0, entry.n_frames))
    return Corpus(folder, index.instrument, *split_takes(takes, config.train.val_fraction, boundary))
