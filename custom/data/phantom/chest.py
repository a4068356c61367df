"""Phantom parts of the chest: mediastinum, heart, great vessels, airways and lungs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from custom.data.phantom.anatomy import LABELS, Person, Spine
from custom.data.phantom.canvas import FAR_MM, Array, Canvas, curve, ellipsoid, smooth_intersection, smooth_union
from custom.data.phantom.vessels import grow_tree, sample_pieces

TREE_TARGETS = 700


@dataclass
class Chest:
    """Curves and coarse fields of the organs between the lungs, made before the lungs are cut around them."""

    tubes: dict[str, list[tuple[Array, Array]]] = field(default_factory=dict)
    chambers: dict[str, Array] = field(default_factory=dict)
    heart: Array = field(default_factory=lambda: np.zeros(0))
    hilum: dict[int, Array] = field(default_factory=dict)
    carina: tuple[float, float, float] = (0.0, 0.0, 0.0)


def plan_chest(canvas: Canvas, person: Person, spine: Spine, rng: np.random.RandomState) -> Chest:
    """Place heart, great vessels, oesophagus and airways."""
    chest = Chest()
    s, shift = person.heart_scale, np.asarray(person.heart_shift)
    # The heart rests on the diaphragm: half of the dome's deviation carries over.
    shift = shift + np.array([0.0, 0.0, 0.5 * (person.dome_mm + 22)])
    long_axis = np.array([-0.70, 0.50, -0.51])
    long_axis /= np.linalg.norm(long_axis)
    side_axis = np.cross(long_axis, [0, 0, 1.0])
    side_axis /= np.linalg.norm(side_axis)
    axes = np.stack([long_axis, side_axis, np.cross(long_axis, side_axis)])

    def place(x: float, y: float, z: float) -> Array:
        return np.array([-10.0, 22.0, 4.0]) + s * (np.array([x, y, z]) - np.array([-10.0, 22.0, 4.0])) + shift

    def chamber(centre: tuple[float, float, float], radii: tuple[float, float, float], oriented: bool) -> Array:
        wobble = np.float32(1.5) * canvas.noise(rng, 30.0)
        return ellipsoid(canvas, place(*centre), s * np.asarray(radii), axes if oriented else None) + wobble

    chest.chambers = {
        "left_ventricle": chamber((-38, 20, -4), (46, 33, 33), True),
        "right_ventricle": chamber((-14, 46, -2), (42, 24, 34), True),
        "right_atrium": chamber((21, 22, 6), (22, 27, 33), False),
        "left_atrium": chamber((-6, -8, 24), (34, 20, 23), False),
    }
    chest.heart = smooth_union(list(chest.chambers.values()), 14.0)
    chest.chambers["left_cavity"] = chamber((-35, 18, -2), (34, 20, 20), True)
    chest.chambers["right_cavity"] = chamber((-14, 46, -1), (37, 20, 30), True)
    _plan_vessels(chest, person, spine, place, rng)
    _plan_airways(chest, person, spine, rng)
    return chest


def _plan_vessels(
    chest: Chest,
    person: Person,
    spine: Spine,
    place: Callable[[float, float, float], Array],
    rng: np.random.RandomState,
) -> None:
    g = person.aorta_scale
    top = 88 + rng.normal(0, 7) + 5 * person.age
    bulge = rng.uniform(0, 10) * person.age

    def beside(z: float, x: float, front: float) -> tuple[float, float, float]:
        sx, sy = spine.at(z)
        return float(sx) + x, float(sy) + front, z

    root = place(-2, 24, 26)
    aorta = [
        root,
        place(10 + bulge, 36, 48),
        (13 + bulge, 32, 70),
        (3, 18, top - 3),
        (-12, -4, top),
        beside(top - 8, -23 - bulge / 2, 28),
        beside(top - 30, -25 - bulge / 2, 16),
        beside(20, -22, 16),
        beside(-40, -18 + bulge / 3, 20),
        beside(-85, -9, 27),
        beside(-150, -7, 32),
        beside(-240, -7, 33),
    ]
    chest.tubes["aorta"] = [curve(aorta, np.array([15, 16, 15.5, 14, 13.5, 13, 12.5, 12, 11.5, 11, 10, 9]) * g, 3.0)]
    vein = [(42, 12, 150), (28, 26, 112), (25, 20, 80), (26, 16, 50), place(26, 16, 30)]
    left_vein = [(-44, 16, 150), (-28, 34, 118), (0, 40, 103), (24, 27, 96)]
    lower = [place(24, 8, -8), (22, 4, -40), (16, -4, -90), beside(-150, 18, 36), beside(-240, 18, 36)]
    chest.tubes["veins"] = [curve(vein, [7, 9, 10, 10, 11], 2.5), curve(left_vein, [7, 6.5, 6.5, 8], 2.5)]
    chest.tubes["veins_low"] = [curve(lower, [12, 12, 12, 11, 10], 3.0)]
    neck = float(spine.at(170.0)[1])
    chest.tubes["branches"] = [
        curve([(2, 22, top), (14, 24, top + 18), (24, 18, 130), (50, 6, 142), (95, -6, 150)], [7, 6.5, 6, 4.5, 4], 2.0),
        curve([(22, 18, 126), (28, neck + 22, 160), (30, neck + 24, 230)], [4.5, 3.5, 3.5], 2.0),
        curve(
            [(-6, 12, top), (-10, 12, top + 20), (-22, neck + 20, 160), (-28, neck + 24, 230)], [4, 4, 3.5, 3.5], 2.0
        ),
        curve([(-15, -2, top), (-22, -2, top + 25), (-38, 0, 140), (-92, -6, 150)], [5, 5, 4.5, 4], 2.0),
    ]
    p = rng.uniform(0.9, 1.12)
    trunk = [place(-24, 46, 22), place(-26, 40, 38), (-20, 24, 48), (-16, 10, 49)]
    right = [(-14, 14, 48), (6, 2, 43), (28, -3, 39), (46, -8, 34)]
    left = [(-18, 14, 50), (-32, -4, 54), (-43, -20, 50), (-48, -28, 40)]
    chest.tubes["pulmonary"] = [
        curve(trunk, np.array([12, 13.5, 13, 12]) * p, 2.5),
        curve(right, np.array([11, 10, 9.5, 8.5]) * p, 2.5),
        curve(left, np.array([11, 10, 9, 8]) * p, 2.5),
    ]
    chest.tubes["left_veins"] = [
        curve([place(-6 + d * 20, -10, 24 + h), (d * 40 - 2, -8 + b, 24 + 1.6 * h)], [8, 6], 2.0)
        for d in (-1, 1)
        for h, b in ((7, 6), (-10, -12))
    ]
    gullet = [
        beside(230, -2, 18),
        beside(150, -4, 19),
        beside(90, -6, 20),
        beside(30, -6, 24),
        beside(-30, -11, 36),
        (-20, 8, -62),
        (-40, 14, -82),
    ]
    chest.tubes["esophagus"] = [curve(gullet, [7, 7, 7.5, 7.5, 8, 8, 9], 2.5)]


def _plan_airways(chest: Chest, person: Person, spine: Spine, rng: np.random.RandomState) -> None:
    z = 50 + rng.normal(0, 6)
    x = 2 + rng.normal(0, 2)

    def before(height: float, gap: float) -> float:
        return float(spine.at(height)[1]) + gap

    chest.carina = (x, before(z, 37), z)
    r = rng.uniform(7.6, 9.8) - 1.1 * person.female
    trachea = [
        (1, before(240, 34), 240),
        (1, before(165, 34), 165),
        (3, 0.45 * before(165, 34) + 0.55 * before(z, 37), 0.45 * 165 + 0.55 * z),
        chest.carina,
    ]
    right = [chest.carina, (x + 17, before(z, 34), z - 14), (x + 34, before(z, 34), z - 26)]
    left = [chest.carina, (x - 20, before(z, 35), z - 15), (x - 43, before(z, 31), z - 28)]
    tubes = [
        curve(trachea, np.array([1, 1, 1, 1.05]) * r, 2.0),
        curve(right, np.array([0.92, 0.72, 0.62]) * r, 2.0),
        curve(left, np.array([0.88, 0.66, 0.58]) * r, 2.0),
    ]
    jitter = lambda: rng.normal(0, 4, size=3)  # noqa: E731
    hub = {1: np.array(right[-1]), -1: np.array(left[-1])}
    lobar = {
        1: [[(20, 3, 34), (32, 10, 62)], [(15, 15, -22), (40, 36, -32)], [(4, -16, -34), (16, -34, -74)]],
        -1: [[(-10, 16, 18), (-20, 24, 52)], [(-24, 18, -10), (-44, 40, -22)], [(-4, -16, -30), (-14, -34, -68)]],
    }
    for side, branches in lobar.items():
        for knots in branches:
            line = [hub[side], *[hub[side] + np.array(k) + jitter() for k in knots]]
            tubes.append(curve(line, np.array([0.55, 0.42, 0.22]) * r, 1.5))
            fork = line[1] + np.array([side * 22.0, rng.uniform(-25, 25), rng.uniform(-25, 25)])
            tubes.append(curve([line[1], fork], np.array([0.36, 0.2]) * r, 1.5))
    chest.tubes["airways"] = tubes
    chest.hilum = {side: at + np.array([side * 8.0, 2.0, 4.0]) for side, at in hub.items()}


def lung_fields(
    canvas: Canvas, spine: Spine, chest: Chest, cage: Array, above: Array, rng: np.random.RandomState
) -> dict[int, Array]:
    """Coarse signed distances of left (-1) and right (1) lung: the cage without mediastinum and diaphragm."""
    middle, y_spine = (v.astype(np.float32) for v in spine.at(canvas.z))
    half_width, half_depth = (v.astype(np.float32) for v in spine.width_at(canvas.z))
    lateral = canvas.x - middle
    column = np.hypot(lateral / (half_width + 5), np.maximum(canvas.y - y_spine + 5, 0) / (half_depth + 10)) - 1
    column = column * (half_width + 5)
    # The lungs meet behind the sternum and behind the heart, save for a sheet of tissue.
    sheet = np.abs(canvas.x - np.float32(rng.normal(-2, 3)) + 4 * canvas.noise(rng, 60.0)) - np.float32(3.5)
    inlet = np.hypot(canvas.x / 1.35, canvas.y - y_spine - 34) - np.clip(14 + (canvas.z - 95) * 0.36, 0, 40)
    inlet = np.where(canvas.z > 60, inlet, FAR_MM).astype(np.float32)
    parts = [chest.heart - 2, column, sheet, inlet]
    for name, gap in (("aorta", 2.5), ("veins", 3), ("veins_low", 3), ("pulmonary", 3), ("esophagus", 2)):
        parts += [canvas.coarse_tube(*tube) - np.float32(gap) for tube in chest.tubes[name]]
    parts += [canvas.coarse_tube(*tube) - 4 for tube in chest.tubes["airways"][:3]]
    parts += [ellipsoid(canvas, chest.hilum[side] - np.array([side * 10.0, 0, 0]), (15, 17, 24)) for side in (-1, 1)]
    mediastinum = smooth_union(parts, 3.0)
    # Fat pads fill the angle between heart and diaphragm.
    mediastinum = smooth_union([mediastinum, np.maximum(chest.heart - 26, above - 1)], 7.0)
    free = smooth_intersection([cage + 1.0, -mediastinum, -above], 2.5)
    return {side: np.where(lateral * side > 0, free, np.maximum(free, 3)).astype(np.float32) for side in (-1, 1)}


def paint_lungs(canvas: Canvas, person: Person, lungs: dict[int, Array], rng: np.random.RandomState) -> None:
    """Paint lung tissue: denser towards the back, patchy, with fissures and rarely a lesion."""
    texture = 22 * canvas.noise(rng, 28.0) + 12 * canvas.noise(rng, 11.0)
    gravity = rng.uniform(0.15, 0.7) * -canvas.y
    emphysema = -60 * np.clip(canvas.noise(rng, 35.0) - 1.0, 0, 1.5) * (rng.random_sample() < 0.35)
    density = (texture + gravity + emphysema).astype(np.float32)
    for side, field_ in lungs.items():
        box = canvas.box(field_)
        if box is None:
            continue
        tilt = np.array([0.0, 0.62 + rng.normal(0, 0.06), 0.78])
        level = canvas.y * np.float32(tilt[1]) + canvas.z * np.float32(tilt[2]) - rng.normal(8, 8)
        fissure = canvas.fine(level + 2 * canvas.noise(rng, 40.0), box)
        value = person.hu["lung"] + canvas.fine(density, box)
        # what is too small to be drawn: the smallest vessels and airways, about a voxel wide
        value = value + rng.standard_normal(size=value.shape).astype(np.float32) * np.float32(22)
        value = value + 90 * np.exp(-((fissure / 1.1) ** 2)).astype(np.float32)
        label = LABELS["lung_right"] if side > 0 else LABELS["lung_left"]
        canvas.paint(canvas.fine(field_, box), np.clip(value, -985, -500), label, box)
        if rng.random_sample() < 0.25:
            _paint_lesion(canvas, person, field_, rng)


def _paint_lesion(canvas: Canvas, person: Person, lung: Array, rng: np.random.RandomState) -> None:
    inside = np.argwhere(lung < -10)
    if not len(inside):
        return
    at = tuple(inside[rng.randint(len(inside))])
    centre = (canvas.x[at], canvas.y[at], canvas.z[at])
    radius = float(np.exp(rng.uniform(np.log(4), np.log(26))))
    lesion = ellipsoid(canvas, centre, radius * rng.uniform(0.8, 1.25, size=3))
    lesion = lesion + np.float32(0.14 * radius) * canvas.noise(rng, 12.0)
    canvas.paint_coarse(np.maximum(lesion, lung), person.hu["muscle"] - 15, LABELS["lung_lesion"])


def paint_pulmonary_vessels(
    canvas: Canvas, person: Person, chest: Chest, lungs: dict[int, Array], rng: np.random.RandomState
) -> None:
    """Grow and paint an arterial and a venous tree in each lung."""
    thick, thin = [], []
    for side, lung in lungs.items():
        room = np.argwhere(lung < -4)
        if len(room) < 50:
            continue
        hilum = chest.hilum[side]
        # the lower artery follows the lower lobe's bronchus; the veins come from the left atrium in front and below
        artery = curve(
            [
                hilum + np.array([-8 * side, 2, 6]),
                hilum + np.array([2 * side, -12, -14]),
                hilum + np.array([8 * side, -24, -50]),
            ],
            1.0,
            6.0,
        )
        vein = curve(
            [
                hilum + np.array([-14 * side, 8, -16]),
                hilum + np.array([4 * side, 6, -14]),
                hilum + np.array([10 * side, 2, -8]),
            ],
            1.0,
            6.0,
        )
        for root, tip in ((artery[0], 0.58), (vein[0], 0.54)):
            pick = room[rng.randint(len(room), size=TREE_TARGETS)]
            index = tuple(pick.T)
            targets = np.stack([canvas.x[index], canvas.y[index], canvas.z[index]], axis=1).astype(np.float64)
            targets += rng.uniform(-0.5, 0.5, size=targets.shape) * canvas.step
            starts, ends, radii = grow_tree(root, targets, rng, tip_mm=tip)
            points, widths = sample_pieces(starts, ends, np.minimum(radii, 7.5), 1.6)
            big = widths > 0.55 * canvas.voxel_mm
            thick.append((points[big], widths[big]))
            thin.append((points[~big], widths[~big]))
    if not thick:
        return
    hu = 0.5 * (person.hu["pulmonary"] + person.hu["left_heart"])
    both = np.minimum(lungs[-1], lungs[1])
    _paint_thin(canvas, np.concatenate([t[0] for t in thin]), np.concatenate([t[1] for t in thin]), hu, both)
    found = canvas.tube(np.concatenate([t[0] for t in thick]), np.concatenate([t[1] for t in thick]))
    if found is not None:
        canvas.paint(found[0], hu, LABELS["pulmonary_vessels"], found[1])


def _paint_thin(canvas: Canvas, points: Array, radii: Array, hu: float, lung: Array) -> None:
    """Vessels thinner than a voxel: their share of its cross section, spread like a tent."""
    h = canvas.voxel_mm
    inside = canvas.fine(lung) < 0
    edges = np.quantile(radii, np.linspace(0, 1, 5))
    for low, high in pairwise(edges):
        chosen = (radii >= low) & (radii <= high)
        if not chosen.any():
            continue
        found = canvas.tube(points[chosen], np.full(int(chosen.sum()), 0.5 * h), reach=0.55 * h)
        if found is not None:
            share = min(0.85, 3.0 * float(np.mean(radii[chosen])) ** 2 / h**2)
            alpha = np.clip(0.5 - found[0] / h, 0, 1) * np.float32(share) * inside[found[1]]
            canvas.blend(alpha, hu, LABELS["pulmonary_vessels"], found[1])


def paint_mediastinum(canvas: Canvas, person: Person, chest: Chest, above: Array, rng: np.random.RandomState) -> None:
    """Paint heart, great vessels, oesophagus and airways over the fat between the lungs."""
    hu = person.hu
    texture = canvas.fine(4.0 * canvas.noise(rng, 9.0))
    _paint_tubes(canvas, chest.tubes["veins_low"], 0.5 * (hu["liver"] + hu["right_heart"]), LABELS["great_vessels"])
    _paint_tubes(canvas, chest.tubes["esophagus"], hu["esophagus"], LABELS["esophagus"])
    clip = np.float32(-1) - above  # the heart ends at the diaphragm
    for name in ("right_atrium", "left_atrium", "right_ventricle", "left_ventricle"):
        value = {"right_atrium": hu["right_heart"], "left_atrium": hu["left_heart"]}.get(name, hu["myocardium"])
        organ = smooth_intersection([chest.chambers[name], clip + 2], 1.5)
        canvas.paint_coarse(organ, value, LABELS["heart"], texture=texture)
    for name, value in (("right_cavity", hu["right_heart"]), ("left_cavity", hu["left_heart"])):
        canvas.paint_coarse(np.maximum(chest.chambers[name], clip + 5), value, LABELS["heart"], texture=texture)
    for name in ("veins", "branches", "pulmonary", "left_veins", "aorta"):
        value = {"veins": hu["veins"], "pulmonary": hu["pulmonary"], "left_veins": hu["left_heart"]}.get(
            name, hu["aorta"]
        )
        label = LABELS["aorta"] if name == "aorta" else LABELS["great_vessels"]
        _paint_tubes(canvas, chest.tubes[name], value, label)
    if person.age > 0.6 and rng.random_sample() < 0.7:
        _paint_calcium(canvas, chest.tubes["aorta"][0], rng)
    points = np.concatenate([t[0] for t in chest.tubes["airways"]])
    radii = np.concatenate([t[1] for t in chest.tubes["airways"]])
    found = canvas.tube(points, radii + 1.3)
    if found is not None:
        free = np.maximum(found[0], 4.0 - canvas.fine(chest.heart)[found[1]])
        canvas.paint(free, 20.0, None, found[1])
        canvas.paint(free + 1.5, -985.0, LABELS["airways"], found[1])


def _paint_tubes(canvas: Canvas, tubes: list[tuple[Array, Array]], hu: float, label: int) -> None:
    for points, radii in tubes:
        found = canvas.tube(points, radii)
        if found is not None:
            canvas.paint(found[0], hu, label, found[1])


def _paint_calcium(canvas: Canvas, aorta: tuple[Array, Array], rng: np.random.RandomState) -> None:
    """Plaques on the wall of the aortic arch."""
    points, radii = aorta
    arch = np.flatnonzero(points[:, 2] > 60)
    for index in rng.choice(arch, size=min(len(arch), rng.randint(2, 9)), replace=False):
        direction = rng.normal(size=3)
        at = points[index] + direction / np.linalg.norm(direction) * radii[index]
        spot = canvas.tube(at[None] + rng.normal(0, 1.5, size=(4, 3)), np.full(4, rng.uniform(0.8, 2.2)))
        if spot is not None:
            canvas.paint(spot[0], 500.0, None, spot[1])
