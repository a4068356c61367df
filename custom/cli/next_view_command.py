"""The verb `fewview-ct next-view`: which further radiograph would tell most."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from custom import __version__
from custom.core.files import write_json
from custom.models import load_model
from custom.radiographs import read_radiographs
from custom.reconstruct.model_detector import resample_for_model
from custom.trust import find_prior
from custom.uncertainty import NextView, rank_next_views

__all__ = ["command"]


def command(
    *radiographs: str,
    model: str = "inr_recon",
    geometry: str | None = None,
    accept: Sequence[str] = (),
    step_deg: float = 15.0,
    output: str | None = None,
    device: str | None = None,
) -> None:
    """Say from which angle one more radiograph would lower the expected error most.

    It is asked of the population that the model knows, before anything is taken: what a view would show plays no part,
    where it stands does. The numbers are of that population, and smaller than errors of a real patient; their order is
    what counts.

    Args:
        radiographs: those that are there, as for 'fewview-ct reconstruct'.
        model: name, folder or weights file of a model with a population (inr_recon, ldm_recon).
        geometry: JSON with what the radiographs do not say about themselves.
        accept: assumptions that may be made where nothing says otherwise, by their names.
        step_deg: between the angles that are tried.
        output: JSON file for the table, too.
        device: torch device; a GPU where there is one, else the CPU.

    Raises:
        FileNotFoundError, FileExistsError: a missing radiograph or model, or an output that is there.
        ValueError: radiographs that cannot be used, a model without a population, or a step that makes no sense.
    """
    if not 1 <= step_deg <= 90:
        raise ValueError(f"step_deg must lie between 1 and 90 degrees, got {step_deg}")
    if output is not None and Path(output).exists():
        raise FileExistsError(f"{output} is there already: name another file, or remove it")
    used = read_radiographs(radiographs, geometry, accept)
    loaded = load_model(model, device)
    prior = find_prior(loaded.network)
    if prior is None:
        raise ValueError(f"{loaded.name} knows no population to ask: take inr_recon or ldm_recon")
    image, views, field_mask = resample_for_model(used, loaded)
    angles = [step_deg * k for k in range(round(360 / step_deg))]
    found = rank_next_views(prior, loaded.energy_kev, image, field_mask, views, loaded.grid, angles)
    if output is not None:
        content = {
            "software": f"fewview-ct {__version__}",
            "model": {"name": loaded.name, "sha256": loaded.sha256},
            "radiographs": [{"name": one.name, "sha256": one.sha256} for one in used],
            "next_views": [asdict(one) for one in found],
        }
        write_json(Path(output), content)
    sys.stdout.write(_table(found))


def _table(found: Sequence[NextView]) -> str:
    lines = ["angle of the source   expected error   in the lungs   mean lung density"]
    for one in found:
        angle = "no further view" if one.angle_deg is None else f"{one.angle_deg:.0f} degrees"
        lines.append(
            f"{angle:20s}  {one.error_hu:11.0f} HU  {one.lung_error_hu:9.0f} HU  {one.lung_density_hu:10.0f} HU (SD)"
        )
    return "\n".join(lines) + "\n"
