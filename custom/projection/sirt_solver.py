"""SIRT, the simultaneous iterative reconstruction technique, with the package's own projector."""

from __future__ import annotations

import math
from contextlib import ExitStack

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from custom.geometry import VolumeGrid
from custom.projection.projector import BoundProjector, Projector, full_precision

__all__ = ["sirt"]

# Preparing an operator takes as long as about eight unprepared iterations.
_WORTH_PREPARING = 10


@torch.no_grad()
def sirt(
    projector: Projector,
    image: Float[Tensor, "B K V U"],
    views: Float[Tensor, "*_ K 13"] | None = None,
    iterations: int = 100,
    bounds: tuple[float, float] = (0.0, float("inf")),
    initial: Float[Tensor, "B 1 X Y Z"] | None = None,
    view_mask: Bool[Tensor, "B K"] | None = None,
    voxel_std: Tensor | None = None,
    momentum: bool = False,
) -> Float[Tensor, "B 1 X Y Z"]:
    """Simultaneous iterative reconstruction technique, clipped to `bounds` after every iteration.

    x <- clip(x + C A^T R (p - A x)), R and C the inverse row and column sums of A (Gilbert 1972; van der Sluis and
    van der Vorst 1990). With `voxel_std` s the same is done for y in x = s y: what the radiographs ask for is put where
    s is large, which from a mean volume and its standard deviation is a crude maximum a posteriori estimate.

    With `momentum` each step starts from where the last two point to (Nesterov's sequence, as in FISTA: Beck and
    Teboulle, SIAM J Imaging Sci 2:183, 2009): n iterations then go about as far as n^2 / 5 without.

    Args:
        projector: its grid is the grid of the result.
        image: line integrals (B, K, V, U).
        views: (K, 13) or (B, K, 13); None for the projector's own.
        iterations: number of iterations.
        bounds: smallest and largest attenuation [1/mm].
        initial: start volume (B, 1, X, Y, Z), zeros if None.
        view_mask: bool (B, K); views that are False carry no weight.
        voxel_std: how far each voxel may be expected to differ from `initial`, in any unit: only its ratios count.
            Broadcastable to (B, 1, X, Y, Z), not negative; None treats all alike.
        momentum: accelerate.

    Returns:
        Attenuation [1/mm], (B, 1, X, Y, Z).

    Raises:
        ValueError: for shapes that do not fit the projector, fewer than one iteration, or a negative `voxel_std`.
    """
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    if voxel_std is not None and not voxel_std.min() >= 0:
        raise ValueError(f"voxel_std must not be negative, got {float(voxel_std.min())}")
    image = full_precision(image)
    projector.check_image(image, views)
    bound = projector.bind(views, image)
    with ExitStack() as stack:
        if iterations >= _WORTH_PREPARING:
            for operator in bound.operators:
                stack.enter_context(operator.prepared())
        return _iterate(bound, projector.grid, image, iterations, bounds, initial, view_mask, voxel_std, momentum)


def _iterate(
    bound: BoundProjector,
    grid: VolumeGrid,
    image: Tensor,
    iterations: int,
    bounds: tuple[float, float],
    initial: Tensor | None,
    view_mask: Tensor | None,
    voxel_std: Tensor | None,
    momentum: bool,
) -> Tensor:
    mobility = image.new_ones(len(image), 1, *grid.shape)
    if voxel_std is not None:
        mobility = mobility * (voxel_std / voxel_std.max()).to(image)
    smallest = min(grid.spacing_mm)
    lengths = bound.forward(mobility)
    # A ray that only grazes a voxel's border has a tiny length; dividing by it would amplify noise.
    row_weight = torch.where(lengths > 0.1 * smallest, 1 / lengths.clamp(min=0.1 * smallest), 0.0)
    seen = torch.ones_like(image)
    if view_mask is not None:
        seen = seen * view_mask[:, :, None, None].to(image)
        row_weight = row_weight * seen
    column_sum = bound.adjoint(seen)
    unseen = column_sum <= 1e-3 * smallest
    column_weight = mobility.div_(column_sum.clamp_(min=1e-3 * smallest)).masked_fill_(unseen, 0.0)
    del column_sum  # as large as the volume, as all that is changed in place
    volume = torch.zeros_like(mobility) if initial is None else initial.clone().to(image)
    ahead, weight = volume.clone() if momentum else volume, 1.0
    for _ in range(iterations):
        residual = (image - bound.forward(ahead)).mul_(row_weight)
        moved = ahead.add_(bound.adjoint(residual).mul_(column_weight)).clamp_(*bounds)
        if momentum:
            next_weight = (1 + math.sqrt(1 + 4 * weight**2)) / 2
            ahead = volume.sub_(moved).mul_((1 - weight) / next_weight).add_(moved)  # in the memory of the one before
            volume, weight = moved, next_weight
    return volume
