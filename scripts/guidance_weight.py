"""Which weight makes the segmentation loss pull how hard: what `guidance_weight` of inr_recon was chosen by.

    python scripts/guidance_weight.py data/prepared/datalist_fine.json bundles/inr_recon/models/model.pt \
        bundles/seg_guidance/models/model.pt

For every case the lengths of both gradients with respect to the reconstruction, and the weight at which the
segmentation's is `share` of the mean squared error's.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

import fire
import torch
from monai.transforms import Compose, LoadImaged

from custom.core.checkpoints import load_checkpoint
from custom.core.hu_window import hu_to_unit
from custom.data.datalist import load_cases
from custom.data.transforms import LoadRadiographsd, SampleOnGridd
from custom.networks.segmentation_unet import load_segmenter
from custom.segmentation.segmentation_losses import GuidedLoss


def main(
    datalist: str,
    model: str,
    segmenter: str,
    part: str = "validation",
    angles_deg: Sequence[float] = (0.0, 90.0),
    share: float = 0.3,
) -> None:
    """Print a line a case, and the median weight.

    Args:
        datalist: with stored radiographs.
        model: model.pt of inr_recon.
        segmenter: model.pt of seg_guidance.
        part: of the datalist.
        angles_deg: views.
        share: of the mean squared error's gradient.
    """
    guide = load_segmenter(segmenter)
    network: Any = load_checkpoint(model).network(grid={"_target_": "custom.geometry.VolumeGrid", **_grid(guide.grid)})
    load = Compose(
        [
            LoadImaged(["label"], ensure_channel_first=True),
            SampleOnGridd(["label"], reference_key="label", grid=guide.grid),
            LoadRadiographsd(angles_deg=angles_deg, pixel_at_isocenter_mm=guide.grid.spacing_mm[0]),
        ]
    )
    loss = GuidedLoss(guide, 1.0, guide.grid.spacing_mm, network.hu_window)
    weights = []
    for case in load_cases(datalist, part):
        data: Any = load(case)
        truth = hu_to_unit(data["label"][None].float(), network.hu_window)
        with torch.no_grad():
            pred = network(data["image"][None], data["views"][None])
        pred.requires_grad_(True)
        both = torch.autograd.grad(loss(pred, truth), pred)[0]
        squared = torch.autograd.grad((pred - truth).square().mean(), pred)[0]
        dice = both - squared
        weights.append(share * float(squared.norm() / dice.norm()))
        print(
            f"{case['case']}: mse {float(loss.terms['mse']):.4f}, dice loss {float(loss.terms['dice']):.3f}, gradients "
            f"{float(squared.norm()):.2e} and {float(dice.norm()):.2e}, weight for {share:g}: {weights[-1]:.3g}"
        )
    print(f"median weight {median(weights):.3g}")


def _grid(grid: Any) -> dict[str, Any]:
    return {"shape": list(grid.shape), "spacing_mm": list(grid.spacing_mm)}


if __name__ == "__main__":
    fire.Fire(main)
