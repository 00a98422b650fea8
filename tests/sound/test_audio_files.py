"""sound/audio_files.py: formats, mixing, invalid and damaged files, limits of length, blocks, folders."""

import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import av
import librosa
import numpy as np
import pytest
import soundfile

from sound import audio_files, ffmpeg_decoder
from sound.audio_files import (
    SUFFIXES,
    SpooledAudio,
    block_slices,
    find_sound_files,
    load_audio,
    mix_channels,
    prepare_audio,
    read_blocks,
    resample_blocks,
)

ROOT = Path(__file__).parents[2]
RECORDED = {"m4a": "aac", "mp4": "aac", "aac": "aac", "webm": "libopus", "3gp": "aac"}  # codecs, for FFmpeg


def record(path, tone, rate, codec, container=None):
    """Write mono or stereo float audio [C, N] as a phone or a browser does."""
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate, layout="stereo" if len(tone) == 2 else "mono")
        stream.bit_rate = 64000 * len(tone)
        for start in range(0, tone.shape[1], 960):
            frame = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(tone[:, start : start + 960], np.float32), "fltp", stream.layout.name
            )
            frame.sample_rate, frame.pts = rate, start
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))


def sine(seconds, rate=48000, hertz=440):
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def peak_hz(audio, sample_rate):
    return np.abs(np.fft.rfft(audio * np.hanning(len(audio)))).argmax() * sample_rate / len(audio)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize(("file_rate", "n_channels"), [(44100, 1), (44100, 2), (16000, 2)])
def test_formats(tmp_path, suffix, file_rate, n_channels):
    path = tmp_path / f"tone.{suffix}"
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(file_rate) / file_rate)
    soundfile.write(path, np.stack([tone] * n_channels, axis=1), file_rate)
    audio = load_audio(path, 16000)
    assert audio.dtype == np.float32 and audio.ndim == 1
    assert len(audio) == pytest.approx(16000, abs=2400 if suffix == "mp3" else 1)  # mp3 pads to its own frames
    assert abs(peak_hz(audio, 16000) - 440) <= 1
    middle = audio[4000:12000]
    assert np.sqrt(np.mean(middle**2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.02)  # lossy formats: 1 %


@pytest.mark.parametrize(("file_rate", "n_channels"), [(192000, 1), (48000, 8), (8000, 1), (22050, 3), (11025, 1)])
def test_rates_and_channels(tmp_path, file_rate, n_channels):
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(file_rate) / file_rate)
    soundfile.write(tmp_path / "tone.wav", np.stack([tone] * n_channels, axis=1), file_rate, subtype="FLOAT")
    audio = load_audio(tmp_path / "tone.wav", 16000)
    assert len(audio) == 16000
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    # Aligned to the sample: one sample late would be 0.09 off. soxr's own error in the middle is under 1e-4.
    assert np.abs(audio - expected)[1000:-1000].max() <= 1e-3


def test_channels_are_averaged(tmp_path):
    left, right = np.random.default_rng(0).uniform(-1, 1, (2, 1000)).astype(np.float32)
    soundfile.write(tmp_path / "stereo.wav", np.stack([left, right], axis=1), 16000, subtype="FLOAT")
    assert np.array_equal(load_audio(tmp_path / "stereo.wav", 16000), (left + right) / 2)


@pytest.mark.parametrize("suffix", ["wav", "mp3", "m4a"])
def test_channels_of_opposite_polarity_do_not_cancel(tmp_path, suffix, caplog):
    voice = np.concatenate([np.zeros(16000, np.float32), sine(1.0, 16000)])  # begins with silence
    sides = np.stack([voice, -voice], axis=1)
    path = tmp_path / f"take.{suffix}"
    record(path, sides.T, 16000, "aac") if suffix == "m4a" else soundfile.write(path, sides, 16000)
    audio = load_audio(path, 16000)
    assert np.sqrt(np.mean(audio[-12000:] ** 2)) == pytest.approx(np.sqrt(np.mean(voice[-12000:] ** 2)), rel=0.05)
    assert len(caplog.records) == 1


def test_changing_polarity_loses_no_voice(tmp_path):
    """One second each: opposite polarity, one channel only, the other only, both, opposite polarity at -20 dB."""
    voice, none = sine(1.0, 16000), np.zeros(16000, np.float32)
    sides = [(voice, -voice), (none, voice), (voice, none), (voice, voice), (0.1 * voice, -0.1 * voice)]
    soundfile.write(tmp_path / "take.wav", np.concatenate([np.stack(pair, 1) for pair in sides]), 16000)
    mono = load_audio(tmp_path / "take.wav", 16000)
    levels = [np.sqrt(np.mean(second**2)) / np.sqrt(np.mean(voice**2)) for second in np.split(mono, 5)]
    assert levels == pytest.approx([1, 0.5, 0.5, 1, 0.1], rel=0.02)


def test_inverting_a_channel_does_not_click(tmp_path):
    """The right channel changes polarity within the first block; the mix changes at its end, at a peak of the tone."""
    voice = sine(2.0, 16000, 440.25)
    sides = np.stack([voice, np.where(np.arange(32000) < 14400, voice, -voice)], axis=1)
    soundfile.write(tmp_path / "take.wav", sides, 16000, subtype="FLOAT")
    mono = load_audio(tmp_path / "take.wav", 16000)
    assert np.abs(np.diff(mono[15900:])).max() < 1.1 * np.abs(np.diff(voice)).max()
    assert np.array_equal(mono[16500:], voice[16500:])


def test_arrays_are_mixed_as_files_are():
    voice = sine(0.5, 16000)
    for n_channels in (2, 3, 8):
        sides = np.stack([voice, *np.random.default_rng(0).uniform(-1, 1, (n_channels - 1, len(voice)))], axis=1)
        np.testing.assert_allclose(mix_channels(sides), sides.mean(axis=1), atol=1e-6)
        np.testing.assert_array_equal(mix_channels(sides.T), mix_channels(sides))
    np.testing.assert_array_equal(mix_channels(voice), voice)
    np.testing.assert_array_equal(mix_channels(np.stack([voice, -voice], axis=1)), voice)
    np.testing.assert_array_equal(mix_channels(np.stack([-voice, -voice, voice, voice])), -voice)
    np.testing.assert_array_equal(mix_channels(np.array([[1, 0], [0.5, 0.5]])), [0.5, 0.5])  # [2, 2] is [N, C]
    assert mix_channels(np.zeros((0, 2))).shape == mix_channels(np.zeros((2, 0))).shape == (0,)
    for wrong in (np.zeros((9, 9)), np.zeros((1, 2, 3)), np.float32(1)):
        with pytest.raises(ValueError, match="the voice"):
            mix_channels(wrong, "the voice")


def test_different_channels_are_averaged(tmp_path, caplog):
    rng = np.random.default_rng(0)
    sides = 0.1 * rng.standard_normal((16000, 2)).astype(np.float32)
    sides[8000:, 1] = -0.7 * sides[8000:, 0]  # partly opposed
    soundfile.write(tmp_path / "take.wav", sides, 16000, subtype="FLOAT")
    np.testing.assert_allclose(load_audio(tmp_path / "take.wav", 16000), sides.mean(axis=1), atol=1e-7)
    assert not caplog.text


def test_frequencies_above_the_new_nyquist_do_not_alias(tmp_path):
    tone = 0.5 * np.sin(2 * np.pi * 11000 * np.arange(48000) / 48000)
    soundfile.write(tmp_path / "high.wav", tone, 48000, subtype="FLOAT")
    audio = load_audio(tmp_path / "high.wav", 16000)
    assert np.abs(audio[1000:-1000]).max() < 1e-4  # soxr HQ rejects 100 dB; plain decimation would leave 0.5


def test_samples_over_full_scale_are_not_clipped(tmp_path):
    soundfile.write(tmp_path / "hot.wav", np.full(1000, 3.0), 16000, subtype="FLOAT")
    assert (load_audio(tmp_path / "hot.wav", 16000) == 3).all()


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.wav"):
        load_audio(tmp_path / "nowhere.wav", 16000)


def test_folder(tmp_path):
    with pytest.raises(ValueError, match=tmp_path.name):
        load_audio(tmp_path, 16000)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("song.wav", b""),
        ("song.wav", b"This is not a sound.\n" * 40),
        ("song.wav", b"RIFF\x00\x00\x00\x00WAVE"),
        ("song.raw", bytes(1000)),
    ],
    ids=["no bytes", "text", "half a header", "headerless samples"],
)
def test_not_a_sound_file(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(name)):
        load_audio(tmp_path / name, 16000)


def test_file_without_samples(tmp_path):
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16000)
    with pytest.raises(ValueError, match=r"empty\.wav"):
        load_audio(tmp_path / "empty.wav", 16000)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("file_rate", [16000, 44100])
def test_samples_that_are_not_finite(tmp_path, value, file_rate):
    samples = np.zeros(1000, np.float32)
    samples[500] = value
    soundfile.write(tmp_path / "broken.wav", samples, file_rate, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"broken\.wav"):
        load_audio(tmp_path / "broken.wav", 16000)


def test_prepare_audio_names_its_source():
    with pytest.raises(ValueError, match="the microphone"):
        prepare_audio(np.zeros(0), 48000, 16000, "the microphone")
    assert prepare_audio(np.zeros(480, np.float64), 48000, 16000).dtype == np.float32


# --- formats of phones and browsers ---------------------------------------------------------------


@pytest.mark.parametrize("suffix", RECORDED)
@pytest.mark.parametrize("n_channels", [1, 2])
def test_recordings_of_phones_and_browsers(tmp_path, suffix, n_channels):
    assert f".{suffix}" in SUFFIXES
    path = tmp_path / f"take.{suffix}"
    record(path, np.stack([sine(1.0)] * n_channels), 48000, RECORDED[suffix])
    audio = load_audio(path, 16000)
    assert audio.dtype == np.float32 and audio.ndim == 1
    assert len(audio) == pytest.approx(16000, abs=1600)  # encoders pad to whole frames, and raw aac starts late
    assert abs(peak_hz(audio, 16000) - 440) <= 1
    assert np.sqrt(np.mean(audio[4000:12000] ** 2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.03)  # lossy


LESS_USUAL = {"wave": "WAV", "rf64": "RF64", "w64": "W64", "au": "AU", "snd": "AU", "aifc": "AIFF", "oga": "OGG"}
CONTAINERS = {"mov": "aac", "mkv": "aac", "mka": "aac", "weba": "libopus", "m4b": "aac", "3g2": "aac", "wma": "wmav2"}


@pytest.mark.parametrize("suffix", [*LESS_USUAL, *CONTAINERS])
def test_less_usual_suffixes(tmp_path, suffix):
    path = tmp_path / f"take.{suffix}"
    if suffix in LESS_USUAL:
        soundfile.write(path, sine(1.0), 48000, format=LESS_USUAL[suffix])
    else:
        container = {"weba": "webm", "m4b": "mp4", "mka": "matroska", "wma": "asf"}.get(suffix)
        record(path, sine(1.0)[None], 48000, CONTAINERS[suffix], container)
    assert path.suffix in SUFFIXES and abs(peak_hz(load_audio(path, 16000), 16000) - 440) <= 1


@pytest.mark.parametrize("suffix", ["wav", "m4a", "flac"])
def test_a_name_that_is_not_utf8(tmp_path, suffix):
    record(tmp_path / "take.m4a", sine(0.5)[None], 48000, "aac")
    soundfile.write(tmp_path / "take.wav", sine(0.5), 48000)
    soundfile.write(tmp_path / "take.flac", sine(0.5), 48000)
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9." + suffix.encode()))
    (tmp_path / f"take.{suffix}").rename(path)
    assert len(load_audio(path, 16000)) >= 8000
    audio_files.write_audio(path.with_suffix(".wav"), np.zeros(100), 16000)
    assert len(load_audio(path.with_suffix(".wav"), 16000)) == 100


def test_a_wrong_suffix_does_not_matter(tmp_path):
    record(tmp_path / "take.wav", sine(0.5)[None], 48000, "aac", "mp4")
    assert abs(peak_hz(load_audio(tmp_path / "take.wav", 16000), 16000) - 440) <= 2


def test_a_name_is_not_parsed_as_a_url(tmp_path):
    path = tmp_path / "concat:take|two.m4a"
    record(tmp_path / "take.m4a", sine(0.2)[None], 48000, "aac")
    (tmp_path / "take.m4a").rename(path)
    assert len(load_audio(path, 16000)) > 0


@pytest.mark.parametrize(
    "playlist", ["#EXTM3U\n#EXTINF:1,\nsecret.ts\n#EXT-X-ENDLIST\n", "ffconcat version 1.0\nfile secret.m4a\n"]
)
def test_a_playlist_is_not_followed(tmp_path, playlist, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record(tmp_path / "secret.m4a", sine(0.5)[None], 48000, "aac")
    record(tmp_path / "secret.ts", sine(0.5)[None], 48000, "aac", "mpegts")
    (tmp_path / "song.m4a").write_text(playlist)
    with pytest.raises(ValueError, match=r"song\.m4a"):
        load_audio("song.m4a", 16000)


def test_a_video_without_sound(tmp_path):
    with av.open(str(tmp_path / "silent.mp4"), "w") as file:
        stream = file.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for _ in range(3):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24")))
        file.mux(stream.encode(None))
    with pytest.raises(ValueError, match=r"silent\.mp4"):
        load_audio(tmp_path / "silent.mp4", 16000)


def test_half_a_recording(tmp_path):
    record(tmp_path / "take.m4a", sine(2.0)[None], 48000, "aac")
    content = (tmp_path / "take.m4a").read_bytes()
    (tmp_path / "take.m4a").write_bytes(content[: len(content) // 2])  # without the index at the end
    with pytest.raises(ValueError, match=r"take\.m4a"):
        load_audio(tmp_path / "take.m4a", 16000)


def test_a_recording_damaged_midway(tmp_path):
    record(tmp_path / "take.aac", sine(2.0)[None], 48000, "aac")
    content = bytearray((tmp_path / "take.aac").read_bytes())
    middle = content.index(b"\xff\xf1", len(content) // 2)
    content[middle + 7 : middle + 200] = bytes(range(193))
    (tmp_path / "take.aac").write_bytes(content)
    with pytest.raises(ValueError, match=r"take\.aac"):
        load_audio(tmp_path / "take.aac", 16000)


def test_a_rate_that_changes_midway(tmp_path):
    record(tmp_path / "a.aac", sine(0.3)[None], 48000, "aac")
    record(tmp_path / "b.aac", sine(0.3, 44100)[None], 44100, "aac")
    (tmp_path / "take.aac").write_bytes((tmp_path / "a.aac").read_bytes() + (tmp_path / "b.aac").read_bytes())
    with pytest.raises(ValueError, match=r"take\.aac.*sample rate"):
        load_audio(tmp_path / "take.aac", 16000)


@pytest.mark.parametrize(
    ("subtype", "rate", "n_channels"), [("OPUS", 48000, 2), ("VORBIS", 48000, 2), ("VORBIS", 24000, 1)]
)
def test_a_chained_ogg_that_changes_midway(tmp_path, subtype, rate, n_channels):
    with (tmp_path / "take.ogg").open("wb") as file:
        soundfile.write(file, sine(2.0), 48000, format="OGG", subtype=subtype)
        soundfile.write(
            tmp_path / "b", np.stack([sine(2.0, rate)] * n_channels, 1), rate, format="OGG", subtype=subtype
        )
        file.write((tmp_path / "b").read_bytes())
    with pytest.raises(ValueError, match=r"take\.ogg.*channels"):
        load_audio(tmp_path / "take.ogg", 16000)


# --- length ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["wav", "flac", "m4a"])
def test_limit(tmp_path, suffix):
    path = tmp_path / f"take.{suffix}"
    if suffix == "m4a":
        record(path, sine(2.0)[None], 48000, "aac")
    else:
        soundfile.write(path, sine(2.0), 48000)
    assert len(load_audio(path, 16000, max_seconds=2.1)) == pytest.approx(32000, abs=1000)
    with pytest.raises(ValueError, match=rf"take\.{suffix}.*1\.9 s"):
        load_audio(path, 16000, max_seconds=1.9)


def test_limit_is_exact(tmp_path):
    soundfile.write(tmp_path / "take.wav", sine(1.0), 48000)
    assert len(load_audio(tmp_path / "take.wav", 16000, max_seconds=1.0)) == 16000
    soundfile.write(tmp_path / "take.wav", sine(1.0 + 1 / 48000), 48000)
    with pytest.raises(ValueError, match=r"take\.wav.* 1 s"):
        load_audio(tmp_path / "take.wav", 16000, max_seconds=1.0)


@pytest.mark.parametrize("suffix", ["flac", "webm"])
def test_hours_in_a_small_file_are_not_decoded(tmp_path, suffix, monkeypatch):
    path = tmp_path / f"hours.{suffix}"
    if suffix == "webm":
        record(path, np.zeros((1, 60 * 48000), np.float32), 48000, "libopus")
    else:
        soundfile.write(path, np.zeros(3600 * 8000, np.int16), 8000)
    assert path.stat().st_size < 500_000
    seen, check = [], audio_files._check_samples
    monkeypatch.setattr(
        audio_files, "_check_samples", lambda audio, name: (seen.append(len(audio)), check(audio, name))
    )
    with pytest.raises(ValueError, match=" 5 s"):
        load_audio(path, 16000, max_seconds=5)
    assert sum(seen) <= 5 * 48000


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read as Linux counts it")
def test_an_index_of_millions_of_samples_takes_neither_memory_nor_time(tmp_path):
    """A kilobyte of m4a that says that it has 80 million: FFmpeg took 2.9 GB and 8 s to refuse it."""
    record(tmp_path / "take.m4a", sine(0.2)[None], 48000, "aac")
    content = bytearray((tmp_path / "take.m4a").read_bytes())
    for name, place, value in (
        ("stsz", 8, 1),
        ("stsz", 12, 80_000_000),
        ("stts", 12, 80_000_000),
        ("stsc", 16, 80_000_000),
    ):
        start = content.index(name.encode()) + place
        content[start : start + 4] = struct.pack(">I", value)
    (tmp_path / "take.m4a").write_bytes(content)
    with pytest.raises(ValueError, match=r"take\.m4a"):
        load_audio(tmp_path / "take.m4a", 16000)
    measure = "import resource, subprocess as s, sys; s.run(sys.argv[1:3] + ['0'], stdin=open(sys.argv[3], 'rb'))\n"
    measure += (
        "used = resource.getrusage(resource.RUSAGE_CHILDREN); print(used.ru_maxrss, used.ru_utime + used.ru_stime)"
    )
    command = [sys.executable, "-c", measure, sys.executable, ffmpeg_decoder.__file__, tmp_path / "take.m4a"]
    kilobytes, seconds = map(float, subprocess.run(command, capture_output=True, check=True).stdout.split())
    assert kilobytes < 400_000 and seconds < 5


def test_a_file_that_keeps_ffmpeg_busy_without_sound_is_given_up(tmp_path, monkeypatch):
    (tmp_path / "busy.py").write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from sound import ffmpeg_decoder as child\n"
        "child._MAX_SECONDS, child.decode = 0.2, lambda *_: [0 for _ in iter(int, 1)]; child.main()"
    )
    monkeypatch.setattr(ffmpeg_decoder, "__file__", str(tmp_path / "busy.py"))
    record(tmp_path / "take.m4a", sine(0.2)[None], 48000, "aac")
    with pytest.raises(ValueError, match=r"take\.m4a cannot be read as sound \(it takes far more work"):
        load_audio(tmp_path / "take.m4a", 16000)


def test_a_header_that_claims_hours(tmp_path):
    soundfile.write(tmp_path / "take.wav", sine(0.5, 16000), 16000)
    content = bytearray((tmp_path / "take.wav").read_bytes())
    content[40:44] = struct.pack("<I", 0xFFFFFF00)  # size of the data chunk in bytes
    (tmp_path / "take.wav").write_bytes(content)
    assert len(load_audio(tmp_path / "take.wav", 16000, max_seconds=1)) == 8000


@pytest.mark.parametrize("length", [0, 0xFFFFFFFF, 0x7FFFFFFF, 16001 * 2])
@pytest.mark.parametrize("n_cut", [0, 1])
@pytest.mark.parametrize("riff_length", [None, 0])
def test_a_recorder_that_crashed(tmp_path, length, n_cut, riff_length):
    """All whole samples are read, whatever lengths the header claims, even if the file ends within a sample."""
    soundfile.write(tmp_path / "take.wav", sine(1.0, 16000), 16000)
    content = bytearray((tmp_path / "take.wav").read_bytes())
    content[40:44] = struct.pack("<I", length)
    if riff_length is not None:
        content[4:8] = struct.pack("<I", riff_length)
    (tmp_path / "take.wav").write_bytes(content[: len(content) - n_cut])
    assert np.abs(load_audio(tmp_path / "take.wav", 16000) - sine(1.0, 16000)[: 16000 - n_cut]).max() < 1e-4


_LENGTH_AT = {"wav": (40, "<I"), "rf64": (28, "<Q"), "au": (8, ">I"), "aiff": (42, ">I")}  # of the samples, in bytes


@pytest.mark.parametrize("suffix", _LENGTH_AT)
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
@pytest.mark.parametrize("length", [0, 16000, 2**31 - 1])
def test_a_length_that_was_never_brought_up_to_date(tmp_path, suffix, subtype, length):
    tone = np.stack([sine(1.0, 16000), sine(1.0, 16000, 660)], axis=1)
    path = tmp_path / f"take.{suffix}"
    soundfile.write(path, tone, 16000, format=suffix, subtype=subtype)
    content = bytearray(path.read_bytes())
    at, kind = _LENGTH_AT[suffix]
    if suffix != "au":
        at = content.index(b"SSND" if suffix == "aiff" else b"data") + 4 if suffix != "rf64" else at
    content[at : at + struct.calcsize(kind)] = struct.pack(kind, length)
    path.write_bytes(content)
    audio = load_audio(path, 16000)
    assert len(audio) == 16000 and np.abs(audio - tone.mean(axis=1)).max() < 1e-4


def test_waves_joined_one_after_the_other(tmp_path):
    parts = []
    for hertz in (440, 660, 880):
        soundfile.write(tmp_path / "part.wav", sine(1.0, 16000, hertz), 16000)
        parts.append((tmp_path / "part.wav").read_bytes() + b"LIST" + struct.pack("<I", 5) + bytes(6))
    (tmp_path / "take.wav").write_bytes(b"".join(parts))
    expected = np.concatenate([sine(1.0, 16000, hertz) for hertz in (440, 660, 880)])
    audio = load_audio(tmp_path / "take.wav", 16000)
    assert len(audio) == len(expected) and np.abs(audio - expected).max() < 1e-4
    soundfile.write(tmp_path / "part.wav", sine(1.0, 22050), 22050)
    (tmp_path / "take.wav").write_bytes(parts[0] + (tmp_path / "part.wav").read_bytes())
    with pytest.raises(ValueError, match=r"take\.wav changes its sample rate"):
        load_audio(tmp_path / "take.wav", 16000)


@pytest.mark.parametrize("n_stated", [0, 8000])
def test_a_flac_written_to_a_pipe(tmp_path, n_stated):
    """A total of 0 means unknown; a wrong total is ignored."""
    tone = sine(3.0, 16000)
    soundfile.write(tmp_path / "take.flac", tone, 16000)
    content = bytearray((tmp_path / "take.flac").read_bytes())
    content[22:26] = struct.pack(">I", n_stated)
    (tmp_path / "take.flac").write_bytes(content)
    audio = load_audio(tmp_path / "take.flac", 16000)
    assert len(audio) == len(tone) and np.abs(audio - tone).max() < 1e-4
    (tmp_path / "take.flac").write_bytes(content[: len(content) // 2])  # cut within a frame
    assert 0 < len(load_audio(tmp_path / "take.flac", 16000)) < len(tone)


def test_a_caf_written_to_a_pipe(tmp_path):
    soundfile.write(tmp_path / "take.caf", sine(1.0, 16000), 16000)
    content = bytearray((tmp_path / "take.caf").read_bytes())
    start = content.index(b"data") + 4
    content[start : start + 8] = b"\xff" * 8
    (tmp_path / "take.caf").write_bytes(content)
    assert len(load_audio(tmp_path / "take.caf", 16000)) == 16000


ID3 = b"ID3\x04\x00\x00\x00\x00\x0f\x00" + bytes(1920)
ID3V1 = b"TAG" + b"x" * 125


@pytest.mark.parametrize(
    ("suffix", "subtype", "rate", "between"),
    [
        ("ogg", "VORBIS", 44100, b""),
        ("opus", "OPUS", 48000, b""),
        ("opus", "OPUS", 16000, b""),
        ("mp3", None, 44100, b""),
        ("mp3", None, 44100, ID3),
        ("mp3", None, 44100, ID3V1),
        ("flac", None, 44100, b""),
    ],
)
def test_concatenated_files(tmp_path, suffix, subtype, rate, between):
    """Both halves are read, each with its pitch. Web radios and ``cat`` write such files."""
    halves = []
    for hertz in (440, 660):
        soundfile.write(
            tmp_path / "a", sine(2.0, rate, hertz), rate, format=suffix.replace("opus", "ogg"), subtype=subtype
        )
        halves.append((tmp_path / "a").read_bytes())
    (tmp_path / f"take.{suffix}").write_bytes(between.join(halves))
    audio = load_audio(tmp_path / f"take.{suffix}", 16000)
    assert len(audio) == pytest.approx(4 * 16000, abs=0.1 * 16000)  # the padding frames of mp3 are kept
    assert abs(peak_hz(audio[:30000], 16000) - 440) <= 1 and abs(peak_hz(audio[-30000:], 16000) - 660) <= 1
    (tmp_path / f"take.{suffix}").write_bytes(halves[0])
    first_half = load_audio(tmp_path / f"take.{suffix}", 16000)
    assert np.array_equal(audio[:30000], first_half[:30000])
    with pytest.raises(ValueError, match=" 3 s"):
        (tmp_path / f"take.{suffix}").write_bytes(between.join(halves))
        load_audio(tmp_path / f"take.{suffix}", 16000, max_seconds=3)


@pytest.mark.parametrize("suffix", ["wav", "aiff"])
@pytest.mark.parametrize(
    "after",
    [
        b"LIST%b" + bytes(40000),
        b"LIST%b" + bytes(30000),  # cut off
        b"LIST\x7f\xff\xff\x7f" + bytes(40000),  # a wrong length
        b"SAUR%b" + bytes(30000),
        b"ID3\x04" + bytes(40004),
        b"TAG" + b"x" * 40005,
    ],
)
def test_what_follows_the_samples_is_no_sound(tmp_path, suffix, after):
    path = tmp_path / f"take.{suffix}"
    soundfile.write(path, sine(1.0, 15999), 15999, subtype="PCM_U8" if suffix == "wav" else "PCM_S8")
    with path.open("ab") as file:
        file.write(after.replace(b"%b", struct.pack("<I" if suffix == "wav" else ">I", 40000)))
    assert len(load_audio(path, 15999)) == pytest.approx(15999, abs=1)  # a pad byte


@pytest.mark.parametrize("rate", [1, 999, 1_000_001, 2**31 - 1])
def test_an_implausible_sample_rate_is_refused(tmp_path, rate):
    soundfile.write(tmp_path / "take.wav", sine(0.5, 16000), 16000)
    content = bytearray((tmp_path / "take.wav").read_bytes())
    content[24:28] = struct.pack("<I", rate)
    (tmp_path / "take.wav").write_bytes(content)
    with pytest.raises(ValueError, match=rf"take\.wav.*{rate}"):
        load_audio(tmp_path / "take.wav", 16000)  # at 1 Hz this would become 128 million samples


# --- blocks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [8000, 11025, 44100, 48000, 192000])
@pytest.mark.parametrize("n_samples", [1, 100, 70001])
def test_resampling_does_not_depend_on_the_blocks(rate, n_samples):
    sound = np.random.default_rng(0).standard_normal(n_samples).astype(np.float32)
    whole = librosa.resample(sound, orig_sr=rate, target_sr=16000, res_type="soxr_hq")  # at once
    for size in (n_samples, 1000, 33333):
        blocks = [sound[start : start + size] for start in range(0, n_samples, size)]
        assert np.array_equal(np.concatenate(list(resample_blocks(blocks, rate, 16000))), whole)
    assert np.array_equal(prepare_audio(sound, rate, 16000), whole)


def test_a_file_is_read_in_blocks(tmp_path):
    soundfile.write(tmp_path / "take.wav", np.random.default_rng(0).uniform(-1, 1, (5 * 44100, 2)), 44100)
    blocks = list(read_blocks(tmp_path / "take.wav", 16000))
    assert len(blocks) > 4 and max(map(len, blocks)) < 20000
    assert np.array_equal(np.concatenate(blocks), load_audio(tmp_path / "take.wav", 16000))


@pytest.mark.parametrize("kept", [10, 10**6])
def test_spooled_audio_is_indexed_as_an_array(kept: int, monkeypatch) -> None:
    """In memory and on disk; slices are writable copies."""
    monkeypatch.setattr(audio_files, "_IN_MEMORY_BYTES", kept)
    sound = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    spooled = SpooledAudio(np.split(sound, [1, 300, 300]))
    for part in (slice(None), slice(0, 1), slice(5, 900), slice(990, 2000), slice(1000, None), slice(-10, -2)):
        assert np.array_equal(spooled[part], sound[part])
    spooled[:10][:] = 0
    spooled.append(np.ones(3))
    assert len(spooled) == 1003 and np.array_equal(spooled[:], [*sound, 1, 1, 1])
    assert [*block_slices(7, 3)] == [slice(0, 3), slice(3, 6), slice(6, 7)] and [*block_slices(0, 3)] == []


# --- folders --------------------------------------------------------------------------------------


def make_files(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return [folder / name for name in names]


def test_dot_names_are_skipped_and_counted_in_one_line(tmp_path, caplog):
    wanted = make_files(tmp_path, "a.wav", "b/c.WAVE", "b/d/e.oga")
    make_files(tmp_path, "._a.wav", ".ipynb_checkpoints/a.wav", "b/.hidden.flac", "notes.txt", "b/more.txt", "README")
    caplog.set_level("INFO")
    assert find_sound_files(tmp_path) == wanted
    (line,) = caplog.text.splitlines()
    assert "3" in line and "2 .txt" in line and str(tmp_path) in line
    caplog.clear()
    assert find_sound_files(tmp_path / "b" / "d") == wanted[2:] and not caplog.text


def test_links_to_folders_are_followed_once(tmp_path):
    outside = tmp_path / "outside"
    make_files(outside, "a.wav", "deep/b.wav")
    inside = make_files(tmp_path / "in", "take.wav", "z/own.wav")
    (tmp_path / "in" / "again").symlink_to(outside)
    (tmp_path / "in" / "once more").symlink_to(outside)
    (tmp_path / "in" / "a").symlink_to(tmp_path / "in" / "z")  # found under its name, not the link's
    (outside / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "broken.wav").symlink_to(tmp_path / "nowhere.wav")
    linked = [tmp_path / "in" / "again" / name for name in ("a.wav", "deep/b.wav")]
    assert find_sound_files(tmp_path / "in") == [*linked, *inside]


def test_a_name_that_is_not_utf8_is_found(tmp_path):
    (file,) = make_files(tmp_path, os.fsdecode(b"caf\xe9.wav"))
    assert find_sound_files(tmp_path) == [file]
