"""Commands on a console: errors become a sentence and an exit code, and names of files can always be printed."""

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
    """Decorate a command's ``main``: what a user can cause ends in one sentence, not in a traceback.

    ValueError, OSError and ModuleNotFoundError are what a user can cause.

    Args:
        stopped: what to say after Ctrl-C, for example what stays on the disk.
        failure: the exit code of an error.
        level: the least severe of the log's records that are printed.
        errors: further exceptions whose text is a sentence for the user.
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
    """Print what the console cannot show as an escape such as ``\\u266f``, where Python would raise."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a notebook has its own
            stream.reconfigure(errors="backslashreplace")
