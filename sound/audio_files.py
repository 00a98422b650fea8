"""Reading and writing of sound files in blocks, as mono at any rate; memory does not depend on the length.

libsndfile reads wav, flac, ogg, mp3 and aiff. It does not support the formats of phones and browsers (m4a, mp4, aac,
webm); FFmpeg decodes them in a process with limits on memory and time (``sound/ffmpeg_decoder.py``). soxr resamples,
and its result does not depend on the block size.

The length stated by a file is ignored: the file is decoded in blocks until its end, or until it exceeds the limit. If
libsndfile fails or stops before the end of the file (concatenated files, a crashed recorder), FFmpeg reads the rest; in
uncompressed files, further samples are read directly.
"""

import itertools
import logging
import os
import subprocess
import sys
import tempfile
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Set
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import soundfile
import soxr

from sound import ffmpeg_decoder
from sound.atomic_files import atomic_write

_SOUNDS = {".wav", ".wave", ".bwf", ".rf64", ".w64", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".voc", ".flac"}
_STREAMS = {".ogg", ".oga", ".opus", ".mp2", ".mp3", ".mpga", ".aac", ".amr", ".wma"}
_FILMS = {".m4a", ".m4b", ".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".webm", ".weba", ".mkv", ".mka", ".ogv"}
SUFFIXES = frozenset(_SOUNDS | _STREAMS | _FILMS)
_BLOCK_SAMPLES = 2**18  # maximum, all channels together
_MIX_SAMPLES = 2**14  # samples of an array that are mixed with the same weights
_IN_MEMORY_BYTES = 2**23  # of a SpooledAudio: two minutes at 16 kHz
_RATES = range(1000, 1_000_001)  # Hz; a file with a rate outside it is damaged or malicious, and may become terabytes
_AUDIBLE_POWER = 1e-7  # -70 dBFS; below it the mixing weights do not matter
_CANCELLED_POWER = 0.01  # power of the average relative to the channels, below which one is inverted
_FADE_SAMPLES = 256  # cross-fade between mixing weights, to avoid clicks
_MAX_CHANNELS = 8  # of an array; a longer axis is time
_PADDING_SECONDS = 0.1  # longer audio after libsndfile's end is sound, shorter is encoder padding
_MAX_NAMED = 6  # skipped kinds of files that are logged
_PLAIN = {"PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"}  # uncompressed samples
_PLAIN_FORMATS = {"WAV": "LITTLE", "WAVEX": "LITTLE", "RF64": "LITTLE", "AU": "BIG", "AIFF": "BIG"}
_MIN_REST = 1024  # bytes; a shorter rest of an uncompressed file is ignored
_CHUNKS = (b"LIST", b"id3 ", b"ID3 ", b"bext", b"iXML", b"JUNK", b"FLLR", b"_PMX", b"PEAK", b"smpl", b"cue ")
_MAX_CHUNK = 2**24  # bytes; only a known chunk may state more than the file has
_MAX_CHUNKS = 1000  # in concatenated WAV files
_LOUDEST = 1e4  # 80 dB above full scale; larger values are not sound, and their square may overflow
log = logging.getLogger("audio_files")


class _FFmpegError(Exception):
    """Error if FFmpeg cannot decode a file; the text gives the reason."""


def load_audio(path: str | Path, sample_rate: int, max_seconds: float | None = None) -> np.ndarray:
    """Read a sound file as mono at ``sample_rate``.

    Args:
        path: file in a format of libsndfile or FFmpeg; ``SUFFIXES`` lists the common ones.
        sample_rate: sample rate of the result in Hz.
        max_seconds: maximum duration; a longer file raises as soon as this much is decoded. None means no limit.

    Returns:
        float32 [N]. Channels are averaged; if they cancel, one is inverted first and a warning is logged.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the path is a folder or not a sound file, or the file is damaged, empty, too long or has samples
            that are not finite.
    """
    audio, n_samples = np.empty(0, np.float32), 0
    for block in read_blocks(path, sample_rate, max_seconds):
        end = n_samples + len(block)
        if end > len(audio):  # grow in place; concatenating a list of blocks would need twice the memory
            audio.resize(end + end // 8, refcheck=False)
        audio[n_samples:end] = block
        n_samples = end
    audio.resize(n_samples, refcheck=False)
    return audio


def read_blocks(path: str | Path, sample_rate: int, max_seconds: float | None = None) -> Iterator[np.ndarray]:
    """Yield the result of ``load_audio`` in blocks of about one second, float32 [n].

    Raises:
        FileNotFoundError, ValueError: see ``load_audio``.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, a sound file is expected")
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    file_rate, blocks = _open_sound(path)
    if file_rate not in _RATES:
        raise ValueError(f"{path} says that it has {file_rate} samples a second, which no recording has")
    yield from resample_blocks(_limit_length(blocks, file_rate, max_seconds, path), file_rate, sample_rate)


def prepare_audio(audio: np.ndarray, from_rate: int, to_rate: int, name: str = "the audio") -> np.ndarray:
    """Check mono samples [N] and return them resampled as float32; ``name`` is used in error messages.

    Raises:
        ValueError: there are no samples, or samples that are not finite or far beyond full scale.
    """
    if audio.size == 0:
        raise ValueError(f"{name} holds no samples")
    _check_samples(audio, name)
    return np.concatenate(list(resample_blocks([audio.astype(np.float32)], from_rate, to_rate)))


def mix_channels(audio: np.ndarray, name: str = "the audio") -> np.ndarray:
    """Mix an array [N], [N, C] or [C, N] of at most 8 channels to mono float32 [N], as a file is mixed.

    Raises:
        ValueError: the shape is not one of these.
    """
    audio = np.asarray(audio, dtype=np.float32)
    if audio.ndim == 1 or audio.size == 0:
        return audio.reshape(-1)
    if audio.ndim != 2 or min(audio.shape) > _MAX_CHANNELS:
        raise ValueError(f"{name} has the shape {audio.shape}; give samples [N], or [N, C] of 1 to 8 channels")
    channels = audio.T if audio.shape[0] < audio.shape[1] else audio
    blocks = (channels[part] for part in block_slices(len(channels), _MIX_SAMPLES))
    return np.concatenate(list(_mix_blocks(blocks, name)))


def resample_blocks(blocks: Iterable[np.ndarray], from_rate: int, to_rate: int) -> Iterator[np.ndarray]:
    """Resample mono float32 blocks; N samples become ceil(N * to_rate / from_rate), for any block sizes."""
    if from_rate == to_rate:
        yield from blocks
        return
    stream = soxr.ResampleStream(from_rate, to_rate, 1, dtype="float32", quality="HQ")
    n_read = n_written = 0
    for block in blocks:
        resampled = stream.resample_chunk(block)
        n_read, n_written = n_read + len(block), n_written + len(resampled)
        yield resampled
    rest = stream.resample_chunk(np.empty(0, np.float32), last=True)
    missing = -(-n_read * to_rate // from_rate) - n_written - len(rest)  # soxr rounds to the nearest
    yield np.pad(rest, (0, max(0, missing)))


class SpooledAudio:
    """Float32 samples in a temporary file, read by slices like an array; only the slice is loaded into memory.

    Up to ``_IN_MEMORY_BYTES`` are kept in memory. The file has no name and is removed when the process ends.
    """

    def __init__(self, blocks: Iterable[np.ndarray] = ()) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES)  # noqa: SIM115  closed with its owner
        self._length = 0
        for block in blocks:
            self.append(block)

    def append(self, samples: np.ndarray) -> None:
        self._file.seek(0, 2)
        self._file.write(np.ascontiguousarray(samples, dtype=np.float32).tobytes())
        self._length += len(samples)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, part: slice) -> np.ndarray:
        start, stop, step = part.indices(self._length)
        assert step == 1, part
        self._file.seek(4 * start)
        samples = np.empty(max(0, stop - start), np.float32)
        self._file.readinto(samples)
        return samples


def block_slices(n_samples: int, size: int) -> Iterator[slice]:
    """Return slices of ``size`` that cover ``n_samples``; the last may be shorter."""
    return (slice(start, min(start + size, n_samples)) for start in range(0, n_samples, size))


def _limit_length(
    blocks: Iterable[np.ndarray], rate: int, max_seconds: float | None, path: Path
) -> Iterator[np.ndarray]:
    """Yield checked blocks; raise ValueError if they exceed ``max_seconds`` or there are no samples."""
    n_samples = 0
    for block in blocks:
        n_samples += len(block)
        if max_seconds is not None and n_samples > max_seconds * rate:
            raise ValueError(f"{path} lasts longer than the limit of {max_seconds:g} s; trim it")
        _check_samples(block, str(path))
        yield block
    if n_samples == 0:
        raise ValueError(f"{path} holds no samples")


def _check_samples(audio: np.ndarray, name: str) -> None:
    loudest = np.abs(audio).max(initial=0.0)  # NaN if any sample is NaN
    if not np.isfinite(loudest):
        raise ValueError(f"{name} holds samples that are not finite (NaN or infinity); export it again")
    if loudest > _LOUDEST:
        raise ValueError(f"{name} holds samples of {loudest:.2g}, where sound lies within -1 and 1")


# --- the two decoders -----------------------------------------------------------------------------


def _open_sound(path: Path) -> tuple[int, Iterator[np.ndarray]]:
    """Return sample rate and mono blocks, decoded by libsndfile or else by FFmpeg."""
    file = path.open("rb")  # opened here, because the name may not be valid UTF-8
    try:
        sound = soundfile.SoundFile(file.fileno(), closefd=False)
    except soundfile.LibsndfileError as error:
        if parts := _open_joined_waves(path, file):
            return parts[0].samplerate, _mix_blocks(_read_parts(file, parts), str(path))
        file.close()
        decoded = _decode_with_ffmpeg(path)
        try:
            first = next(decoded, None)
        except _FFmpegError as reason:
            raise _unreadable(path, str(reason)) from error
        if first is None:
            raise ValueError(f"{path} holds no samples") from error
        return first[0], _mix_blocks(_take_samples(path, itertools.chain([first], decoded)), str(path))
    return sound.samplerate, _mix_blocks(_read_with_libsndfile(path, file, sound), str(path))


def _mix_blocks(blocks: Iterable[np.ndarray], name: str) -> Iterator[np.ndarray]:
    """Average the channels of blocks [n, C]; channels of inverted polarity are inverted while the average cancels.

    Some phones, cables and effects invert the polarity of one channel, and the average would be silence. Sound in a
    single channel has the same level with both signs, so a wrong guess is harmless. The inversion ends when the plain
    average is louder.
    """
    before, has_warned = None, False
    for channels in blocks:
        average = channels.mean(axis=1)
        equal = np.full(channels.shape[1], 1 / channels.shape[1], np.float32)
        weights = equal if before is None else before
        if channels.shape[1] > 1 and (power := _power(channels)) > _AUDIBLE_POWER:
            if _power(average) < _CANCELLED_POWER * power:
                weights = _align_channels(channels)
                if not has_warned:
                    log.warning("%s: its channels cancel each other, so one is inverted before they are mixed", name)
                has_warned = True
            elif _power(average) >= _power(channels @ weights):
                weights = equal
        mono = average if np.array_equal(weights, equal) else channels @ weights
        if before is not None and not np.array_equal(weights, before):
            fade = np.clip(np.arange(len(mono), dtype=np.float32) / _FADE_SAMPLES, 0, 1)
            mono = fade * mono + (1 - fade) * (channels @ before)
        yield mono
        before = weights


def _align_channels(channels: np.ndarray) -> np.ndarray:
    """Return the weights [C] that average channels [n, C] in phase with the loudest; the first weight is positive."""
    correlation = channels.T @ channels
    signs = np.where(correlation[np.diag(correlation).argmax()] < 0, -1, 1)
    return (signs * signs[0] / len(signs)).astype(np.float32)


def _power(audio: np.ndarray) -> float:
    return float(np.mean(np.square(audio, dtype=np.float64)))


def _unreadable(path: Path, reason: str) -> ValueError:
    return ValueError(f"{path} cannot be read as sound ({reason.strip().rstrip('.')})")


def _open_joined_waves(path: Path, file: BinaryIO) -> list[soundfile.SoundFile]:
    """Open the WAV files concatenated in a file; return [] if there are fewer than two or one cannot be read."""
    starts, place = [], 0
    for _ in range(_MAX_CHUNKS):
        file.seek(place)
        head = file.read(12)
        if head[:4] == b"RIFF" and head[8:] == b"WAVE":
            starts.append(place)
            place += 12
        elif starts and len(head) >= 8:
            length = int.from_bytes(head[4:8], "little")
            place += 8 + length + length % 2
        else:
            break
    try:
        ends = itertools.pairwise([*starts, file.seek(0, os.SEEK_END)])
        sounds = [soundfile.SoundFile(_FilePart(file, *part)) for part in ends] if len(starts) > 1 else []
    except soundfile.LibsndfileError:
        return []
    if len({(sound.samplerate, sound.channels) for sound in sounds}) > 1:
        raise _changes_midway(path)
    return sounds


def _read_parts(file: BinaryIO, sounds: Iterable[soundfile.SoundFile]) -> Iterator[np.ndarray]:
    with file:
        for sound in sounds:
            yield from _read_blocks(sound)


def _read_blocks(sound: soundfile.SoundFile) -> Iterator[np.ndarray]:
    size = _block_length(sound.samplerate, sound.channels)
    with sound:
        while len(channels := sound.read(size, dtype="float32", always_2d=True)):
            yield channels


class _FilePart:
    """Part of an open file, as a file object for libsndfile."""

    def __init__(self, file: BinaryIO, start: int, stop: int) -> None:
        self.file, self.start, self.length, self.place = file, start, stop - start, 0

    def seek(self, offset: int, whence: int) -> None:
        self.place = min(max(offset + (0, self.place, self.length)[whence], 0), self.length)

    def tell(self) -> int:
        return self.place

    def readinto(self, buffer: BinaryIO) -> int:
        self.file.seek(self.start + self.place)
        n_bytes = self.file.readinto(memoryview(buffer)[: self.length - self.place])
        self.place += n_bytes
        return n_bytes


def _changes_midway(path: Path) -> ValueError:
    return ValueError(f"{path} changes its sample rate or its channels midway; export it again")


def _read_with_libsndfile(path: Path, file: BinaryIO, sound: soundfile.SoundFile) -> Iterator[np.ndarray]:
    """Yield samples [n, C]; if libsndfile stops before the end of the file, read the rest."""
    n_read, failure = 0, None
    with file:
        try:
            for channels in _read_blocks(sound):
                n_read += len(channels)
                yield channels
        except soundfile.LibsndfileError as error:
            failure = error
        size = os.fstat(file.fileno()).st_size
        if failure is None and (end := file.seek(0, os.SEEK_CUR)) == size:
            return
        if failure is None and sound.subtype in _PLAIN and sound.format in _PLAIN_FORMATS:
            file.seek(end + end % 2)  # chunks start at even offsets
            if not _is_no_sound(file.read(8), _PLAIN_FORMATS[sound.format], size - end):
                rest = _FilePart(file, end, size)
                kind = {"format": "RAW", "subtype": sound.subtype, "endian": _PLAIN_FORMATS[sound.format]}
                yield from _read_blocks(soundfile.SoundFile(rest, "r", sound.samplerate, sound.channels, **kind))
            return
    least = 0 if failure else round(_PADDING_SECONDS * sound.samplerate)
    try:
        yield from _read_rest(path, sound.samplerate, n_read, least)
    except _FFmpegError as error:
        if failure:
            raise _unreadable(path, failure.error_string) from error


def _is_no_sound(head: bytes, endian: Literal["LITTLE", "BIG"], size: int) -> bool:
    """Return True if the rest of an uncompressed file is a chunk, even one that is cut off, a tag or very short."""
    name, length = head[:4], int.from_bytes(head[4:], endian.lower())
    is_name = name.isascii() and name.decode().isprintable()
    is_chunk = is_name and (length <= size - 8 or (length < _MAX_CHUNK and name.strip(b" _").isalnum()))
    return size < _MIN_REST or is_chunk or head.startswith((b"ID3", b"TAG", b"APETAGEX", *_CHUNKS))


def _read_rest(path: Path, rate: int, n_read: int, least: int) -> Iterator[np.ndarray]:
    """Yield the samples that FFmpeg decodes after the first ``n_read``, if there are more than ``least``."""
    held, n_held = [], -n_read
    for _, channels in _decode_with_ffmpeg(path, rate):
        n_held += len(channels)
        if n_held > 0:
            held.append(channels[-n_held:])
        if n_held > least:
            yield from held
            held = []


def _decode_with_ffmpeg(path: Path, rate: int | None = None) -> Iterator[tuple[int, np.ndarray]]:
    """Yield sample rate (default: the file's) and samples [n, C], decoded by ``sound/ffmpeg_decoder.py``.

    Raises:
        _FFmpegError: FFmpeg cannot decode the file.
        ValueError: the sample rate or the number of channels changes midway.
    """
    command = [sys.executable, "-P", ffmpeg_decoder.__file__, str(rate or 0)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with path.open("rb") as file, subprocess.Popen(command, stdin=file, **pipes) as child:
        try:
            if header := child.stdout.read(ffmpeg_decoder.HEADER.size):
                file_rate, n_channels = ffmpeg_decoder.HEADER.unpack(header)
                size = 4 * n_channels * _block_length(file_rate, n_channels)
                while block := child.stdout.read(size):
                    yield file_rate, np.frombuffer(block, np.float32).reshape(-1, n_channels)
            reason, code = child.stderr.read().decode(errors="replace"), child.wait()
        finally:
            child.kill()
    if code == ffmpeg_decoder.CHANGES:
        raise _changes_midway(path)
    if code:
        raise _FFmpegError(reason if code == ffmpeg_decoder.DAMAGED else "it takes far more work than a recording")


def _block_length(rate: int, n_channels: int) -> int:
    return max(1, min(rate, _BLOCK_SAMPLES // n_channels))


def _take_samples(path: Path, decoded: Iterable[tuple[int, np.ndarray]]) -> Iterator[np.ndarray]:
    try:
        for _, channels in decoded:
            yield channels
    except _FFmpegError as error:
        raise _unreadable(path, str(error)) from error


# --- writing --------------------------------------------------------------------------------------


def write_audio(path: Path, audio: np.ndarray, sample_rate: int, bits: int = 16) -> None:
    """Write audio [N]; see ``write_blocks``."""
    write_blocks(path, [audio], sample_rate, bits)


def write_blocks(path: Path, blocks: Iterable[np.ndarray], sample_rate: int, bits: int = 16) -> None:
    """Write a sound file under a temporary name, then rename it; the suffix selects the format.

    ``bits`` per sample, 16 or 24, applies to wav and flac.

    Raises:
        ValueError: libsndfile cannot write this format.
        OSError: the file cannot be written, for example if the disk is full; an existing file is kept.
    """
    try:
        with atomic_write(path) as partial, _create_sound(partial, path.suffix[1:].upper(), sample_rate, bits) as file:
            for block in blocks:
                file.write(block)
    except (soundfile.LibsndfileError, TypeError) as error:
        raise OSError(f"{path} could not be written; is the disk full?") from error


def _create_sound(path: Path, kind: str, sample_rate: int, bits: int) -> soundfile.SoundFile:
    path.touch()  # raises a clear error if the file cannot be created; libsndfile does not
    subtype = f"PCM_{bits}" if kind in ("WAV", "FLAC") else None
    return soundfile.SoundFile(os.fsencode(path), "w", sample_rate, channels=1, format=kind, subtype=subtype)


# --- folders --------------------------------------------------------------------------------------


def find_sound_files(folder: Path, suffixes: Set[str] = SUFFIXES) -> list[Path]:
    """Return the files with one of the suffixes in a folder and its subfolders, sorted; log what is skipped.

    Dot names (``._take.wav`` of macOS, ``.ipynb_checkpoints``) and other suffixes are skipped. A folder with several
    links to it is searched once, under its real name if it lies inside ``folder``.
    """
    found, left_out, seen = [], Counter(), set()
    folders, links = [folder], deque()
    while folders or links:
        here = folders.pop() if folders else links.popleft()
        if (real := here.resolve()) in seen:
            continue
        seen.add(real)
        try:
            paths = sorted(here.iterdir())
        except OSError:
            left_out["folders that cannot be opened"] += 1
            continue
        for path in paths:
            if path.name.startswith("."):
                left_out["dot names"] += 1
            elif path.is_dir():
                (links if path.is_symlink() else folders).append(path)
            elif path.suffix.lower() in suffixes and path.is_file():
                found.append(path)
            else:
                left_out[path.suffix or "names without suffix"] += 1
    if left_out:
        kinds = [f"{count} {kind}" for kind, count in left_out.most_common(_MAX_NAMED)]
        kinds += ["..."] * (len(left_out) > _MAX_NAMED)
        log.info("%s: %d recordings; not read as such: %s", folder, len(found), ", ".join(kinds))
    return sorted(found)
