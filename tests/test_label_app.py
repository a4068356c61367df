"""What of the MONAI Label application can be tested without MONAI Label: its pins, and what requests may ask for."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement

from custom.radiographs import MissingField, MissingMetadata
from tests.app_module import app_module

ROOT = Path(__file__).resolve().parents[1]
APP = ROOT / "scripts/monailabel_app"


request = app_module("label_app_request", APP / "lib/request.py")
BASE = {"model": "inr_recon", "image": "frontal"}


# --- what is installed ---


def pins(path: Path) -> dict[str, str]:
    lines = [line.strip() for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    found = [re.fullmatch(r"([A-Za-z0-9._-]+)==([0-9.]+)", line) for line in lines]
    assert all(found), lines
    names = {match[1].lower(): match[2] for match in found if match}
    assert len(names) == len(lines), "a package is pinned twice"
    return names


def test_pins_fit_the_package() -> None:
    """What MONAI Label is installed with satisfies our own requirements, so that pip changes neither."""
    label, project = pins(APP / "requirements.txt"), tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ranges = {r.name.lower(): r for r in map(Requirement, project["dependencies"])}
    ranges |= {
        r.name.lower(): r for r in map(Requirement, project["optional-dependencies"]["dicom"]) if "jpeg" in r.name
    }
    shared = set(label) & set(ranges)
    assert {"torch", "monai", "numpy", "pydicom", "pylibjpeg", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg"} <= shared
    for name in shared:
        assert ranges[name].specifier.contains(label[name]), name


def test_what_the_volume_depends_on_is_the_same_as_in_development() -> None:
    label, constraints = pins(APP / "requirements.txt"), pins(ROOT / "constraints.txt")
    assert {name: label[name] for name in ("torch", "monai")} == {
        name: constraints[name] for name in ("torch", "monai")
    }
    assert "scipy" not in label and "nibabel" not in label, "they come from constraints.txt"
    # pydicom-seg and numpymaxflow break with the newer ones; torchvision must be that of torch.
    assert label["pydicom"].startswith("2.4.") and label["numpy"].startswith("1.26.")
    assert label["torchvision"].split(".")[:2] == ["0", str(int(label["torch"].split(".")[1]) + 15)]


# --- what a request may ask for ---


def test_defaults() -> None:
    asked = request.parse(BASE)
    assert asked == request.Request()
    assert (asked.views, asked.samples, asked.seed, asked.volume, asked.extension) == ((), 0, 0, "mean", ".nii.gz")
    empty = {name: "" for name in request.PARAMETERS}
    assert request.parse(BASE | empty) == asked, "a viewer sends empty fields for what nobody typed in"


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ({"views": "lateral, oblique"}, {"views": ("lateral", "oblique")}),
        ({"views": ["a,b"]}, {"views": ("a,b",)}),
        ({"samples": "4", "seed": 3.0}, {"samples": 4, "seed": 3}),
        ({"angles_deg": "0,90.5"}, {"angles_deg": (0.0, 90.5)}),
        ({"angles_deg": [0, "90"]}, {"angles_deg": (0.0, 90.0)}),
        ({"angles_deg": 90}, {"angles_deg": (90.0,)}),
        ({"accept": "log-range"}, {"accept": ("log-range",)}),
        ({"geometry": {"format": "x"}}, {"geometry": {"format": "x"}}),
        ({"geometry": "a.json"}, {"geometry": "a.json"}),
        ({"volume": "uncertainty", "samples": 2}, {"volume": "uncertainty", "samples": 2}),
        ({"result_extension": ".nii", "result_dtype": "int16"}, {"extension": ".nii"}),
        ({"save_label": "false", "client_id": "me", "device": "cpu"}, {}),
    ],
)
def test_parameters(given_: dict[str, Any], expected: dict[str, Any]) -> None:
    assert request.parse(BASE | given_) == request.Request(**expected)


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"sample": 4}, "parameter 'sample' is not known; there are views"),
        ({"samples": 1.5}, "samples must be a whole number"),
        ({"samples": -1}, "samples must be a whole number"),
        ({"samples": True}, "samples must hold numbers"),
        ({"samples": "many"}, "samples must hold numbers"),
        ({"seed": float("nan")}, "seed must hold numbers"),
        ({"views": 3.5}, "views must hold names"),
        ({"views": {"a": 1}}, "views must be a list"),
        ({"views": [["a"]]}, "views must hold names"),
        ({"views": [" "]}, "views must hold names"),
        ({"angles_deg": ["x"]}, "angles_deg must hold numbers"),
        ({"geometry": 3}, "geometry must be a JSON object"),
        ({"volume": "std"}, "volume is 'std'; it must be mean or uncertainty"),
        ({"volume": "uncertainty"}, "ask for some"),
        ({"result_extension": ".nrrd"}, "result_extension '.nrrd'"),
        ({"result_dtype": "uint8"}, "no label map"),
        ({"save_label": "true"}, "no label of a radiograph"),
    ],
)
def test_parameters_that_make_no_sense(given_: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        request.parse(BASE | given_)
    assert "\n" not in str(caught.value)


_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from([*request.PARAMETERS, "result_dtype", "result_extension", "save_label"]), _JSON))
def test_any_json_is_understood_or_refused(params: dict[str, Any]) -> None:
    try:
        asked = request.parse(BASE | params)
    except ValueError:
        return
    assert asked.samples >= 0 and all(isinstance(view, str) and view.strip() for view in asked.views)


# --- what may be read ---


@pytest.fixture
def roots(tmp_path: Path) -> list[Path]:
    studies, uploads = tmp_path / "studies", tmp_path / "uploads"
    for folder in (studies / "pair", uploads, tmp_path / "studies-of-others"):
        folder.mkdir(parents=True)
        (folder / "a.dcm").write_text("x")
    (tmp_path / "secret.dcm").write_text("x")
    return [studies, uploads]


def test_inside(roots: list[Path]) -> None:
    studies, uploads = roots
    assert request.inside("pair/a.dcm", roots) == (studies / "pair/a.dcm").resolve()
    assert request.inside("pair/../pair", roots) == (studies / "pair").resolve()
    assert request.inside(str(uploads / "a.dcm"), roots) == (uploads / "a.dcm").resolve()
    (studies / "same").symlink_to(studies / "pair")
    assert request.inside("same/a.dcm", roots) == (studies / "pair/a.dcm").resolve()
    assert request.inside(".", roots) == studies.resolve()
    with pytest.raises(FileNotFoundError, match="no such id or path in the datastore"):
        request.inside("b.dcm", roots)


@pytest.mark.parametrize(
    "name",
    [
        "../secret.dcm",
        "pair/../../secret.dcm",
        "{}/secret.dcm",
        "{}/studies-of-others/a.dcm",
        "../nothing.dcm",
        "/",
        "/etc/passwd",
        "a\0b",
        "link",
        "to",
        "links",
        "round/x",
    ],
)
def test_outside(name: str, roots: list[Path]) -> None:
    studies = roots[0]
    (studies / "link").symlink_to(studies.parent / "secret.dcm")
    (studies / "to").symlink_to(studies.parent / "studies-of-others")
    (studies / "links").mkdir()
    (studies / "links/b.dcm").symlink_to("../../secret.dcm")
    (studies / "round").symlink_to("round")
    with pytest.raises(request.Outside) as caught:
        request.inside(name.format(studies.parent), roots)
    assert request.http_status(caught.value) == 403


def test_a_name_that_is_too_long_is_refused(roots: list[Path]) -> None:
    with pytest.raises(request.Outside):
        request.inside("a" * 5000, roots)


# --- what is answered ---


def test_http_status() -> None:
    missing = MissingMetadata((MissingField("a thing", advice="say it", file="a.dcm"),))
    errors = [missing, ValueError("x"), FileNotFoundError("x"), request.Outside("x"), ModuleNotFoundError("x")]
    assert [request.http_status(error) for error in errors] == [422, 400, 404, 403, 501]
    assert request.http_status(OSError("disk")) == request.http_status(RuntimeError("x")) == 500


def test_messages_hide_the_servers_folders(roots: list[Path], tmp_path: Path) -> None:
    error = ValueError(f"{roots[0]}/pair/a.dcm and\n{roots[1]}/a.dcm in {roots[0]}")
    assert request.message(error, roots) == "pair/a.dcm and a.dcm in the datastore"
    (tmp_path / "alias").symlink_to(roots[0])
    aliased = request.message(ValueError(f"{roots[0].resolve()}/a.dcm"), [tmp_path / "alias"])
    assert aliased == "a.dcm"


def test_every_parameter_is_documented() -> None:
    page = (ROOT / "docs/how-to/monai-label.md").read_text()
    missing = [name for name in request.PARAMETERS if f"| `{name}` |" not in page]
    assert not missing, missing
