"""Rows of a comparison are what they say, on a tiny stored cohort."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from custom.benchmark import mean_training_ct, network_row, sirt_row
from custom.core.attenuation import hu_to_attenuation
from custom.core.checkpoints import save_checkpoint
from custom.data.datalist import load_cases
from custom.geometry import Geometry, VolumeGrid
from custom.projection import Projector
from custom.reconstruct import reconstruct
from tests.custom.benchmark.tiny_benchmark import GRID, patient, tiny_network


def test_mean_training_ct_is_the_mean(cohort: Path) -> None:
    mean = mean_training_ct(cohort).run(torch.zeros(1), torch.zeros(1))
    torch.testing.assert_close(mean, (patient(90) + patient(110)) / 2)


def test_sirt_from_the_mean_keeps_what_no_radiograph_contradicts(cohort: Path) -> None:
    """From the lateral view of a patient who is the mean nothing changes; the row says where it started."""
    mean = mean_training_ct(cohort)
    row = sirt_row(GRID, iterations=5, start=mean)
    assert row.name == "SIRT from the mean training CT, 5 iterations (clipped)"
    geometry = Geometry.from_angles([0.0], beam="parallel", grid=GRID)
    hu = mean.run(torch.zeros(1), torch.zeros(1))
    image = Projector.from_geometry(geometry)(hu_to_attenuation(hu[None, None]))[0]
    torch.testing.assert_close(row.run(image, geometry.tensor()), hu, atol=0.5, rtol=0)
    assert (sirt_row(GRID, iterations=5).run(image, geometry.tensor()) - hu).abs().max() > 100


def test_a_network_can_answer_on_another_grid(cohort: Path, tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "model.pt", tiny_network())
    other = VolumeGrid.cube(8, 320)
    geometry = Geometry.from_angles([0.0, 90.0], beam="parallel", grid=other)
    assert network_row("net", checkpoint, other).run(torch.zeros(2, 8, 12), geometry.tensor()).shape == (8, 8, 8)


def test_network_row_is_what_reconstruct_writes(cohort: Path, tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "model.pt", tiny_network())
    case = load_cases(cohort, "test")[0]
    found = reconstruct([case["image"]], geometry=case["geometry"], model=checkpoint, precision="fp32")
    np.testing.assert_allclose(found.affine, nib.load(case["label"]).affine)
    from custom.data.transforms import LoadRadiographsd

    stored = LoadRadiographsd()(case)
    expected = network_row("net", checkpoint).run(stored["image"], stored["views"])
    np.testing.assert_allclose(found.hu.numpy(), expected.numpy(), atol=0.51)


@pytest.mark.parametrize(
    ("change", "part", "error", "message"),
    [
        (None, "test", FileNotFoundError, "no such datalist"),
        ("{", "test", ValueError, "is not a JSON file"),
        ('{"training": [{"case": "a"}]}', "test", ValueError, r"no cases under 'test'; it has \['training'\]"),
        ('{"test": [{"case": "a", "label": "gone.nii.gz"}]}', "test", FileNotFoundError, "gone.nii.gz: .*missing"),
    ],
)
def test_datalists_that_do_not_serve(tmp_path: Path, change: str | None, part: str, error: type, message: str) -> None:
    if change is not None:
        (tmp_path / "list.json").write_text(change)
    with pytest.raises(error, match=message):
        load_cases(tmp_path / "list.json", part)


def test_shuffled_radiographs_keep_the_truth(cohort: Path) -> None:
    cases, shuffled = load_cases(cohort, "test"), load_cases(cohort, "test", shuffle_radiographs=True)
    assert [c["label"] for c in shuffled] == [c["label"] for c in cases]
    assert [c["image"] for c in shuffled] == [cases[1]["image"], cases[0]["image"]]
