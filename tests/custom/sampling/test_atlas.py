"""The atlas: a patient whom it holds is given back whole, others get detail that lies in the right place."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor

from custom.core.attenuation import attenuation_to_hu, hu_to_attenuation
from custom.core.files import write_nifti
from custom.core.hu_window import hu_to_unit, unit_to_hu
from custom.geometry import Geometry, VolumeGrid
from custom.projection import Projector, sirt
from custom.sampling.atlas import STEP_HU, Atlas, write_atlas

WINDOW = (-1000.0, 1000.0)
GRID = VolumeGrid.cube(32, 320.0)
GEOMETRY = Geometry.from_angles([0, 45, 90, 135], detector_shape=(32, 48), pixel_mm=10.0, grid=GRID)
PROJECTOR = Projector(GRID, GEOMETRY.detector_shape)


def chest(shift_mm: float = 0.0) -> Tensor:
    """HU (X, Y, Z): a body with lungs, ribs and a spine; every tissue a multiple of the atlas's steps."""
    x, y, z = (GRID.points() - torch.tensor([shift_mm, 0.0, 0.0])).unbind(-1)
    hu = torch.full(GRID.shape, -1000.0)
    body = (x / 130) ** 2 + (y / 95) ** 2 < 1
    hu[body] = 40
    hu[((x.abs() - 60) / 40) ** 2 + (y / 65) ** 2 + (z / 120) ** 2 < 1] = -800
    hu[body & ((x / 115) ** 2 + (y / 82) ** 2 > 1) & ((z + 0.2 * y) % 50 < 18)] = 600
    hu[(x.abs() < 16) & ((y + 65).abs() < 16)] = 400
    return hu


def radiographs(hu: Tensor) -> Tensor:
    return PROJECTOR(hu_to_attenuation(hu[None, None]), GEOMETRY.views)


@dataclass
class FewIterations:
    """A mean network that is a classical method: it blurs, and depends on the radiographs alone."""

    network: Any = None

    def __post_init__(self) -> None:
        self.network = type("Network", (), {"grid": GRID, "hu_window": WINDOW, "energy_kev": 70.0})

    def volume(self, image: Tensor, views: Tensor, view_mask: Tensor | None = None) -> Tensor:
        return hu_to_unit(attenuation_to_hu(sirt(PROJECTOR, image, views[0], 8)), WINDOW)

    def first_stage(self, image: Tensor, views: Tensor) -> tuple[Tensor, VolumeGrid]:
        return hu_to_unit(attenuation_to_hu(sirt(PROJECTOR, image, views[0], 4)), WINDOW), GRID


def cohort(folder: Path, *cts: Tensor) -> Path:
    entries = []
    for number, hu in enumerate(cts):
        write_nifti(folder / f"ct{number}.nii.gz", hu.numpy().astype(np.int16), GRID.affine([5, 6, 7]))
        name = f"ct{number}.nii.gz"
        entries.append({"case": f"case{number}", "label": name, "source": name})
    (folder / "datalist.json").write_text(json.dumps({"training": entries, "test": entries}))
    return folder / "datalist.json"


def atlas(folder: Path, *cts: Tensor, **options: Any) -> Atlas:
    path = write_atlas(cohort(folder, *cts), folder / "atlas.nii.gz")
    return Atlas(path, FewIterations(), **options)  # type: ignore[arg-type]


def detailed(made: Atlas, hu: Tensor, index: int = 0) -> tuple[Tensor, Tensor]:
    """HU of the mean network for a patient, and of a sample that equals it, with the detail of an atlas."""
    image, views = radiographs(hu), GEOMETRY.views[None]
    mean = made.mean.volume(image, views)
    return unit_to_hu(mean, WINDOW)[0, 0], unit_to_hu(made.detailed(mean, mean, image, views, index), WINDOW)[0, 0]


def error(one: Tensor, other: Tensor) -> float:
    return float((one - other).square().mean().sqrt())


def test_a_patient_of_the_atlas_is_given_back(tmp_path: Path) -> None:
    made = atlas(tmp_path, chest(), chest(20))
    for index, shift in ((0, 0.0), (1, 20.0), (3, 20.0)):  # sample i has CT i modulo the number of CTs
        mean, found = detailed(made, chest(shift), index)
        assert error(mean, chest(shift)) > 60
        assert error(found, chest(shift)) < 1


def test_the_detail_of_another_patient_is_brought_to_its_place(tmp_path: Path) -> None:
    made, truth = atlas(tmp_path, chest()), chest(12)
    mean, found = detailed(made, truth)
    assert error(found, truth) < 0.8 * error(mean, truth)
    still = mean + chest() - detailed(made, chest())[0]  # without registration
    assert error(found, truth) < 0.8 * error(still, truth)


def test_only_what_is_coarse_stays_of_the_sample(tmp_path: Path) -> None:
    made = atlas(tmp_path, chest())
    image, views = radiographs(chest()), GEOMETRY.views[None]
    mean = made.mean.volume(image, views)
    noise = 0.1 * torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))
    with patch("custom.sampling.atlas.register", lambda one, *_: torch.zeros(3, *one.shape)):
        plain = made.detailed(mean, mean, image, views, 0)
        assert float((made.detailed(mean + noise, mean, image, views, 0) - plain).std()) < 0.3 * float(noise.std())
        lighter = made.detailed(mean + 0.2, mean, image, views, 0)
    torch.testing.assert_close((lighter - plain)[..., 8:24, 8:24, 8:24], torch.full((1, 1, 16, 16, 16), 0.2))


def test_the_file_holds_the_training_cts_in_steps(tmp_path: Path) -> None:
    path = write_atlas(cohort(tmp_path, chest(), chest(20) + 3), tmp_path / "atlas.nii.gz")
    image: Any = nib.load(path)
    assert image.shape == (32 + 2 * 6, 32, 32 + 2 * 3, 2)  # 60 mm to the left and right, 30 mm above and below
    stored = np.asarray(image.dataobj, dtype=float) * STEP_HU - 1000
    assert (stored[:6] == -1000).all() and (stored[..., :3, :] == stored[..., 3:4, :]).all()
    hu = stored[6:-6, :, 3:-3]
    assert np.abs(hu[..., 0] - chest().numpy()).max() == 0
    assert np.abs(hu[..., 1] - chest(20).numpy() - 3).max() <= STEP_HU / 2
    assert nib.load(write_atlas(tmp_path / "datalist.json", tmp_path / "one.nii.gz", leave_out=["case0"])).shape[3] == 1  # type: ignore[attr-defined]
    assert path.read_bytes() == write_atlas(tmp_path / "datalist.json", tmp_path / "again.nii.gz").read_bytes()
    with pytest.raises(FileExistsError, match="--overwrite"):
        write_atlas(tmp_path / "datalist.json", path, part="training")
    assert write_atlas(tmp_path / "datalist.json", path, overwrite=True) == path


@pytest.mark.parametrize(
    ("part", "name", "message"),
    [("test", "atlas.nii.gz", "test patients must not"), ("training", "atlas.pt", "must end in .nii.gz")],
)
def test_no_atlas_of_test_patients_or_another_kind(tmp_path: Path, part: str, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_atlas(cohort(tmp_path, chest()), tmp_path / name, part)


@pytest.mark.parametrize(("names", "message"), [(["case7"], "no case 'case7'"), (["case0"], "nothing is left")])
def test_what_is_left_out_must_be_there_and_not_be_all(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_atlas(cohort(tmp_path, chest()), tmp_path / "atlas.nii.gz", leave_out=names)


@pytest.mark.parametrize(
    ("first", "spacing_mm", "message"),
    [(1, 10.0, r"ct1.nii.gz: \(31, 32, 32\) voxels"), (0, 8.0, r"voxels of \(8.0, 10.0, 10.0\) mm, others have")],
)
def test_cts_on_different_grids_are_refused(tmp_path: Path, first: int, spacing_mm: float, message: str) -> None:
    path = cohort(tmp_path, chest(), chest())
    affine = np.diag([spacing_mm, 10.0, 10.0, 1.0])
    write_nifti(tmp_path / "ct1.nii.gz", chest().numpy()[first:].astype(np.int16), affine)
    with pytest.raises(ValueError, match=message):
        write_atlas(path, tmp_path / "atlas.nii.gz")


def test_a_ct_without_a_body_is_named(tmp_path: Path) -> None:
    path = cohort(tmp_path, torch.full(GRID.shape, -1000.0))
    with pytest.raises(ValueError, match=r"ct0.nii.gz: no body within 440 x 320 x 380 mm around the isocentre"):
        write_atlas(path, tmp_path / "atlas.nii.gz")


@pytest.mark.parametrize("array", [chest().numpy(), np.zeros((4, 4, 4, 2), np.float32)])
def test_a_file_that_is_no_atlas_is_named(tmp_path: Path, array: np.ndarray) -> None:
    write_nifti(tmp_path / "ct.nii.gz", array, GRID.affine())
    with pytest.raises(ValueError, match=r"ct.nii.gz: shape .* but an atlas"):
        Atlas(tmp_path / "ct.nii.gz", FewIterations())  # type: ignore[arg-type]


def flipped(affine: np.ndarray) -> np.ndarray:
    return np.diag([-1.0, 1, 1, 1]) @ affine


def turned(affine: np.ndarray) -> np.ndarray:
    return affine[[1, 0, 2, 3]]


def moved(affine: np.ndarray) -> np.ndarray:
    return affine + np.array([[0.0, 0, 0, 30]] + 3 * [[0.0] * 4])


@pytest.mark.parametrize("change", [flipped, turned, moved])
def test_an_atlas_that_lies_otherwise_is_refused(tmp_path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    path = write_atlas(cohort(tmp_path, chest()), tmp_path / "atlas.nii.gz")
    image: Any = nib.load(path)
    write_nifti(path, np.asarray(image.dataobj), change(image.affine))
    with pytest.raises(ValueError, match=r"atlas.nii.gz: affine .* RAS\+ in mm around the isocentre"):
        Atlas(path, FewIterations())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [(112, struct.pack("<f", 2.0), "values are scaled by 2 and 0"), (-3000, b"", "is truncated or damaged")],
    ids=["scaled", "truncated"],
)
def test_a_scaled_or_truncated_atlas_is_refused(tmp_path: Path, place: int, value: bytes, message: str) -> None:
    path = write_atlas(cohort(tmp_path, chest()), tmp_path / "atlas.nii.gz")
    content = path.read_bytes()
    if place > 0:
        plain = bytearray(gzip.decompress(content))
        plain[place : place + len(value)] = value
        path.write_bytes(gzip.compress(bytes(plain)))
    else:
        path.write_bytes(content[:place])
    with pytest.raises(ValueError, match=rf"atlas.nii.gz: {message}"):
        Atlas(path, FewIterations())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (42, struct.pack("<4h", 32000, 32000, 32000, 32000), "a file of .* unpacks to"),
        (42, struct.pack("<4h", 4, 4, 4, 32000), "2048000 bytes of CTs in an atlas are more than the 100000"),
        (280, struct.pack("<f", float("nan")), "spacing_mm must be finite and greater than zero"),
        (292, struct.pack("<f", float("nan")), r"affine \[.*nan"),
    ],
    ids=["a petabyte", "32000 CTs", "no spacing", "no place"],
)
@pytest.mark.usefixtures("small_limit")
def test_an_atlas_that_claims_what_it_cannot_hold_is_refused_before_it_is_read(
    tmp_path: Path, place: int, value: bytes, message: str
) -> None:
    path = tmp_path / "atlas.nii.gz"
    write_nifti(path, np.zeros((4, 4, 4, 2), np.uint8), VolumeGrid.cube(4, 320.0).affine())
    plain = bytearray(gzip.decompress(path.read_bytes()))
    plain[place : place + len(value)] = value
    path.write_bytes(gzip.compress(bytes(plain)))
    with pytest.raises(ValueError, match=rf"atlas.nii.gz: {message}"):
        Atlas(path, FewIterations())  # type: ignore[arg-type]


@pytest.mark.usefixtures("small_limit")
def test_more_cts_than_an_atlas_holds_are_refused_before_any_is_read(tmp_path: Path) -> None:
    with (
        patch("custom.sampling.atlas.ct_on_grid") as read,
        pytest.raises(
            ValueError, match=r"atlas.nii.gz: 107008 bytes of CTs in an atlas are more than the 100000 that are read"
        ),
    ):
        write_atlas(cohort(tmp_path, chest(), chest()), tmp_path / "atlas.nii.gz")
    assert not read.called and not (tmp_path / "atlas.nii.gz").exists()


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("custom.sampling.atlas.LARGEST_BYTES", 100_000)


@pytest.mark.parametrize("coarse_mm", [0.0, float("nan"), float("inf"), 321.0, "10"])
def test_what_cannot_be_coarse_is_refused(tmp_path: Path, coarse_mm: Any) -> None:
    with pytest.raises(ValueError, match="coarse_mm must be above 0 and at most 320"):
        atlas(tmp_path, chest(), coarse_mm=coarse_mm)


def test_a_grid_that_nothing_can_be_registered_on_is_refused(tmp_path: Path) -> None:
    mean = FewIterations()
    mean.network.grid = VolumeGrid((3, 32, 32), (100.0, 10.0, 10.0))
    path = write_atlas(cohort(tmp_path, chest()), tmp_path / "atlas.nii.gz")
    with pytest.raises(ValueError, match=r"\(3, 32, 32\) voxels is too small for an atlas"):
        Atlas(path, mean)  # type: ignore[arg-type]
