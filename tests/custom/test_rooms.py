"""The order of the house: rooms and nothing beside them, names that stand once, files that can be read at one sitting.

Which room may use which is a contract of import-linter (pyproject.toml).
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "custom"
FILES = sorted(PACKAGE.rglob("*.py"))
ROOMS = sorted(path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file())
LONGEST = 400


def test_no_module_lies_beside_the_rooms() -> None:
    assert [path.name for path in PACKAGE.glob("*.py")] == ["__init__.py"]


def test_every_file_name_stands_once() -> None:
    places = defaultdict(list)
    for path in FILES:
        if path.name != "__init__.py":
            places[path.name].append(str(path.relative_to(ROOT)))
    assert not {name: paths for name, paths in places.items() if len(paths) > 1}


def test_no_file_is_named_like_a_room() -> None:
    assert not [str(path.relative_to(ROOT)) for path in FILES if path.stem in set(ROOMS) - {path.parent.name}]


def test_no_file_is_too_long() -> None:
    lines = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert not {name: count for name, count in lines.items() if count > LONGEST}


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_says_what_it_holds(room: str) -> None:
    assert ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf-8")))


def test_architecture_page_shows_the_rooms_in_their_order() -> None:
    page = (ROOT / "docs" / "explanation" / "architecture.md").read_text(encoding="utf-8")
    rows: dict[int, set[str]] = defaultdict(set)
    for row, room in re.findall(r"^\| (\d+) \| `(\w+)` \|", page, re.MULTILINE):
        rows[int(row)].add(room)
    contract = re.search(r"^layers = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M | re.S)
    assert contract is not None
    layers = [set(layer.split(" | ")) for layer in re.findall(r'"(.*?)"', contract[1])]
    assert [rows[row] for row in sorted(rows, reverse=True)] == layers
    assert set().union(*layers) == set(ROOMS)


def test_architecture_page_names_files_that_exist() -> None:
    page = (ROOT / "docs" / "explanation" / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(rf"`((?:{'|'.join(ROOMS)})/\w+(?:\.py)?)`", page)
    assert len(named) > 20
    assert not [name for name in named if not (PACKAGE / name).with_suffix(".py").is_file()]
