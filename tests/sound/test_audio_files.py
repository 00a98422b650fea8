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


def record(path, tone, rate=48000, codec="aac", container=None):
    """Encode mono or stereo audio [N] or [C, N] with FFmpeg, as phones and browsers do."""
    tone = np.atleast_2d(tone)
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate, layout="stereo" if len(tone) == 2 else "mono")
        stream.bit_rate = 64000 * len(tone)
        for start in range(0, tone.shape[1], 960):
            samples = np.ascontiguousarray(tone[:, start : start + 960], np.float32)
            frame = av.AudioFrame.from_ndarray(samples, "fltp", stream.layout.name)
            frame.sample_rate, frame.pts = rate, start
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))


def sine(seconds, rate=48000, hertz=440):
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def patch(path, place, kind, value):
    """Overwrite a number (struct format ``kind``) at a place, or after the first occurrence of bytes, in a file."""
    content = bytearray(path.read_bytes())
    at = place if isinstance(place, int) else content.index(place) + len(place)
    content[at : at + struct.calcsize(kind)] = struct.pack(kind, value)
    path.write_bytes(content)


def peak_hz(audio, sample_rate=16000):
    return np.abs(np.fft.rfft(audio * np.hanning(len(audio)))).argmax() * sample_rate / len(audio)


def rms(audio):
    return np.sqrt(np.mean(audio**2))


FORMATS = {"wav": "WAV", "flac": "FLAC", "ogg": "OGG", "mp3": "MP3", "wave": "WAV", "rf64": "RF64", "w64": "W64"}
FORMATS |= {"au": "AU", "snd": "AU", "aifc": "AIFF", "oga": "OGG"}
CODECS = dict.fromkeys(("m4a", "mp4", "aac", "3gp", "mov", "mkv", "mka", "m4b", "3g2"), "aac")
CODECS |= {"webm": "libopus", "weba": "libopus", "wma": "wmav2"}


@pytest.mark.parametrize("suffix", [*FORMATS, *CODECS])
def test_formats(tmp_path, suffix):
    path, tone = tmp_path / f"take.{suffix}", np.stack([sine(1.0)] * (1 if suffix in ("3gp", "flac", "m4a") else 2))
    if suffix in FORMATS:
        soundfile.write(path, tone.T, 48000, format=FORMATS[suffix])
    else:
        container = {"weba": "webm", "m4b": "mp4", "mka": "matroska", "wma": "asf"}.get(suffix)
        record(path, tone, codec=CODECS[suffix], container=container)
    audio = load_audio(path, 16000)
    assert path.suffix in SUFFIXES and audio.dtype == np.float32 and audio.ndim == 1
    assert len(audio) == pytest.approx(16000, abs=2400)  # encoders pad to whole frames, and raw aac starts late
    assert abs(peak_hz(audio) - 440) <= 1
    assert rms(audio[4000:12000]) == pytest.approx(0.5 / np.sqrt(2), rel=0.03)  # lossy formats


@pytest.mark.parametrize(("rate", "n_channels"), [(192000, 1), (48000, 8), (44100, 2), (8000, 1), (22050, 3)])
def test_sample_rates_and_channels(tmp_path, rate, n_channels):
    soundfile.write(tmp_path / "tone.wav", np.stack([sine(1.0, rate)] * n_channels, axis=1), rate, subtype="FLOAT")
    audio = load_audio(tmp_path / "tone.wav", 16000)
    # Aligned to the sample: one sample late would be 0.09 off. soxr's own error in the middle is under 1e-4.
    assert len(audio) == 16000 and np.abs(audio - sine(1.0, 16000))[1000:-1000].max() <= 1e-3


@pytest.mark.parametrize("suffix", ["wav", "m4a"])
def test_channels_of_opposite_polarity_do_not_cancel(tmp_path, suffix, caplog):
    voice = np.concatenate([np.zeros(16000, np.float32), sine(1.0, 16000)])  # begins with silence
    sides = np.stack([voice, -voice])
    path = tmp_path / f"take.{suffix}"
    record(path, sides, 16000) if suffix == "m4a" else soundfile.write(path, sides.T, 16000)
    assert rms(load_audio(path, 16000)[-12000:]) == pytest.approx(rms(voice[-12000:]), rel=0.05)
    assert len(caplog.records) == 1


def test_changing_polarity_loses_no_voice(tmp_path):
    """One second each: opposite polarity, one channel only, the other only, both, opposite polarity at -20 dB."""
    voice, none = sine(1.0, 16000), np.zeros(16000, np.float32)
    sides = [(voice, -voice), (none, voice), (voice, none), (voice, voice), (0.1 * voice, -0.1 * voice)]
    soundfile.write(tmp_path / "take.wav", np.concatenate([np.stack(pair, 1) for pair in sides]), 16000)
    levels = [rms(second) / rms(voice) for second in np.split(load_audio(tmp_path / "take.wav", 16000), 5)]
    assert levels == pytest.approx([1, 0.5, 0.5, 1, 0.1], rel=0.02)


def test_inverting_a_channel_does_not_click(tmp_path):
    """The right channel changes polarity within the first block; the mix changes at its end, at a peak of the tone."""
    voice = sine(2.0, 16000, 440.25)
    sides = np.stack([voice, np.where(np.arange(32000) < 14400, voice, -voice)], axis=1)
    soundfile.write(tmp_path / "take.wav", sides, 16000, subtype="FLOAT")
    mono = load_audio(tmp_path / "take.wav", 16000)
    assert np.abs(np.diff(mono[15900:])).max() < 1.1 * np.abs(np.diff(voice)).max()
    assert np.array_equal(mono[16500:], voice[16500:])


def test_arrays_and_files_are_mixed_alike(tmp_path, caplog):
    voice, rng = sine(0.5, 16000), np.random.default_rng(0)
    for n_channels in (2, 3, 8):
        sides = np.stack([voice, *rng.uniform(-1, 1, (n_channels - 1, len(voice)))], axis=1).astype(np.float32)
        sides[4000:, 1] = -0.7 * sides[4000:, 0]  # partly opposed
        soundfile.write(tmp_path / "take.wav", sides, 16000, subtype="FLOAT")
        for mono in (mix_channels(sides), mix_channels(sides.T), load_audio(tmp_path / "take.wav", 16000)):
            np.testing.assert_allclose(mono, sides.mean(axis=1), atol=1e-6)
    assert not caplog.text
    np.testing.assert_array_equal(mix_channels(voice), voice)
    np.testing.assert_array_equal(mix_channels(np.stack([voice, -voice], axis=1)), voice)
    np.testing.assert_array_equal(mix_channels(np.stack([-voice, -voice, voice, voice])), -voice)
    np.testing.assert_array_equal(mix_channels(np.array([[1, 0], [0.5, 0.5]])), [0.5, 0.5])  # [2, 2] is [N, C]
    assert mix_channels(np.zeros((0, 2))).shape == mix_channels(np.zeros((2, 0))).shape == (0,)
    for wrong in (np.zeros((9, 9)), np.zeros((1, 2, 3)), np.float32(1)):
        with pytest.raises(ValueError, match="the voice"):
            mix_channels(wrong, "the voice")


def test_samples_over_full_scale_are_not_clipped_and_high_frequencies_do_not_alias(tmp_path):
    soundfile.write(tmp_path / "loud.wav", np.full(1000, 3.0), 16000, subtype="FLOAT")
    assert (load_audio(tmp_path / "loud.wav", 16000) == 3).all()
    soundfile.write(tmp_path / "high.wav", sine(1.0, hertz=11000), 48000, subtype="FLOAT")
    audio = load_audio(tmp_path / "high.wav", 16000)
    assert np.abs(audio[1000:-1000]).max() < 1e-4  # soxr HQ rejects 100 dB; plain decimation would leave 0.5


def write_silent_video(path):
    with av.open(str(path), "w", format="mp4") as file:
        stream = file.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for _ in range(3):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24")))
        file.mux(stream.encode(None))


def write_half_m4a(path):
    record(path, sine(2.0), container="mp4")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])  # without the index at the end


def write_damaged_aac(path):
    record(path, sine(2.0), container="adts")
    content = bytearray(path.read_bytes())
    middle = content.index(b"\xff\xf1", len(content) // 2)
    content[middle + 7 : middle + 200] = bytes(range(193))
    path.write_bytes(content)


def write_two_rates(path):
    record(path, sine(0.3), container="adts")
    first = path.read_bytes()
    record(path, sine(0.3, 44100), 44100, container="adts")
    path.write_bytes(first + path.read_bytes())


def write_chained_ogg(path, subtype="VORBIS", rate=48000, n_channels=2):
    parts = []
    for each_rate, n in ((48000, 1), (rate, n_channels)):
        soundfile.write(path, np.stack([sine(2.0, each_rate)] * n, 1), each_rate, subtype=subtype)
        parts.append(path.read_bytes())
    path.write_bytes(b"".join(parts))


def write_not_finite(path):
    soundfile.write(path, np.r_[np.zeros(500), np.nan], 44100, format="WAV", subtype="FLOAT")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("no_bytes.wav", b""),
        ("text.wav", b"This is not a sound.\n" * 40),
        ("half_a_header.wav", b"RIFF\x00\x00\x00\x00WAVE"),
        ("headerless.raw", bytes(1000)),
        ("no_samples.wav", lambda path: soundfile.write(path, np.zeros(0), 16000)),
        ("not_finite.wav", write_not_finite),
        ("video.mp4", write_silent_video),
        ("half.m4a", write_half_m4a),
        ("damaged.aac", write_damaged_aac),
        ("two_rates.aac", write_two_rates),
        ("two_layouts.ogg", write_chained_ogg),
        ("two_layouts_opus.ogg", lambda path: write_chained_ogg(path, "OPUS")),
        ("two_rates.ogg", lambda path: write_chained_ogg(path, rate=24000, n_channels=1)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_files_that_are_not_sound_are_refused(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content) if isinstance(content, bytes) else content(path)
    with pytest.raises(ValueError, match=re.escape(name)):
        load_audio(path, 16000)


def test_missing_files_and_folders_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.wav"):
        load_audio(tmp_path / "nowhere.wav", 16000)
    with pytest.raises(ValueError, match=tmp_path.name):
        load_audio(tmp_path, 16000)
    with pytest.raises(ValueError, match="the microphone"):
        prepare_audio(np.zeros(0), 48000, 16000, "the microphone")


@pytest.mark.parametrize("rate", [1, 999, 1_000_001, 2**31 - 1])
def test_an_implausible_sample_rate_is_refused(tmp_path, rate):
    soundfile.write(tmp_path / "take.wav", sine(0.5, 16000), 16000)
    patch(tmp_path / "take.wav", 24, "<I", rate)
    with pytest.raises(ValueError, match=rf"take\.wav.*{rate}"):
        load_audio(tmp_path / "take.wav", 16000)  # at 1 Hz this would become 128 million samples


@pytest.mark.parametrize(
    "playlist", ["#EXTM3U\n#EXTINF:1,\nsecret.ts\n#EXT-X-ENDLIST\n", "ffconcat version 1.0\nfile secret.m4a\n"]
)
def test_a_playlist_is_not_followed(tmp_path, playlist, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record(tmp_path / "secret.m4a", sine(0.5))
    record(tmp_path / "secret.ts", sine(0.5), container="mpegts")
    (tmp_path / "song.m4a").write_text(playlist)
    with pytest.raises(ValueError, match=r"song\.m4a"):
        load_audio("song.m4a", 16000)


@pytest.mark.parametrize("name", [b"concat:take|two.m4a", b"caf\xe9.m4a", b"caf\xe9.wav", b"aac_inside.wav"])
def test_unusual_and_wrong_names_are_read(tmp_path, name):
    """A name that looks like a URL of FFmpeg, names that are not UTF-8, and a suffix of another format."""
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    record(tmp_path / "take.m4a", sine(0.5))
    (tmp_path / "take.m4a").rename(path)
    assert abs(peak_hz(load_audio(path, 16000)) - 440) <= 2
    audio_files.write_audio(path.with_suffix(".wav"), np.zeros(100), 16000)
    assert len(load_audio(path.with_suffix(".wav"), 16000)) == 100


@pytest.mark.parametrize("suffix", ["wav", "m4a"])
def test_a_file_longer_than_the_limit_is_refused(tmp_path, suffix):
    path = tmp_path / f"take.{suffix}"
    record(path, sine(2.0)) if suffix == "m4a" else soundfile.write(path, sine(2.0), 48000)
    exact = 2.0 if suffix == "wav" else 2.1
    assert len(load_audio(path, 16000, max_seconds=exact)) == pytest.approx(32000, abs=1000)
    shorter = exact - (1 / 48000 if suffix == "wav" else 0.2)
    with pytest.raises(ValueError, match=rf"take\.{suffix}.* s"):
        load_audio(path, 16000, max_seconds=shorter)


@pytest.mark.parametrize("suffix", ["flac", "webm"])
def test_hours_in_a_small_file_are_not_decoded(tmp_path, suffix, monkeypatch):
    path = tmp_path / f"hours.{suffix}"
    if suffix == "webm":
        record(path, np.zeros(60 * 48000, np.float32), codec="libopus")
    else:
        soundfile.write(path, np.zeros(3600 * 8000, np.int16), 8000)
    assert path.stat().st_size < 500_000
    n_seen, check = [], audio_files._check_samples
    monkeypatch.setattr(audio_files, "_check_samples", lambda *values: (n_seen.append(len(values[0])), check(*values)))
    with pytest.raises(ValueError, match=" 5 s"):
        load_audio(path, 16000, max_seconds=5)
    assert sum(n_seen) <= 5 * 48000


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read as Linux counts it")
def test_an_index_of_80_million_samples_takes_neither_memory_nor_time(tmp_path):
    path = tmp_path / "take.m4a"
    record(path, sine(0.2))
    for name, place, value in ((b"stsz", 8, 1), (b"stsz", 12, 8e7), (b"stts", 12, 8e7), (b"stsc", 16, 8e7)):
        patch(path, path.read_bytes().index(name) + place, ">I", int(value))
    with pytest.raises(ValueError, match=r"take\.m4a"):
        load_audio(path, 16000)
    measure = "import resource, subprocess as s, sys; s.run(sys.argv[1:3] + ['0'], stdin=open(sys.argv[3], 'rb'))\n"
    measure += (
        "used = resource.getrusage(resource.RUSAGE_CHILDREN)\nprint(used.ru_maxrss, used.ru_utime + used.ru_stime)"
    )
    command = [sys.executable, "-c", measure, sys.executable, ffmpeg_decoder.__file__, path]
    kilobytes, seconds = map(float, subprocess.run(command, capture_output=True, check=True).stdout.split())
    assert kilobytes < 400_000 and seconds < 5  # FFmpeg alone took 2.9 GB and 8 s


def test_decoding_without_output_is_stopped(tmp_path, monkeypatch):
    (tmp_path / "busy.py").write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from sound import ffmpeg_decoder as child\n"
        "child._MAX_SECONDS, child.decode = 0.2, lambda *_: [0 for _ in iter(int, 1)]; child.main()"
    )
    monkeypatch.setattr(ffmpeg_decoder, "__file__", str(tmp_path / "busy.py"))
    record(tmp_path / "take.m4a", sine(0.2))
    with pytest.raises(ValueError, match=r"take\.m4a"):
        load_audio(tmp_path / "take.m4a", 16000)


@pytest.mark.parametrize("length", [0, 0xFFFFFFFF, 0x7FFFFFFF, 16001 * 2])
@pytest.mark.parametrize(("n_cut", "riff_length"), [(0, None), (1, None), (0, 0), (1, 0)])
def test_all_whole_samples_of_an_unfinished_wav_are_read(tmp_path, length, n_cut, riff_length):
    """Lengths in the header are ignored; the file may end within a sample."""
    path = tmp_path / "take.wav"
    soundfile.write(path, sine(1.0, 16000), 16000)
    patch(path, 40, "<I", length)
    if riff_length is not None:
        patch(path, 4, "<I", riff_length)
    path.write_bytes(path.read_bytes()[: 44 + 32000 - n_cut])
    audio = load_audio(path, 16000, max_seconds=1)
    assert len(audio) == 16000 - n_cut and np.abs(audio - sine(1.0, 16000)[: 16000 - n_cut]).max() < 1e-4


_LENGTH_AT = {"wav": (b"data", "<I"), "rf64": (28, "<Q"), "au": (8, ">I"), "aiff": (b"SSND", ">I")}  # of the samples


@pytest.mark.parametrize("suffix", _LENGTH_AT)
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
@pytest.mark.parametrize("length", [0, 16000, 2**31 - 1])
def test_a_wrong_length_in_the_header_is_ignored(tmp_path, suffix, subtype, length):
    tone = np.stack([sine(1.0, 16000), sine(1.0, 16000, 660)], axis=1)
    path = tmp_path / f"take.{suffix}"
    soundfile.write(path, tone, 16000, format=suffix, subtype=subtype)
    patch(path, *_LENGTH_AT[suffix], length)
    audio = load_audio(path, 16000)
    assert len(audio) == 16000 and np.abs(audio - tone.mean(axis=1)).max() < 1e-4


@pytest.mark.parametrize(
    ("suffix", "place", "kind", "length"),
    [("flac", 22, ">I", 0), ("flac", 22, ">I", 8000), ("caf", b"data", ">Q", 2**64 - 1)],
)
def test_flac_and_caf_of_unknown_or_wrong_length_are_read(tmp_path, suffix, place, kind, length):
    """Written to a pipe, their length is not known."""
    path, tone = tmp_path / f"take.{suffix}", sine(3.0, 16000)
    soundfile.write(path, tone, 16000)
    patch(path, place, kind, length)
    audio = load_audio(path, 16000)
    assert len(audio) == len(tone) and np.abs(audio - tone).max() < 1e-4
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])  # cut within a frame
    assert 0 < len(load_audio(path, 16000)) < len(tone)


def test_joined_wav_files_are_read(tmp_path):
    path, parts, tones = tmp_path / "take.wav", [], [sine(1.0, 16000, hertz) for hertz in (440, 660, 880)]
    for tone in tones:
        soundfile.write(path, tone, 16000)
        parts.append(path.read_bytes() + b"LIST" + struct.pack("<I", 5) + bytes(6))
    path.write_bytes(b"".join(parts))
    audio = load_audio(path, 16000)
    assert len(audio) == 48000 and np.abs(audio - np.concatenate(tones)).max() < 1e-4
    soundfile.write(path, sine(1.0, 22050), 22050)
    path.write_bytes(parts[0] + path.read_bytes())
    with pytest.raises(ValueError, match=r"take\.wav.*sample rate"):
        load_audio(path, 16000)


@pytest.mark.parametrize(
    ("suffix", "subtype", "rate", "between"),
    [
        ("ogg", "VORBIS", 44100, b""),
        ("opus", "OPUS", 48000, b""),
        ("opus", "OPUS", 16000, b""),
        ("mp3", None, 44100, b""),
        ("mp3", None, 44100, b"ID3\x04\x00\x00\x00\x00\x0f\x00" + bytes(1920)),
        ("mp3", None, 44100, b"TAG" + b"x" * 125),
        ("flac", None, 44100, b""),
    ],
)
def test_joined_compressed_files_are_read(tmp_path, suffix, subtype, rate, between):
    """Web radios, recorders and ``cat`` write such files."""
    path, kind, halves = tmp_path / f"take.{suffix}", suffix.replace("opus", "ogg"), []
    for hertz in (440, 660):
        soundfile.write(path, sine(2.0, rate, hertz), rate, format=kind, subtype=subtype)
        halves.append(path.read_bytes())
    path.write_bytes(halves[0])
    first_half = load_audio(path, 16000)
    path.write_bytes(between.join(halves))
    audio = load_audio(path, 16000)
    assert len(audio) == pytest.approx(4 * 16000, abs=0.1 * 16000)  # the padding frames of mp3 are kept
    assert abs(peak_hz(audio[:30000]) - 440) <= 1 and abs(peak_hz(audio[-30000:]) - 660) <= 1
    assert np.array_equal(audio[:30000], first_half[:30000])
    with pytest.raises(ValueError, match=" 3 s"):
        load_audio(path, 16000, max_seconds=3)


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
def test_metadata_after_the_samples_is_not_read_as_sound(tmp_path, suffix, after):
    path = tmp_path / f"take.{suffix}"
    soundfile.write(path, sine(1.0, 15999), 15999, subtype="PCM_U8" if suffix == "wav" else "PCM_S8")
    with path.open("ab") as file:
        file.write(after.replace(b"%b", struct.pack("<I" if suffix == "wav" else ">I", 40000)))
    assert len(load_audio(path, 15999)) == pytest.approx(15999, abs=1)  # a pad byte


@pytest.mark.parametrize("rate", [8000, 44100, 192000])
@pytest.mark.parametrize("n_samples", [1, 100, 70001])
def test_resampling_does_not_depend_on_the_blocks(rate, n_samples):
    sound = np.random.default_rng(0).standard_normal(n_samples).astype(np.float32)
    whole = librosa.resample(sound, orig_sr=rate, target_sr=16000, res_type="soxr_hq")  # at once
    for size in (n_samples, 1000, 33333):
        blocks = [sound[start : start + size] for start in range(0, n_samples, size)]
        assert np.array_equal(np.concatenate(list(resample_blocks(blocks, rate, 16000))), whole)
    assert np.array_equal(prepare_audio(sound.astype(np.float64), rate, 16000), whole)


def test_a_file_is_read_in_blocks(tmp_path):
    soundfile.write(tmp_path / "take.wav", np.random.default_rng(0).uniform(-1, 1, (5 * 44100, 2)), 44100)
    blocks = list(read_blocks(tmp_path / "take.wav", 16000))
    assert len(blocks) > 4 and max(map(len, blocks)) < 20000
    assert np.array_equal(np.concatenate(blocks), load_audio(tmp_path / "take.wav", 16000))


@pytest.mark.parametrize("n_bytes", [10, 10**6])
def test_spooled_audio_is_indexed_as_an_array(n_bytes, monkeypatch):
    """In memory and on disk; slices are writable copies."""
    monkeypatch.setattr(audio_files, "_IN_MEMORY_BYTES", n_bytes)
    sound = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    spooled = SpooledAudio(np.split(sound, [1, 300, 300]))
    for part in (slice(None), slice(0, 1), slice(5, 900), slice(990, 2000), slice(1000, None), slice(-10, -2)):
        assert np.array_equal(spooled[part], sound[part])
    spooled[:10][:] = 0
    spooled.append(np.ones(3))
    assert len(spooled) == 1003 and np.array_equal(spooled[:], [*sound, 1, 1, 1])
    assert [*block_slices(7, 3)] == [slice(0, 3), slice(3, 6), slice(6, 7)] and [*block_slices(0, 3)] == []


def make_files(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return [folder / name for name in names]


def test_hidden_files_are_skipped_and_skipped_files_are_counted_in_one_line(tmp_path, caplog):
    wanted = make_files(tmp_path, "a.wav", "b/c.WAVE", "b/d/e.oga", os.fsdecode(b"caf\xe9.wav"))
    make_files(tmp_path, "._a.wav", ".ipynb_checkpoints/a.wav", "b/.hidden.flac", "notes.txt", "b/more.txt", "README")
    caplog.set_level("INFO")
    assert find_sound_files(tmp_path) == wanted
    (line,) = caplog.text.splitlines()
    assert "3" in line and "2 .txt" in line and str(tmp_path) in line
    caplog.clear()
    assert find_sound_files(tmp_path / "b" / "d") == wanted[2:3] and not caplog.text


def test_links_to_folders_are_followed_once(tmp_path):
    outside = tmp_path / "outside"
    make_files(outside, "a.wav", "deep/b.wav")
    inside = make_files(tmp_path / "in", "take.wav", "z/own.wav")
    for link, target in {"in/again": "outside", "in/twice": "outside", "in/a": "in/z", "outside/loop": "in"}.items():
        (tmp_path / link).symlink_to(tmp_path / target)
    (tmp_path / "in" / "broken.wav").symlink_to(tmp_path / "nowhere.wav")
    linked = [tmp_path / "in" / "again" / name for name in ("a.wav", "deep/b.wav")]
    assert find_sound_files(tmp_path / "in") == [*linked, *inside]  # "in/z" under its own name, not the link's
