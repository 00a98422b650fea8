"""Printing names of files, which may hold what the console cannot show."""

import io
import sys


def escape_unprintable() -> None:
    """Print what the console cannot show as an escape such as ``\\u266f``, where Python would raise."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a notebook has its own
            stream.reconfigure(errors="backslashreplace")
