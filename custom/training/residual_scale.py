"""Ratio of the variance of residuals in use to that in training, for denoisers of residuals.

Training residuals come from networks that have not seen the patient (`fold_mean_checkpoints`), residuals in use from
the one that serves (`mean_checkpoint`). Where the two differ in size, noise and residual no longer fit each other.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from custom.core.attenuation import hu_to_attenuation
from custom.core.files import write_json
from custom.core.hu_window import hu_to_unit
from custom.geometry import VolumeGrid
from custom.projection import ProjectorCache
from custom.sampling import EncodedMean
from custom.training.latent_dataset import LatentDataset

__all__ = ["RATIO_BOUNDS", "residual_ratio"]

logger = logging.getLogger(__name__)

#: Validation variance over training variance: outside, the mean networks or their folds have to be mended.
RATIO_BOUNDS = (0.5, 2.0)


@torch.no_grad()
def residual_ratio(
    training: LatentDataset,
    validation: Sequence[Mapping[str, Any]],
    fold_mean: EncodedMean | None,
    mean: EncodedMean,
    body_grid: VolumeGrid,
    output_dir: str | os.PathLike[str],
    energy_kev: float = 70.0,
    entries: int = 64,
) -> dict[str, Any]:
    """The residual's variance on training and on validation patients, logged and written to residual_variance.json.

    Residual: the latent minus the encoded reconstruction, over the training latents' deviation. Its variance is the
    mean square, around 0, as the `residual_std` that a denoiser divides by. Both patients are seen at the same views:
    entries are projected at those of the validation cases, in turn. So the stored radiographs have to show the whole
    CT, as the entries do (`fewview-ct simulate --name fine`), and not the cube alone.

    Args:
        training: latents of warped training CTs.
        validation: items with "label" (1, X, Y, Z) in HU on the autoencoder's grid, "image" (K, V, U), "views"
            (K, 13) and "view_mask" (K,).
        fold_mean: of the training: a network for each fold.
        mean: of use: one network.
        body_grid: of the entries' CTs.
        output_dir: folder of residual_variance.json.
        energy_kev: of the line integrals.
        entries: training entries that are computed, evenly over all of them.

    Returns:
        What is written: training_variance, validation_variance, their ratio (validation over training), both by
        channel, and the numbers of entries, cases and views.

    Raises:
        ValueError: without a mean for the training, for fewer than one entry or case, or if means and folds differ in
            number.
    """
    if fold_mean is None:
        raise ValueError("residuals need fold_mean_checkpoints, the mean networks of the training")
    if len(fold_mean.networks) != training.folds:
        raise ValueError(
            f"{len(fold_mean.networks)} fold_mean_checkpoints for latents of {training.folds} folds of the patients"
        )
    if entries < 1 or not len(validation):
        raise ValueError(
            f"at least 1 training entry and 1 validation case are needed, got {entries}, {len(validation)}"
        )
    autoencoder = mean.autoencoder
    device = next(autoencoder.parameters()).device
    deviation = training.latent_std.clamp(min=1e-6).to(device)

    def square(latent: Tensor, known: Tensor) -> Tensor:
        return (latent - known).square().mean((0, 2, 3, 4)) / deviation.square()

    squares: dict[str, list[Tensor]] = {"training": [], "validation": []}
    shown = []
    for index in range(len(validation)):
        item = validation[index]
        image, views, mask, label = (_batch(item[key], device) for key in ("image", "views", "view_mask", "label"))
        latent = autoencoder.encode(hu_to_unit(label, autoencoder.hu_window))
        squares["validation"].append(square(latent, mean(image.float(), views.float(), mask)))
        shown.append((views.float(), mask, image.shape[2:]))
    projectors = ProjectorCache()
    chosen = torch.linspace(0, len(training) - 1, min(entries, len(training))).long().tolist()
    for number, index in enumerate(chosen):
        entry = {key: _batch(value, device) for key, value in training[index].items()}
        views, mask, detector_shape = shown[number % len(shown)]
        image = projectors(body_grid, detector_shape)(hu_to_attenuation(entry["source"], energy_kev), views)
        squares["training"].append(square(entry["latent"], fold_mean(image, views, mask, entry)))
    channels = {part: torch.stack(values).mean(0) for part, values in squares.items()}
    variance = {part: float(values.mean()) for part, values in channels.items()}
    ratio = variance["validation"] / max(variance["training"], 1e-12)
    content: dict[str, Any] = {
        **{f"{part}_variance": value for part, value in variance.items()},
        "ratio": ratio,
        **{f"{part}_variance_by_channel": values.tolist() for part, values in channels.items()},
        "training_entries": len(chosen),
        "validation_cases": len(shown),
        "views": sorted({views.shape[1] for views, _, _ in shown}),
    }
    path = Path(output_dir) / "residual_variance.json"
    write_json(path, content)
    logger.info(
        "%s: %s", path, ", ".join(f"{part} {value:.4g}" for part, value in (*variance.items(), ("ratio", ratio)))
    )
    if not RATIO_BOUNDS[0] <= ratio <= RATIO_BOUNDS[1]:
        logger.warning(
            "%s: the residual's variance on validation patients is %.2f times that on training patients, outside %g to "
            "%g: the fold means are not as good, or as bad, as the mean network in use is on new patients",
            path,
            ratio,
            *RATIO_BOUNDS,
        )
    return content


def _batch(value: Any, device: torch.device) -> Tensor:
    """A batch of one, without the meta of MONAI's tensors."""
    return torch.as_tensor(value).as_subclass(Tensor)[None].to(device)
