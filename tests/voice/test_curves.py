"""voice/curves.py: releases of notes, and curve files written and read."""

import dataclasses

import numpy as np
import pytest

from config import load_config
from voice.curves import Melody, read_curves, shape_notes, write_curves

CONFIG = load_config()


def melody(n_frames: int = 200) -> Melody:
    """Return two notes, frames 20 to 79 and 120 to 179; values outside them are arbitrary."""
    rng, frames = np.random.default_rng(0), np.arange(n_frames)
    voiced = ((frames >= 20) & (frames < 80)) | ((frames >= 120) & (frames < 180))
    f0, loudness = 220 * 2 ** rng.uniform(0, 1, n_frames), rng.uniform(-40, -20, n_frames)
    return Melody(f0, loudness, rng.uniform(0, 1, n_frames), voiced)


def same(one, other) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(dataclasses.astuple(one), dataclasses.astuple(other)))


def test_a_note_has_a_release_and_silence_follows() -> None:
    tune = melody()
    curves = shape_notes(tune, CONFIG)
    end = 80 + round(CONFIG.transfer.release_seconds * CONFIG.audio.frame_rate)
    release = slice(80, end)
    assert np.all(curves.f0[release] == np.float32(tune.f0[79]))  # the pitch holds
    assert np.all(np.diff(curves.loudness[79:end]) < 0)
    assert curves.loudness[79] - curves.loudness[end - 1] == pytest.approx(CONFIG.transfer.release_fall, abs=0.01)
    assert np.all(curves.loudness[end:120] == CONFIG.features.loudness_floor)
    assert np.all(curves.gate[end:120] == 0) and np.all(curves.gate[:20] == 0) and curves.gate[50] == 1
    assert np.all(np.diff(curves.gate[19:23]) > 0) and np.all(np.diff(curves.gate[end - 3 : end + 1]) < 0)  # no click
    assert np.all(np.isfinite(curves.f0)) and np.all(curves.f0 > 0)


def test_the_next_note_ends_a_release() -> None:
    tune = melody()
    tune.voiced[80:120] = np.arange(40) >= 5
    curves = shape_notes(tune, CONFIG)
    assert np.all(curves.gate[30:170] == 1)
    assert np.array_equal(curves.loudness[85:120], tune.loudness[85:120].astype(np.float32))


def test_curves_survive_writing_and_reading_exactly(tmp_path) -> None:
    curves = shape_notes(melody(), CONFIG)
    assert same(curves, shape_notes(Melody(curves.f0, curves.loudness, curves.periodicity, curves.voiced), CONFIG))
    write_curves(tmp_path / "new" / "curves.csv", curves, 100.0)
    assert same(shape_notes(read_curves(tmp_path / "new" / "curves.csv", CONFIG), CONFIG), curves)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["curves.csv"]


def test_rows_may_be_sparse_and_columns_in_any_order(tmp_path) -> None:
    path = tmp_path / "curves.csv"
    header = "\ufeffvoiced, f0,loudness,time,periodicity,note"
    path.write_text("\n".join((header, "1,220,-20,0,1,a", "", "1,440,-30,1,1,b", "0,440,-30,1.5,0,")))
    tune = read_curves(path, CONFIG)
    assert len(tune.f0) == 151
    assert tune.f0[50] == pytest.approx(220 * 2**0.5) and tune.loudness[50] == pytest.approx(-25)
    assert tune.voiced[:124].all() and not tune.voiced[126:].any()
    rows = ("0,220,-20,1,1", "0.014,220,-34,1,1", "0.02,220,-40,1,1")  # as many as frames, one between two frames
    path.write_text("\n".join(("time,f0,loudness,periodicity,voiced", *rows)))
    assert read_curves(path, CONFIG).loudness == pytest.approx([-20, -30, -40])


@pytest.mark.parametrize(
    ("delimiter", "quote", "decimal", "encoding", "ending"),
    [
        (",", "", ".", "utf-8", "\n"),
        (",", '"', ".", "utf-8-sig", "\r\n"),
        (", ", '"', ".", "utf-8", "\n"),
        (",", '"', ",", "latin-1", "\n"),
        (";", "", ",", "latin-1", "\r\n"),
        (";", '"', ",", "utf-8-sig", "\n"),
        ("\t", "", ".", "utf-16", "\r\n"),
        ("\t", "", ",", "utf-16", "\n"),
    ],
)
def test_spreadsheet_formats_are_read(tmp_path, delimiter, quote, decimal, encoding, ending) -> None:
    curves = shape_notes(melody(), CONFIG)
    write_curves(tmp_path / "curves.csv", curves, 100.0)
    rows = [line.split(",") for line in (tmp_path / "curves.csv").read_text(encoding="utf-8").splitlines()]
    rows = [[*row, "note" if number == 0 else "größer"] for number, row in enumerate(rows)]
    lines = [delimiter.join(f"{quote}{value.replace('.', decimal)}{quote}" for value in row) for row in rows]
    lines = ["sep=" + delimiter, *lines, delimiter * len(rows[0])]  # the last row was cleared in a spreadsheet
    (tmp_path / "curves.csv").write_bytes((ending.join(lines) + ending).encode(encoding))
    assert same(shape_notes(read_curves(tmp_path / "curves.csv", CONFIG), CONFIG), curves)


def test_an_error_shortens_and_escapes_the_row(tmp_path) -> None:
    row = "0.01,\x1b[2J" + "9" * 100_000 + ",-20,1,1"
    (tmp_path / "curves.csv").write_text(
        f"time,f0,loudness,periodicity,voiced\n0,220,-20,1,1\n{row}\n", encoding="utf-8"
    )
    with pytest.raises(ValueError, match=r"row 3.*'0.01,\\x1b\[2J999") as caught:
        read_curves(tmp_path / "curves.csv", CONFIG)
    assert "\x1b" not in str(caught.value) and len(str(caught.value)) < 200 + len(str(tmp_path))
    (tmp_path / "curves.csv").write_text("time,f0,loudness,periodicity,voiced\n" + "9" * 200_000, encoding="utf-8")
    with pytest.raises(ValueError, match=r"curves\.csv"):
        read_curves(tmp_path / "curves.csv", CONFIG)


@pytest.mark.parametrize(
    ("text", "culprit"),
    [
        ("", ""),
        ("RIFF\xff\xfe\x80\x81", ""),
        ("time,f0,loudness\n0,1,2\n", "periodicity, voiced"),
        ("time,f0,loudness,periodicity,voiced\n", "rows"),
        ("time,f0,loudness,periodicity,voiced\n0,220,-20,1,1\n0.01,x,-20,1,1\n", "row 3.*'0.01,x,-20,1,1'"),
        ("time,f0,loudness,periodicity,voiced\n0,220\n", "row 2.*'0,220'"),
        ("time,f0,loudness,periodicity,voiced\n0,0,-20,1,1\n", "row 2.*f0.*8000"),
        ("time,f0,loudness,periodicity,voiced\n0,nan,-20,1,1\n", "row 2.*f0"),
        ("time,f0,loudness,periodicity,voiced\n0,220,inf,1,1\n", "row 2.*loudness"),
        ("time,f0,loudness,periodicity,voiced\n0,220,-20,2,1\n", "row 2.*periodicity"),
        ("time,f0,loudness,periodicity,voiced\n0,220,-20,1,0.5\n", "row 2.*voiced"),
        ("time,f0,loudness,periodicity,voiced\n0,220,-20,1,1\n0,220,-20,1,1\n", "row 3.*time"),
        ("time,f0,loudness,periodicity,voiced\n-1,220,-20,1,1\n", "row 2.*time"),
        ("time,f0,loudness,periodicity,voiced\n1e9,220,-20,1,1\n", "row 2.*time"),
    ],
)
def test_invalid_files_are_refused(tmp_path, text: str, culprit: str) -> None:
    (tmp_path / "curves.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=rf"curves\.csv.*{culprit}"):
        read_curves(tmp_path / "curves.csv", CONFIG)
    with pytest.raises(FileNotFoundError, match=r"none\.csv"):
        read_curves(tmp_path / "none.csv", CONFIG)


def test_a_file_that_is_too_large_is_refused(tmp_path) -> None:
    with (tmp_path / "large.csv").open("wb") as file:
        file.truncate(80_000_001)
    with pytest.raises(ValueError, match=r"large\.csv has 80 MB"):
        read_curves(tmp_path / "large.csv", load_config())
