"""The shape model: registrations with known answers, mixtures, and what was held out."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from custom.core.files import write_json, write_nifti, write_tensors
from custom.data import shapes
from custom.data.augmentation import RandThoraxAugment
from custom.data.shapes import ShapeModel, register, register_cohort, shape_model, smallest_jacobian
from custom.geometry import VolumeGrid
from tests.custom.data.test_augmentation import STILL

GRID = VolumeGrid((24, 20, 16), (5.0, 5.0, 5.0))
#: Patient j is the reference moved by so much.
MOVES = {"a": (10.0, 0.0, 0.0), "b": (0.0, 8.0, 0.0), "c": (0.0, 0.0, -6.0)}
CASES = [{"case": name, "fold": fold} for fold, name in enumerate(MOVES)]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bodies of three widths to train on, one to validate."""
    folder = tmp_path_factory.mktemp("cohort")
    parts: dict[str, list] = {"training": [], "validation": []}
    for name, width in {"narrow": 34.0, "middle": 44.0, "wide": 56.0, "other": 40.0}.items():
        hu = _textured(0.0, width).numpy().astype(np.int16)
        write_nifti(folder / f"{name}.nii.gz", hu, GRID.affine((10.0, -20.0, 600.0)))
        case = {"case": name, "patient": name, "source": f"{name}.nii.gz", "label": f"{name}.nii.gz"}
        parts["validation" if name == "other" else "training"].append(case)
    write_json(folder / "datalist.json", parts)
    return folder / "datalist.json"


def _model(folder: Path, **options: float) -> ShapeModel:
    fields = {}
    for name, move in MOVES.items():
        field = torch.tensor(move)[:, None, None, None].expand(3, *GRID.shape).half().clone()
        fields[name] = {"to_reference": -field, "from_reference": field}
    write_tensors(
        folder / "shapes.pt", {"grid": {"shape": list(GRID.shape), "spacing_mm": [5.0] * 3}, "fields": fields}
    )
    return ShapeModel(folder / "shapes.pt", CASES, **options)


def _textured(center: float, width: float) -> torch.Tensor:
    x, y, z = GRID.points().unbind(-1)
    body = ((x - center) / width) ** 2 + (y / 40) ** 2 + (z / 30) ** 2
    return torch.where(body < 1, 40.0, -1000.0) - 400 * torch.exp(-((x - center) ** 2 + y**2) / 200) * (body < 1)


@pytest.mark.parametrize(("center", "width"), [(6.0, 45.0), (0.0, 52.0)])
def test_registration_finds_what_moved(center: float, width: float) -> None:
    fixed, moving = _textured(0.0, 45.0), _textured(center, width)
    field = register(fixed, moving, GRID.spacing_mm)
    warped = shapes._warped(moving, field, GRID)
    assert shapes._difference(fixed, warped) < 0.5 * shapes._difference(fixed, moving)
    assert smallest_jacobian(field, GRID.spacing_mm) > 0
    edge = field[0, 21, 10, 8]  # x = 47.5 mm, where the skin is
    assert float(edge) == pytest.approx(center + 45 * (width / 45 - 1), abs=3.0)


def test_registration_refuses_other_grids() -> None:
    with pytest.raises(ValueError, match="on one grid"):
        register(torch.zeros(4, 4, 4), torch.zeros(4, 4, 5), (5.0, 5.0, 5.0))


def test_the_jacobian_of_a_scaling_is_its_volume() -> None:
    field = GRID.points().movedim(-1, 0) * torch.tensor([0.1, -0.2, 0.3])[:, None, None, None]
    assert smallest_jacobian(field, GRID.spacing_mm) == pytest.approx(1.1 * 0.8 * 1.3, abs=1e-4)
    assert smallest_jacobian(-1.5 * GRID.points().movedim(-1, 0), GRID.spacing_mm) < 0


def test_a_mixture_moves_by_the_weighted_mean(tmp_path: Path) -> None:
    model = _model(tmp_path)
    shape = model.draw(np.random.RandomState(0), "a", folds=[0, 1, 2])
    assert shape is not None
    assert sum(shape.weights.values()) == pytest.approx(1)
    middle = torch.zeros(3, 1, 1, 1)
    expected = torch.tensor(MOVES["a"]) - sum(w * torch.tensor(MOVES[n]) for n, w in shape.weights.items())
    torch.testing.assert_close(model.follow(shape, middle).flatten(), expected, atol=0.3, rtol=0)
    alone = shapes.DrawnShape("b", {"b": 1.0})
    positions = torch.rand(3, 4, 4, 4) * 40 - 20
    torch.testing.assert_close(model.follow(alone, positions), positions, atol=1e-2, rtol=0)


@pytest.mark.parametrize(("folds", "expected"), [(None, {"a"}), ([0, 2], {"a", "c"}), ([0, 1, 2], {"a", "b", "c"})])
def test_shapes_of_other_folds_stay_out(tmp_path: Path, folds: list[int] | None, expected: set[str]) -> None:
    model, rng = _model(tmp_path), np.random.RandomState(1)
    for _ in range(5):
        shape = model.draw(rng, "a", folds)
        assert shape is not None and set(shape.weights) == expected
    assert model.draw(rng, "phantom_1", folds) is None
    assert model.draw(rng, "a", folds=[7]).weights == {"a": 1.0}  # type: ignore[union-attr]


def test_without_folds_all_shapes_enter(tmp_path: Path) -> None:
    _model(tmp_path)
    shape = ShapeModel(tmp_path / "shapes.pt").draw(np.random.RandomState(0), "a")
    assert shape is not None and set(shape.weights) == set(MOVES)


def test_augmentation_shows_the_tissue_in_the_drawn_shape(tmp_path: Path) -> None:
    """All of patient a's shape in patient b's: its tissue appears where b's would."""
    model = _model(tmp_path, extrapolation=0.0)
    model.draw = lambda *_: shapes.DrawnShape("a", {"b": 1.0})  # type: ignore[method-assign]
    augment = RandThoraxAugment(GRID.shape, 5.0, 5.0, shapes=model, **STILL)
    volume = torch.full((1, *GRID.shape), -1000.0)
    volume[0, 14, 10, 8] = 1000.0  # of a, at (12.5, 2.5, 2.5) mm
    augment.randomize({"case": "a"})
    seen = augment(volume, randomize=False)[0] + 1000
    where = (seen[..., None] * GRID.points()).sum((0, 1, 2)) / seen.sum()
    torch.testing.assert_close(where, torch.tensor([12.5 - 10, 2.5 + 8, 2.5]), atol=0.3, rtol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: ShapeModel(folder / "none.pt"), "fewview-ct shapes"),
        (lambda folder: ShapeModel(folder / "bad.pt"), "not a file of shapes"),
        (lambda folder: _model(folder, concentration=0.0), "concentration must be positive"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, make, message: str) -> None:
    write_tensors(tmp_path / "bad.pt", {"grid": 1})
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        make(tmp_path)
    assert shape_model(None) is None


def test_a_cohort_is_registered_once(cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The training part alone; what is there already is not done again; what does not register is said."""
    size = [n * s for n, s in zip(GRID.shape, GRID.spacing_mm, strict=True)]
    path = register_cohort(cohort, tmp_path, 5.0, size)
    assert ShapeModel(path).cases == ["middle", "narrow", "wide"]
    rows = list(csv.DictReader((tmp_path / "report.csv").open()))
    assert [(row["case"], row["reference"]) for row in rows] == [("narrow", "middle"), ("wide", "middle")]
    for row, key in itertools.product(rows, ("to_reference", "from_reference")):
        assert float(row[f"{key}_after_hu"]) < 0.7 * float(row[f"{key}_before_hu"])
    before = path.read_bytes()
    monkeypatch.setattr(shapes, "register", lambda *_: pytest.fail("registered again"))
    assert register_cohort(cohort, tmp_path, 5.0, size).read_bytes() == before
    monkeypatch.setattr(shapes, "LARGEST_RESIDUAL_SHARE", 0.0)
    with pytest.raises(ValueError, match="none of the 3 cases"):
        register_cohort(cohort, tmp_path, 5.0, size)
    with pytest.raises(ValueError, match="test patients must not enter"):
        register_cohort(cohort, tmp_path, 5.0, size, part="test")
    with pytest.raises(ValueError, match="two cases or more"):
        register_cohort(cohort, tmp_path, 5.0, size, part="validation")
