"""sound/feature_plots.py and visualize_features.py: plotted values and positions, both themes, and the command line."""

import itertools
import re

import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb
from PIL import Image

import visualize_features
from data import save_recording
from sound import feature_plots
from sound.crepe import note_name
from sound.feature_plots import DPI, THEMES, plot_features, save_figure
from visualize_features import plot_recording

RATE, FRAME_RATE = 16000, 100
SEMITONES = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
both_themes = pytest.mark.parametrize("theme", THEMES)


def sound(n_frames=50, **changes):
    """Return arguments of plot_features for half a second of A4."""
    audio = 0.5 * np.sin(2 * np.pi * 440 * np.arange(n_frames * RATE // FRAME_RATE) / RATE)
    values = {"f0": np.full(n_frames, 440.0), "loudness": np.full(n_frames, -20.0), "frame_rate": FRAME_RATE}
    return {"audio": audio, "sample_rate": RATE, **values, **changes}


def panel(figure, name):
    """Return the axes of a panel."""
    return next(axis for axis in figure.axes if name in [text.get_text() for text in axis.texts])


def drawn_line(figure, name, colour):
    """Return x and y of a panel's solid line in a colour."""
    (line,) = (line for line in panel(figure, name).lines if line.get_color() == colour and line.get_linestyle() == "-")
    return line.get_xdata(), line.get_ydata()


def all_text(figure):
    return " ".join(text.get_text() for text in [*figure.texts, *(text for axis in figure.axes for text in axis.texts)])


def hertz_of(name):
    """Return the frequency of a note name, by the definition of equal temperament."""
    letter, sharp, octave = re.fullmatch(r"([A-G])(♯?)(-?\d+)", name).groups()
    return 440 * 2 ** ((SEMITONES[letter] + len(sharp) + 12 * (int(octave) + 1) - 69) / 12)


@pytest.mark.parametrize(
    ("f0", "name"), [(440, "A4"), (261.63, "C4"), (246.9, "B3"), (277.2, "C♯4"), (16.35, "C0"), (452, "A4")]
)
def test_note_names(f0, name):
    assert note_name(f0) == name


def test_curves_are_drawn_with_gaps_below_the_periodicity_threshold():
    periodicity, loudness = np.r_[np.full(10, 0.9), np.full(10, 0.49), np.full(30, 0.5)], np.linspace(-80, 0, 50)
    figure = plot_features(**sound(periodicity=periodicity, periodicity_threshold=0.5, loudness=loudness))
    assert np.allclose(drawn_line(figure, "Loudness", THEMES["light"].loudness)[1], loudness)
    seconds, f0 = drawn_line(figure, "Pitch", THEMES["light"].pitch)
    assert np.array_equal(np.isnan(f0), periodicity < 0.5)
    assert np.all(f0[periodicity >= 0.5] == 440)
    assert np.allclose(seconds, np.arange(50) / FRAME_RATE)
    assert "80 % voiced" in all_text(figure)


@pytest.mark.parametrize("semitones", [0, 17, 40, 71])
def test_note_labels_are_at_their_frequencies_and_do_not_overlap(semitones):
    f0 = 33 * 2 ** (np.linspace(0, semitones, 50) / 12)
    figure = plot_features(**sound(f0=f0))
    labels = panel(figure, "Pitch").get_yticklabels()
    for label in labels:
        assert label.get_position()[1] == pytest.approx(hertz_of(label.get_text()), rel=1e-4)
    low, high = panel(figure, "Pitch").get_ylim()
    assert low < f0.min() and f0.max() < high
    boxes = [label.get_window_extent() for label in labels if low <= label.get_position()[1] <= high]
    assert len(boxes) >= 4
    assert all(upper.y0 - lower.y1 > 2 for lower, upper in itertools.pairwise(boxes))  # pixels


def test_peaks_of_a_long_waveform_are_drawn():
    audio = np.zeros(30 * RATE)
    audio[123_457] = -0.5
    figure = plot_features(**sound(3000, audio=audio))
    outline = panel(figure, "Waveform").collections[0].get_paths()[0].vertices
    lowest = outline[outline[:, 1].argmin()]
    assert lowest[1] == -0.5
    assert lowest[0] == pytest.approx(123_457 / RATE, abs=30 / 1600)  # a column
    assert "peak −6.0 dBFS" in all_text(figure)


@both_themes
def test_spectrogram_shows_time_and_frequency(theme):
    tone = np.sin(2 * np.pi * 2000 * np.arange(4 * RATE) / RATE) * (np.arange(4 * RATE) < 2 * RATE)
    axis = panel(plot_features(**sound(400, audio=tone, spectrogram=True, theme=theme)), "Spectrogram")
    (image,) = axis.images
    level, (left, right, bottom, top) = image.get_array(), image.get_extent()
    times = np.linspace(left, right, level.shape[1])
    frequencies = np.linspace(bottom, top, level.shape[0])
    assert frequencies[level[:, (times > 0.2) & (times < 1.8)].argmax(axis=0)] == pytest.approx(2000, abs=20)
    assert (level[:, times > 2.2] == -80).all() and level.max() == 0
    assert axis.get_ylim() == (0, RATE / 2) and axis.get_xlim() == (0, 4)
    assert to_hex(image.cmap(0.0)) == THEMES[theme].background  # silence


def test_plot_recording(counting_recording):
    recording = counting_recording(50)
    recording.periodicity[0, :10] = 0.4
    figure = plot_recording(recording, 0.5, "take.wav")
    seconds, f0 = drawn_line(figure, "Pitch", THEMES["light"].pitch)
    assert (
        np.isnan(f0[:10]).all()
        and np.array_equal(f0[10:], 100 + np.arange(10, 50))
        and seconds[-1] == pytest.approx(0.49)
    )
    text = all_text(figure)
    assert "take.wav" in text and "trumpet" in text and "0.5 s" in text and "16 kHz" in text


@both_themes
def test_saved_figures_have_the_colours_of_the_theme(theme, tmp_path):
    save_figure(plot_features(**sound(title="A4", theme=theme)), tmp_path / "a4.png")
    with Image.open(tmp_path / "a4.png") as picture:
        assert picture.width == 12 * DPI and 6 * DPI < picture.height < 8 * DPI
        pixels = np.asarray(picture.convert("RGB"))
    assert to_hex(pixels[2, 2] / 255) == THEMES[theme].background
    for name in ("pitch", "loudness", "waveform"):
        wanted = np.round(255 * np.array(to_rgb(getattr(THEMES[theme], name))))
        assert (np.abs(pixels - wanted).max(axis=-1) <= 1).any(), name


@pytest.mark.filterwarnings("error", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "changes",
    [
        {"n_frames": 0},
        {"n_frames": 1},
        {"n_frames": 0, "spectrogram": True},
        {"n_frames": 1, "spectrogram": True},
        {"audio": np.zeros(8000), "spectrogram": True},
        {"audio": np.zeros(8000), "periodicity": np.zeros(50), "periodicity_threshold": 0.5},
        {"audio": np.full(8000, np.nan), **dict.fromkeys(("f0", "loudness", "periodicity"), np.full(50, np.nan))},
        {"f0": np.zeros(50)},
        {"title": r"$\frac{ _ ^ $", "subtitle": "$x", "second_f0": np.full(50, 220.0), "f0_labels": (r"$\bad{$", "b")},
        {"title": "long " * 100},
        {"title": "caf\udce9.wav"},
    ],
)
def test_unusual_input_is_drawn_without_warnings(changes):
    figure = plot_features(**sound(**changes))
    figure.canvas.draw()
    right = figure.bbox.x1
    assert all(text.get_window_extent().x1 < right for text in figure.texts)


@pytest.fixture
def small_pictures(monkeypatch):
    monkeypatch.setattr(feature_plots, "DPI", 30)


def run(*argv):
    return visualize_features.main([str(value) for value in argv])


def pictures(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.usefixtures("small_pictures")
def test_all_draws_subfolders_and_names_failed_files(tmp_path, counting_recording, capsys):
    data_dir = tmp_path / "processed"
    for name in ("a/take.wav.pt", "b/take.wav.pt", "take.flac.pt"):
        (data_dir / name).parent.mkdir(parents=True, exist_ok=True)
        save_recording(data_dir / name, counting_recording())
    (data_dir / "b" / "other.wav.pt").write_bytes(b"damaged")
    assert run("--all", "--data_dir", data_dir, "--output_dir", tmp_path / "out") == 1
    output = capsys.readouterr()
    assert output.out == f"3 written, 1 failed in {tmp_path / 'out'}\n"
    assert str(data_dir / "b" / "other.wav.pt") in output.err
    assert pictures(tmp_path / "out") == ["a/take.wav.png", "b/take.wav.png", "take.flac.png"]
    assert run("--all", "--data_dir", data_dir / "a", "--output_dir", tmp_path / "out") == 0
    assert capsys.readouterr().out == f"1 written, 0 failed in {tmp_path / 'out'}\n"


@pytest.mark.usefixtures("small_pictures")
@pytest.mark.parametrize("error", [RuntimeError("out of luck"), MemoryError()])
def test_an_error_in_one_file_does_not_end_the_run(tmp_path, counting_recording, capsys, monkeypatch, error):
    def fail_once(figure, path):
        if path.stem == "a":
            raise error

    monkeypatch.setattr(visualize_features, "save_figure", fail_once)
    for name in "ab":
        save_recording(tmp_path / f"{name}.pt", counting_recording())
    assert run("--all", "--data_dir", tmp_path, "--output_dir", tmp_path / "out") == 1
    output = capsys.readouterr()
    assert output.out.startswith("1 written, 1 failed") and str(tmp_path / "a.pt") in output.err


@pytest.mark.parametrize(
    "argv",
    [[], ["--file", "a.pt", "--all"], ["--all", "--data_dir", "no/such/folder"], ["--file", "a.pt", "--theme", "blue"]],
)
def test_invalid_input_is_refused(argv, tmp_path, caplog):
    with pytest.raises(SystemExit, match="2"):
        run(*argv)
    for flags in (["--file", tmp_path / "none.pt"], ["--all", "--data_dir", tmp_path]):
        assert run(*flags) == 1 and str(flags[-1]) in caplog.messages[-1]
    for changes, culprit in (({"theme": "blue"}, "blue"), ({"loudness": np.zeros(49)}, "49")):
        with pytest.raises(ValueError, match=culprit):
            plot_features(**sound(**changes))
