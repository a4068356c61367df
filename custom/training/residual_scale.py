"""Ratio of the variance of residuals in use to that in training, for denoisers of residuals.

Training residuals come from reconstructions of warped training CTs (`mean_checkpoints` of latents.json), residuals in
use from those of new patients (`mean_checkpoint`). Where they differ in size, noise and residual no longer fit.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from custom.core.files import write_json
from custom.core.hu_window import hu_to_unit
from custom.sampling import EncodedMean
from custom.training.latent_dataset import LatentDataset

__all__ = ["RATIO_BOUNDS", "residual_ratio"]

logger = logging.getLogger(__name__)

#: Validation variance over training variance: outside, the mean network or the augmentation has to be mended.
RATIO_BOUNDS = (0.5, 2.0)


@torch.no_grad()
def residual_ratio(
    training: LatentDataset,
    validation: Sequence[Mapping[str, Any]],
    mean: EncodedMean,
    output_dir: str | os.PathLike[str],
) -> dict[str, Any]:
    """The residual's variance on training and on validation patients, logged and written to residual_variance.json.

    Residual: the latent minus the encoded reconstruction, over the training latents' deviation. Its variance is the
    mean square, around 0, as the `residual_std` that a denoiser divides by. Of the training count all entries of as
    many views as a validation case has. So the stored radiographs have to show the whole CT, as those of the entries
    do (`fewview-ct simulate --name fine`), and not the cube alone.

    Args:
        training: latents of warped training CTs, with reconstructions.
        validation: items with "label" (1, X, Y, Z) in HU on the autoencoder's grid, "image" (K, V, U), "views"
            (K, 13) and "view_mask" (K,).
        mean: of use.
        output_dir: folder of residual_variance.json.

    Returns:
        What is written: training_variance, validation_variance, their ratio (validation over training), both by
        channel, and the numbers of entries, cases and views.

    Raises:
        ValueError: without validation case or reconstructions, or if no entry has as many views as a case.
    """
    if not len(validation):
        raise ValueError("at least 1 validation case is needed")
    if "known" not in training[0]:
        raise ValueError("the latents hold no reconstructions: write them with the mean_checkpoints of latents.json")
    autoencoder = mean.autoencoder
    device = next(autoencoder.parameters()).device
    deviation = training.latent_std.clamp(min=1e-6).to(device)

    def square(latent: Tensor, known: Tensor) -> Tensor:
        return (latent - known).square().mean((0, 2, 3, 4)) / deviation.square()

    squares: dict[str, list[Tensor]] = {"training": [], "validation": []}
    counts = set()
    for index in range(len(validation)):
        item = validation[index]
        image, views, mask, label = (_batch(item[key], device) for key in ("image", "views", "view_mask", "label"))
        latent = autoencoder.encode(hu_to_unit(label, autoencoder.hu_window))
        squares["validation"].append(square(latent, mean(image.float(), views.float(), mask)))
        counts.add(views.shape[1])
    for index in range(len(training)):
        entry = training[index]
        if len(entry["views"]) in counts:
            squares["training"].append(square(*(_batch(entry[key], device) for key in ("latent", "known"))))
    if not squares["training"]:
        raise ValueError(f"no entry of the latents has {sorted(counts)} views, as the validation: see val_angles_deg")
    channels = {part: torch.stack(values).mean(0) for part, values in squares.items()}
    variance = {part: float(values.mean()) for part, values in channels.items()}
    ratio = variance["validation"] / max(variance["training"], 1e-12)
    content: dict[str, Any] = {
        **{f"{part}_variance": value for part, value in variance.items()},
        "ratio": ratio,
        **{f"{part}_variance_by_channel": values.tolist() for part, values in channels.items()},
        "training_entries": len(squares["training"]),
        "validation_cases": len(validation),
        "views": sorted(counts),
    }
    path = Path(output_dir) / "residual_variance.json"
    write_json(path, content)
    logger.info(
        "%s: %s", path, ", ".join(f"{part} {value:.4g}" for part, value in (*variance.items(), ("ratio", ratio)))
    )
    if not RATIO_BOUNDS[0] <= ratio <= RATIO_BOUNDS[1]:
        logger.warning(
            "%s: the residual's variance on validation patients is %.2f times that on training patients, outside %g to "
            "%g: on the warped training CTs the mean network is not as good, or as bad, as on new patients",
            path,
            ratio,
            *RATIO_BOUNDS,
        )
    return content


def _batch(value: Any, device: torch.device) -> Tensor:
    """A batch of one, without the meta of MONAI's tensors."""
    return torch.as_tensor(value).as_subclass(Tensor)[None].to(device)
