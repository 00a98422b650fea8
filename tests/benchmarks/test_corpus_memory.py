"""scripts/measure_corpus.py: the start of a training on many recordings, in small."""

import json

import pytest

import corpus_memory as measure_corpus
from config import load_config
from data import list_recordings, load_recording
from recordings.corpus import read_corpus


def test_both_starts_are_measured(tmp_path, capsys):
    assert measure_corpus.main(["--recordings", "200", "--json", str(tmp_path / "out.json")]) == 0
    starts = json.loads((tmp_path / "out.json").read_text())
    assert list(starts) == ["the first time", "again"]
    for start in starts.values():
        assert start["n_crops"] == 180  # a tenth is held out
        assert start["processor_seconds"] > 0 and 0 < start["mebibytes"] < 100
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("200 recordings") and len(printed) == 3


def test_recordings_are_takes_of_their_own_and_sound_files_to_all_who_read_them(tmp_path):
    measure_corpus.make_recordings(tmp_path, 20)
    recordings = [load_recording(path, load_config()) for path in list_recordings(tmp_path)]
    assert len({recording.source["sha256"] for recording in recordings}) == 20
    assert len(read_corpus(tmp_path, load_config()).validation) == 2


def test_too_few_are_refused(capsys):
    with pytest.raises(SystemExit):
        measure_corpus.parse_args(["--recordings", "4"])
    assert "at least 5" in capsys.readouterr().err
