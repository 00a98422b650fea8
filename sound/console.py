"""Command lines: help, errors as a sentence and an exit code, and printing of any file name."""

import argparse
import functools
import inspect
import io
import logging
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger(__name__)


_METAVARS = {int: "N", float: "X", Path: "PATH"}


class _CompactHelp(argparse.RawDescriptionHelpFormatter):
    """One line for each flag: short metavars by type, and a wide first column."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=120)

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return _METAVARS.get(action.type, "NAME")


def command_parser(description: str, usage: str = "[flags]") -> argparse.ArgumentParser:
    """Return the argument parser of a command; ``usage`` follows the command's name in the first line of its help."""
    return argparse.ArgumentParser(
        description=description, usage=f"%(prog)s {usage}", formatter_class=_CompactHelp, allow_abbrev=False
    )


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


def suggest(command: str, *values: object) -> None:
    """Print the command to run next, to stderr, so that stdout holds results only; ``{}`` are values, to be quoted."""
    print("Next: ./venv/bin/python", command.format(*(shlex.quote(str(value)) for value in values)), file=sys.stderr)


def escape_unprintable() -> None:
    """Set stdout and stderr to escape characters they cannot encode (``\\u266f``), where Python would raise."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not in a notebook
            stream.reconfigure(errors="backslashreplace")
