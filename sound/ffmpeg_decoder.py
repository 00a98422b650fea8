"""Decode a sound file by FFmpeg (PyAV) in a process of its own, with limits on memory and time.

    ./venv/bin/python sound/ffmpeg_decoder.py 0 < FILE > SAMPLES

FFmpeg believes what a file says: a kilobyte of m4a whose index declares millions of samples takes gigabytes in
seconds. Here it ends, and ``sound/audio_files.py``, which runs this, says so in a sentence. The sound comes on the
standard input, so that no name is taken for an address. Only ``av`` is imported, for the sake of a quick start.

The output is the sample rate and the number of channels (``HEADER``), then float32 samples, all channels of each; the
exit code says how it ended, and standard error why.
"""

import contextlib
import resource
import signal
import struct
import sys
from typing import BinaryIO

import av

HEADER = struct.Struct("=II")
DAMAGED, CHANGES = 3, 4  # exit codes: it cannot be decoded; its sample rate or channels change midway
_CONTAINERS = "mov,matroska,aac,ogg,mp3,wav,flac,aiff,caf,amr"  # others may be lists of files and addresses to read
_MAX_MEMORY = 2**29  # bytes of address space, of which the libraries are 2**27
_MAX_SECONDS = 5  # of the processor, from one piece of sound to the next


def decode(source: BinaryIO, rate: int | None, sink: BinaryIO) -> int:
    """Write the first stream of sound at a rate (None keeps the file's own); return the exit code.

    What cannot be decoded is skipped at the end of a file, and within an MP3, where it is a tag between joined files.
    """
    to_float, kind, damage = av.AudioResampler(format="flt", rate=rate), None, None
    with av.open(source, container_options={"format_whitelist": _CONTAINERS}) as container:
        for packet in container.demux(container.streams.audio[0]) if container.streams.audio else ():
            try:
                frames = packet.decode()
            except av.InvalidDataError as error:
                damage = error
                continue
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
    signal.setitimer(signal.ITIMER_PROF, _MAX_SECONDS)  # then SIGPROF ends the process


def main() -> int:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # nobody wants more
    with contextlib.suppress(ValueError, OSError):  # not everywhere
        resource.setrlimit(resource.RLIMIT_AS, (_MAX_MEMORY, _MAX_MEMORY))
    _limit_time()
    try:
        return decode(sys.stdin.buffer, int(sys.argv[1]) or None, sys.stdout.buffer)
    except (av.FFmpegError, MemoryError) as error:
        print(getattr(error, "strerror", None) or "it takes too much memory", file=sys.stderr)
        return DAMAGED


if __name__ == "__main__":
    sys.exit(main())
