"""What a network is shown beside the exposed field, where a body reaches its edge."""

from __future__ import annotations

import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

__all__ = ["extrapolate_truncation"]

#: Line integral at the edge of the exposed area that is body rather than air: 5 cm of water at 70 keV.
HIDDEN_TISSUE = 1.0
#: So far beside the exposed area [mm, at the isocentre] a body that reaches its edge is taken to end. The two
#: validation patients with 20, 40 or 60 mm of body hidden at both sides of one of two views: 20.4 dB (50 and 70 mm),
#: 20.0 (35), 19.9 (100), 18.2 (air beside the area), 16.3 (no end).
TAPER_MM = 50.0


def extrapolate_truncation(
    image: Tensor, field_mask: Tensor, names: list[str], pixel_mm: float
) -> tuple[Tensor, list[str]]:
    """The radiographs with values for the network outside the exposed field, and what there is to say of it.

    A network reads every pixel, and 0 tells it of air where a blade or the plate's edge hides tissue. Above and below,
    a body goes on as it is at the edge of the exposed area; at the sides it ends within `TAPER_MM`.

    Args:
        image: line integrals (K, V, U).
        field_mask: bool (K, V, U).
        names: of the radiographs.
        pixel_mm: at the isocentre.
    """
    image, warnings = image.clone(), []
    columns = torch.arange(image.shape[2])
    for k, name in enumerate(names):
        if bool(field_mask[k].all()):
            continue
        nearest = distance_transform_edt(~field_mask[k].numpy(), return_distances=False, return_indices=True)
        row, column = (torch.from_numpy(index).long() for index in nearest)
        edge = image[k][row, column]
        share = float((~field_mask[k] & (edge > HIDDEN_TISSUE)).float().mean())
        if share > 0:
            warnings.append(
                f"{name}: the body reaches the edge of the exposed area; beside it ({share:.0%} of the detector that "
                "the model reads) it is taken to go on, and to end soon at the sides."
            )
        fade = (1 - (column - columns).abs() * pixel_mm / TAPER_MM).clamp(min=0)
        image[k] = torch.where(field_mask[k], image[k], edge * fade)
    return image, warnings
