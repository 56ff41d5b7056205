"""Standard output of commands: encodings that lack a character, closed pipes, full disks, missing streams."""

import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from tqdm import tqdm

from pgat_fast.cli import main
from pgat_fast.cli.streams import standard_streams
from pgat_fast.config import load_config
from pgat_fast.training.run_folder import log_file

NAME = "цены-價格"


def stream(encoding: str, errors: str = "strict") -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding, errors)


def printed(output: io.TextIOWrapper) -> bytes:
    output.flush()
    assert isinstance(output.buffer, io.BytesIO)
    return output.buffer.getvalue()


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "ascii", "cp437", "koi8-r", "utf-16", "utf-8"])
def test_characters_outside_the_encoding_are_escaped(encoding: str) -> None:
    out, err = stream(encoding), stream(encoding)
    with redirect_stdout(out), redirect_stderr(err):
        assert main(["data", "check", f"{NAME}.csv"]) == 2
        with pytest.raises(SystemExit):
            main(["data", NAME])
    expected = NAME.encode(encoding, "backslashreplace").decode(encoding)
    assert f"error: {expected}.csv: file not found" in printed(err).decode(encoding)
    assert f"invalid choice: '{expected}'" in printed(err).decode(encoding)
    assert (out.errors, err.errors) == ("strict", "strict")


def test_command_succeeds_whose_output_names_such_a_file(tmp_path: Path) -> None:
    out = stream("cp1252")
    with redirect_stdout(out):
        assert main(["data", "build", "--rows", "5", "--out", str(tmp_path / NAME / "d.csv")]) == 0
    assert rb"\u0446\u0435\u043d\u044b-\u50f9\u683c" in printed(out)
    assert (tmp_path / NAME / "d.csv").exists()


@pytest.mark.parametrize("encoding", ["cp1252", "utf-8"])
def test_shown_configuration_can_be_read_back(encoding: str, tmp_path: Path) -> None:
    out = stream(encoding)
    with redirect_stdout(out):
        assert main(["config", "show", "--describe", "--set", f"data.path={NAME}.csv"]) == 0
    (tmp_path / "config.yaml").write_bytes(printed(out))
    assert load_config(tmp_path / "config.yaml").data.path == f"{NAME}.csv"


@pytest.mark.parametrize("errors", ["strict", "surrogateescape", "ignore"])
def test_file_names_that_are_not_text_are_printed(errors: str) -> None:
    out = stream("ascii", errors)
    with redirect_stdout(out), standard_streams():
        print("a\udcffb", "цa")
    expected = {"strict": rb"a\udcffb \u0446a", "surrogateescape": b"a\xffb \\u0446a", "ignore": b"ab a"}[errors]
    assert printed(out).split(b"\n")[0] == expected
    assert out.errors == errors


class Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("encoding", "mark"), [("ascii", "#"), ("cp1252", "#"), ("utf-8", "\u2588")])
def test_progress_bar_uses_characters_of_the_encoding(encoding: str, mark: str) -> None:
    terminal = Terminal(io.BytesIO(), encoding)
    with redirect_stderr(terminal), standard_streams(), tqdm(total=2, ncols=60) as bar:
        bar.update(2)
    text = printed(terminal).decode(encoding)
    assert f"100%|{mark * 3}" in text
    assert "\\u" not in text


class OnlyWrite:
    """The least that `print` accepts as a stream."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        self.text += text


def test_streams_without_settings_are_used_as_they_are() -> None:
    for output in (io.StringIO(), OnlyWrite()):
        with redirect_stdout(output):
            assert main(["config", "show", "--set", f"data.path={NAME}.csv"]) == 0
        assert NAME in (output.getvalue() if isinstance(output, io.StringIO) else output.text)


def test_missing_streams_discard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert main(["config", "show"]) == 0
    assert main(["data", "check", "nowhere.csv"]) == 2
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    assert sys.stdout is None
    assert sys.stderr is None


@contextmanager
def writer(descriptor: int) -> Iterator[io.TextIOWrapper]:
    with os.fdopen(descriptor, "w", encoding="utf-8") as output, redirect_stdout(output):
        yield output


@pytest.mark.parametrize("arguments", [["config", "show", "--describe"], ["data", "check", "nowhere.csv"]])
def test_closed_pipe_is_no_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    reader, descriptor = os.pipe()
    os.close(reader)
    with writer(descriptor):
        assert main(arguments) == (0 if arguments[0] == "config" else 2)
        with pytest.raises(SystemExit) as exit_:
            main(["--help"])
    assert exit_.value.code == 0
    assert "Broken pipe" not in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_output_to_a_full_disk_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with writer(os.open("/dev/full", os.O_WRONLY)):
        assert main(["config", "show"]) == 2
    assert "error: standard output: [Errno 28] No space left on device" in capsys.readouterr().err


def test_log_of_a_run_is_utf8_and_takes_any_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("pgat_fast"), "propagate", False)  # pytest's workers report valid text alone
    with log_file(tmp_path):
        logging.getLogger("pgat_fast").warning("%s: a\udcffb", NAME)
    assert (tmp_path / "train.log").read_bytes().decode("utf-8").endswith(f"WARNING {NAME}: a\\udcffb\n")
