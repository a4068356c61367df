"""Where bundles are found, and where their runs leave files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from monai.bundle import ConfigParser, ConfigWorkflow

from custom.core import bundle_folders
from custom.core.bundle_folders import find_bundle, parent_file, published_bundles, results_folder, trained_file

ROOT = Path(__file__).resolve().parents[3]
TARGET = "custom.core.bundle_folders."


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package in site-packages with bundles inside, beside which another package `bundles` lies."""
    package = tmp_path / "site-packages/custom"
    folder = package / "bundles/inr_recon"
    (folder / "configs").mkdir(parents=True)
    (folder / "configs/metadata.json").write_text("{}")
    (tmp_path / "site-packages/bundles").mkdir()
    monkeypatch.setattr(bundle_folders, "PACKAGE", package)
    monkeypatch.setattr(bundle_folders, "INSTALLED", package / "bundles")
    return folder


def test_a_checkout_comes_first_and_a_wheel_has_its_own(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert published_bundles() == installed.parent
    (installed / "configs/metadata.json").unlink()
    with pytest.raises(FileNotFoundError, match="install the wheel"):
        published_bundles()
    monkeypatch.undo()
    assert published_bundles() == ROOT / "bundles"


def test_a_bundle_is_a_folder_or_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_bundle("vqgan") == ROOT / "bundles/vqgan"
    (tmp_path / "bundles/vqgan/configs").mkdir(parents=True)
    assert find_bundle("vqgan") == Path("bundles/vqgan") and find_bundle(tmp_path / "bundles/vqgan").is_absolute()
    with pytest.raises(FileNotFoundError, match=r"no such bundle: pass inr_recon, .*x2ct, or a folder"):
        find_bundle("vqgun")


@pytest.mark.parametrize("where", ["configs/train.json", "configs/presets/train.json"])
def test_a_config_finds_its_own_folder(where: str, tmp_path: Path) -> None:
    file = tmp_path / "copied" / where
    file.parent.mkdir(parents=True)
    root = {"_target_": f"{TARGET}bundle_root", "name": "inr_recon"}
    file.write_text(json.dumps({"bundle_root": root, "run": ["$@bundle_root + '/models'"]}))
    workflow = ConfigWorkflow(str(file), workflow_type=None, logging_file=False)
    workflow.initialize()
    assert [Path(path) for path in workflow.run()] == [tmp_path / "copied/models"]
    alone = ConfigParser(json.loads(file.read_text()))
    assert alone.get_parsed_content("bundle_root") == str(ROOT / "bundles/inr_recon")


def test_an_installed_bundle_is_not_written_into(installed: Path, tmp_path: Path) -> None:
    assert results_folder(str(installed), "eval") == "bundles/inr_recon/eval"
    assert results_folder(str(tmp_path / "mine"), "eval") == str(tmp_path / "mine/eval")


def test_own_weights_come_before_published_ones(tmp_path: Path) -> None:
    own, bundle = tmp_path / "own", tmp_path / "bundle"
    assert trained_file(str(own), str(bundle)) == str(own / "model.pt")  # none: the error names the own one
    for folder, expected in ((bundle / "models", bundle / "models"), (own, own)):
        folder.mkdir(parents=True)
        (folder / "model.pt").touch()
        assert trained_file(str(own), str(bundle)) == str(expected / "model.pt")


def test_parents_lie_beside_the_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, root = tmp_path / "bundles/vqgan/models/model.pt", str(tmp_path / "bundles/ldm_recon")
    weights.parent.mkdir(parents=True)
    weights.touch()
    relative = "bundles/vqgan/models/model.pt"
    monkeypatch.chdir(weights.parent)
    assert parent_file(relative, root) == str(weights)
    monkeypatch.chdir(tmp_path)
    assert parent_file(relative, root) == relative and parent_file(None, root) is None
    assert parent_file("none.pt", root) == "none.pt"
