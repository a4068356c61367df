"""Follows a page of documentation as a reader would: files are written, code is run, commands are called, in order."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from custom.cli import ExitCode, main


def follow(page: Path, small: Mapping[str, Sequence[str]], smaller: Mapping[str, str] = {}) -> list[str]:
    """Every block of the page in the working directory; the words of its commands as they were called.

    A block is the file of its kind (.py, .json) that was named last since the block before; Python without one is run.
    A command with `|| echo` is refused for its input.

    Args:
        page: Markdown.
        small: words that are added to the commands that begin so; the longest beginning counts.
        smaller: texts of files and code that are replaced, all of which must be there.
    """
    text, namespace, called = page.read_text(encoding="utf-8"), {"__name__": page.stem}, []
    for old, new in smaller.items():
        assert old in text, f"{page.name} does not say {old}"
        text = text.replace(old, new)
    before = 0
    for block in re.finditer(r"```(\w+)\n(.*?)```", text, re.DOTALL):
        language, content = block[1], block[2]
        ending = {"python": "py"}.get(language, language)
        named = re.findall(rf"`([\w/]+\.{ending})`", text[before : block.start()])
        before = block.end()
        if language == "bash":
            called += [_called(line, small) for line in content.replace("\\\n", " ").splitlines()]
        elif named:
            Path(named[-1]).parent.mkdir(parents=True, exist_ok=True)
            Path(named[-1]).write_text(content)
        else:
            assert language == "python", f"{page.name}: a block of {language} without the name of a file"
            exec(compile(content, page.name, "exec"), namespace)
    return called


def _called(line: str, small: Mapping[str, Sequence[str]]) -> str:
    command, _, otherwise = line.partition(" || echo")
    program, *words = shlex.split(command)
    assert program == "fewview-ct", line
    added: Any = max((key for key in small if command.startswith(f"fewview-ct {key}")), key=len, default=None)
    with pytest.raises(SystemExit) as end:
        main([*words, *small.get(added, ())])
    expected = ExitCode.BAD_INPUT if otherwise else ExitCode.DONE
    assert end.value.code == expected, line
    return command
