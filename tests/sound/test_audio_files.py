"""Any sound file is read, the same in blocks as at once, and none that is too long or lies about its length."""

import os
import struct
from pathlib import Path

import av
import librosa
import numpy as np
import pytest
import soundfile

from sound import audio_files
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

# What FFmpeg writes here, and how much longer it may come back: an encoder's own frames.
RECORDED = {"m4a": "aac", "mp4": "aac", "aac": "aac", "webm": "libopus", "3gp": "aac"}


def record(path, tone, rate, codec, container=None):
    """Write mono or stereo float sound [C, N] as a phone or a browser does."""
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate, layout="stereo" if len(tone) == 2 else "mono")
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
def test_a_side_that_is_upside_down_does_not_silence_the_other(tmp_path, suffix, caplog):
    voice = np.concatenate([np.zeros(16000, np.float32), sine(1.0, 16000)])  # silence first: nothing to tell yet
    sides = np.stack([voice, -voice], axis=1)
    path = tmp_path / f"take.{suffix}"
    record(path, sides.T, 16000, "aac") if suffix == "m4a" else soundfile.write(path, sides, 16000)
    audio = load_audio(path, 16000)
    assert np.sqrt(np.mean(audio[-12000:] ** 2)) == pytest.approx(np.sqrt(np.mean(voice[-12000:] ** 2)), rel=0.05)
    assert caplog.text.count("channels cancel each other") == 1


def test_a_moment_of_cancelling_sides_loses_no_voice(tmp_path):
    """A second upside down, then a voice on one side only, then on both, then upside down again, softly."""
    voice, none = sine(1.0, 16000), np.zeros(16000, np.float32)
    sides = [(voice, -voice), (none, voice), (voice, none), (voice, voice), (0.1 * voice, -0.1 * voice)]
    soundfile.write(tmp_path / "take.wav", np.concatenate([np.stack(pair, 1) for pair in sides]), 16000)
    mono = load_audio(tmp_path / "take.wav", 16000)
    levels = [np.sqrt(np.mean(second**2)) / np.sqrt(np.mean(voice**2)) for second in np.split(mono, 5)]
    assert levels == pytest.approx([1, 0.5, 0.5, 1, 0.1], rel=0.02)


def test_turning_a_side_over_does_not_click(tmp_path):
    """The right side is turned over within the first block; the mix changes at its end, at a peak of the tone."""
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


def test_sides_that_differ_are_averaged_all_the_same(tmp_path, caplog):
    rng = np.random.default_rng(0)
    sides = 0.1 * rng.standard_normal((16000, 2)).astype(np.float32)
    sides[8000:, 1] = -0.7 * sides[8000:, 0]  # partly opposed
    soundfile.write(tmp_path / "take.wav", sides, 16000, subtype="FLOAT")
    np.testing.assert_allclose(load_audio(tmp_path / "take.wav", 16000), sides.mean(axis=1), atol=1e-7)
    assert not caplog.text


def test_what_lies_above_the_new_nyquist_does_not_come_back(tmp_path):
    tone = 0.5 * np.sin(2 * np.pi * 11000 * np.arange(48000) / 48000)
    soundfile.write(tmp_path / "high.wav", tone, 48000, subtype="FLOAT")
    audio = load_audio(tmp_path / "high.wav", 16000)
    assert np.abs(audio[1000:-1000]).max() < 1e-4  # soxr's high quality rejects 100 dB; decimation alone would give 0.5


def test_clipped_sound_is_read_as_it_is(tmp_path):
    soundfile.write(tmp_path / "hot.wav", np.full(1000, 3.0), 16000, subtype="FLOAT")
    assert (load_audio(tmp_path / "hot.wav", 16000) == 3).all()


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*nowhere\.wav"):
        load_audio(tmp_path / "nowhere.wav", 16000)


def test_folder(tmp_path):
    with pytest.raises(ValueError, match="is a folder, a sound file is expected"):
        load_audio(tmp_path, 16000)


@pytest.mark.parametrize(
    "content",
    [b"", b"This is not a sound.\n" * 40, b"RIFF\x00\x00\x00\x00WAVE"],
    ids=["no bytes", "text", "half a header"],
)
def test_not_a_sound_file(tmp_path, content):
    (tmp_path / "song.wav").write_bytes(content)
    with pytest.raises(ValueError, match=r"song\.wav cannot be read as sound"):
        load_audio(tmp_path / "song.wav", 16000)


def test_file_without_samples(tmp_path):
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16000)
    with pytest.raises(ValueError, match=r"empty\.wav holds no samples"):
        load_audio(tmp_path / "empty.wav", 16000)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("file_rate", [16000, 44100])
def test_samples_that_are_not_finite(tmp_path, value, file_rate):
    samples = np.zeros(1000, np.float32)
    samples[500] = value
    soundfile.write(tmp_path / "broken.wav", samples, file_rate, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"broken\.wav holds samples that are not finite"):
        load_audio(tmp_path / "broken.wav", 16000)


def test_prepared_audio_names_itself():
    with pytest.raises(ValueError, match="the microphone holds no samples"):
        prepare_audio(np.zeros(0), 48000, 16000, "the microphone")
    assert prepare_audio(np.zeros(480, np.float64), 48000, 16000).dtype == np.float32


# --- what phones and browsers record ---------------------------------------------------------------


@pytest.mark.parametrize("suffix", RECORDED)
@pytest.mark.parametrize("n_channels", [1, 2])
def test_recordings_of_phones_and_browsers(tmp_path, suffix, n_channels):
    assert f".{suffix}" in SUFFIXES
    path = tmp_path / f"take.{suffix}"
    record(path, np.stack([sine(1.0)] * n_channels), 48000, RECORDED[suffix])
    audio = load_audio(path, 16000)
    assert audio.dtype == np.float32 and audio.ndim == 1
    assert len(audio) == pytest.approx(16000, abs=1600)  # encoders pad to frames of their own, raw aac starts late too
    assert abs(peak_hz(audio, 16000) - 440) <= 1
    assert np.sqrt(np.mean(audio[4000:12000] ** 2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.03)  # lossy


LESS_USUAL = {"wave": "WAV", "rf64": "RF64", "w64": "W64", "au": "AU", "snd": "AU", "aifc": "AIFF", "oga": "OGG"}
FILMS = {"mov": "aac", "mkv": "aac", "mka": "aac", "weba": "libopus", "mp2": "mp2", "m4b": "aac", "3g2": "aac"}


@pytest.mark.parametrize("suffix", [*LESS_USUAL, *FILMS])
def test_less_usual_suffixes(tmp_path, suffix):
    path = tmp_path / f"take.{suffix}"
    if suffix in LESS_USUAL:
        soundfile.write(path, sine(1.0), 48000, format=LESS_USUAL[suffix])
    elif suffix == "mp2":
        with av.open(str(path), "w", format="mp2") as file:
            stream = file.add_stream("mp2", rate=48000, layout="mono")
            tone = (sine(1.0)[None] * 2**15).astype(np.int16)
            for start in range(0, 48000, 1152):
                frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(tone[:, start : start + 1152]), "s16", "mono")
                frame.sample_rate, frame.pts = 48000, start
                file.mux(stream.encode(frame))
            file.mux(stream.encode(None))
    else:
        record(
            path, sine(1.0)[None], 48000, FILMS[suffix], {"weba": "webm", "m4b": "mp4", "mka": "matroska"}.get(suffix)
        )
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


def test_a_name_is_not_an_address(tmp_path):
    path = tmp_path / "concat:take|two.m4a"
    record(tmp_path / "take.m4a", sine(0.2)[None], 48000, "aac")
    (tmp_path / "take.m4a").rename(path)
    assert len(load_audio(path, 16000)) > 0


@pytest.mark.parametrize(
    "playlist", ["#EXTM3U\n#EXTINF:1,\nsecret.ts\n#EXT-X-ENDLIST\n", "ffconcat version 1.0\nfile secret.m4a\n"]
)
def test_a_list_of_other_files_is_not_followed(tmp_path, playlist, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record(tmp_path / "secret.m4a", sine(0.5)[None], 48000, "aac")
    record(tmp_path / "secret.ts", sine(0.5)[None], 48000, "aac", "mpegts")
    (tmp_path / "song.m4a").write_text(playlist)
    with pytest.raises(ValueError, match=r"song\.m4a cannot be read as sound"):
        load_audio("song.m4a", 16000)


def test_a_film_without_sound(tmp_path):
    with av.open(str(tmp_path / "silent.mp4"), "w") as file:
        stream = file.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for _ in range(3):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24")))
        file.mux(stream.encode(None))
    with pytest.raises(ValueError, match=r"silent\.mp4 holds no samples"):
        load_audio(tmp_path / "silent.mp4", 16000)


def test_half_a_recording(tmp_path):
    record(tmp_path / "take.m4a", sine(2.0)[None], 48000, "aac")
    content = (tmp_path / "take.m4a").read_bytes()
    (tmp_path / "take.m4a").write_bytes(content[: len(content) // 2])  # its index stands at the end
    with pytest.raises(ValueError, match=r"take\.m4a cannot be read as sound"):
        load_audio(tmp_path / "take.m4a", 16000)


def test_a_recording_damaged_midway(tmp_path):
    record(tmp_path / "take.aac", sine(2.0)[None], 48000, "aac")
    content = bytearray((tmp_path / "take.aac").read_bytes())
    middle = content.index(b"\xff\xf1", len(content) // 2)
    content[middle + 7 : middle + 200] = bytes(range(193))
    (tmp_path / "take.aac").write_bytes(content)
    with pytest.raises(ValueError, match=r"take\.aac cannot be read as sound"):
        load_audio(tmp_path / "take.aac", 16000)


def test_a_rate_that_changes_midway(tmp_path):
    record(tmp_path / "a.aac", sine(0.3)[None], 48000, "aac")
    record(tmp_path / "b.aac", sine(0.3, 44100)[None], 44100, "aac")
    (tmp_path / "take.aac").write_bytes((tmp_path / "a.aac").read_bytes() + (tmp_path / "b.aac").read_bytes())
    with pytest.raises(ValueError, match=r"take\.aac changes its sample rate or its channels midway"):
        load_audio(tmp_path / "take.aac", 16000)


# --- length ---------------------------------------------------------------------------------------


def test_headerless_samples_are_no_sound_file(tmp_path):
    (tmp_path / "take.raw").write_bytes(bytes(1000))
    with pytest.raises(ValueError, match=r"take\.raw cannot be read as sound"):
        load_audio(tmp_path / "take.raw", 16000)


@pytest.mark.parametrize("suffix", ["wav", "flac", "m4a"])
def test_limit(tmp_path, suffix):
    path = tmp_path / f"take.{suffix}"
    if suffix == "m4a":
        record(path, sine(2.0)[None], 48000, "aac")
    else:
        soundfile.write(path, sine(2.0), 48000)
    assert len(load_audio(path, 16000, max_seconds=2.1)) == pytest.approx(32000, abs=1000)
    with pytest.raises(ValueError, match=rf"take\.{suffix} lasts longer than the limit of 1.9 s; trim it"):
        load_audio(path, 16000, max_seconds=1.9)


def test_limit_is_exact(tmp_path):
    soundfile.write(tmp_path / "take.wav", sine(1.0), 48000)
    assert len(load_audio(tmp_path / "take.wav", 16000, max_seconds=1.0)) == 16000
    soundfile.write(tmp_path / "take.wav", sine(1.0 + 1 / 48000), 48000)
    with pytest.raises(ValueError, match="limit of 1 s"):
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
    with pytest.raises(ValueError, match="limit of 5 s"):
        load_audio(path, 16000, max_seconds=5)
    assert sum(seen) <= 5 * 48000  # nothing beyond the limit was taken in


def test_a_header_that_promises_hours(tmp_path):
    soundfile.write(tmp_path / "take.wav", sine(0.5, 16000), 16000)
    content = bytearray((tmp_path / "take.wav").read_bytes())
    content[40:44] = struct.pack("<I", 0xFFFFFF00)  # bytes of samples that are said to follow
    (tmp_path / "take.wav").write_bytes(content)
    assert len(load_audio(tmp_path / "take.wav", 16000, max_seconds=1)) == 8000


@pytest.mark.parametrize("length", [0, 0xFFFFFFFF, 0x7FFFFFFF, 16001 * 2])
@pytest.mark.parametrize("n_cut", [0, 1])
@pytest.mark.parametrize("riff_length", [None, 0])
def test_a_recorder_that_crashed(tmp_path, length, n_cut, riff_length):
    """Whatever the header says of the length, and in the middle of a sample: what is there is read."""
    soundfile.write(tmp_path / "take.wav", sine(1.0, 16000), 16000)
    content = bytearray((tmp_path / "take.wav").read_bytes())
    content[40:44] = struct.pack("<I", length)
    if riff_length is not None:
        content[4:8] = struct.pack("<I", riff_length)
    (tmp_path / "take.wav").write_bytes(content[: len(content) - n_cut])
    assert np.abs(load_audio(tmp_path / "take.wav", 16000) - sine(1.0, 16000)[: 16000 - n_cut]).max() < 1e-4


@pytest.mark.parametrize("n_stated", [0, 8000])
def test_a_flac_written_to_a_pipe(tmp_path, n_stated):
    """0 stands for an unknown total; a wrong one is not believed either."""
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
def test_files_joined_one_after_the_other(tmp_path, suffix, subtype, rate, between):
    """As web radios and ``cat`` make them: both halves are read, each with its own pitch."""
    halves = []
    for hertz in (440, 660):
        soundfile.write(
            tmp_path / "a", sine(2.0, rate, hertz), rate, format=suffix.replace("opus", "ogg"), subtype=subtype
        )
        halves.append((tmp_path / "a").read_bytes())
    (tmp_path / f"take.{suffix}").write_bytes(between.join(halves))
    audio = load_audio(tmp_path / f"take.{suffix}", 16000)
    assert len(audio) == pytest.approx(4 * 16000, abs=0.1 * 16000)  # an mp3's own frames stay in
    assert abs(peak_hz(audio[:30000], 16000) - 440) <= 1 and abs(peak_hz(audio[-30000:], 16000) - 660) <= 1
    (tmp_path / f"take.{suffix}").write_bytes(halves[0])
    alone = load_audio(tmp_path / f"take.{suffix}", 16000)
    assert np.array_equal(audio[:30000], alone[:30000])
    with pytest.raises(ValueError, match="limit of 3 s"):
        (tmp_path / f"take.{suffix}").write_bytes(between.join(halves))
        load_audio(tmp_path / f"take.{suffix}", 16000, max_seconds=3)


def test_what_follows_the_samples_of_a_wav_is_no_sound(tmp_path):
    soundfile.write(tmp_path / "take.wav", sine(1.0, 16000), 16000)
    with (tmp_path / "take.wav").open("ab") as file:
        file.write(b"LIST" + struct.pack("<I", 40000) + bytes(40000))
    assert len(load_audio(tmp_path / "take.wav", 16000)) == 16000


@pytest.mark.parametrize("rate", [1, 999, 1_000_001, 2**31 - 1])
def test_a_rate_that_nobody_records_at(tmp_path, rate):
    soundfile.write(tmp_path / "take.wav", sine(0.5, 16000), 16000)
    content = bytearray((tmp_path / "take.wav").read_bytes())
    content[24:28] = struct.pack("<I", rate)
    (tmp_path / "take.wav").write_bytes(content)
    with pytest.raises(ValueError, match=rf"take\.wav says that it has {rate} samples a second"):
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
def test_scratch_reads_as_an_array_does(kept: int, monkeypatch) -> None:
    """In memory and on disk; what is read can be written to."""
    monkeypatch.setattr(audio_files, "_IN_MEMORY_BYTES", kept)
    sound = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    scratch = SpooledAudio(np.split(sound, [1, 300, 300]))
    for part in (slice(None), slice(0, 1), slice(5, 900), slice(990, 2000), slice(1000, None), slice(-10, -2)):
        assert np.array_equal(scratch[part], sound[part])
    scratch[:10][:] = 0
    scratch.append(np.ones(3))
    assert len(scratch) == 1003 and np.array_equal(scratch[:], [*sound, 1, 1, 1])
    assert [*block_slices(7, 3)] == [slice(0, 3), slice(3, 6), slice(6, 7)] and [*block_slices(0, 3)] == []


# --- folders --------------------------------------------------------------------------------------


def make_files(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return [folder / name for name in names]


def test_dot_names_are_left_out_and_said_in_one_line(tmp_path, caplog):
    wanted = make_files(tmp_path, "a.wav", "b/c.WAVE", "b/d/e.oga")
    make_files(tmp_path, "._a.wav", ".ipynb_checkpoints/a.wav", "b/.hidden.flac", "notes.txt", "b/more.txt", "README")
    caplog.set_level("INFO")
    assert find_sound_files(tmp_path) == wanted
    (line,) = caplog.text.splitlines()
    assert "3 dot names" in line and "2 .txt" in line and str(tmp_path) in line
    caplog.clear()
    assert find_sound_files(tmp_path / "b" / "d") == wanted[2:] and not caplog.text


def test_links_to_folders_are_followed_once(tmp_path):
    outside = tmp_path / "outside"
    make_files(outside, "a.wav", "deep/b.wav")
    inside = make_files(tmp_path / "in", "take.wav", "z/own.wav")
    (tmp_path / "in" / "again").symlink_to(outside)
    (tmp_path / "in" / "once more").symlink_to(outside)
    (tmp_path / "in" / "a").symlink_to(tmp_path / "in" / "z")  # its own name counts, not the link's
    (outside / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "broken.wav").symlink_to(tmp_path / "nowhere.wav")
    linked = [tmp_path / "in" / "again" / name for name in ("a.wav", "deep/b.wav")]
    assert find_sound_files(tmp_path / "in") == [*linked, *inside]


def test_a_name_that_is_not_utf8_is_found(tmp_path):
    (file,) = make_files(tmp_path, os.fsdecode(b"caf\xe9.wav"))
    assert find_sound_files(tmp_path) == [file]
