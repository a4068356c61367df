"""An independent dose engine on the same CTs: pyRadPlan, with its own code and kernels, in an environment of its own.

FEWVIEW_PYRADPLAN names the Python of that environment (scripts/integration/pyradplan.sh makes it). It has 6 MV alone.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from custom.data.sample import sample_ct
from custom.models import SEGMENTER, find_model
from custom.networks.segmentation_unet import load_segmenter

pytest.importorskip("pydosert", reason="pip install 'fewview-ct[radiotherapy]'")

from custom.radiotherapy import (
    Patient,
    PencilBeamEngine,
    Plan,
    PlanningCT,
    plan_patient,
    read_planning_ct,
)
from custom.radiotherapy.dose_metrics import dose_at

PYTHON = os.environ.get("FEWVIEW_PYRADPLAN", "")
SCRIPT = Path(__file__).with_name("pyradplan_dose.py")

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        not PYTHON, reason="FEWVIEW_PYRADPLAN names no Python with pyRadPlan: scripts/integration/pyradplan.sh makes it"
    ),
]


def isocenter_doses(patients: list[Patient], plan: Plan, folder: Path) -> tuple[list[float], list[float]]:
    """Of one plan on several CTs of one grid: by PyDoseRT and by pyRadPlan, each in its own unit."""
    engine, grid = PencilBeamEngine(), patients[0].ct.grid
    ours = [dose_at(one.ct, engine.dose(one.density, grid, plan), plan.isocenter_mm) for one in patients]
    x1, x2, *_ = plan.fields[0].jaws_mm
    given = {
        "spacing_mm": np.array(grid.spacing_mm), "first_mm": grid.affine()[:3, 3],
        "isocenter_mm": np.array(plan.isocenter_mm), "gantry_deg": np.array([f.gantry_deg for f in plan.fields]),
        "width_mm": np.array(x2 - x1),
    }  # fmt: skip
    for number, one in enumerate(patients):
        external = one.contours.mask("External")
        given |= {f"external_{number}": external, f"hu_{number}": np.where(external, one.ct.hu, -1000)}
    np.savez(folder / "in.npz", **given)
    subprocess.run([PYTHON, str(SCRIPT), str(folder / "in.npz"), str(folder / "out.json")], check=True, timeout=1200)
    return ours, json.loads((folder / "out.json").read_text())


def test_both_engines_see_the_same_error_of_altered_cts(tmp_path: Path) -> None:
    """AP/PA at 6 MV with the true plan's monitor units, on the sample patient's CT: percents of its own dose."""
    network, engine = load_segmenter(find_model(SEGMENTER).model), PencilBeamEngine()
    ct = read_planning_ct(Path(sample_ct()))
    truth = plan_patient(ct, "ap_pa", network, engine)
    assert truth.case is not None
    body = truth.contours.mask("External")
    altered = [
        ct.hu + 20 * body,
        np.where(body & (ct.hu > 60), 60, ct.hu),
        np.where(body & (ct.hu < -400), -650, ct.hu),
    ]
    patients = [truth, *(Patient(PlanningCT(hu.astype(np.float32), ct.grid), truth.contours, None) for hu in altered)]
    ours, theirs = isocenter_doses(patients, replace(truth.case.plan, beam_quality="6 MV"), tmp_path)
    for mine, other in zip(ours[1:], theirs[1:], strict=True):
        assert 100 * mine / ours[0] == pytest.approx(100 * other / theirs[0], abs=0.3)
    assert abs(100 * ours[1] / ours[0] - 100) > 0.3  # denser tissue takes dose away
