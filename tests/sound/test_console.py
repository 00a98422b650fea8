"""sound/console.py: a user's error ends in a sentence and an exit code, a bug in a traceback."""

import shlex
from pathlib import Path

import pytest

from sound.console import as_command, command_parser, suggest


@pytest.mark.parametrize(
    "error, code, words",
    [
        (ValueError("take.wav is empty"), 2, "test_console.py: take.wav is empty"),
        (FileNotFoundError(2, "No such file", "take.wav"), 2, "take.wav"),
        (ModuleNotFoundError("No module", name="onnx"), 2, "onnx"),
        (LookupError("refused"), 2, "refused"),
        (KeyboardInterrupt(), 130, "test_console.py: nothing was written"),
    ],
)
def test_an_error_is_a_sentence_and_an_exit_code(error: BaseException, code: int, words: str, caplog) -> None:
    @as_command("nothing was written", failure=2, errors=(LookupError,))
    def main() -> int:
        raise error

    assert main() == code and words in caplog.text


def test_a_bug_keeps_its_traceback() -> None:
    @as_command()
    def main(result: int) -> int:
        assert result
        return result

    assert main(3) == 3
    with pytest.raises(AssertionError):
        main(0)


def test_help_takes_a_line_for_each_flag(capsys):
    parser = command_parser("Do it.", "--output PATH [flags]")
    parser.add_argument("--output", type=Path, help="where to")
    parser.add_argument("--a_long_flag_of_a_command", type=int, help="how many")
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("--output PATH [flags]") and "Do it." in lines
    assert [line.split() for line in lines[-2:]] == [
        ["--output", "PATH", "where", "to"],
        ["--a_long_flag_of_a_command", "N", "how", "many"],
    ]


def test_the_next_command_can_be_pasted(capsys) -> None:
    suggest("train.py --data_dir {}", Path("my takes/a"))
    assert shlex.split(capsys.readouterr().err) == [
        "Next:",
        "./venv/bin/python",
        "train.py",
        "--data_dir",
        "my takes/a",
    ]
