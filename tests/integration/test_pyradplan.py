"""An independent dose engine on the same CTs: pyRadPlan, with its own code and kernels, in an environment of its own.

FEWVIEW_PYRADPLAN names the Python of that environment (scripts/integration/pyradplan.sh makes it). It has 6 MV alone.
FEWVIEW_PYRADPLAN_CTS names CTs in place of the sample patient's, with ":" between them.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from custom.data.sample import sample_ct
from custom.geometry import VolumeGrid
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
from custom.radiotherapy.contours import Contours, Structure
from custom.radiotherapy.dose_metrics import dose_at

PYTHON = os.environ.get("FEWVIEW_PYRADPLAN", "")
SCRIPT = Path(__file__).with_name("pyradplan_dose.py")
CTS = [Path(one) for one in os.environ.get("FEWVIEW_PYRADPLAN_CTS", "").split(os.pathsep) if one] or [Path(sample_ct())]

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        not PYTHON, reason="FEWVIEW_PYRADPLAN names no Python with pyRadPlan: scripts/integration/pyradplan.sh makes it"
    ),
]


def isocenter_doses(
    patients: list[Patient], plan: Plan, folder: Path, kernels: dict[str, np.ndarray] | None = None
) -> tuple[list[float], list[float]]:
    """Of one plan on several CTs of one grid: by PyDoseRT and by pyRadPlan, each in its own unit."""
    engine, grid = PencilBeamEngine(), patients[0].ct.grid
    ours = [dose_at(one.ct, engine.dose(one.density, grid, plan), plan.isocenter_mm) for one in patients]
    x1, x2, *_ = plan.fields[0].jaws_mm
    given = {
        "spacing_mm": np.array(grid.spacing_mm), "first_mm": grid.affine()[:3, 3],
        "isocenter_mm": np.array(plan.isocenter_mm), "gantry_deg": np.array([f.gantry_deg for f in plan.fields]),
        "width_mm": np.array(x2 - x1), **(kernels or {}),
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


def nyholm_kernels(tpr_20_10: float) -> dict[str, np.ndarray]:
    """PyDoseRT's kernel in pyRadPlan's form: depths in four exponentials, radii by least squares at 1 to 30 cm.

    The exponents were sought on the axis of 5, 10 and 20 cm fields in water: 0.03 % at most from 2.5 cm on at 0.67.
    """
    from pydosert.physics.kernels.pencil_beam_model import PencilBeamModel

    m, betas = 4.144474541e-3, np.array([2.3831090e-2, 9.985490e-3, 2.8221217e-1, 2.3830770e-2])
    depth, radius = np.r_[np.arange(10, 50, 2.5), np.arange(50, 301, 5.0)], np.arange(0, 180.01, 0.5)
    exact = PencilBeamModel((0.5, 0.5, 0.5), tpr_20_10, 3).get_pencil_beam(
        torch.from_numpy(depth)[None, :, None, None], torch.from_numpy(radius / 10)[None], normalize=False
    )[0, :, 0].numpy()  # fmt: skip
    shape = betas / (betas - m) * (np.exp(-m * depth[:, None]) - np.exp(-betas * depth[:, None]))
    found = np.linalg.lstsq(shape / exact[:, 10:11], exact / exact[:, 10:11], rcond=1e-12)[0]
    return {"m_per_mm": np.array(m), "betas_per_mm": betas, "radii_mm": radius, "kernels": found}


def water(isocenter_mm: tuple[float, float, float]) -> Patient:
    """20 cm of water, the isocentre in its middle: 10 cm deep for both fields."""
    grid = VolumeGrid((121, 88, 121), (2.5, 2.5, 2.5), isocenter_mm)
    inside = np.broadcast_to(np.abs(np.arange(88) - 43.5)[None, :, None] < 40, grid.shape)
    ct = PlanningCT(np.where(inside, 0, -1000).astype(np.float32), grid)
    return Patient(ct, Contours({"External": Structure("External", "EXTERNAL", inside, "water")}), None)


@pytest.mark.parametrize("path", CTS, ids=lambda path: path.name)
def test_both_engines_give_the_same_dose_where_kernel_and_rule_of_depth_are_the_same(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AP/PA at 6 MV with equal monitor units, as a share of the dose at 10 cm in water.

    pyRadPlan scatters through matter like that in front of the point, and so does PyDoseRT's `DoseEngine` by plane.
    `PencilDepthEngine`, ours, has less scatter where lung lies beside the axis.
    """
    import pydosert.engine.pencil_depth_engine as pencils
    from pydosert.engine.dose_engine import DoseEngine

    patient = plan_patient(
        read_planning_ct(path), "ap_pa", load_segmenter(find_model(SEGMENTER).model), PencilBeamEngine()
    )
    assert patient.case is not None
    plan = replace(patient.case.plan, beam_quality="6 MV")
    kernels, phantom = nyholm_kernels(plan.tpr_20_10), water(plan.isocenter_mm)

    def excess_percent() -> float:
        (here,), (there,) = isocenter_doses([patient], plan, tmp_path, kernels)
        (here_water,), (there_water,) = isocenter_doses([phantom], plan, tmp_path, kernels)
        return 100 * (here / here_water / (there / there_water) - 1)

    own = excess_percent()
    monkeypatch.setattr(pencils, "PencilDepthEngine", functools.partial(DoseEngine, conv_backend="fft"))
    by_plane = excess_percent()
    logging.info("%s: %+.2f %% with PencilDepthEngine, %+.2f %% with DoseEngine", path.name, own, by_plane)
    assert abs(by_plane) < 0.3
    assert -2 < own < 0.3
