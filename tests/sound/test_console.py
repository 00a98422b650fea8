"""sound/console.py: a user's error ends in a sentence and an exit code, a bug in a traceback."""

import pytest

from sound.console import as_command


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
