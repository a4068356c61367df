"""The MONAI Deploy application without its SDK: what is packaged, and what its settings mean."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from custom import __version__
from custom.cli.reconstruct_command import command
from tests.app_module import app_module

ROOT = Path(__file__).resolve().parents[1]
APP = ROOT / "scripts" / "deploy_app"


@pytest.fixture(scope="module")
def settings() -> Any:
    return app_module("deploy_app_settings", APP / "settings.py")


def requirements(lines: list[str]) -> dict[str, str]:
    """Name to what is asked of its version."""
    found = [re.fullmatch(r"([A-Za-z0-9._-]+)\s*(.*)", line) for line in lines if line and not line.startswith("#")]
    assert all(found)
    return {match[1].lower(): match[2] for match in found if match}


def listed(path: Path) -> dict[str, str]:
    return requirements([line.strip() for line in path.read_text(encoding="utf-8").splitlines()])


# --- what is packaged ---


def test_requirements_are_those_of_the_package_and_its_extra_dicom_at_the_pinned_versions() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = set(requirements([*project["dependencies"], *project["optional-dependencies"]["dicom"]]))
    ours, pins = listed(APP / "requirements.txt"), listed(ROOT / "constraints.txt")
    deploy = {name: ours.pop(name) for name in ("monai-deploy-app-sdk", "holoscan-cu13", "holoscan-cli")}
    assert set(ours) == needed
    assert ours == {name: pins[name] for name in needed}
    assert deploy["monai-deploy-app-sdk"] == "==4.0.0" and deploy["holoscan-cu13"].startswith("==")
    assert deploy["holoscan-cli"] == ">=4,<4.3"  # later ones make no application package


def test_description_has_what_the_packager_reads() -> None:
    yaml = pytest.importorskip("yaml")
    content = yaml.safe_load((APP / "app.yaml").read_text(encoding="utf-8"))
    assert set(content) == {"application", "resources"}
    application, resources = content["application"], content["resources"]
    assert application["version"] == __version__ and "not for diagnosis" in application["title"]
    assert application["input-formats"] == application["output-formats"] == ["file"]
    assert resources["gpu"] == 0 and resources["cpu"] >= 1 and re.fullmatch(r"\d+Gi", resources["memory"])


def test_package_can_be_started_as_a_folder() -> None:
    assert {path.name for path in APP.iterdir() if path.is_file()} >= {
        "__main__.py", "app.py", "app.yaml", "operators.py", "requirements.txt", "settings.py",
    }  # fmt: skip
    names = {path.stem for path in APP.glob("*.py")}
    assert not names & set(sys.stdlib_module_names) and "custom" not in names


# --- settings ---


def test_settings_are_options_of_the_command_line_with_its_defaults(settings: Any) -> None:
    options = inspect.signature(command).parameters
    ours = {field.name: field.default for field in dataclasses.fields(settings.Settings)}
    assert ours.pop("model") is None
    assert ours == {name: options[name].default for name in ours}
    # What the application gives in another way, or never leaves out.
    assert set(options) - set(ours) == {"radiographs", "output", "model", "dicom"}
    assert settings.Settings.from_environment({"PATH": "/bin", "FEWVIEW_VENV": "x"}) == settings.Settings()


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("MODEL", "ldm_recon", "ldm_recon"),
        ("SAMPLES", " 8 ", 8),
        ("SEED", "-1", -1),
        ("GEOMETRY", "/data/geometry.json", "/data/geometry.json"),
        ("THRESHOLDS", "0001", "0001"),
        ("ACCEPT", "default-distances, log-range", ("default-distances", "log-range")),
        ("ANGLES_DEG", "0,22.5", (0.0, 22.5)),
        ("DEVICE", "cuda:0", "cuda:0"),
        ("PRECISION", "fp32", "fp32"),
        ("REPORT", "0", False),
        ("REPORT", "", True),
        ("STRICT", "true", True),
        ("OVERWRITE", "No", False),
    ],
)
def test_settings_come_from_the_environment(settings: Any, name: str, text: str, value: Any) -> None:
    found = settings.Settings.from_environment({f"FEWVIEW_RECONSTRUCT_{name}": text})
    assert found == dataclasses.replace(settings.Settings(), **{name.lower(): value})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("SAMPLES", "four", "FEWVIEW_RECONSTRUCT_SAMPLES is 'four'; it must be a whole number"),
        ("SAMPLES", "1.5", "a whole number"),
        ("REPORT", "maybe", "FEWVIEW_RECONSTRUCT_REPORT is 'maybe'; it must be 1 or 0"),
        ("ANGLES_DEG", "AP", "numbers between commas"),
        ("SAMPLE", "4", "FEWVIEW_RECONSTRUCT_SAMPLE is no setting; there are FEWVIEW_RECONSTRUCT_ACCEPT, "),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(settings: Any, name: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings.Settings.from_environment({f"FEWVIEW_RECONSTRUCT_{name}": text})


def test_the_documentation_names_every_setting(settings: Any) -> None:
    page = (ROOT / "docs" / "how-to" / "monai-deploy.md").read_text(encoding="utf-8")
    named = set(re.findall(r"FEWVIEW_RECONSTRUCT_(\w+)", page))
    assert {field.name.upper() for field in dataclasses.fields(settings.Settings)} == named


# --- models ---


def exported(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "model.json").write_text("{}")
    return folder


def test_the_model_is_the_folder_or_the_one_in_it(settings: Any, tmp_path: Path) -> None:
    one = exported(tmp_path / "models" / "inr_recon")
    choose = settings.choose_model
    assert choose(one) == choose(tmp_path / "models") == choose(tmp_path / "models", "inr_recon") == one
    two = exported(tmp_path / "models" / "ldm_recon")
    assert choose(tmp_path / "models", "ldm_recon") == two
    with pytest.raises(ValueError, match=r"holds the models inr_recon, ldm_recon; choose one by .*_MODEL"):
        choose(tmp_path / "models")
    with pytest.raises(ValueError, match="holds no model naf; there are inr_recon, ldm_recon"):
        choose(tmp_path / "models", "naf")


def test_what_is_no_folder_of_models_is_left_to_the_loader(settings: Any, tmp_path: Path) -> None:
    assert settings.choose_model(tmp_path) == tmp_path
    assert settings.choose_model(tmp_path / "none") == tmp_path / "none"
    with pytest.raises(ValueError, match="there are none"):
        settings.choose_model(tmp_path, "inr_recon")
