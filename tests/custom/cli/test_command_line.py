"""The command line: what it accepts, what it refuses, in one line and with which exit code."""

from __future__ import annotations

import importlib
import inspect
import logging
import os
import re
import subprocess
import sys
import time
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from custom import __version__
from custom.cli import command_line
from tests.fewview_command import fewview_ct


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], None]:
    """Registers a function as the verb `try`."""

    def register(function: Callable[..., Any]) -> None:
        module = types.ModuleType("verb_for_tests")
        module.function = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "verb_for_tests", module)
        monkeypatch.setitem(command_line.VERBS, "try", command_line.Verb("verb_for_tests", "function", "for tests"))

    return register


def keep(calls: list[tuple[Any, ...]]) -> Callable[..., Any]:
    def job(
        source: str,
        target: Path | None = None,
        angles_deg: Sequence[float] = (0.0, 90.0),
        hu_window: tuple[float, float] = (-1000.0, 1000.0),
        workers: int = 1,
        scale: float = 1.0,
        seed: int | None = None,
        fine: bool = False,
    ) -> str:
        """Does it.

        Args:
            source: where from.
            workers: how many at once.
        """
        calls.append((source, target, angles_deg, hu_window, workers, scale, seed, fine))
        return "never printed"

    return job


def test_values_arrive_as_the_types_of_the_signature(verb: Any, capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[tuple[Any, ...]] = []
    verb(keep(calls))
    assert fewview_ct("try", "0001") == 0
    assert calls.pop() == ("0001", None, (0.0, 90.0), (-1000.0, 1000.0), 1, 1.0, None, False)
    words = "try 7 --target a/b --angles_deg 0,45,90 --hu_window=-500,500 --workers 3 --scale 2 --seed 5 --fine"
    assert fewview_ct(*words.split()) == 0
    source, target, angles, window, workers, scale, seed, fine = calls.pop()
    assert (source, target, angles, window) == ("7", Path("a/b"), (0.0, 45.0, 90.0), (-500.0, 500.0))
    assert (workers, scale, seed, fine) == (3, 2.0, 5, True)
    assert isinstance(scale, float)
    assert fewview_ct("try", "7", "--angles_deg", "90", "--seed", "None") == 0
    assert calls[0][2] == (90.0,)
    assert calls[0][6] is None
    assert capsys.readouterr().out == ""


def test_files_and_words_stay_as_they_were_typed(verb: Any, capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[tuple[Any, ...]] = []

    def job(*files: str, to: str, names: Sequence[str] = (), count: int = 0, angles_deg: Sequence[float] = ()) -> None:
        calls.append((files, to, names, count, angles_deg))

    verb(job)
    words = "try 0001 1e5 a,b --to 007 --names a-b,01 --count 3 c --angles_deg=90"
    assert fewview_ct(*words.split()) == 0
    assert calls.pop() == (("0001", "1e5", "a,b", "c"), "007", ("a-b", "01"), 3, (90.0,))
    assert fewview_ct("try", "--to", "x", "--names", "[one]") == 0
    assert calls.pop() == ((), "x", ("one",), 0, ())
    assert fewview_ct("try", "a") == 2
    assert "to" in capsys.readouterr().err and not calls


def test_a_verb_ends_with_the_code_that_it_returns(verb: Any) -> None:
    verb(lambda: command_line.ExitCode.TO_REVIEW)
    assert fewview_ct("try") == 4
    verb(lambda: 4)
    assert fewview_ct("try") == 0


def test_an_option_that_is_gone_says_what_is_there_instead(
    verb: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[Any, ...]] = []
    verb(keep(calls))
    monkeypatch.setitem(
        command_line.VERBS, "try", command_line.VERBS["try"]._replace(replaced={"--old": "it is --workers"})
    )
    for words in (["--old", "3"], ["--old=3"]):
        assert fewview_ct("try", "a", *words) == 2
        assert capsys.readouterr().err == "error: --old is no longer an option of try: it is --workers\n"
    assert not calls


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("try a --nosuch 3", "Unknown option: --nosuch"),
        ("try a --worker 3", "Unknown option: --worker. Did you mean --workers?"),
        ("try a b", "Unused Tokens: ['b']"),
        ("try", "--source requires an argument"),
        ("try a --workers many", "--workers: takes int; got 'many'"),
        ("try a --workers 1.5", "--workers: takes int; got '1.5'"),
        ("try a --fine=maybe", '--fine: unable to convert "maybe" into bool'),
        ("try a --angles_deg 0,x", "--angles_deg: takes float; got 'x'"),
        ("try a --hu_window 0,1,2", "--hu_window: takes 2 values"),
        ("frobnicate", "unknown command 'frobnicate'; there are reconstruct"),
        ("recontruct", "unknown command 'recontruct'; did you mean reconstruct?"),
    ],
)
def test_mistyped_arguments_run_nothing(
    words: str, message: str, verb: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[Any, ...]] = []
    verb(keep(calls))
    assert fewview_ct(*words.split()) == 2
    out, err = capsys.readouterr()
    assert not calls
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("spacing 0 mm\nin a.nii"), 2, "error: spacing 0 mm in a.nii\n"),
        (FileNotFoundError(2, "No such file or directory", "x.nii"), 2, "error: No such file or directory: x.nii\n"),
        (FileNotFoundError("x.nii: no such file"), 2, "error: x.nii: no such file\n"),
        (OSError(28, "No space left on device", "out/a.nii.gz"), 1, "error: No space left on device: out/a.nii.gz\n"),
        (ImportError("pip install 'fewview-ct[dicom]'"), 1, "error: ImportError: pip install 'fewview-ct[dicom]'\n"),
        (OSError(36, "File name too long", "x.nii"), 2, "error: File name too long: x.nii\n"),
        (OSError(40, "Too many levels of symbolic links", "x"), 2, "error: Too many levels of symbolic links: x\n"),
        (RuntimeError("odd"), 1, "error: RuntimeError: odd (--debug shows where)\n"),
        (KeyError("label"), 1, "error: KeyError: 'label' (--debug shows where)\n"),
        (AssertionError(), 1, "error: AssertionError (--debug shows where)\n"),
        (KeyboardInterrupt(), 130, "stopped\n"),
    ],
)
def test_errors_are_one_line(
    error: BaseException, code: int, line: str, verb: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    verb(fail)
    assert fewview_ct("try") == code
    assert capsys.readouterr().err == line


def test_debug_shows_the_traceback(
    verb: Any, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise ValueError("spacing 0 mm")

    verb(fail)
    assert fewview_ct("try", "--debug") == 2
    assert "Traceback" in caplog.text
    assert "spacing 0 mm" in caplog.text


def test_help_of_a_verb_shows_its_real_options(verb: Any, capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[tuple[Any, ...]] = []
    verb(keep(calls))
    assert fewview_ct("try", "--help") == 0
    text = capsys.readouterr().out
    for words in ("Usage: fewview-ct try", "SOURCE", "--angles_deg FLOAT", "how many at once", "--nofine", "0,90"):
        assert words in text
    assert not calls


@pytest.mark.parametrize("words", [["--nofine"], ["--fine", "False"], ["--fine=false"], ["--no-fine"]])
def test_a_switch_is_turned_off_in_any_usual_way(words: list[str], verb: Any) -> None:
    calls: list[tuple[Any, ...]] = []
    verb(keep(calls))
    assert fewview_ct("try", "a", *words) == 0
    assert calls[0][-1] is False


def test_hyphens_pass_for_the_underscores_of_a_name(verb: Any) -> None:
    calls: list[tuple[Any, ...]] = []
    verb(keep(calls))
    assert fewview_ct("try", "a", "--angles-deg=5", "--hu-window=-1,1", "--no-fine") == 0
    assert (calls[0][2], calls[0][3], calls[0][-1]) == ((5.0,), (-1.0, 1.0), False)


@pytest.mark.parametrize(
    ("option", "level"), [("--quiet", "WARNING"), ("--verbose", "DEBUG"), ("--debug", "DEBUG"), ("", "INFO")]
)
def test_every_verb_says_as_much_as_wanted(option: str, level: str, verb: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TQDM_DISABLE", "")
    levels: list[str] = []
    verb(lambda: levels.append(logging.getLevelName(logging.getLogger("custom").getEffectiveLevel())))
    assert fewview_ct("try", *filter(None, [option])) == 0
    assert levels == [level] and bool(os.environ["TQDM_DISABLE"]) == (option == "--quiet")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_verbs_and_options(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert fewview_ct("completion", shell) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in command_line.VERBS)
    assert all(option in text for option in ("source_to_isocenter_mm", "overwrite"))


def test_bash_reads_the_completion(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert fewview_ct("completion", "bash") == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    assert subprocess.run(["bash", "-n", str(tmp_path / "script")], check=False).returncode == 0


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_overview_lists_every_verb(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert fewview_ct(*words) == 0
    text = capsys.readouterr().out
    assert all(f" {name} " in text for name in command_line.VERBS)
    assert all(f" {verb.group} " in text for verb in command_line.VERBS.values()), "in groups"


@pytest.mark.parametrize("name", sorted(command_line.VERBS))
def test_every_verb_exists_with_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert fewview_ct(name, "--help") == 0
    text = " ".join(re.sub(r"[│]", " ", capsys.readouterr().out).split())
    function = getattr(importlib.import_module(command_line.VERBS[name].module), command_line.VERBS[name].function)
    assert f"Usage: fewview-ct {name}" in text
    for parameter in inspect.signature(function).parameters:
        assert f"--{parameter} " in text or f" {parameter.upper()} " in text, parameter
        assert parameter in (inspect.getdoc(function) or ""), "documented"


def console(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from custom.cli import main; main()", *words],
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def test_console_starts_fast_and_tells_the_version() -> None:
    start = time.perf_counter()
    overview = console("--help")
    assert time.perf_counter() - start < 5, "help must not import torch"
    assert "Usage: fewview-ct COMMAND" in overview.stdout
    found = console("--version")
    assert (found.returncode, found.stdout) == (0, f"fewview-ct {__version__}\n")


def test_what_a_message_quotes_does_not_reach_the_terminal_as_a_command(
    verb: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def job() -> None:
        raise ValueError("a name \x1b[2J\x07 of a file")

    verb(job)
    assert fewview_ct("try") == 2
    assert capsys.readouterr().err == "error: a name ?[2J? of a file\n"
    record = logging.makeLogRecord({"msg": "two\nlines, %s", "args": ("\x1b]0;x",)})
    assert command_line._Printable("%(message)s").format(record) == "two\nlines, ?]0;x"


def test_console_reports_bad_input_on_one_line(tmp_path: Path) -> None:
    result = console("evaluate", str(tmp_path / "none"), str(tmp_path))
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == f"error: {tmp_path / 'none'}: no such file or folder\n"
