"""The tutorial `docs/tutorials/your-network-as-a-bundle.md`, followed word for word on the tiny cohort."""

from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path

import pytest

from custom.benchmark.comparison import compare
from custom.core.checkpoints import load_checkpoint
from tests.bundles.documented import commands
from tests.bundles.tiny_cohort import CUBE, TRAIN_OVERRIDES, VOXEL_MM
from tests.bundles.workflow import ROOT, run_workflow

PAGE = (ROOT / "docs/tutorials/your-network-as-a-bundle.md").read_text()


def files_of_the_page() -> dict[str, str]:
    """Its files: a block of Python or JSON is the file that was named last before it."""
    blocks = re.finditer(r"```(?:python|json)\n(.*?)```", PAGE, re.DOTALL)
    return {re.findall(r"`(my_bundle/[\w/.]+)`", PAGE[: block.start()])[-1]: block[1] for block in blocks}


def options_of(command: str) -> tuple[list[str], dict[str, str]]:
    """Config files and the other options of a documented bundle command."""
    words = shlex.split(command)
    options = {word[2:]: words[i + 1] for i, word in enumerate(words) if word.startswith("--")}
    return re.findall(r"'([^']+)'", options.pop("config_file")), options


def test_every_step_of_the_tutorial(datalist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in files_of_the_page().items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        small = text.replace("[128, 128, 128]", f"{[CUBE] * 3}").replace("[2.5, 2.5, 2.5]", f"{[VOXEL_MM] * 3}")
        (tmp_path / name).write_text(small)
    (tmp_path / "bundles").symlink_to(ROOT / "bundles")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "my_bundle"))

    training, evaluating = map(options_of, commands(PAGE))
    for files, options in (training, evaluating):
        assert options["data_list_file"].startswith("data/prepared/")
        overrides = {**options, **TRAIN_OVERRIDES, "data_list_file": str(datalist)}
        run_workflow([Path(file) for file in files], "train", **overrides)
    weights = load_checkpoint(tmp_path / "my_bundle/models/model.pt")
    assert weights.meta["network_def"]["_target_"] == "my_network.FusedConvolutions"
    assert (tmp_path / "my_bundle/eval/metrics.csv").read_text().count("\n") == 3

    (line,) = re.findall(r"fewview-ct benchmark (.*)", PAGE)
    _, methods, *options = shlex.split(line)
    keywords = dict(zip([word.lstrip("-") for word in options[::2]], options[1::2], strict=True))
    compare(str(datalist), methods, montages=0, device="cpu", **keywords)
    rows = list(csv.DictReader((tmp_path / keywords["output"] / "benchmark.csv").open()))
    assert {row["case"] for row in rows} == {"e1", "e2"} and len({row["method"] for row in rows}) == 4
    assert all(float(row["psnr_range"]) > 0 for row in rows)
    assert (tmp_path / keywords["output"] / "benchmark.html").is_file()


def test_the_page_has_the_files_that_it_speaks_of() -> None:
    files = files_of_the_page()
    names = ("my_network.py", "configs/train.json", "configs/inference.json", "methods.json")
    assert list(files) == [f"my_bundle/{name}" for name in names]
    assert all(json.loads(text) for name, text in files.items() if name.endswith(".json"))
