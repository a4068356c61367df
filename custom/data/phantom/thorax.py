"""One procedural thorax: from a seed to HU and labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.ndimage import gaussian_filter

from custom.data.phantom.anatomy import CAGE, LABELS, Person, Spine, draw_person
from custom.data.phantom.canvas import Array, Canvas
from custom.data.phantom.chest import lung_fields, paint_lungs, paint_mediastinum, paint_pulmonary_vessels, plan_chest
from custom.data.phantom.skeleton import paint_skeleton
from custom.data.phantom.soft import body_fields, cage_field, diaphragm_field, paint_abdomen, paint_wall

AIR_HU = -1000
APEX_Z_MM = float(CAGE[-3, 0])


@dataclass(frozen=True)
class Phantom:
    """A procedural chest CT.

    Attributes:
        volume_hu: int16 (X, Y, Z), RAS+ order; exactly -1000 outside the body.
        labels: uint8 (X, Y, Z), values of ``names``.
        names: organ to label value.
        spacing_mm: isotropic voxel size.
        person: what was drawn.
        scan: ``{"length_mm", "field_of_view_mm"}`` of the imagined scanner; None means not limited.
    """

    volume_hu: Array
    labels: Array
    names: dict[str, int]
    spacing_mm: float
    person: Person
    scan: dict[str, float | None] = field(default_factory=dict)


def make_thorax(
    seed: int | np.random.RandomState,
    shape: Sequence[int] | int = 128,
    spacing_mm: float = 2.5,
    arms: str = "up",
    noise_hu: float | None = None,
    limit_scan: bool = True,
) -> Phantom:
    """Make a thorax of random anatomy, the same for the same seed, shape and spacing.

    The chest stands in the grid as real scans do: body centred in the axial plane, the middle of an imagined scan
    range (from some centimetres above the lungs to the upper abdomen) in the middle of the grid.

    Args:
        seed: seed or random state.
        shape: voxels (X, Y, Z), or one number for a cube.
        spacing_mm: isotropic voxel size, mm.
        arms: ``up`` (beside the head, as in most CT), ``down`` (beside the body) or ``none``.
        noise_hu: standard deviation of the scanner's noise at this voxel size; None draws 2 to 10 HU.
        limit_scan: cut the volume as scanners do: scan range along z, and now and then a round field of view.

    Raises:
        ValueError: for a shape, spacing or ``arms`` that is not usable.
    """
    sides = tuple(int(n) for n in (shape if isinstance(shape, Sequence) else (shape,) * 3))
    if len(sides) != 3 or min(sides) < 16:
        raise ValueError(f"shape must be three numbers of at least 16, got {shape}")
    if not 0.5 <= spacing_mm <= 10:
        raise ValueError(f"spacing_mm must lie in [0.5, 10], got {spacing_mm}")
    if arms not in ("up", "down", "none"):
        raise ValueError(f"arms must be 'up', 'down' or 'none', got {arms!r}")
    rng = seed if isinstance(seed, np.random.RandomState) else np.random.RandomState(seed)
    person = draw_person(rng)
    spine = Spine(person)
    top = APEX_Z_MM + rng.uniform(2, 40) / person.size[2]
    base = person.dome_mm - 82 * person.dome_round
    bottom = base - rng.choice([rng.uniform(5, 50), rng.uniform(20, 110)]) / person.size[2]
    origin = (rng.normal(0, 6), 3 + rng.normal(0, 6), (top + bottom) / 2)
    tilt = (rng.normal(0, 2.0), rng.normal(0, 1.5), rng.normal(0, 2.5))
    canvas = Canvas(sides, spacing_mm, rng, person.size, origin, tilt, warp_mm=float(rng.uniform(4, 14)))
    cage = cage_field(canvas, spine)
    muscle, skin = body_fields(canvas, person, spine, cage, arms, rng)
    paint_wall(canvas, person, muscle, skin, cage, rng)
    above = diaphragm_field(canvas, person, spine)
    chest = plan_chest(canvas, person, spine, rng)
    paint_abdomen(canvas, person, cage, above, rng)
    lungs = lung_fields(canvas, spine, chest, cage, above, rng)
    paint_lungs(canvas, person, lungs, rng)
    paint_pulmonary_vessels(canvas, person, chest, lungs, rng)
    paint_skeleton(canvas, person, spine, cage, arms, rng)
    paint_mediastinum(canvas, person, chest, above, rng)
    outside = canvas.fine(skin) > 0
    sigma = float(rng.uniform(2, 10)) if noise_hu is None else float(noise_hu)
    hu = canvas.hu
    # The scanner's point spread: what no reconstruction kernel shows as sharp as a drawing.
    blur_mm = float(rng.uniform(0.9, 1.5))
    hu = gaussian_filter(hu, blur_mm / canvas.spacing, mode="nearest", truncate=2.5)
    if sigma > 0:
        hu += _scanner_noise(rng, canvas, sigma, muscle)
    scan: dict[str, float | None] = {"length_mm": None, "field_of_view_mm": None}
    if limit_scan:
        scan = _limit_scan(canvas, outside, (top - bottom) * person.size[2], rng)
    volume = np.rint(np.clip(hu, -1024, 3071)).astype(np.int16)
    volume[outside] = AIR_HU
    canvas.labels[outside] = 0
    return Phantom(volume, canvas.labels, dict(LABELS), canvas.spacing, person, scan)


def _scanner_noise(rng: np.random.RandomState, canvas: Canvas, sigma: float, muscle: Array) -> Array:
    """Noise with a short correlation, stronger in the body's depth, where fewer photons arrive."""
    white = rng.standard_normal(size=canvas.shape).astype(np.float32)
    white = gaussian_filter(white, 0.55, mode="nearest", truncate=2.0)
    depth = np.clip(-muscle / 90, 0, 1)
    return white * canvas.fine((sigma / float(white.std()) * (0.6 + 0.6 * depth)).astype(np.float32))


def _limit_scan(
    canvas: Canvas, outside: Array, length_mm: float, rng: np.random.RandomState
) -> dict[str, float | None]:
    """Extend ``outside`` beyond the scan range and the reconstruction's circle."""
    x, y, z = (f + canvas.spacing * np.arange(n) for f, n in zip(canvas.first, canvas.shape, strict=True))
    outside |= (np.abs(z) > length_mm / 2)[None, None, :]
    view: float | None = None
    if rng.random_sample() < 0.55:
        view = float(rng.uniform(310, 420))
        centre = rng.normal(0, 8, size=2)
        outside |= (np.hypot(x[:, None] - centre[0], y[None] - centre[1]) > view / 2)[:, :, None]
    return {"length_mm": float(length_mm), "field_of_view_mm": view}
