"""What pose refinement makes of a lateral view that does not stand where it is stated to stand.

    python scripts/benchmark_pose.py data/prepared/datalist.json --part test

The radiographs of every case are simulated once for each acquisition; then the statement of the lateral is made wrong
by a known amount, the views are refined, and the model reconstructs with the stated, the refined and the true views.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import fire
import numpy as np
import torch
from torch import Tensor

from custom.core.angles import angle_difference_deg
from custom.data.datalist import load_cases
from custom.geometry import ViewRow
from custom.models import Model
from custom.radiographs import Assembled
from custom.trust import refine_poses
from custom.trust.pose_refinement import ViewMove, moved_view
from custom.trust.reference_ct import (
    ReferenceCT,
    SimulationSettings,
    detector_of,
    error_hu,
    load_ct,
    model_on,
    reconstructed,
)

#: Name of a beam and its angles; the second is the lateral.
VIEWS = {
    "cone2": ("cone", (90.0, 0.0)),
    "cone4": ("cone", (90.0, 0.0, 45.0, 135.0)),
    "parallel4": ("parallel", (90.0, 0.0, 45.0, 135.0)),
}
LATERAL = 1
ERRORS = {
    "none": ViewMove(),
    "2 degrees": ViewMove(angle_deg=2.0),
    "5 degrees": ViewMove(angle_deg=5.0),
    "10 degrees": ViewMove(angle_deg=10.0),
    "10 mm along rows": ViewMove(along_rows_mm=10.0),
    "10 mm along columns": ViewMove(along_columns_mm=10.0),
    "distances 3 %": ViewMove(distance=0.03),
}
HEAD = (
    "| lateral wrong by | moved | others moved | degrees left | mm left along rows | along columns | % of distance "
    "| dB as stated | refined | true |\n|---|---|---|---|---|---|---|---|---|---|"
)


@torch.no_grad()
def main(
    datalist: str,
    model: str = "inr_recon",
    part: str = "test",
    size: int | None = 64,
    views: Sequence[str] = tuple(VIEWS),
    acquisitions: Sequence[str] = ("perfect", "realistic"),
    cases: int | None = None,
) -> None:
    """Print a table for each acquisition, beam and number of views.

    Args:
        datalist: datalist.json of a prepared cohort.
        model: that reconstructs.
        part: of the datalist.
        size: voxels along each side.
        views: names in `VIEWS`.
        acquisitions: perfect; realistic: photons, scatter, blur, intensities and field as X-ray units have them.
        cases: the first so many; None: all.
    """
    loaded = model_on(model, size)
    cts = [load_ct(case, loaded.pixel_at_isocenter_mm) for case in load_cases(datalist, part)[:cases]]
    settings = {
        "perfect": SimulationSettings.perfect(energy_kev=loaded.energy_kev),
        "realistic": SimulationSettings(energy_kev=loaded.energy_kev, pose_error_deg=0.0, pose_error_distance=0.0),
    }
    for kind in (views,) if isinstance(views, str) else views:
        beam, angles = VIEWS[kind]
        for name in (acquisitions,) if isinstance(acquisitions, str) else acquisitions:
            print(f"\n{len(angles)} views, {beam} beam, {name}, {len(cts)} cases of {part}:\n\n{HEAD}", flush=True)
            shown = [ct.radiographs(angles, beam, *_detector(loaded), settings[name]) for ct in cts]
            true = [_decibel(loaded, ct, shots) for ct, shots in zip(cts, shown, strict=True)]
            for error, move in ERRORS.items():
                if move.distance and beam == "parallel":
                    continue  # parallel rays know no distance
                found = [_measure(loaded, ct, shots, move) for ct, shots in zip(cts, shown, strict=True)]
                moved, others, turned, rows, columns, far, stated, refined = np.mean(found, axis=0)
                print(
                    f"| {error} | {moved:.0%} | {others:.0%} | {turned:.1f} | {rows:.1f} | {columns:.1f} | {far:.1f} "
                    f"| {stated:.2f} | {refined:.2f} | {np.mean(true):.2f} |",
                    flush=True,
                )


def _measure(model: Model, ct: ReferenceCT, shown: Assembled, wrong: ViewMove) -> list[float]:
    """Share of laterals and of other views that moved, four errors that are left, dB as stated and refined."""
    stated = shown.views.double().clone()
    stated[LATERAL] = moved_view(stated[LATERAL], wrong)
    found = refine_poses(shown.image, stated, shown.field_mask)
    changed = [move != ViewMove() for move in found.moves]
    others = [one for k, one in enumerate(changed) if k not in (0, LATERAL)]
    left = found.moves[LATERAL]
    as_stated = _decibel(model, ct, replace(shown, views=stated.float()))
    return [
        float(changed[LATERAL]),
        float(np.mean(others)) if others else 0.0,
        abs(angle_difference_deg(_angle(found.views), _angle(shown.views))),
        abs(left.along_rows_mm + wrong.along_rows_mm),
        abs(left.along_columns_mm + wrong.along_columns_mm),
        100 * abs((1 + left.distance) * (1 + wrong.distance) - 1),
        as_stated,
        _decibel(model, ct, replace(shown, views=found.views.float())) if any(changed) else as_stated,
    ]


def _angle(views: Tensor) -> float:
    return float(ViewRow.from_tensor(views[LATERAL].double()).angle_deg)


def _detector(model: Model) -> tuple[tuple[int, int], float]:
    return detector_of(model), model.pixel_at_isocenter_mm


def _decibel(model: Model, ct: ReferenceCT, shown: Assembled) -> float:
    """Peak signal to noise over the window."""
    hu = reconstructed(model, shown).hu
    assert hu is not None
    low, high = model.hu_window
    return 20 * math.log10((high - low) / error_hu(model, hu, ct))


if __name__ == "__main__":
    fire.Fire(main)
