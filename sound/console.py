"""Command lines: errors become a sentence and an exit code, and any file name can be printed."""

import functools
import inspect
import io
import logging
import sys
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger(__name__)


def as_command(
    stopped: str = "stopped", failure: int = 1, level: int = logging.INFO, errors: tuple = ()
) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Decorate a command's ``main``: report ValueError, OSError and ModuleNotFoundError without a traceback.

    Args:
        stopped: message after Ctrl-C, for example which files stay.
        failure: exit code of an error.
        level: lowest level of the log records that are printed.
        errors: further exceptions to report in this way.
    """

    def decorate(main: Callable[..., int]) -> Callable[..., int]:
        script = Path(inspect.getfile(main)).name

        @functools.wraps(main)
        def run(*args, **options) -> int:
            logging.basicConfig(level=level, format="%(message)s")
            escape_unprintable()
            try:
                return main(*args, **options)
            except ModuleNotFoundError as error:
                log.error("%s: the package %s is missing; run ./setup_env.sh", script, error.name)
                return failure
            except (ValueError, OSError, *errors) as error:
                log.error("%s: %s", script, error)
                return failure
            except KeyboardInterrupt:
                log.error("%s: %s", script, stopped)
                return 130

        return run

    return decorate


def escape_unprintable() -> None:
    """Set stdout and stderr to escape characters they cannot encode (``\\u266f``), where Python would raise."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not in a notebook
            stream.reconfigure(errors="backslashreplace")
