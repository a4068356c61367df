"""Documentation that is wrong in a way a machine can see: dead links, commands and options that do not exist."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import re
import shlex
import textwrap
from pathlib import Path

import pytest
from monai.bundle import ConfigParser

from custom import __version__
from custom.cli import VERBS
from custom.cli.arguments import parsed
from custom.cli.command_line import command_app
from custom.core.bundle_folders import find_bundle
from custom.core.config_keys import check_keys
from custom.core.files import sha256_file
from tests.bundles.documented import assert_overrides_exist, commands

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "bundles").glob("*/docs/*.md"),
        *(ROOT / "bundles").glob("*/models/*.md"),
    ],
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    dead = [
        link
        for link in re.findall(r"\]\(([^)\s#]+)(?:#[^)]*)?\)", text)
        if "://" not in link and not (page.parent / link).exists()
    ]
    assert not dead


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_scripts_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    missing = [name for name in re.findall(r"(?<![\w/])scripts/[\w/]+\.(?:sh|py)", text) if not (ROOT / name).is_file()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_their_options_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    wrong = []
    for name, rest in re.findall(r'(?<!")fewview-ct ([a-z][\w-]*)([^\n`)]*)', text):
        if name not in VERBS:
            wrong.append(name)
            continue
        options = re.findall(r"\s--([A-Za-z][\w-]*)", rest)
        verb = VERBS[name]
        if verb.bundle_function and re.match(r" (?:BUNDLE|[a-z_]+)(?:$| --)", rest):
            continue  # keys of a config: test_overrides_of_documented_bundle_commands_exist
        known = set(inspect.signature(getattr(importlib.import_module(verb.module), verb.function)).parameters)
        known |= {f"no{option}" for option in known} | {"help", "debug", "quiet", "verbose"}
        wrong += [f"{name} --{option}" for option in options if option.replace("-", "_") not in known]
    assert not wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_names_that_python_blocks_import_exist(page: Path) -> None:
    missing = []
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        for node in ast.walk(ast.parse(textwrap.dedent(block))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "custom":
                module = importlib.import_module(str(node.module))
                missing += [f"{node.module}.{name.name}" for name in node.names if not hasattr(module, name.name)]
    assert not missing


def documented_commands() -> list[tuple[str, str]]:
    """Page and words of every command in the shell blocks of the documentation, those with an ellipsis left out."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```(?:bash|sh)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                command = re.match(r"(?:\S*/)?fewview-ct ([a-z].*?)(?: #.*| > .*| \|\|? .*)?$", line.strip())
                if command and "..." not in command[1]:
                    found.append((str(page.relative_to(ROOT)), command[1]))
    return found


@pytest.mark.parametrize(("page", "command"), documented_commands())
def test_documented_commands_are_understood(page: str, command: str) -> None:
    """Read as typed, with names and types of all options; nothing is run."""
    name, *words = shlex.split(command)
    if VERBS[name].bundle_function and (name != "evaluate" or len(words) == 1 or words[1].startswith("--")):
        check_bundle_words(name, words)
    else:
        parsed(command_app(name), name, words)


def check_bundle_words(name: str, words: list[str]) -> None:
    """The keys of a `train`, `infer` or `evaluate BUNDLE` command exist."""
    options = {} if words[1:] == ["--help"] else dict(zip([word[2:] for word in words[1::2]], words[2::2], strict=True))
    base = {"infer": "inference.json"}.get(name, "train.json")
    overlays = [f"{part}.json" for part in options.pop("with", "").split(",") if part]
    files = [base, *overlays, *(["evaluate.json"] if name == "evaluate" else [])]
    parser = ConfigParser()
    parser.read_config([find_bundle(words[0]) / "configs" / file for file in files])
    parser.update(options)
    parser.parse(True)
    check_keys(parser, given=list(options))


def test_command_line_reference_is_current() -> None:
    spec = importlib.util.spec_from_file_location("cli_reference", ROOT / "scripts" / "cli_reference.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.TARGET.read_text(encoding="utf-8") == script.reference(), "run python scripts/cli_reference.py"


@pytest.mark.parametrize("weights", sorted((ROOT / "bundles").glob("*/models/model.pt")), ids=lambda w: w.parts[-3])
def test_every_published_weights_file_has_its_card(weights: Path) -> None:
    card = (weights.parent / "README.md").read_text(encoding="utf-8")
    assert sha256_file(weights) in card


#: Pages whose bundle commands are looked at in any case, with the least number of them.
LEAST = {
    "bundles/inr_recon/docs/README.md": 1,
    "bundles/ldm_recon/docs/README.md": 3,
    "bundles/naf/docs/README.md": 1,
    "bundles/seg_guidance/docs/README.md": 6,
    "bundles/voxel_diffusion/docs/README.md": 4,
    "bundles/vqgan/docs/README.md": 5,
    "bundles/x2ct/docs/README.md": 5,
    "docs/how-to/reproduce-the-papers.md": 9,
    "docs/how-to/train-inr.md": 1,
    "docs/how-to/train-ldm.md": 3,
}


@pytest.mark.parametrize(
    "name",
    sorted(
        {*LEAST, *(str(p.relative_to(ROOT)) for p in PAGES if commands(p.read_text(encoding="utf-8")))}
        - {"docs/tutorials/your-network-as-a-bundle.md"}  # followed by tests/bundles/test_tutorial.py
    ),
)
def test_overrides_of_documented_bundle_commands_exist(name: str) -> None:
    assert_overrides_exist(ROOT / name, ROOT, LEAST.get(name, 1))


def test_the_version_is_the_same_everywhere() -> None:
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d{2}-\d{2}$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.M)
    assert cited is not None and cited.group(1) == __version__ == released[0]


def test_the_site_has_every_page_and_every_room() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    named = set(re.findall(r": ([\w./-]+\.md)$", text, re.M))
    pages = {p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs").rglob("*.md")}
    bundles = {p.relative_to(ROOT).as_posix() for p in (ROOT / "bundles").glob("*/docs/README.md")}
    rooms = {f"api/{p.parent.name}.md" for p in (ROOT / "custom").glob("*/__init__.py")}
    assert named == pages | bundles | rooms | {"index.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"}
