"""Writes docs/reference/cli.md from the signatures and docstrings of the verbs, so that it cannot drift from them."""

from __future__ import annotations

import importlib
import inspect
import sys
from pathlib import Path

from docstring_parser import DocstringStyle, parse

from custom.cli import VERBS

TARGET = Path(__file__).resolve().parents[1] / "docs" / "reference" / "cli.md"
HEAD = """# Command line

`fewview-ct COMMAND [ARGUMENTS]`. Options are written `--name value` or `--name=value`; a sequence as `0,45,90`; a
switch as `--name` or `--noname`. With every command `--quiet` says warnings and errors alone, `--verbose` more than
usual, `--debug` that and the traceback of an error. `fewview-ct COMMAND --help` shows the options, and
`fewview-ct completion bash` (or `zsh`, `fish`) prints what makes a shell complete them.

Exit codes: 0 done, 2 the input was at fault, 1 anything else, 130 stopped by Ctrl-C; with `reconstruct --strict` 3 for
the verdict REJECT, 4 for REVIEW; with `plan` 5 where no plan is possible; with `drift` 6 where something
has changed.

This page is written by `python scripts/cli_reference.py`.
"""


def written(value: object) -> str:
    """A default as one would type it; nothing for "not given"."""
    if value is None or value in ("", ()):
        return ""
    if isinstance(value, tuple | list):
        return f"`{','.join(f'{item:g}' if isinstance(item, float) else str(item) for item in value)}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def usage_of(parameter: inspect.Parameter) -> str:
    """A required argument as one would type it."""
    name = parameter.name.upper()
    if parameter.kind is parameter.VAR_POSITIONAL:
        return f"{name}..."
    return f"--{parameter.name} {name}" if parameter.kind is parameter.KEYWORD_ONLY else name


def verb_section(name: str) -> str:
    """The Markdown of one verb."""
    verb = VERBS[name]
    function = getattr(importlib.import_module(verb.module), verb.function)
    described = parse(inspect.getdoc(function) or "", DocstringStyle.GOOGLE)
    texts = {
        argument.arg_name: " ".join((argument.description or "").split()).replace("|", "\\|")
        for argument in described.params
    }
    required, optional = [], []
    for parameter in inspect.signature(function).parameters.values():
        (required if parameter.default is parameter.empty else optional).append(parameter)
    keys = ["[--key value ...]"] if verb.bundle_function and name != "evaluate" else []
    usage = " ".join(["fewview-ct", name, *map(usage_of, required), *keys])
    lines = [
        f"## {name}",
        " ".join((described.short_description or verb.summary).split()),
        "",
        f"`{usage}{' [OPTIONS]' if optional else ''}`",
        "",
    ]
    if described.long_description:
        lines += [described.long_description.strip(), ""]
    if required or optional:
        lines += ["| argument | default | meaning |", "|---|---|---|"]
        lines += [f"| `{usage_of(parameter)}` | | {texts.get(parameter.name, '')} |" for parameter in required]
        lines += [
            f"| `--{parameter.name}` | {written(parameter.default)} | {texts.get(parameter.name, '')} |"
            for parameter in optional
        ]
        lines.append("")
    return "\n".join(lines)


def reference() -> str:
    """The whole page."""
    return "\n".join([HEAD, *(verb_section(name) for name in VERBS)])


if __name__ == "__main__":
    TARGET.write_text(reference(), encoding="utf-8")
    print(f"wrote {TARGET}", file=sys.stderr)
