"""sound_folders.py: which files of a folder are recordings, and what is said of the others."""

import os

from sound.sound_folders import find_sound_files


def make(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return [folder / name for name in names]


def test_dot_names_are_left_out_and_said_in_one_line(tmp_path, caplog):
    wanted = make(tmp_path, "a.wav", "b/c.WAVE", "b/d/e.oga")
    make(tmp_path, "._a.wav", ".ipynb_checkpoints/a.wav", "b/.hidden.flac", "notes.txt", "b/more.txt", "README")
    caplog.set_level("INFO")
    assert find_sound_files(tmp_path) == wanted
    (line,) = caplog.text.splitlines()
    assert "3 dot names" in line and "2 .txt" in line and str(tmp_path) in line
    caplog.clear()
    assert find_sound_files(tmp_path / "b" / "d") == wanted[2:] and not caplog.text


def test_links_to_folders_are_followed_once(tmp_path):
    outside = tmp_path / "outside"
    make(outside, "a.wav", "deep/b.wav")
    inside = make(tmp_path / "in", "take.wav", "z/own.wav")
    (tmp_path / "in" / "again").symlink_to(outside)
    (tmp_path / "in" / "once more").symlink_to(outside)
    (tmp_path / "in" / "a").symlink_to(tmp_path / "in" / "z")  # its own name counts, not the link's
    (outside / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "broken.wav").symlink_to(tmp_path / "nowhere.wav")
    linked = [tmp_path / "in" / "again" / name for name in ("a.wav", "deep/b.wav")]
    assert find_sound_files(tmp_path / "in") == [*linked, *inside]


def test_a_name_that_is_not_utf8_is_found(tmp_path):
    (file,) = make(tmp_path, os.fsdecode(b"caf\xe9.wav"))
    assert find_sound_files(tmp_path) == [file]
