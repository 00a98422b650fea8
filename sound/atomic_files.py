"""Atomic file writing, and loading of torch files that executes nothing in them."""

import contextlib
import hashlib
import os
import pickle
import pickletools
import secrets
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

_MAX_NAME = 255  # bytes in a file name
_MAX_MEMBERS = 10_000  # in a torch file: one per tensor
_MAX_SHARED_TUPLES = 16  # repeated references to tuples in a pickle; nested, each doubles the time of a hash
# Raised by torch's unpickler on bytes that it did not write.
_UNREADABLE = (
    RuntimeError,
    MemoryError,
    zipfile.BadZipFile,
    pickle.UnpicklingError,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    struct.error,
)


@contextlib.contextmanager
def atomic_write(path: Path, shared: bool = False) -> Iterator[Path]:
    """Yield a temporary path to write; on success it is renamed to ``path``, on an exception it is deleted.

    Args:
        path: target; its folder is created, a link is followed, a device or pipe is written directly.
        shared: use a unique temporary name, because other processes may write the same file at the same time.
    """
    path = path.resolve()
    if path.exists() and not path.is_file() and not path.is_dir():
        yield path
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    end = f".{secrets.token_hex(4)}.part" if shared else ".part"
    name = path.name
    if len(os.fsencode(name + end)) >= _MAX_NAME:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    partial = path.with_name(f".{name}{end}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str, shared: bool = False) -> None:
    """Write a text file atomically; ``shared`` as for ``atomic_write``. Text that UTF-8 cannot encode is escaped."""
    with atomic_write(path, shared) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_tensors(path: Path, content: dict[str, Any]) -> None:
    """Write plain types and tensors; the old file at ``path`` stays until the new one is complete and on the disk.

    Raises:
        OSError: the file cannot be written, for example because the disk is full; the old file stays.
    """
    import torch  # imported here because downloads do not need it

    try:
        with atomic_write(path) as partial, partial.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:
        # torch reports a full disk as a RuntimeError about its file format.
        reason = error if isinstance(error, OSError) else "is the disk full?"
        raise OSError(f"{path} could not be written ({reason}); the previous file is unchanged") from error


def load_tensors(path: Path, mmap: bool = False) -> Any:
    """Load a file of ``save_tensors`` to the CPU; with ``mmap`` tensors are read when they are used.

    Memory and time are bounded by the size of the file: compressed or oversized contents are refused.

    Raises:
        ValueError: the file is damaged or of another kind; nothing in it is executed.
    """
    import torch

    mmap = mmap and not any("\ud800" <= letter <= "\udfff" for letter in str(path))  # torch maps UTF-8 names only
    try:
        with path.open("rb") as file:
            _require_plain_archive(file)
            file.seek(0)
            content = torch.load(path if mmap else file, map_location="cpu", weights_only=True, mmap=mmap)
        _require_plain_tensors(content, path.stat().st_size)
    except _UNREADABLE as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    return content


def _require_plain_archive(file: BinaryIO) -> None:
    """Raise ValueError if members are compressed or overlap, or if hashing the tuples would take too long."""
    size = file.seek(0, os.SEEK_END)
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("its members are compressed")
        if len(members) > _MAX_MEMBERS or sum(member.file_size for member in members) > size:
            raise ValueError("it has too many members, or its members are larger than the file")
        for member in members:
            if member.filename.rpartition("/")[2] == "data.pkl":
                _require_few_shared_tuples(archive.read(member))


def _require_few_shared_tuples(pickled: bytes) -> None:
    tuples, before, n_shared = set(), "", 0
    for opcode, number, _ in pickletools.genops(pickled):
        if opcode.name.endswith("PUT") and "TUPLE" in before:
            tuples.add(number)
        n_shared += opcode.name.endswith("GET") and number in tuples
        if n_shared > _MAX_SHARED_TUPLES:
            raise ValueError("it has too many shared tuples")
        before = opcode.name


def _require_plain_tensors(content: Any, size: int) -> None:
    """Raise ValueError unless all tensors are dense, contiguous, on the CPU and together at most ``size`` bytes."""
    import torch

    waiting, seen, n_bytes = [content], set(), 0
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        if isinstance(value, torch.Tensor):
            is_dense = value.layout == torch.strided and not value.is_nested and not value.is_quantized
            is_dense = is_dense and not (value.requires_grad or value.is_neg() or value.is_conj())
            if not is_dense or value.device.type != "cpu" or not value.is_contiguous():
                raise ValueError("it has a tensor that is sparse, expanded, without values or otherwise not plain")
            n_bytes += value.nbytes
        elif isinstance(value, dict | list | tuple | set):
            waiting += value.values() if isinstance(value, dict) else value
        else:
            continue
        seen.add(id(value))
    if n_bytes > size:
        raise ValueError("its tensors are larger than the file")
