"""The index of a data set on the Hugging Face Hub: what training has to know of each file before it is here."""

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import RemoteEntryNotFoundError

from recordings.hub_client import HubError

INDEX_FILE = "index.json"
FORMAT_VERSION = 1
_PART = r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,150}"
_NAME = re.compile(rf"({_PART}/){{0,8}}{_PART}\.pt")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_FILES, _MAX_BYTES, _MAX_FRAMES = 100_000, 1 << 35, 10**8  # 10**8 frames are 11 days
_MAX_TEXT = 64 << 20  # characters of an index


@dataclass(frozen=True)
class HubFile:
    """One processed file of a data set on the Hub."""

    file: str  # path in the data set
    sha256: str  # of the file
    n_bytes: int
    n_frames: int
    take: str  # sha256 of the recording it was made from: copies of one take share it

    def is_valid(self) -> bool:
        """Return True if a processed file can be so, and its path is a plain one inside of any folder."""
        counts = (self.n_bytes, _MAX_BYTES), (self.n_frames, _MAX_FRAMES)
        return bool(
            _NAME.fullmatch(self.file) and _SHA256.fullmatch(self.sha256) and _SHA256.fullmatch(self.take)
        ) and all(type(count) is int and 0 < count <= most for count, most in counts)


@dataclass(frozen=True)
class HubIndex:
    """What a data set on the Hub holds: recordings of one instrument, measured with the same settings."""

    instrument: str
    extractor: dict[str, Any]
    recordings: tuple[HubFile, ...]

    def to_json(self) -> str:
        return json.dumps({"format_version": FORMAT_VERSION, **dataclasses.asdict(self)}, indent=1)

    @classmethod
    def from_json(cls, text: str, origin: str) -> "HubIndex":
        """Read an index that anybody may have written.

        Raises:
            HubError: it is not an index of this version, or has an entry that cannot be used.
        """
        place, names = f"{INDEX_FILE} of {origin}", [field.name for field in dataclasses.fields(HubFile)]
        try:
            content = json.loads(text)
            entries = [HubFile(**{name: entry[name] for name in names}) for entry in content["recordings"]]
            unusable = [entry.file for entry in entries if not entry.is_valid()]
            seen: dict[str, str] = {}
            unusable += [entry.file for entry in entries if seen.setdefault(entry.file.lower(), entry) is not entry]
            index = cls(content["instrument"], dict(content["extractor"]), tuple(entries))
            known = content["format_version"] == FORMAT_VERSION and re.fullmatch("[a-z0-9_-]{1,40}", index.instrument)
        except (TypeError, ValueError, LookupError, AttributeError, RecursionError) as error:
            raise HubError(f"{place} is not the index of a data set; upload it again") from error
        if not known or not 0 < len(entries) <= _MAX_FILES:
            raise HubError(
                f"{place} is not of version {FORMAT_VERSION}, or does not name an instrument and 1 to {_MAX_FILES} "
                f"recordings; upload it again"
            )
        if unusable:
            raise HubError(
                f"{place}: {unusable[0][:80]!r} cannot be used. A name is of letters A to Z, digits, '.', '_' and '-', "
                f"and no other is the same or differs in case only; lengths and sums are right. Rename or upload again"
            )
        return index


def read_text(api: HfApi, repo_id: str, name: str, revision: str | None = None) -> str | None:
    """Return a text file of a data set on the Hub, cut where no index is so long; None if it has none."""
    with TemporaryDirectory() as folder:  # not the client's cache, which answers for a Hub that is down
        try:
            path = api.hf_hub_download(repo_id, name, repo_type="dataset", revision=revision, local_dir=folder)
        except RemoteEntryNotFoundError:
            return None
        with Path(path).open(encoding="utf-8", errors="replace") as file:
            return file.read(_MAX_TEXT)
