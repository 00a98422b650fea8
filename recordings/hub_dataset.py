"""Recordings that arrive from the Hugging Face Hub while training goes on.

The index of the data set is read first, so the split is that of the same folder on a local disk, whatever the order
in which the files come. Each is fetched once, compared with its sha256, read, and only then put under its name.
"""

import dataclasses
import itertools
import json
import logging
import threading
import time
from collections import deque
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from huggingface_hub.utils import disable_progress_bars
from huggingface_hub.utils import logging as client_logging

from config import Config
from data import extractor_settings
from recordings.corpus import Corpus, split_takes
from recordings.crops import Span
from recordings.hub_cache import DamagedHubFileError, HubCache
from recordings.hub_client import (
    HubError,
    HubFile,
    HubIndex,
    HubRetryPolicy,
    RefusedError,
    UnreachableError,
    request_with_retries,
)
from recordings.process_ranks import ProcessRanks

STREAMING_POLICY = HubRetryPolicy(retries=float("inf"))  # training goes on meanwhile, so there is no hurry to give up
_MAX_REPEATS = 8  # of a recording in an epoch while others are missing
_COMMON_RECORDING_SECONDS = 600.0  # to have one recording on all machines
_POLL_SECONDS = 0.5  # between two looks

log = logging.getLogger("hub")


class HubRecordings:
    """The recordings of a data set on the Hub, which arrive in a folder while training goes on.

    One process at a time fetches into a folder; others wait and see the files come.

    ``corpus`` is known after ``start``, ``failed`` says why a file will not come.
    """

    def __init__(
        self,
        repo_id: str,
        cache_dir: Path,
        config: Config,
        boundary: str | None = None,
        retry_policy: HubRetryPolicy = STREAMING_POLICY,
        n_threads: int = 4,
    ) -> None:
        self.repo_id = repo_id
        self.cache = HubCache(repo_id, cache_dir)
        self.config = config
        self.boundary = boundary  # see ``read_corpus``
        self.retry_policy = retry_policy
        self.n_threads = n_threads
        self.corpus: Corpus
        self.failed: dict[Path, str] = {}
        self._ready: dict[Path, None] = {}  # in the order of arrival
        self._queued: deque[HubFile] = deque()
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._fetch_all, name="hub", daemon=True)
        self._trouble_began: float | None = None  # by the monotonic clock
        self._answered = 0.0  # when the last trouble ended

    def start(self) -> None:
        """Learn what there is, check what is cached, and begin to fetch the rest.

        Raises:
            HubError: there is no such data set, it does not fit the configuration, or the folder is used otherwise.
            OSError: the folder cannot be written.
        """
        disable_progress_bars()  # training has its own
        client_logging.set_verbosity_error()
        index = self.cache.open_index()
        self.corpus = corpus_from_index(index, self.cache.folder, self.config, self.repo_id, self.boundary)
        with ThreadPoolExecutor(self.n_threads) as pool:
            is_complete = list(pool.map(self.cache.has_file, index.recordings))
        self._ready = dict.fromkeys(
            self.cache.path(entry) for entry, here in zip(index.recordings, is_complete) if here
        )
        missing = {self.cache.path(entry): entry for entry, here in zip(index.recordings, is_complete) if not here}
        self._queued.extend(missing[path] for path in self._order() if path in missing)
        log.info(
            "%s: %d of %d recordings are in %s", self.repo_id, sum(is_complete), len(is_complete), self.cache.folder
        )
        self._thread.start()

    def ready(self) -> list[Path]:
        """Return the recordings that are here, whole and checked."""
        with self._changed:
            return list(self._ready)

    @property
    def finished(self) -> bool:
        """Whether nothing more will come."""
        return not self._thread.is_alive()

    def wait_for(self, n: int = 1) -> None:
        """Wait until ``n`` recordings to train on are here, and one that is held out, unless there is trouble.

        Raises:
            HubError: so many will not come.
        """
        training, validation = ({span.path for span in side} for side in (self.corpus.training, self.corpus.validation))

        def enough() -> bool:
            hoped_for = set() if self._trouble_began is not None else validation - self.failed.keys()
            return len(training & self._ready.keys()) >= n and (not hoped_for or bool(hoped_for & self._ready.keys()))

        with self._changed:
            self._changed.wait_for(lambda: enough() or self._closing.is_set())
            if len(training & self._ready.keys()) < n:
                reasons = "; ".join(dict.fromkeys(self.failed.values())) or "the download was stopped"
                raise HubError(f"{self.repo_id}: too few recordings to train on ({reasons})")

    def available_corpus(self, here: Iterable[Path] | None = None) -> Corpus:
        """Return the corpus as far as it is here; the whole one, in its own order, when all is.

        What is there to train on comes several times, so that epochs are not many and short while the data arrives.

        Args:
            here: these files only (default: ``ready``).
        """
        files = set(self.ready() if here is None else here)
        training, validation = (
            tuple(span for span in side if span.path in files)
            for side in (self.corpus.training, self.corpus.validation)
        )
        n_missing = len(self.corpus.training) - len(training)
        repeats = itertools.islice(itertools.cycle(training), min(n_missing, (_MAX_REPEATS - 1) * len(training)))
        return dataclasses.replace(self.corpus, training=(*training, *repeats), validation=validation)

    def close(self) -> None:
        """Fetch nothing more; what is here stays."""
        self._stop()
        if self._thread.ident is not None:
            self._thread.join(timeout=5)  # a request under way may take longer: the thread ends with the process

    def _order(self) -> Iterable[Path]:
        # A few to begin with, then all that the validation loss needs, so that it is soon that of the whole.
        training, validation = ([span.path for span in side] for side in (self.corpus.training, self.corpus.validation))
        return dict.fromkeys([*training[:1], *validation[:1], *training[: self.n_threads], *validation, *training])

    def _fetch_all(self) -> None:
        lock = FileLock(self.cache.folder / ".lock")
        while self._queued and not self._closing.is_set():
            try:
                with lock.acquire(timeout=0):
                    self._refresh_arrivals()
                    self.cache.clear_incoming()
                    self._run_workers()
                    self.cache.clear_incoming(all_of_it=True)
                break
            except Timeout:  # another process fetches
                self._refresh_arrivals()
                if not self._queued:
                    break
                self._closing.wait(0.5)
            except (OSError, NotImplementedError) as error:
                log.error("%s cannot be locked, so nothing is fetched into it: %s", self.cache.folder, error)
                break
        self._stop()

    def _refresh_arrivals(self) -> None:
        """Take note of what another process has fetched."""
        with self._changed:
            arrived = [entry for entry in self._queued if self.cache.path(entry).is_file()]
            self._ready |= dict.fromkeys(map(self.cache.path, arrived))
            self._queued = deque(entry for entry in self._queued if self.cache.path(entry) not in self._ready)
            self._changed.notify_all()

    def _run_workers(self) -> None:
        workers = [threading.Thread(target=self._fetch_queued, daemon=True) for _ in range(self.n_threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if not self._queued and not self._closing.is_set():
            log.info("%s: %d recordings are here, %d failed", self.repo_id, len(self._ready), len(self.failed))

    def _fetch_queued(self) -> None:
        while not self._closing.is_set():
            with self._changed:
                if not self._queued:
                    return
                entry = self._queued.popleft()
            try:
                self._fetch(entry)
            except (RefusedError, UnreachableError, OSError, RuntimeError) as error:
                self._give_up(entry, str(error))
                return

    def _fetch(self, entry: HubFile, attempts: int = 3) -> None:
        requested_at = 0.0

        def warn(message: str) -> None:
            self._warn_once(message, requested_at)

        def download() -> Path:
            nonlocal requested_at
            requested_at = time.monotonic()
            return self.cache.download(entry)

        path, reason = self.cache.path(entry), ""
        for _ in range(attempts):
            try:
                arrived = request_with_retries(download, self.repo_id, self.retry_policy, self._closing.wait, warn)
                self.cache.accept(arrived, entry)
            except (HubError, DamagedHubFileError, OSError) as error:
                # The client's own complaint about a file of the wrong size is an OSError without a number.
                if isinstance(error, (RefusedError, UnreachableError)) or getattr(error, "errno", None) is not None:
                    raise
                reason = str(error)
                continue
            return self._note_arrival(path, requested_at)
        log.warning("%s will be missing: %s", entry.file, reason)
        with self._changed:
            self.failed[path] = reason
            self._changed.notify_all()

    def _note_arrival(self, path: Path, requested_at: float) -> None:
        with self._changed:
            # What was on its way when the trouble began says nothing of how the Hub is now.
            if self._trouble_began is not None and requested_at > self._trouble_began:
                log.info("the Hub answers again")
                self._trouble_began, self._answered = None, time.monotonic()
            self._ready[path] = None
            self._changed.notify_all()

    def _warn_once(self, message: str, requested_at: float) -> None:
        with self._changed:
            if requested_at < self._answered:  # by now it is known to answer again
                return
            if self._trouble_began is None:
                log.warning("%s; training goes on with the %d recordings that are here", message, len(self._ready))
                self._trouble_began = time.monotonic()
            self._changed.notify_all()

    def _give_up(self, entry: HubFile, reason: str) -> None:
        if not self._closing.is_set():
            log.error("%s; training goes on with the %d recordings that are here", reason, len(self._ready))
            with self._changed:
                self.failed[self.cache.path(entry)] = reason
        self._stop()

    def _stop(self) -> None:
        with self._changed:
            self._closing.set()
            self._changed.notify_all()


def common_corpus(recordings: HubRecordings, ranks: ProcessRanks, device: torch.device) -> Corpus:
    """Return the corpus as far as it is here on every machine; all ranks have to ask together."""
    paths = sorted({span.path for span in (*recordings.corpus.training, *recordings.corpus.validation)})
    here = set(recordings.ready())
    counts = ranks.all_reduce(torch.tensor([float(path in here) for path in paths], device=device))
    return recordings.available_corpus(path for path, count in zip(paths, counts.tolist()) if count == ranks.size)


def wait_for_common_recording(
    recordings: HubRecordings, ranks: ProcessRanks, device: torch.device, seconds: float = _COMMON_RECORDING_SECONDS
) -> None:
    """Wait until one recording to train on is here on every machine; each may have a folder of its own.

    Raises:
        HubError: none is after so many seconds, or none can come any more.
    """
    deadline = time.monotonic() + seconds
    while True:
        is_over = recordings.finished  # asked first: what comes meanwhile is seen below
        if common_corpus(recordings, ranks, device).training:
            return
        votes = torch.tensor([float(is_over), float(time.monotonic() > deadline)], device=device)
        n_over, n_late = ranks.all_reduce(votes).tolist()  # so that all leave, or none
        if n_over == ranks.size or n_late:
            raise HubError(
                f"{recordings.repo_id}: the machines have no recording in common to train on; is the connection of "
                f"one of them slow? Run the same command again"
            )
        time.sleep(_POLL_SECONDS)


def corpus_from_index(
    index: HubIndex, cache_dir: Path, config: Config, origin: str, boundary: str | None = None
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
    for entry in sorted(index.recordings, key=lambda entry: cache_dir / entry.file):
        takes.setdefault(entry.take, []).append(Span(cache_dir / entry.file, 0, entry.n_frames))
    return Corpus(cache_dir, index.instrument, *split_takes(takes, config.train.val_fraction, boundary))
