"""What `fewview-ct next-view` expects of a second view against what that view then gives.

    python scripts/benchmark_next_view.py data/prepared/datalist.json --part test

For a frontal and a lateral view alone, every further angle is taken of every case (parallel beam, no noise), and the
errors of the population's own estimate and of the model are set beside what was expected before.
"""

from __future__ import annotations

import fire
import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from custom.core.attenuation import water_attenuation_per_mm
from custom.data.datalist import load_cases
from custom.trust import find_prior
from custom.trust.reference_ct import SimulationSettings, detector_of, error_hu, load_ct, model_on, reconstructed
from custom.uncertainty import rank_next_views


@torch.no_grad()
def main(
    datalist: str, model: str = "inr_recon", part: str = "test", size: int | None = 64, step_deg: float = 15.0
) -> None:
    """Print a table for each first view.

    Args:
        datalist: datalist.json of a prepared cohort.
        model: with a population.
        part: of the datalist.
        size: voxels along each side.
        step_deg: between the angles that are tried.
    """
    loaded, cases = model_on(model, size), load_cases(datalist, part)
    prior, detector = find_prior(loaded.network), (detector_of(loaded), loaded.pixel_at_isocenter_mm)
    if prior is None:
        raise ValueError(f"{model} has no population")
    factor = max(1, round(prior.grid.spacing_mm[0] / loaded.pixel_at_isocenter_mm))
    cts = [load_ct(case, loaded.pixel_at_isocenter_mm) for case in cases]
    truths = [ct.on_grid(loaded.grid).clamp(*loaded.hu_window) for ct in cts]
    perfect = SimulationSettings.perfect(energy_kev=loaded.energy_kev)
    angles = [step_deg * k for k in range(round(180 / step_deg))]
    for first in (90.0, 0.0):
        shown = cts[0].radiographs([first], "parallel", *detector, perfect)
        ranked = rank_next_views(
            prior, loaded.energy_kev, shown.image, shown.field_mask, shown.views, loaded.grid, angles
        )
        rows = []
        for one in sorted((r for r in ranked if r.angle_deg is not None), key=lambda r: r.angle_deg or 0.0):
            errors: list[tuple[float, float]] = []
            for ct, truth in zip(cts, truths, strict=True):
                shots = ct.radiographs([first, one.angle_deg or 0.0], "parallel", *detector, perfect)
                path = shots.image[None] / water_attenuation_per_mm(loaded.energy_kev)
                water = prior.on(loaded.grid, prior.estimate(path, shots.views[None], None, factor))[0, 0]
                hu = reconstructed(loaded, shots).hu
                assert hu is not None
                errors.append((_rms(((water - 1) * 1000).clamp(*loaded.hu_window), truth), error_hu(loaded, hu, ct)))
            rows.append((one.angle_deg, one.error_hu, *np.mean(errors, axis=0)))
        print(f"\nfirst view at {first:g} degrees, {len(cases)} cases of {part}, HU:\n")
        print("| further view | expected | population's estimate | model |\n|---|---|---|---|")
        print("\n".join(f"| {a:g} | {e:.0f} | {p:.0f} | {m:.0f} |" for a, e, p, m in rows))
        table = np.array(rows, dtype=float)
        ranks = [float(spearmanr(table[:, 1], table[:, k])[0]) for k in (2, 3)]
        print(f"\nrank correlation with what was expected: {ranks[0]:.2f} (population), {ranks[1]:.2f} (model)")


def _rms(one: Tensor, other: Tensor) -> float:
    return float((one - other).square().mean().sqrt())


if __name__ == "__main__":
    fire.Fire(main)
