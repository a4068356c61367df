"""The verb `fewview-ct demo`: radiographs of the embedded sample patient, and a CT reconstructed from them."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from rich.console import Console
from rich.text import Text

from custom.core.attenuation import attenuation_bounds, attenuation_to_hu
from custom.core.files import write_nifti
from custom.data.sample import sample_ct
from custom.data.simulate import Acquisition, simulate_case
from custom.evaluation.evaluate import load_hu, resample_to
from custom.geometry import Geometry
from custom.metrics import HU_WINDOW, evaluate_volume
from custom.metrics.tables import cohort_table, write_metrics
from custom.models import find_model, save_volume
from custom.projection import Projector, sirt
from custom.reconstruct import reconstruct
from custom.report.figures import reconstruction_figure

__all__ = ["run", "sirt_volume"]

logger = logging.getLogger(__name__)

SIRT_ITERATIONS = 100


def sirt_volume(radiographs: torch.Tensor, geometry: Geometry, energy_kev: float) -> np.ndarray:
    """The simple row beside the network's: SIRT clipped to the HU window, (X, Y, Z) HU on the geometry's grid."""
    projector, bounds = Projector.from_geometry(geometry), attenuation_bounds(HU_WINDOW, energy_kev)
    volume = sirt(projector, radiographs[None], iterations=SIRT_ITERATIONS, bounds=bounds)
    return attenuation_to_hu(volume, energy_kev)[0, 0].numpy()


def run(
    checkpoint: str = "inr_recon",
    output: str = "outputs/quickstart",
    angles_deg: Sequence[float] = (0.0, 90.0),
    beam: str = "parallel",
    device: str | None = None,
) -> None:
    """Reconstructs the sample patient, whom no network of this project has seen in training.

    Radiographs are computed from the sample CT, stored, reconstructed from the files as any others would be, and the
    result is compared with the CT, beside a classical reconstruction (SIRT) from the same radiographs. The radiographs
    come from the 128^3 cube itself (the setting "paper"), since only that is embedded: easier than a real radiograph.

    Args:
        checkpoint: a model's name, folder or weights; by default the published inr_recon.
        output: folder for radiographs, reconstruction, picture and metrics.
        angles_deg: of the views; 0 lateral, 90 frontal.
        beam: "parallel" or "cone".
        device: torch device, such as cuda:0; a GPU where there is one, else the CPU.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: a checkpoint that is none, a geometry that makes no sense.
    """
    model = find_model(checkpoint).model
    start = time.perf_counter()
    folder = Path(output)
    truth, affine = load_hu(sample_ct())
    acquisition = Acquisition("paper", tuple(float(angle) for angle in angles_deg), beam)
    logger.info("computing %d radiographs of %s", len(acquisition.angles_deg), sample_ct().name)
    radiographs, geometry = simulate_case(truth, affine, acquisition)
    image, description = folder / "radiographs.nii.gz", folder / "radiographs.json"
    pixel_v, pixel_u = geometry.pixel_mm[0]
    write_nifti(image, radiographs.permute(2, 1, 0).contiguous().numpy(), np.diag([pixel_u, pixel_v, 1.0, 1.0]))
    geometry.save(description)

    logger.info("reconstructing with %s", model)
    found = reconstruct([image], geometry=description, model=model, device=device)
    volume = save_volume(folder / "reconstruction.nii.gz", found.hu, found.grid, found.isocenter_mm)
    pred, pred_affine = load_hu(volume)
    if pred.shape != truth.shape or not np.allclose(pred_affine, affine, atol=1e-3):
        pred = resample_to(pred, pred_affine, truth.shape, affine)
    logger.info("reconstructing with SIRT for comparison")
    classical = sirt_volume(radiographs, geometry, acquisition.energy_kev)

    views = ", ".join(f"{angle:g}°" for angle in acquisition.angles_deg)
    rows = [
        {"case": name, "patient": "LIDC-IDRI-0001", **evaluate_volume(result, truth)}
        for name, result in (("fewview-ct", pred), ("SIRT (clipped)", classical))
    ]
    write_metrics(rows[:1], folder, checkpoint=str(model), angles_deg=list(acquisition.angles_deg), sirt=rows[1])
    caption = f"PSNR {rows[0]['psnr_range']:.2f} dB  ·  SSIM {rows[0]['ssim']:.3f}  ·  MAE {rows[0]['mae_hu']:.1f} HU"
    picture = reconstruction_figure(
        radiographs.numpy(),
        truth,
        pred,
        nib.affines.voxel_sizes(affine).tolist(),
        folder / "reconstruction.png",
        title=f"LIDC-IDRI-0001 from {len(geometry)} simulated radiographs",
        caption=caption,
        view_labels=[f"{angle:g}°" for angle in acquisition.angles_deg],
        pixel_mm=(pixel_u, pixel_v),
    )
    console = Console()
    console.print(
        cohort_table(rows, title=f"sample patient, {len(geometry)} radiographs ({views}, {beam})", summary_rows=False)
    )
    for label, path in (("volume", volume), ("picture", picture), ("metrics", folder / "metrics.csv")):
        console.print(Text(f"{label:<8} {path}"), soft_wrap=True)
    logger.info("done in %.0f s", time.perf_counter() - start)
