"""Plans on a reconstruction of the sample patient, and the dose that its isocentre gets in him."""

from __future__ import annotations

import importlib.util

import nibabel as nib
import numpy as np
import pytest
import torch

from custom.data.sample import sample_ct
from custom.evaluation.delivered_doses import DeliveredDoses
from custom.geometry import VolumeGrid
from custom.trust.calibrated_intervals import DoseIntervals
from custom.trust.measure_intervals import MeasureInterval
from custom.trust.reference_ct import ReferenceCT

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("pydosert") is None, reason="needs pip install 'fewview-ct[radiotherapy]'"
)
GRID = VolumeGrid.cube(64, 320.0)


def test_a_reconstruction_that_is_too_dense_gives_more_dose_and_air_no_plan() -> None:
    image = nib.load(sample_ct())
    affine, hu = np.array(image.affine, float), np.asarray(image.dataobj, np.float32)
    middle = affine @ np.array([*((np.array(hu.shape) - 1) / 2), 1.0])
    ct = ReferenceCT("sample", hu, affine, (float(middle[0]), float(middle[1]), float(middle[2])))
    shown, doses = ct.on_grid(GRID), DeliveredDoses(("ap_pa",))
    planned, same = doses(shown, GRID, ct)
    assert planned["ap_pa"] == pytest.approx(2.0, rel=1e-3) and same["ap_pa"] == pytest.approx(2.0, rel=0.01)
    dense = torch.where(shown > -300, shown + 60, shown)
    stated = DoseIntervals(doses.rules, {"ap_pa": MeasureInterval(0.0, 0.005, 1.9, 2.1, 30)})
    found = doses.intervals(stated, dense, GRID, ct)["ap_pa"]
    assert found["lower"] == pytest.approx(2 * np.exp(-0.005), rel=1e-3)
    assert same["ap_pa"] + 0.01 < found["truth"] < same["ap_pa"] + 0.1
    assert doses(torch.full(GRID.shape, -1000.0), GRID, ct) == ({"ap_pa": None}, {"ap_pa": None})
    with pytest.raises(ValueError, match="calibrated by"):
        doses.intervals(DoseIntervals({**doses.rules, "engine": "other"}, stated.templates), dense, GRID, ct)


def test_tangents_have_no_dose_at_their_isocentre() -> None:
    with pytest.raises(ValueError, match="breast_left gives no dose"):
        DeliveredDoses(("ap_pa", "breast_left"))
