"""The bundle commands of a page of documentation, and the overrides in them that no config knows.

MONAI adds a mistyped override to the config without a word, and trains with the number that was to be changed.
"""

from __future__ import annotations

import ast
import inspect
import re
import shlex
from pathlib import Path

from monai.bundle import ConfigParser, run

#: Options of `python -m monai.bundle run` and `verify_net_in_out` themselves.
OWN_OPTIONS = set(inspect.signature(run).parameters) | {"net_id", "device", "extra_forward_args"}


def commands(text: str) -> list[str]:
    """Every `monai.bundle` command in the shell blocks of a Markdown page, one line each."""
    blocks = re.findall(r"```(?:bash|sh)\n(.*?)```", text, re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if "-m monai.bundle" in line and not line.startswith("#")]


def unknown_overrides(command: str, root: Path) -> list[str]:
    """Overrides of a command that name nothing in the configs that it reads.

    Args:
        command: as in `commands`.
        root: folder that the command's relative paths start from.
    """
    words = shlex.split(re.sub(r"\$\(fewview-ct bundles (\w+)\)", r"bundles/\1", command))
    options = {
        w[2:].split("=")[0]: (w.split("=", 1) + words[i + 1 : i + 2])[1] for i, w in enumerate(words) if w[:2] == "--"
    }
    if "config_file" not in options:
        raise ValueError(f"the command names no config_file: {command}")
    value = options["config_file"]
    files = ast.literal_eval(value) if value.startswith("[") else [value]
    parser = ConfigParser()
    parser.read_config([root / file for file in files])
    launcher = words[: words.index("monai.bundle")]
    return [
        name
        for name in options
        if name not in OWN_OPTIONS and not any(w.startswith(f"--{name}") for w in launcher) and not _known(parser, name)
    ]


def _known(parser: ConfigParser, name: str) -> bool:
    try:
        parser[name]
    except (KeyError, IndexError, ValueError):
        return False
    return True


def assert_overrides_exist(page: Path, root: Path, least: int = 1) -> None:
    """Every command of a page names overrides that its configs know, and there are `least` commands."""
    found = commands(page.read_text())
    assert len(found) >= least
    for command in found:
        assert unknown_overrides(command, root) == [], command
