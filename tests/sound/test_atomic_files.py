"""sound/atomic_files.py: files are written whole or not at all, and loaded without executing anything."""

import os
import zipfile

import pytest
import torch

from sound.atomic_files import atomic_write, load_tensors, save_tensors, write_text


def test_a_complete_file_is_renamed(tmp_path):
    path = tmp_path / "new" / "folder" / "a.txt"
    with atomic_write(path) as partial:
        partial.write_text("half")
        assert not path.exists() and partial.parent == path.parent
    assert path.read_text() == "half" and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt()])
def test_a_failure_keeps_the_old_file(tmp_path, error):
    path = tmp_path / "a.txt"
    write_text(path, "♯ before")
    with pytest.raises(type(error)), atomic_write(path) as partial:
        partial.write_text("half")
        raise error
    assert path.read_text(encoding="utf-8") == "♯ before" and list(tmp_path.iterdir()) == [path]


def test_concurrent_writers_do_not_interfere(tmp_path):
    path = tmp_path / "a.txt"
    with atomic_write(path, shared=True) as mine:
        mine.write_text("mine")
        write_text(path, "another's", shared=True)
        assert path.read_text() == "another's" and mine.read_text() == "mine"
    assert path.read_text() == "mine" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("shared", [True, False])
def test_the_longest_names_have_distinct_temporary_names(tmp_path, shared):
    """Names of 255 bytes that begin alike."""
    one, other = (tmp_path / f"{'名' * 80}{letter * 11}.txt" for letter in "ab")
    with atomic_write(one, shared) as first, atomic_write(other, shared) as second:
        assert first != second and first.name.startswith(".") and first.name.endswith(".part")
        first.write_text("one")
        second.write_text("other")
    assert one.read_text() == "one" and other.read_text() == "other" and len(list(tmp_path.iterdir())) == 2


def test_text_that_utf8_cannot_encode_is_escaped(tmp_path):
    write_text(tmp_path / "a.txt", f"failed: {os.fsdecode(b'caf' + bytes([0xE9]))}.wav")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "failed: caf\\udce9.wav"


def test_links_are_followed_and_devices_stay(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write_text(tmp_path / "link", "text")
    assert (tmp_path / "file").read_text() == "text" and (tmp_path / "link").is_symlink()
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_text(tmp_path / "pipe", "text")
    assert os.read(reader, 9) == b"text" and (tmp_path / "pipe").is_fifo()
    os.close(reader)


@pytest.mark.parametrize("mmap", [True, False])
def test_tensors_are_loaded_and_code_is_not_executed(tmp_path, mmap, bomb):
    path, (thing, exploded) = tmp_path / "a.pt", bomb
    save_tensors(path, {"numbers": torch.arange(3), "name": "a"})
    content = load_tensors(path, mmap)
    assert content["name"] == "a" and content["numbers"].tolist() == [0, 1, 2]
    torch.save(thing, path)
    with pytest.raises(ValueError, match=r"a\.pt"):
        load_tensors(path, mmap)
    assert not exploded.exists()


def repack(path, compression=zipfile.ZIP_STORED, **replaced):
    """Rewrite a torch file's archive with some members replaced."""
    with zipfile.ZipFile(path) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, replaced.get(name.rpartition("/")[2].replace(".", "_"), content))


def test_compressed_members_are_refused(tmp_path):
    save_tensors(path := tmp_path / "a.pt", {"x": torch.zeros(10**5)})
    repack(path)
    load_tensors(path)
    repack(path, zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match=r"a\.pt"):
        load_tensors(path)


def test_nested_tuples_that_are_slow_to_hash_are_refused(tmp_path):
    save_tensors(path := tmp_path / "a.pt", {})
    levels = b"".join(b"h%c\x86q%c" % (number, number + 1) for number in range(60))
    repack(path, data_pkl=b"\x80\x02})q\x00" + levels + b"K\x01s.")
    with pytest.raises(ValueError, match=r"a\.pt"):
        load_tensors(path)


SPARSE = torch.sparse_coo_tensor(torch.zeros(1, 1, dtype=torch.long), torch.ones(1), (10**11,), check_invariants=True)
TENSORS = {
    "expanded": torch.zeros(1).expand(10**11),
    "meta": torch.empty(10**11, device="meta"),
    "sparse": SPARSE,
    "views of one storage": [view[:] for view in [torch.zeros(10**4)] * 100],
}


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("mmap", [False, True])
def test_tensors_larger_than_their_file_are_refused(tmp_path, name, mmap):
    torch.save({"x": [TENSORS[name]]}, path := tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt"):
        load_tensors(path, mmap)
