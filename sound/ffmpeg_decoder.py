"""Decoder of sound files by FFmpeg (PyAV), run in a separate process with limits on memory and time.

    ./venv/bin/python sound/ffmpeg_decoder.py 0 < FILE > SAMPLES

FFmpeg trusts the header of a file: a 1 KB m4a file whose index declares millions of samples takes gigabytes in seconds.
The limits end the process, and ``sound/audio_files.py``, which runs it, reports the error. The sound is read from
standard input, so that a file name is never taken for a URL. Only ``av`` is imported, for a fast start.

The output is the sample rate and the number of channels (``HEADER``), then interleaved float32 samples. The exit code
gives the kind of error, and standard error its message.
"""

import contextlib
import resource
import signal
import struct
import sys
from typing import BinaryIO

import av

HEADER = struct.Struct("=II")
DAMAGED, CHANGES = 3, 4  # exit codes: not decodable; sample rate or channels change midway
_CONTAINERS = "mov,matroska,asf,aac,ogg,mp3,wav,flac,aiff,caf,amr"  # others may refer to other files and URLs
_MAX_MEMORY = 2**29  # bytes of address space; the libraries take 2**27
_MAX_SECONDS = 5  # of CPU time between two frames of audio


def decode(source: BinaryIO, rate: int | None, sink: BinaryIO) -> int:
    """Write the first audio stream at ``rate`` (None: the file's rate); return the exit code.

    Packets that cannot be decoded are skipped at the end of a file, and anywhere in an MP3, where they are tags between
    concatenated files.
    """
    to_float, kind, damage = av.AudioResampler(format="flt", rate=rate), None, None
    with av.open(source, container_options={"format_whitelist": _CONTAINERS}) as container:
        for packet in container.demux(container.streams.audio[0]) if container.streams.audio else ():
            try:
                frames = packet.decode()
            except av.InvalidDataError as error:
                damage = error
                continue
            except av.PatchWelcomeError as error:  # an unsupported feature of the codec
                raise av.InvalidDataError(error.errno, error.strerror) from error
            for frame in frames:
                if damage and container.format.name != "mp3":
                    raise damage
                found = frame.sample_rate, frame.layout.nb_channels
                if kind is None:
                    sink.write(HEADER.pack(rate or found[0], found[1]))
                elif kind != found:
                    return CHANGES
                kind = found
                _write_samples(to_float.resample(frame), sink)
        if damage and kind is None:
            raise damage
        if kind:
            _write_samples(to_float.resample(None), sink)
    return 0


def _write_samples(frames: list[av.AudioFrame], sink: BinaryIO) -> None:
    for frame in frames:
        sink.write(memoryview(frame.planes[0])[: 4 * frame.samples * frame.layout.nb_channels])
    sink.flush()
    _limit_time()


def _limit_time() -> None:
    signal.setitimer(signal.ITIMER_PROF, _MAX_SECONDS)  # SIGPROF ends the process


def main() -> int:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # exit when the reader closes the pipe
    with contextlib.suppress(ValueError, OSError):  # not supported on all systems
        resource.setrlimit(resource.RLIMIT_AS, (_MAX_MEMORY, _MAX_MEMORY))
    _limit_time()
    try:
        return decode(sys.stdin.buffer, int(sys.argv[1]) or None, sys.stdout.buffer)
    except av.PatchWelcomeError:  # raised by the demuxer for a chained Ogg stream with other parameters
        return CHANGES
    except (av.FFmpegError, MemoryError) as error:
        print(getattr(error, "strerror", None) or "it takes too much memory", file=sys.stderr)
        return DAMAGED


if __name__ == "__main__":
    sys.exit(main())
