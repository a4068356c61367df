"""The template thorax and how people differ from it.

Positions are millimetres in the template frame: RAS+ (patient's left is x < 0), x = 0 in the midline, y = 0 in the
middle of the chest, z = 0 near the disc below T8. Sizes follow usual adult anatomy (vertebral heights and widths
after Panjabi et al., Spine 1991; rib slopes, heart and great vessels as a supine chest CT at full breath shows them).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

Array = np.ndarray

LABELS: dict[str, int] = {
    "background": 0,
    "skin": 1,
    "fat": 2,
    "muscle": 3,
    "breast": 4,
    "lung_left": 5,
    "lung_right": 6,
    "pulmonary_vessels": 7,
    "airways": 8,
    "heart": 9,
    "aorta": 10,
    "great_vessels": 11,
    "esophagus": 12,
    "vertebrae": 13,
    "intervertebral_discs": 14,
    "spinal_cord": 15,
    "ribs": 16,
    "costal_cartilages": 17,
    "sternum": 18,
    "clavicles": 19,
    "scapulae": 20,
    "humeri": 21,
    "liver": 22,
    "spleen": 23,
    "stomach": 24,
    "kidneys": 25,
    "bowel": 26,
    "lung_lesion": 27,
}

# Inner surface of the rib cage by height: z, half width, front, back.
CAGE = np.array(
    [
        (-240, 118, 84, -78),
        (-160, 122, 86, -82),
        (-120, 125, 88, -86),
        (-60, 125, 91, -94),
        (0, 119, 88, -98),
        (60, 109, 76, -92),
        (90, 101, 64, -80),
        (115, 84, 50, -62),
        (130, 62, 38, -48),
        (141, 40, 26, -36),
        (150, 20, 14, -24),
        (158, 6, 4, -14),
        (300, 5, 3, -13),
    ],
    dtype=np.float64,
)
# Outline of muscle (the body without skin and fat) of the trunk by height: z, half width, front, back.
TRUNK = np.array(
    [
        (-240, 132, 98, -104),
        (-160, 136, 99, -106),
        (-100, 139, 101, -110),
        (-40, 139, 100, -117),
        (20, 139, 97, -119),
        (60, 142, 90, -116),
        (100, 140, 76, -104),
        (125, 122, 60, -92),
        (150, 92, 48, -78),
        (172, 66, 48, -62),
        (195, 58, 56, -50),
        (300, 56, 60, -46),
    ],
    dtype=np.float64,
)
# Centres of the vertebral bodies C4 to L4: z, y, half width, half depth of the body.
VERTEBRAE = np.array(
    [
        (205, 25, 12, 8),
        (190, 20, 12.5, 8),
        (175, 13, 13, 8),
        (160, 5, 14, 8.5),
        (144, -6, 15, 9),
        (128, -19, 15, 10),
        (111, -32, 14.5, 11),
        (93, -43, 14.5, 12),
        (74, -52, 14.5, 13),
        (54, -58, 15, 14),
        (33, -61, 15.5, 14.5),
        (11, -60, 16, 15),
        (-12, -57, 17, 15.5),
        (-36, -52, 18, 16),
        (-61, -45, 19.5, 16),
        (-88, -36, 21, 16.5),
        (-116, -27, 22.5, 17),
        (-146, -19, 23.5, 17.5),
        (-177, -14, 24.5, 17.5),
        (-209, -12, 25, 18),
        (-241, -13, 25.5, 18),
    ],
    dtype=np.float64,
)
FIRST_THORACIC = 4
# Ribs 1 to 12: how far the bone descends from spine to front end, and the polar angle of that end from the front.
RIB_DROP_MM = (34, 50, 66, 82, 96, 104, 108, 104, 92, 84, 58, 30)
RIB_END_DEG = (27, 24, 22, 23, 27, 34, 43, 54, 66, 80, 118, 140)


@dataclass
class Person:
    """What is drawn at random for one patient: sizes relative to the template, layers in mm, tissue in HU."""

    female: bool
    size: tuple[float, float, float]
    fat_mm: float
    muscle_mm: float
    kyphosis: float
    scoliosis_mm: float
    dome_mm: float
    dome_left_mm: float
    dome_round: float
    heart_scale: float
    heart_shift: tuple[float, float, float]
    aorta_scale: float
    age: float
    contrast: float
    gas: float
    hu: dict[str, float] = field(default_factory=dict)


def draw_person(rng: np.random.RandomState) -> Person:
    """Draw a patient."""
    female = bool(rng.random_sample() < 0.45)
    build = rng.normal()
    age = float(rng.uniform(0, 1))
    size = (
        float(np.clip(1.09 - 0.06 * female + 0.045 * build + 0.035 * rng.normal(), 0.9, 1.26)),
        float(np.clip(1.05 - 0.05 * female + 0.05 * build + 0.05 * age + 0.05 * rng.normal(), 0.84, 1.25)),
        float(np.clip(1.13 - 0.06 * female + 0.055 * rng.normal(), 0.9, 1.32)),
    )
    contrast = float(rng.uniform(0.3, 1.0)) if rng.random_sample() < 0.55 else 0.0
    blood = rng.normal(42, 6)
    phase = rng.uniform(-0.3, 0.5)
    hu = {
        "skin": rng.normal(10, 20),
        "fat": rng.normal(-103, 6),
        "muscle": rng.normal(50, 8) + 8 * contrast,
        "lung": rng.normal(-868, 28),
        "myocardium": rng.normal(44, 6) + 60 * contrast,
        "aorta": blood + 300 * contrast * rng.uniform(0.6, 1.1),
        "left_heart": blood + 290 * contrast * rng.uniform(0.6, 1.1),
        "right_heart": blood + 300 * contrast * max(0.15, 0.6 + phase),
        "pulmonary": blood + 320 * contrast * max(0.3, 0.7 + phase),
        "veins": blood + (900 * contrast**2 if rng.random_sample() < 0.3 else 150 * contrast) * rng.uniform(0.5, 1),
        "esophagus": rng.normal(35, 8),
        "disc": rng.normal(90, 15),
        "cord": rng.normal(32, 6),
        "marrow": rng.normal(265, 40) - 140 * age,
        "cortex": rng.normal(1150, 120) - 150 * age,
        "cartilage": rng.normal(105, 15) + 60 * age,
        "liver": rng.normal(56, 9) + 50 * contrast,
        "spleen": rng.normal(48, 5) + 70 * contrast,
        "kidney": rng.normal(34, 5) + 130 * contrast,
        "stomach": rng.normal(25, 20),
        "bowel": rng.normal(30, 15),
        "gland": rng.normal(25, 15),
    }
    return Person(
        female=female,
        size=size,
        fat_mm=float(np.clip(np.exp(rng.normal(np.log(15 + 4 * female), 0.45)), 4, 48)),
        muscle_mm=float(rng.normal(-2, 4) - 3 * female),
        kyphosis=float(np.clip(0.8 + 0.12 * rng.normal() + 0.15 * age, 0.55, 1.25)),
        scoliosis_mm=float(rng.normal(0, 4)),
        dome_mm=float(np.clip(rng.normal(-22, 15), -55, 20)),
        dome_left_mm=float(rng.normal(-12, 8)),
        dome_round=float(rng.uniform(0.75, 1.15)),
        heart_scale=float(np.clip(1 + 0.08 * rng.normal() + 0.06 * age, 0.82, 1.25)),
        heart_shift=(float(rng.normal(0, 6)), float(rng.normal(0, 4)), float(rng.normal(0, 6))),
        aorta_scale=float(np.clip(0.95 + 0.09 * rng.normal() + 0.15 * age, 0.75, 1.4)),
        age=age,
        contrast=contrast,
        gas=float(rng.uniform(0.2, 1.0)),
        hu={name: float(value) for name, value in hu.items()},
    )


class Spine:
    """Vertebral column of one person."""

    def __init__(self, person: Person) -> None:
        z, y = VERTEBRAE[:, 0], VERTEBRAE[:, 1]
        self.z = z
        self.y = y.min() + (y - y.min()) * person.kyphosis
        self.x = person.scoliosis_mm * np.sin(z / 85.0)
        self.half_width, self.half_depth = VERTEBRAE[:, 2], VERTEBRAE[:, 3]

    def at(self, z: Array | float) -> tuple[Array, Array]:
        """Position (x, y) of the column's centre line at height z."""
        order = self.z[::-1]
        return np.asarray(np.interp(z, order, self.x[::-1])), np.asarray(np.interp(z, order, self.y[::-1]))

    def width_at(self, z: Array | float) -> tuple[Array, Array]:
        """Half width and half depth of the vertebral body at height z."""
        order = self.z[::-1]
        width, depth = np.interp(z, order, self.half_width[::-1]), np.interp(z, order, self.half_depth[::-1])
        return np.asarray(width), np.asarray(depth)


CAGE_EXPONENT = 2.35


def cage_section(z: Array | float, spine: Spine) -> tuple[Array, Array, Array]:
    """Half width, half depth and centre y of the rib cage's inner surface at height z."""
    half_width = np.interp(z, CAGE[:, 0], CAGE[:, 1])
    front = np.interp(z, CAGE[:, 0], CAGE[:, 2])
    back = np.interp(z, CAGE[:, 0], CAGE[:, 3])
    _, y = spine.at(z)
    y_template = np.interp(z, VERTEBRAE[::-1, 0], VERTEBRAE[::-1, 1])
    back = back + (y - y_template)  # the back of the chest follows the spine
    return np.asarray(half_width), np.maximum(front - back, 8.0) / 2, np.asarray((front + back) / 2)


def cage_point(angle: Array, z: Array, side: int, spine: Spine, offset: float) -> Array:
    """Points (N, 3) on the cage's surface, moved outwards by ``offset`` mm.

    ``angle`` is the polar angle from the front in radians, ``side`` is -1 for left and 1 for right.
    """
    a, b, centre = cage_section(z, spine)
    a, b = a + offset, b + offset
    s, c = np.sin(angle), np.cos(angle)
    rho = ((np.abs(s) / a) ** CAGE_EXPONENT + (np.abs(c) / b) ** CAGE_EXPONENT) ** (-1 / CAGE_EXPONENT)
    return np.stack([side * rho * s, centre + rho * c, np.broadcast_to(z, np.shape(rho))], axis=-1)
