"""Read any sound file as mono, at any rate, and write one, in blocks: memory does not depend on its length.

libsndfile reads wav, flac, ogg, mp3 and aiff. What phones and browsers record (m4a, mp4, aac, webm) it does not know:
FFmpeg does, through PyAV. Only the containers of ``_CONTAINERS`` are opened by it, for some that FFmpeg knows are
lists of further files and addresses to read. Rates are converted by soxr, whose result does not depend on the blocks.

No length that a file states is believed: it is decoded block by block until it ends, or until it is too long.
"""

import logging
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import av
import numpy as np
import soundfile
import soxr

from sound.atomic_files import atomic_write

SUFFIXES = frozenset(
    {
        ".wav",
        ".flac",
        ".ogg",
        ".opus",
        ".mp3",
        ".aif",
        ".aiff",
        ".caf",
        ".m4a",
        ".mp4",
        ".aac",
        ".webm",
        ".3gp",
    }
)
_CONTAINERS = "mov,matroska,aac,ogg,mp3,wav,flac,aiff,caf,amr"
_BLOCK_SAMPLES = 2**18  # at most, all channels together
_IN_MEMORY_BYTES = 2**23  # of a Scratch: two minutes at 16 kHz
_RATES = range(1000, 1_000_001)  # Hz; what states another is damaged or malicious, and may become terabytes
_AUDIBLE_POWER = 1e-7  # -70 dBFS: of less it does not matter how it is mixed
_CANCELLED_POWER = 0.01  # share of the channels' power that is left of their average where one is upside down
_LOUDEST = 1e4  # 80 dB over full scale: whatever is beyond is no sound, and its square may overflow
log = logging.getLogger("audio_files")


def load_audio(path: str | Path, sample_rate: int, max_seconds: float | None = None) -> np.ndarray:
    """Read a sound file as mono at the wanted rate.

    Args:
        path: anything that libsndfile or FFmpeg reads; ``SUFFIXES`` lists the usual ones.
        sample_rate: Hz.
        max_seconds: refuse what lasts longer, as soon as this much is decoded; None reads everything.

    Returns:
        float32 [N]; channels are averaged; where they cancel each other it is the first one, and the log says so.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a folder, not a sound file, damaged, empty, too long, or with samples that are not finite.
    """
    audio, n_samples = np.empty(0, np.float32), 0
    for block in read_blocks(path, sample_rate, max_seconds):
        end = n_samples + len(block)
        if end > len(audio):  # grown in place: joining a list of blocks would need twice the memory
            audio.resize(end + end // 8, refcheck=False)
        audio[n_samples:end] = block
        n_samples = end
    audio.resize(n_samples, refcheck=False)
    return audio


def read_blocks(path: str | Path, sample_rate: int, max_seconds: float | None = None) -> Iterator[np.ndarray]:
    """Yield what ``load_audio`` returns piece by piece, of about a second each: float32 [n].

    Raises:
        FileNotFoundError, ValueError: as ``load_audio``.
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
    """Check mono samples [N] and resample them to float32; ``name`` is for the error message.

    Raises:
        ValueError: no samples, or samples that are not finite or no sound.
    """
    if audio.size == 0:
        raise ValueError(f"{name} holds no samples")
    _check_samples(audio, name)
    return np.concatenate(list(resample_blocks([audio.astype(np.float32)], from_rate, to_rate)))


def resample_blocks(blocks: Iterable[np.ndarray], from_rate: int, to_rate: int) -> Iterator[np.ndarray]:
    """Resample mono float32 blocks; N samples become ceil(N * to_rate / from_rate), however they are cut."""
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
    """Float32 samples in a temporary file, read by slices as an array is: memory holds what is asked for.

    Up to ``_IN_MEMORY_BYTES`` stay in memory. The file has no name and vanishes with the process.
    """

    def __init__(self, blocks: Iterable[np.ndarray] = ()) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES)  # noqa: SIM115  it closes with its owner
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
    """Cut ``n_samples`` into slices of ``size``; the last may be shorter."""
    return (slice(start, min(start + size, n_samples)) for start in range(0, n_samples, size))


def _limit_length(
    blocks: Iterable[np.ndarray], rate: int, max_seconds: float | None, path: Path
) -> Iterator[np.ndarray]:
    """Pass blocks on until there are too many."""
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
    loudest = np.abs(audio).max(initial=0.0)  # NaN, if one sample is
    if not np.isfinite(loudest):
        raise ValueError(f"{name} holds samples that are not finite (NaN or infinity); export it again")
    if loudest > _LOUDEST:
        raise ValueError(f"{name} holds samples of {loudest:.2g}, where sound lies within -1 and 1")


# --- the two decoders -----------------------------------------------------------------------------


def _open_sound(path: Path) -> tuple[int, Iterator[np.ndarray]]:
    """Return sample rate and mono blocks, by whichever library knows the format."""
    try:
        file = soundfile.SoundFile(path)
    except (soundfile.LibsndfileError, TypeError) as error:  # a TypeError: .raw, of which nothing is known
        frames = _decode_with_ffmpeg(path)
        try:
            first = next(frames, None)
        except av.FFmpegError:
            raise _unreadable(path, getattr(error, "error_string", "its format is not known")) from error
        if first is None:
            raise ValueError(f"{path} holds no samples") from error
        return first.sample_rate, _mix_channels(_unpack_frames(path, first, frames), path)
    return file.samplerate, _mix_channels(_read_with_libsndfile(path, file), path)


def _mix_channels(blocks: Iterator[np.ndarray], path: Path) -> Iterator[np.ndarray]:
    """Average the channels of blocks [n, C]; from where they cancel each other on, the first one is taken.

    Some phones, cables and effects record one side upside down, and the average would be silence.
    """
    cancel = False
    for channels in blocks:
        mono = channels.mean(axis=1)
        if not cancel and channels.shape[1] > 1 and (power := _power(channels)) > _AUDIBLE_POWER:
            cancel = _power(mono) < _CANCELLED_POWER * power
            if cancel:
                log.warning("%s: its channels cancel each other, so only the first one is used", path)
        yield channels[:, 0] if cancel else mono


def _power(audio: np.ndarray) -> float:
    return float(np.mean(np.square(audio, dtype=np.float64)))


def _unreadable(path: Path, reason: str) -> ValueError:
    return ValueError(f"{path} cannot be read as sound ({reason.strip().rstrip('.')})")


def _read_with_libsndfile(path: Path, file: soundfile.SoundFile) -> Iterator[np.ndarray]:
    n_samples = max(1, min(file.samplerate, _BLOCK_SAMPLES // file.channels))
    try:
        with file:
            while len(channels := file.read(n_samples, dtype="float32", always_2d=True)):  # (n, C)
                yield channels
    except soundfile.LibsndfileError as error:
        raise _unreadable(path, error.error_string) from error


def _decode_with_ffmpeg(path: Path) -> Iterator[av.AudioFrame]:
    # From an open file, not a name: FFmpeg takes "concat:a" or "http:b" for an address.
    with path.open("rb") as file, av.open(file, container_options={"format_whitelist": _CONTAINERS}) as container:
        if container.streams.audio:
            yield from container.decode(container.streams.audio[0])


def _unpack_frames(path: Path, first: av.AudioFrame, frames: Iterator[av.AudioFrame]) -> Iterator[np.ndarray]:
    to_float = av.AudioResampler(format="fltp")
    frame = first
    try:
        while frame is not None:
            if (frame.sample_rate, frame.layout.nb_channels) != (first.sample_rate, first.layout.nb_channels):
                raise ValueError(f"{path} changes its sample rate or its channels midway; export it again")
            for planes in to_float.resample(frame):
                yield planes.to_ndarray().T
            frame = next(frames, None)
    except av.FFmpegError as error:
        raise _unreadable(path, str(error.strerror)) from error


# --- writing --------------------------------------------------------------------------------------


def write_audio(path: Path, audio: np.ndarray, sample_rate: int) -> None:
    """Write audio [N] as ``write_blocks`` does."""
    write_blocks(path, [audio], sample_rate)


def write_blocks(path: Path, blocks: Iterable[np.ndarray], sample_rate: int) -> None:
    """Write a sound file under a temporary name, then rename it; the suffix chooses the format.

    Raises:
        ValueError: libsndfile cannot write this format.
        OSError: the disk is full, say; what stood there stays.
    """
    try:
        with atomic_write(path) as partial, _create_sound(partial, path.suffix[1:].upper(), sample_rate) as file:
            for block in blocks:
                file.write(block)
    except (soundfile.LibsndfileError, TypeError) as error:
        raise OSError(f"{path} could not be written; is the disk full?") from error


def _create_sound(path: Path, kind: str, sample_rate: int) -> soundfile.SoundFile:
    path.touch()  # libsndfile would not say why it cannot be made
    return soundfile.SoundFile(path, "w", sample_rate, channels=1, format=kind)
