"""Phantom bones of the thorax: spine, ribs with cartilages, sternum, clavicles, scapulae, upper arms."""

from __future__ import annotations

import numpy as np

from custom.data.phantom.anatomy import (
    FIRST_THORACIC,
    LABELS,
    RIB_DROP_MM,
    RIB_END_DEG,
    Person,
    Spine,
    cage_point,
    cage_section,
)
from custom.data.phantom.canvas import FAR_MM, Array, Box, Canvas, curve

RIB_OFFSET_MM = 5.0


def paint_bone(
    canvas: Canvas,
    distance: Array,
    box: Box | None,
    label: int,
    marrow: float | Array,
    cortex: float,
    shell_mm: float = 0.9,
) -> None:
    """Paint a bone of a signed distance: a dense shell that fades into marrow over about a millimetre."""
    near = distance < canvas.voxel_mm
    shell = np.exp(-np.clip(-distance - np.float32(shell_mm), 0, None) / np.float32(0.8))
    # A voxel averages the shell over its width: a coarse grid shows less of the cortex's density.
    blur = np.float32(min(1.0, 2.4 * shell_mm / canvas.voxel_mm))
    hu = marrow + (cortex - marrow) * blur * shell
    canvas.paint(np.where(near, distance, np.float32(FAR_MM)), hu, label, box)


def paint_skeleton(
    canvas: Canvas, person: Person, spine: Spine, cage: Array, arms: str, rng: np.random.RandomState
) -> None:
    """Paint all bones.

    Args:
        canvas: where.
        person: whose.
        spine: the person's spine.
        cage: coarse signed distance to the rib cage's inner surface, template mm.
        arms: ``up``, ``down`` or ``none``.
        rng: source of randomness.
    """
    _paint_ribs(canvas, person, spine, rng)
    _paint_sternum(canvas, person, spine, rng)
    _paint_shoulders(canvas, person, spine, cage, arms)
    _paint_spine(canvas, person, spine, rng)


def _rib_points(number: int, side: int, spine: Spine) -> Array:
    """Knots (N, 3) of a rib's centre line from head to front end."""
    row = FIRST_THORACIC + number - 1
    z0 = float(spine.z[row]) + 7.0
    x0, y0 = spine.at(z0)
    half_width, half_depth = spine.width_at(z0)
    end = np.deg2rad(RIB_END_DEG[number - 1])
    start = np.deg2rad(151.0)
    t = np.linspace(0.0, 1.0, 9)
    angle = start + (end - start) * t
    drop = RIB_DROP_MM[number - 1] * t**1.15
    z = z0 - 2.0 - drop
    on_cage = cage_point(angle, z, side, spine, RIB_OFFSET_MM)
    head = np.array([x0 + side * (half_width + 3), y0 - half_depth + 2, z0])
    neck = np.array([x0 + side * (half_width + 16), y0 - half_depth - 15, z0 + 1])
    return np.concatenate([[head, neck], on_cage])


def _paint_ribs(canvas: Canvas, person: Person, spine: Spine, rng: np.random.RandomState) -> None:
    points, radii, normals, soft, soft_radii = [], [], [], [], []
    thickness = rng.normal(1.0, 0.07) - 0.08 * person.female
    for side in (-1, 1):
        for number in range(1, 13):
            knots = _rib_points(number, side, spine)
            knots = knots + np.concatenate([np.zeros((2, 3)), rng.normal(0, 1.0, size=(len(knots) - 2, 3))])
            radius = thickness * (5.2 if 2 < number < 11 else 4.6)
            centre, widths = curve(knots, np.linspace(0.92, 1.08, len(knots)) * radius)
            _, _, middle = cage_section(centre[:, 2], spine)
            normal = np.stack([centre[:, 0], centre[:, 1] - middle, np.full(len(centre), 0.0)], axis=1)
            points.append(centre)
            radii.append(widths)
            normals.append(normal / np.linalg.norm(normal, axis=1, keepdims=True))
            if number <= 10:
                cartilage = _cartilage(number, side, knots[-1], spine)
                line, width = curve(cartilage, np.linspace(5.5, 4.2, len(cartilage)))
                soft.append(line)
                soft_radii.append(width)
    found = canvas.tube(np.concatenate(soft), np.concatenate(soft_radii))
    if found is not None:
        hu = person.hu["cartilage"]
        paint_bone(canvas, found[0], found[1], LABELS["costal_cartilages"], hu, hu + 200 * person.age, 0.6)
    found = canvas.tube(np.concatenate(points), np.concatenate(radii), flat=(np.concatenate(normals), 1.6))
    if found is not None:
        marrow, cortex = 0.9 * person.hu["marrow"], 0.9 * person.hu["cortex"]
        paint_bone(canvas, found[0], found[1], LABELS["ribs"], marrow, cortex, 0.7)


def _cartilage(number: int, side: int, end: Array, spine: Spine) -> Array:
    """Knots of a costal cartilage on the cage's surface, from the rib's end to the sternum or the costal arch."""
    target_z = (106.0, 84.0, 66.0, 48.0, 31.0, 16.0, 5.0, -14.0, -38.0, -64.0)[number - 1]
    target_angle = np.deg2rad((22, 17, 14, 13, 13, 13, 15, 30, 44, 58)[number - 1])
    t = np.linspace(0.0, 1.0, 5)
    angle = np.deg2rad(RIB_END_DEG[number - 1]) * (1 - t) + target_angle * t
    z = end[2] * (1 - t) + target_z * t - 6 * np.sin(np.pi * t) * (number > 3)
    return cage_point(angle, z, side, spine, RIB_OFFSET_MM)


def _paint_sternum(canvas: Canvas, person: Person, spine: Spine, rng: np.random.RandomState) -> None:
    z = np.linspace(118.0, -8.0, 43)
    half_width = np.interp(z, [-8, 0, 20, 80, 84, 90, 105, 118], [6, 13, 17, 13, 12, 20, 26, 22]) * rng.normal(1, 0.07)
    points, normals, radii = [], [], []
    thick = 5.5
    for height, width in zip(z, half_width, strict=True):
        if abs(height - 84) < 2:
            continue  # the joint between manubrium and body
        x = np.arange(-(width - thick), width - thick + 0.1, 3.0)
        _, depth, middle = cage_section(height, spine)
        points.append(np.stack([x, np.full_like(x, middle + depth + 7.0), np.full_like(x, height)], axis=1))
        normals.append(np.tile([0.0, 1.0, 0.0], (len(x), 1)))
        radii.append(np.full(len(x), thick))
    found = canvas.tube(np.concatenate(points), np.concatenate(radii), flat=(np.concatenate(normals), 1.0))
    if found is not None:
        paint_bone(canvas, found[0], found[1], LABELS["sternum"], 0.7 * person.hu["marrow"], 0.45 * person.hu["cortex"])


def _paint_shoulders(canvas: Canvas, person: Person, spine: Spine, cage: Array, arms: str) -> None:
    marrow, cortex = 0.7 * person.hu["marrow"], person.hu["cortex"]
    up = arms == "up"
    for side in (-1, 1):
        _, depth, middle = cage_section(112.0, spine)
        joint = (side * 20.0, float(middle + depth) + 8, 118.0)
        lateral = [(side * 62, 38, 132), (side * 100, 0, 152), (side * 122, -24, 168)]
        if not up:
            lateral = [(side * 62, 34, 128), (side * 105, -8, 138), (side * 142, -20, 142)]
        found = canvas.tube(*curve([joint, *lateral], [9, 6, 5.5, 6.5]))
        if found is not None:
            paint_bone(canvas, found[0], found[1], LABELS["clavicles"], marrow, cortex)
        _paint_scapula(canvas, person, spine, cage, side, up)
        if arms == "none":
            continue
        head = np.array([side * 150.0, -22.0, 150.0] if up else [side * 158.0, -22.0, 125.0])
        shaft = (
            [head + np.array([side * 14, 4, 26]), (side * 188, -2, 240), (side * 205, 10, 330)]
            if up
            else [head + np.array([side * 4, 2, -30]), (side * 182, -22, -60), (side * 190, -18, -240)]
        )
        found = canvas.tube(*curve([head, *shaft], [22, 15, 11.5, 12], step_mm=3.0))
        if found is not None:
            paint_bone(canvas, found[0], found[1], LABELS["humeri"], 0.3 * marrow, 1.1 * cortex, 2.2)


def _paint_scapula(canvas: Canvas, person: Person, spine: Spine, cage: Array, side: int, up: bool) -> None:
    """A thin triangular sheet that glides on the back of the cage, with thick lateral border, spine and socket."""
    turn = 12.0 if up else 0.0
    corner = {  # polar angle from the front in degrees and height of the three corners
        "upper": (150.0 - turn, 128.0),
        "lower": (137.0 - 1.6 * turn, 8.0 + turn),
        "socket": (108.0, 134.0),
    }
    azimuth = np.rad2deg(np.arctan2(np.abs(canvas.x), canvas.y))
    u, v = azimuth * np.float32(1.9), canvas.z  # about 110 mm a radian
    vertices = [(1.9 * a, z) for a, z in (corner["upper"], corner["lower"], corner["socket"])]
    inside = np.full(canvas.nodes, -FAR_MM, dtype=np.float32)
    for (u0, v0), (u1, v1) in zip(vertices, vertices[1:] + vertices[:1], strict=True):
        length = np.hypot(u1 - u0, v1 - v0)
        inside = np.maximum(inside, ((u - u0) * (v1 - v0) - (v - v0) * (u1 - u0)).astype(np.float32) / -length)
    inside = np.where(canvas.x * side > 0, inside - 4.0, np.float32(FAR_MM)).astype(np.float32)
    lift = np.float32(16.0) + np.clip(canvas.z - np.float32(60), 0, None) * np.float32(0.34)
    sheet = cage - lift
    box = canvas.box(np.maximum(inside, np.abs(sheet) - 8), 4.0)
    marrow, cortex = 0.6 * person.hu["marrow"], person.hu["cortex"]
    if box is not None:
        edge = canvas.fine(inside, box)
        thick = 1.6 + 2.4 * np.clip(1 + edge / 9, 0, 1)
        distance = np.maximum(np.abs(canvas.fine(sheet, box)) - thick, edge)
        paint_bone(canvas, distance, box, LABELS["scapulae"], 2.2 * marrow, 0.8 * cortex)

    def on_sheet(angle: float, z: float, out: float = 0.0) -> Array:
        offset = 16.0 + max(z - 60.0, 0.0) * 0.34 + out
        return cage_point(np.deg2rad([angle]), np.array([z]), side, spine, offset)[0]

    ridge = [on_sheet(corner["upper"][0] - 2, 108, 4), on_sheet(128, 118, 14), on_sheet(108, 140, 22)]
    socket = [on_sheet(112, 126, 2), on_sheet(106, 138, 6)]
    border = [on_sheet(corner["lower"][0] - 3, 22), on_sheet(120, 80), on_sheet(111, 122)]
    for knots, radii in ((ridge, [3, 5, 7]), (socket, [9, 12]), (border, [4, 5, 7])):
        found = canvas.tube(*curve(knots, radii))
        if found is not None:
            paint_bone(canvas, found[0], found[1], LABELS["scapulae"], 1.4 * marrow, 0.8 * cortex)


def _paint_spine(canvas: Canvas, person: Person, spine: Spine, rng: np.random.RandomState) -> None:
    xs, ys = spine.at(canvas.z)
    lateral, front = np.abs(canvas.x - xs.astype(np.float32)), canvas.y - ys.astype(np.float32)
    box = canvas.box(np.maximum(np.maximum(lateral - 34, front - 24), -front - 40), 3.0)
    if box is not None:
        _paint_bodies(canvas, person, spine, box, rng)
    points, radii, normals = [], [], []
    for row in range(len(spine.z)):
        z = float(spine.z[row])
        x, y = float(spine.x[row]), float(spine.y[row])
        half_depth = float(spine.half_depth[row])
        chest = 1.0 if row >= FIRST_THORACIC and z > -100 else 0.4
        back = y - half_depth
        for side in (-1, 1):
            knots = [
                (x + side * 9, back - 12, z + 3),
                (x + side * 20, back - 17, z + 4),
                (x + side * (30 + 4 * (1 - chest)), back - 14 - 10 * chest, z + 4),
            ]
            line, width = curve(knots, [5.5, 5.2, 6.0], 2.0)
            facet, facet_width = curve([(x + side * 12, back - 13, z - 12), (x + side * 12, back - 13, z + 12)], 5, 2.0)
            points += [line, facet]
            radii += [width, facet_width]
            normals += [np.tile([0.0, 0.0, 1.0], (len(line), 1)), np.tile([1.0, 0.0, 0.0], (len(facet), 1))]
        slope = 22.0 * chest
        long = 30.0 if row >= FIRST_THORACIC else 22.0
        for height in (-4.0, 0.0, 4.0):
            spinous = [(x, back - 14, z - 4 + height), (x, back - 17 - long, z - 6 - slope + height)]
            line, width = curve(spinous, [4.0, 3.2], 2.0)
            points.append(line)
            radii.append(width)
            normals.append(np.tile([1.0, 0.0, 0.0], (len(line), 1)))
    found = canvas.tube(np.concatenate(points), np.concatenate(radii), flat=(np.concatenate(normals), 1.15))
    if found is not None:
        marrow, cortex = 0.9 * person.hu["marrow"], 0.85 * person.hu["cortex"]
        paint_bone(canvas, found[0], found[1], LABELS["vertebrae"], marrow, cortex)


def _paint_bodies(canvas: Canvas, person: Person, spine: Spine, box: Box, rng: np.random.RandomState) -> None:
    """Vertebral bodies with end plates, discs, arches around the canal, and the cord."""
    x, y, z = (canvas.fine(c, box) for c in (canvas.x, canvas.y, canvas.z))
    heights, order = spine.z[::-1], np.arange(len(spine.z))[::-1].astype(np.float64)
    slope_table = np.gradient(spine.y[::-1], heights)
    xs, ys = spine.at(z)
    slope = np.interp(z, heights, slope_table)
    along = z + (y - ys) * slope / (1 + slope**2)  # height of the nearest point of the tilted column
    xs, ys = spine.at(along)
    lateral, front = (x - xs).astype(np.float32), (y - ys).astype(np.float32)
    half_width, half_depth = (v.astype(np.float32) for v in spine.width_at(along))
    number = np.interp(along, heights, order).astype(np.float32)
    local = np.rint(number) - number  # -0.5 at the lower, 0.5 at the upper disc
    pitch = np.interp(along, heights, np.abs(np.gradient(heights))).astype(np.float32)
    height = local * pitch
    disc = np.interp(along, [-240, -100, 60, 150], [9.0, 6.5, 4.0, 5.0]).astype(np.float32) * (1.1 - 0.3 * person.age)
    waist = 1 - np.float32(0.13) * (1 - (2 * local) ** 2)
    ring = ((np.abs(lateral) / (half_width * waist)) ** 2.4 + (np.abs(front) / (half_depth * waist)) ** 2.4) ** (
        1 / 2.4
    )
    outline = (ring - 1) * np.minimum(half_width, half_depth)
    end_plate = np.abs(height) - (pitch - disc) / 2
    canal_y = front + half_depth + 8.5
    canal = np.hypot(lateral * np.float32(0.88), canal_y) - np.float32(8.0)
    canvas.paint(np.maximum(outline + 1.0, -end_plate), person.hu["disc"], LABELS["intervertebral_discs"], box)
    texture = canvas.fine(canvas.noise(rng, 9.0), box) * np.float32(22)
    body = np.maximum(outline, end_plate)
    arch = np.maximum(canal - 7.0, -canal)
    lamina = np.maximum(np.maximum(arch, canal_y + 1), np.abs(height + 2) - 0.40 * pitch)
    pedicle = np.maximum(
        np.abs(np.abs(lateral) - half_width * 0.72) - 5.0, np.abs(height - 0.16 * pitch) - 0.24 * pitch
    )
    pedicle = np.maximum(pedicle, np.maximum(canal_y - 10, -canal_y - 6))
    bone = np.maximum(np.minimum(np.minimum(body, lamina), pedicle), -canal)
    paint_bone(canvas, bone, box, LABELS["vertebrae"], person.hu["marrow"] + texture, 0.65 * person.hu["cortex"], 0.5)
    canvas.paint(canal, -20.0, None, box)
    cord = np.hypot(lateral * np.float32(0.8), canal_y) - np.float32(6.2)
    canvas.paint(cord, person.hu["cord"], LABELS["spinal_cord"], box)
