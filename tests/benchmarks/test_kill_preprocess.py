"""The kill test itself: it finds nothing wrong with preprocess.py, and it would find what is."""

import pytest

import kill_preprocess

QUICK = ["--recordings", "2", "--seconds", "0.5", "--num_workers", "2"]


def test_killed_runs_end_in_the_same_bits(capsys):
    assert kill_preprocess.main(["--kills", "2", *QUICK]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("2 kills (") and printed.rstrip().endswith("all the bits of the undisturbed run")


@pytest.mark.parametrize("damage", ["other bits", "one more", "one less"])
def test_other_bits_are_found(tmp_path, damage):
    (tmp_path / "a.pt").write_bytes(b"sound")
    expected = kill_preprocess.read_all(tmp_path)
    kill_preprocess.compare(tmp_path, expected)
    if damage == "other bits":
        (tmp_path / "a.pt").write_bytes(b"sounD")
    elif damage == "one more":
        (tmp_path / "b.pt.part").write_bytes(b"")
    else:
        (tmp_path / "a.pt").unlink()
    with pytest.raises(ValueError, match=r"not as in the undisturbed run: [ab]\.pt"):
        kill_preprocess.compare(tmp_path, expected)


def test_a_preprocessing_that_fails_is_said(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(kill_preprocess, "make_recordings", lambda folder, *_: folder.mkdir())
    assert kill_preprocess.main(["--kills", "1", *QUICK]) == 1
    assert "preprocess.py fails undisturbed" in caplog.text


@pytest.mark.parametrize("flag", ["--kills", "--recordings", "--num_workers", "--seconds"])
def test_wrong_flags(flag):
    with pytest.raises(SystemExit) as exit_info:
        kill_preprocess.parse_args([flag, "0"])
    assert exit_info.value.code == 2
