"""Phantom soft tissue: body wall, diaphragm and upper abdomen."""

from __future__ import annotations

import numpy as np

from custom.data.phantom.anatomy import CAGE_EXPONENT, LABELS, TRUNK, Person, Spine, cage_section
from custom.data.phantom.canvas import FAR_MM, Array, Canvas, ellipsoid, smooth_intersection, smooth_union

SKIN_MM = 2.0
WALL_MM = 9.0


def cage_field(canvas: Canvas, spine: Spine) -> Array:
    """Signed distance to the inner surface of the rib cage, coarse, template mm."""
    a, b, middle = (v.astype(np.float32) for v in cage_section(canvas.z, spine))
    return canvas.redistanced(_superellipse(canvas, a, b, middle, np.float32(CAGE_EXPONENT)))


def body_fields(
    canvas: Canvas, person: Person, spine: Spine, cage: Array, arms: str, rng: np.random.RandomState
) -> tuple[Array, Array]:
    """Signed distances to the surface of the muscles and to the skin, coarse, template mm."""
    z = canvas.z
    half_width, front, back = (np.interp(z, TRUNK[:, 0], TRUNK[:, k]).astype(np.float32) for k in (1, 2, 3))
    x_spine, y_spine = spine.at(z)
    extra = np.float32(person.muscle_mm)
    half_width, front, back = half_width + extra, front + extra / 2, back - extra / 2
    back = np.minimum(back, y_spine.astype(np.float32) - 52)
    muscle = _superellipse(canvas, half_width, (front - back) / 2, (front + back) / 2, np.float32(2.5))
    lateral = canvas.x - x_spine.astype(np.float32)
    # The furrow over the spinous processes, between the paraspinal muscles.
    furrow = np.exp(-((lateral / 11) ** 2)) * (canvas.y < 0) * np.clip((canvas.z + 260) / 60, 0, 1)
    muscle = muscle + np.float32(5.0) * furrow.astype(np.float32)
    limbs = [muscle]
    for side in (-1, 1):
        if arms == "up":
            limbs.append(_capsule(canvas, (side * 92, -36, 105), (side * 142, -22, 150), 42.0))
            limbs.append(_capsule(canvas, (side * 150, -20, 155), (side * 200, 5, 300), 39.0 + person.muscle_mm / 2))
        elif arms == "down":
            limbs.append(_capsule(canvas, (side * 92, -36, 100), (side * 155, -22, 122), 34.0))
            limbs.append(_capsule(canvas, (side * 165, -22, 115), (side * 190, -20, -260), 36.0 + person.muscle_mm / 2))
    muscle = smooth_union([*limbs, cage - WALL_MM], 7.0)
    # The patient lies on a couch: the back is flat.
    couch = float(np.min(TRUNK[:, 3])) + rng.uniform(-2, 9)
    muscle = canvas.redistanced(smooth_intersection([muscle, couch - canvas.y], 8.0))
    angle = np.arctan2(np.abs(canvas.x), canvas.y)  # 0 front, pi back
    thick = 1.0 + 0.25 * np.cos(2 * (angle - 2.2)) + np.interp(z, [-150, -40, 60, 130], [0.45, 0.1, -0.2, -0.3])
    thick = thick * (1 - 0.45 * np.exp(-((canvas.x / 28) ** 2)) * (canvas.y > 0) * (canvas.z > -40))
    fat = np.clip(person.fat_mm * thick + 2.5 * canvas.noise(rng, 60.0), 2.0, 75.0).astype(np.float32)
    skin = muscle - fat - np.float32(SKIN_MM)
    skin = smooth_intersection([skin, couch - 0.55 * person.fat_mm - SKIN_MM - canvas.y], 10.0)
    if person.female and rng.random_sample() < 0.9:
        skin = smooth_union([skin, *_breasts(canvas, person, skin, rng)], 9.0)
    return muscle, skin


def _breasts(canvas: Canvas, person: Person, skin: Array, rng: np.random.RandomState) -> list[Array]:
    radius = float(np.clip(36 + 0.9 * person.fat_mm + rng.normal(0, 8), 36, 82))
    z = rng.uniform(-35, 15)
    depth = radius * rng.uniform(0.55, 0.75)
    fields = []
    for side in (-1, 1):
        x = side * rng.uniform(72, 92)
        column = (np.abs(canvas.x - x) < 12) & (np.abs(canvas.z - z) < 12) & (skin < 0)
        front = float(canvas.y[column].max()) if column.any() else 100.0
        fields.append(ellipsoid(canvas, (x, front - 4, z), (radius, depth, radius * 1.05)))
    return fields


def paint_wall(
    canvas: Canvas, person: Person, muscle: Array, skin: Array, cage: Array, rng: np.random.RandomState
) -> None:
    """Paint skin, subcutaneous fat, glandular tissue, muscle with fat between its layers, and the chest's inside."""
    skin_fine = canvas.fine(skin)
    canvas.paint(skin_fine, person.hu["skin"], LABELS["skin"])
    canvas.paint(skin_fine + SKIN_MM, person.hu["fat"], LABELS["fat"])
    muscle_fine = canvas.fine(muscle)
    if person.female:
        inside = np.maximum(skin + 8, 4 - muscle)
        region = np.maximum(inside, np.abs(canvas.z + 10) - 60)
        region = np.maximum(region, np.where((canvas.y > 40) & (np.abs(canvas.x) > 35), -FAR_MM, FAR_MM))
        box = canvas.box(region)
        if box is not None:
            density = canvas.noise(rng, 14.0) + 0.5 * canvas.noise(rng, 7.0) + rng.normal(-0.9, 0.7)
            share = np.clip(canvas.fine(density, box) * 0.8, 0, 0.85) * np.clip(
                0.5 - canvas.fine(region, box) / 6, 0, 1
            )
            canvas.blend(share, person.hu["gland"], LABELS["breast"], box)
    # Streaks of fat between the layers: two sheets that follow the cage, and islands.
    cage_fine = canvas.fine(cage)
    islands = canvas.fine(canvas.noise(rng, 22.0) + 0.6 * canvas.noise(rng, 9.0))
    sheets = np.zeros(canvas.shape, dtype=np.float32)
    for depth in (12.0, 24.0):
        level = canvas.fine(cage - np.float32(depth) - np.float32(4.0) * canvas.noise(rng, 40.0))
        sheets = np.maximum(sheets, np.exp(-((level / 2.2) ** 2)))
    share = np.clip(sheets * np.clip(0.55 + 0.5 * islands, 0, 1) + np.clip(islands - 1.5, 0, 1) * 1.5, 0, 0.9)
    share *= np.clip((cage_fine - 8) / 3, 0, 1)
    canvas.paint(muscle_fine, person.hu["muscle"] + share * (person.hu["fat"] - person.hu["muscle"]), LABELS["muscle"])
    canvas.labels[(muscle_fine < 0) & (share > 0.5)] = LABELS["fat"]
    canvas.paint(cage_fine, person.hu["fat"] + 12.0, LABELS["fat"])


def diaphragm_field(canvas: Canvas, person: Person, spine: Spine) -> Array:
    """Height above the diaphragm, coarse, about mm (positive in the chest)."""
    x = canvas.x
    heights = []
    for side, top, width in ((1, person.dome_mm, 76.0), (-1, person.dome_mm + person.dome_left_mm, 72.0)):
        across = (x - side * 58) * side
        _, depth, middle = cage_section(top - 40.0, spine)
        along = (canvas.y - (middle + 24)) / np.where(canvas.y > middle + 24, depth - 10, depth + 30)
        e = np.sqrt((across / np.where(across > 0, width, 118.0)) ** 2 + along**2)
        drop = np.where(canvas.y > middle, 62.0, 88.0) * person.dome_round
        heights.append(top - drop * np.clip(e, 0, 1.6) ** 2.1)
    share = 1 / (1 + np.exp(-x / 9.0))
    return canvas.normalised((canvas.z - (share * heights[0] + (1 - share) * heights[1])).astype(np.float32))


def paint_abdomen(canvas: Canvas, person: Person, cage: Array, above: Array, rng: np.random.RandomState) -> None:
    """Paint what lies below the diaphragm."""
    cavity = smooth_intersection([cage + 2.5, above + 2.0], 2.0)
    below = np.maximum(cavity, -20 - np.minimum(-cavity, 0))
    dome = person.dome_mm
    mixture = canvas.noise(rng, 24.0) + 0.5 * canvas.noise(rng, 12.0)
    box = canvas.box(below)
    if box is None:
        return
    # The muscle of the diaphragm, then fat and loops of bowel.
    canvas.paint(canvas.fine(smooth_intersection([cage, above], 2.0), box), person.hu["muscle"], LABELS["muscle"], box)
    canvas.paint(canvas.fine(cavity, box), person.hu["fat"] + 6, LABELS["fat"], box)
    deep = np.maximum(cavity + 5, canvas.z - (dome - 25 - 20 * (canvas.x > 0)))
    loops = np.clip(canvas.fine(mixture, box) * 1.5 + 0.35, 0, 1) * np.clip(0.5 - canvas.fine(deep, box) / 8, 0, 1)
    canvas.blend(loops, person.hu["bowel"], LABELS["bowel"], box)
    roughness = [4.0 * canvas.noise(rng, 45.0) for _ in range(4)]
    slant = canvas.z - (dome - 108) + 0.55 * (canvas.x - 60) * -1 + 0.25 * (canvas.y - 20)
    liver = smooth_intersection(
        [
            cavity + 1,
            ellipsoid(canvas, (62, 18, dome - 66), (98, 92, 78)) + roughness[0],
            np.clip(-slant, -FAR_MM, FAR_MM) * 0.8,
        ],
        4.0,
    )
    left_lobe = smooth_intersection(
        [cavity + 1, ellipsoid(canvas, (0, 48, dome - 46), (68, 36, 34)) + roughness[0]], 3.0
    )
    liver = smooth_union([liver, left_lobe], 6.0)
    spleen = smooth_intersection(
        [
            cavity + 1,
            ellipsoid(canvas, (-92, -38, dome - 48 + rng.normal(0, 8)), (30, 42, 38 + rng.normal(0, 5))) + roughness[1],
        ],
        3.0,
    )
    level = dome + person.dome_left_mm
    centre = (-62 + rng.normal(0, 8), 28 + rng.normal(0, 10), level - 46 + rng.normal(0, 6))
    wide = rng.uniform(0.75, 1.2)
    stomach = smooth_intersection(
        [
            cavity + 2,
            ellipsoid(canvas, centre, (44 * wide, 52 * wide, 44 * wide)) + roughness[2],
            3 - spleen,
            3 - liver,
        ],
        3.0,
    )
    for side in (-1, 1):
        kidney = ellipsoid(canvas, (side * 66, -42, -140 + 6 * side * -1), (26, 26, 54)) + roughness[3] * 0.5
        canvas.paint_coarse(np.maximum(kidney, above + 6), person.hu["kidney"], LABELS["kidneys"])
    fold = canvas.fine(4.0 * canvas.noise(rng, 10.0))
    canvas.paint_coarse(stomach, person.hu["stomach"], LABELS["stomach"], texture=2 * fold)
    # Lying on the back, gas collects in front.
    surface = centre[1] + 40 * wide * (1 - 1.6 * person.gas * rng.uniform(0.3, 1.0))
    canvas.paint_coarse(smooth_intersection([stomach + 3.5, surface - canvas.y], 1.5), -960.0, LABELS["stomach"])
    canvas.paint_coarse(spleen, person.hu["spleen"], LABELS["spleen"])
    canvas.paint_coarse(liver, person.hu["liver"], LABELS["liver"], texture=0.5 * fold)
    if rng.random_sample() < 0.75:
        _paint_colon(canvas, person, cavity, level, rng)


def _paint_colon(canvas: Canvas, person: Person, cavity: Array, level: float, rng: np.random.RandomState) -> None:
    """The left flexure and a loop of transverse colon with gas and content."""
    pockets = []
    for _ in range(rng.randint(3, 8)):
        at = (rng.uniform(-100, 40), rng.uniform(25, 75), level - rng.uniform(35, 130))
        pockets.append(ellipsoid(canvas, at, rng.uniform(12, 25, size=3)))
    colon = smooth_intersection([cavity + 3, smooth_union(pockets, 5.0)], 3.0)
    organs = canvas.noise(rng, 12.0)
    keep = np.where(np.isin(canvas.labels[:: canvas.ratio, :: canvas.ratio, :: canvas.ratio], (22, 23)), 8.0, -FAR_MM)
    padded = np.pad(keep, [(0, n - k) for n, k in zip(canvas.nodes, keep.shape, strict=True)], mode="edge")
    colon = np.maximum(colon, padded.astype(np.float32))
    canvas.paint_coarse(colon, person.hu["bowel"], LABELS["bowel"])
    canvas.paint_coarse(np.maximum(colon + 3, 3 * organs), -900.0, LABELS["bowel"])


def _superellipse(canvas: Canvas, a: Array, b: Array, middle: Array, exponent: np.float32) -> Array:
    q = (np.abs(canvas.x) / a) ** exponent + (np.abs(canvas.y - middle) / b) ** exponent
    q = (q ** (1 / exponent)).astype(np.float32)
    # Where the section shrinks towards zero, q grows exponentially with height: its logarithm measures distance there.
    outside = canvas.normalised(np.log(np.maximum(q, np.float32(1e-3))))
    return np.where(q > 1, outside, canvas.normalised(q - 1)).astype(np.float32)


def _capsule(canvas: Canvas, start: tuple[float, ...], end: tuple[float, ...], radius: float) -> Array:
    p = np.stack([canvas.x - start[0], canvas.y - start[1], canvas.z - start[2]])
    d = np.asarray(end, dtype=np.float32) - np.asarray(start, dtype=np.float32)
    t = np.clip(np.einsum("c,cxyz->xyz", d, p) / float(d @ d), 0, 1)
    return np.sqrt(np.sum((p - t[None] * d[:, None, None, None]) ** 2, axis=0)) - np.float32(radius)
