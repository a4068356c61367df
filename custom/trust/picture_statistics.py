"""Statistics of single radiographs: distribution of their line integrals, and whether the body is cut off."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["AIR_SHARE", "LEVELS", "body_quantiles", "cut_off", "largest", "lateral_edges"]

#: Quantiles that describe a picture.
LEVELS = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)
#: Of a picture's largest value: below it there is no body.
AIR_SHARE = 0.03
#: Quantile of a picture's pixels that stands for its largest value; single pixels may be wrong.
_TOP = 0.995


def largest(image: Tensor, field_mask: Tensor) -> Tensor:
    """Largest line integral of every picture, (K,), but for the last half per cent of its pixels."""
    pairs = zip(image.float(), field_mask, strict=True)
    return torch.stack([p[seen].quantile(_TOP) if bool(seen.any()) else p.new_zeros(()) for p, seen in pairs])


def body_quantiles(image: Tensor, field_mask: Tensor) -> Tensor:
    """Quantiles `LEVELS` of the line integrals behind the body, (K, len(LEVELS)); zeros for an empty picture.

    Args:
        image: line integrals (K, V, U).
        field_mask: bool (K, V, U).
    """
    levels, found = torch.tensor(LEVELS), []
    for picture, seen, top in zip(image, field_mask, largest(image, field_mask), strict=True):
        body = picture[seen & (picture > AIR_SHARE * top)].float()
        found.append(body.quantile(levels) if len(body) else torch.zeros(len(LEVELS)))
    return torch.stack(found)


def lateral_edges(image: Tensor, field_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Line integrals at the first and last exposed pixel of every row.

    Returns:
        (K, V, 2), and bool (K, V): the row has exposed pixels, and no gap between them.
    """
    position = torch.arange(image.shape[2])
    first = torch.where(field_mask, position, image.shape[2]).amin(2)
    last = torch.where(field_mask, position, -1).amax(2)
    there = last > first
    whole = there & (field_mask.sum(2) == last - first + 1)
    ends = torch.stack([first.clamp(max=image.shape[2] - 1), last.clamp(min=0)], 2)
    return image.gather(2, ends), whole


def cut_off(image: Tensor, field_mask: Tensor) -> tuple[float, int]:
    """How much body there is at the left or right border of the exposed field.

    Returns:
        Mean line integral along the worst border, relative to the picture's largest; and the picture's index.
    """
    edges, whole = lateral_edges(image, field_mask)
    rows = whole[..., None].expand_as(edges)
    means = torch.where(rows, edges, 0.0).sum(1) / rows.sum(1).clamp(min=1)
    shares = (means / largest(image, field_mask).clamp(min=1e-6)[:, None]).amax(1)
    worst = int(shares.argmax())
    return float(shares[worst]), worst
