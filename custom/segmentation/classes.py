"""Classes of label maps: which structures make up each, and which classes a map says nothing about.

Label maps come with names of their own: TotalSegmentator, RTSTRUCT (TG-263), the phantoms, LUNA16. A class is *known*
in a case when the map names all structures that the class needs; a structure that is named but has no voxel is known
to be absent. What is not known is never taught: its voxels are left out of loss and metrics, for this class alone.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

from custom.data.phantom.anatomy import LABELS as PHANTOM_LABELS

__all__ = [
    "CLASSES",
    "MAX_CLASSES",
    "UNKNOWN",
    "Rule",
    "class_masks",
    "class_rules",
    "known_classes",
    "normal_form",
    "pack",
    "unpack",
]

#: In a label tensor: the truth of this class is not known here.
UNKNOWN = 255
#: Two bits a class in a number that float32 holds exactly.
MAX_CLASSES = 12


@dataclass(frozen=True)
class Rule:
    """One way to make a class out of named structures: their union.

    Attributes:
        needs: normal forms of the names that must all be there.
        also: names that belong to the class too, where they are there.
    """

    needs: tuple[str, ...]
    also: tuple[str, ...] = ()


def normal_form(name: str) -> str:
    """Lower-case letters and digits alone: "Lung_L" and "lung-l" are the same structure."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _rules(*alternatives: str | Rule) -> tuple[Rule, ...]:
    return tuple(a if isinstance(a, Rule) else Rule((normal_form(a),)) for a in alternatives)


def _both(*patterns: str) -> Rule:
    """A rule that needs the left and the right structure."""
    return Rule(tuple(normal_form(p.format(side)) for p in patterns for side in ("left", "right")))


_VERTEBRAE = [f"vertebraec{n}" for n in range(1, 8)] + [f"vertebraet{n}" for n in range(1, 13)]
_VERTEBRAE += [*(f"vertebrael{n}" for n in range(1, 6)), "vertebraes1"]
#: In every chest CT of 200 mm: a map without them segments single vertebrae, not the spine.
_MIDDLE = tuple(f"vertebraet{n}" for n in range(4, 11))
_SPINE = Rule(_MIDDLE, tuple(_VERTEBRAE))
_RIBS = Rule(
    tuple(f"rib{side}{n}" for side in ("left", "right") for n in range(2, 9)),
    tuple(f"rib{side}{n}" for side in ("left", "right") for n in range(1, 13)),
)
_GIRDLE = ("scapulaleft", "scapularight", "claviculaleft", "clavicularight")
_LIMBS = ("humerusleft", "humerusright", "skull", "sacrum", "hipleft", "hipright", "femurleft", "femurright")
_PHANTOM = tuple(normal_form(name) for name, number in PHANTOM_LABELS.items() if number)
_CHAMBERS = tuple(f"heart{part}{side}" for part in ("atrium", "ventricle") for side in ("left", "right"))

#: Known classes, and how label maps call them: TotalSegmentator (v1 and v2), TG-263, the phantoms, LUNA16.
CLASSES: dict[str, tuple[Rule, ...]] = {
    "body": _rules(
        "body", "external", Rule(("bodytrunc",), ("bodyextremities",)), Rule(("skin", "fat", "muscle"), _PHANTOM)
    ),
    "bone": _rules(
        "bone",
        "bones",
        Rule(("vertebrae", "ribs", "sternum", "clavicles", "scapulae"), ("humeri",)),
        Rule((*_MIDDLE, *_RIBS.needs, "sternum", *_GIRDLE), (*_VERTEBRAE, *_RIBS.also, *_LIMBS)),
    ),
    "lung_left": _rules("lung_left", "left_lung", "lung_l", Rule(("lungupperlobeleft", "lunglowerlobeleft"))),
    "lung_right": _rules(
        "lung_right", "right_lung", "lung_r", Rule(("lungupperloberight", "lungmiddleloberight", "lunglowerloberight"))
    ),
    "heart": _rules("heart", Rule(("heartmyocardium", *_CHAMBERS))),
    "aorta": _rules("aorta", "a_aorta"),
    "esophagus": _rules("esophagus", "oesophagus"),
    "trachea": _rules("trachea", "airways"),
    "liver": _rules("liver"),
    "spleen": _rules("spleen"),
    "stomach": _rules("stomach"),
    "kidneys": _rules("kidneys", _both("kidney_{}"), Rule(("kidneyl", "kidneyr"))),
    "spine": _rules("spine", "vertebrae", "vertebral_column", _SPINE),
    "spinal_cord": _rules("spinal_cord", "cord"),
    "ribs": _rules("ribs", _RIBS),
    "sternum": _rules("sternum"),
    "clavicles": _rules("clavicles", _both("clavicula_{}"), Rule(("claviclel", "clavicler"))),
    "scapulae": _rules("scapulae", _both("scapula_{}"), Rule(("scapulal", "scapular"))),
    "brachial_plexus": _rules(
        "brachial_plexus",
        _both("brachial_plexus_{}"),
        Rule(("brachialplexl", "brachialplexr")),
        Rule(("brachialplexusl", "brachialplexusr")),
    ),
    "nodule": _rules("nodule", "nodules", "lung_nodule", "lung_nodules", "lung_lesion"),
}

#: What lies inside the lungs and is drawn over them in a map that gives every voxel one number.
_IN_LUNGS = frozenset({"pulmonaryvessels", "lunglesion", "nodule", "nodules", "lungnodule", "lungnodules"})
#: Further structures that are no part of any class above but for the body. A name that is on neither list, a tumour
#: say, may lie inside any organ: its voxels teach nothing.
_ELSEWHERE = """
    breast breastl breastr greatvessels intervertebraldiscs costalcartilages bowel gallbladder pancreas
    adrenalglandright adrenalglandleft thyroidgland smallbowel duodenum colon urinarybladder prostate kidneycystleft
    kidneycystright pulmonaryvein pulmonaryartery brachiocephalictrunk subclavianarteryright subclavianarteryleft
    commoncarotidarteryright commoncarotidarteryleft brachiocephalicveinleft brachiocephalicveinright
    atrialappendageleft superiorvenacava inferiorvenacava portalveinandsplenicvein iliacarteryleft iliacarteryright
    iliacvenaleft iliacvenaright gluteusmaximusleft gluteusmaximusright gluteusmediusleft gluteusmediusright
    gluteusminimusleft gluteusminimusright autochthonleft autochthonright iliopsoasleft iliopsoasright brain face
"""
_FAMILIAR = (
    _IN_LUNGS
    | frozenset(_ELSEWHERE.split())
    | {n for rules in CLASSES.values() for r in rules for n in (*r.needs, *r.also)}
)


@dataclass(frozen=True)
class _Named:
    """A user's own names of a class: patterns, of which one match suffices."""

    patterns: tuple[str, ...]


def class_rules(
    classes: Sequence[str], label_names: Mapping[str, Sequence[str]] | None = None
) -> dict[str, tuple[Rule | _Named, ...]]:
    """How each class is made.

    Args:
        classes: their names, in the order of the network's channels.
        label_names: by class, further names that a map may have for it; "*" stands for any letters. A class that is
            not among `CLASSES` is made of these alone.

    Raises:
        ValueError: for no class, too many, one twice, or an unknown one without names.
    """
    own = {name: (_Named(tuple(patterns)),) for name, patterns in (label_names or {}).items()}
    if not 1 <= len(classes) <= MAX_CLASSES or len(set(classes)) != len(classes):
        raise ValueError(f"classes must be 1 to {MAX_CLASSES} different names, got {list(classes)}")
    unknown = [name for name in classes if name not in CLASSES and name not in own]
    if unknown:
        raise ValueError(
            f"unknown class {', '.join(map(repr, unknown))}: known are {', '.join(CLASSES)}; for another one say in "
            "label_names how the label maps call it"
        )
    return {name: (*own.get(name, ()), *CLASSES.get(name, ())) for name in classes}


def _members(rule: Rule | _Named, numbers: Mapping[str, Sequence[int]], names: Mapping[int, str]) -> list[int] | None:
    """Numbers of a map that a rule unites; None where it does not apply."""
    if isinstance(rule, _Named):
        found = [n for n, name in names.items() if any(fnmatch.fnmatch(name.lower(), p.lower()) for p in rule.patterns)]
        return found or None
    if any(name not in numbers for name in rule.needs):
        return None
    return [n for name in {*rule.needs, *rule.also} for n in numbers.get(name, ())]


def _assignment(
    names: Mapping[int, str], rules: Mapping[str, Sequence[Rule | _Named]]
) -> tuple[dict[str, list[int]], set[int]]:
    """Numbers of every known class, and the numbers that say nothing to us."""
    numbers: dict[str, list[int]] = {}
    for number, name in names.items():
        numbers.setdefault(normal_form(name), []).append(number)
    found = {}
    for name, alternatives in rules.items():
        members = next((m for m in (_members(rule, numbers, names) for rule in alternatives) if m is not None), None)
        if members is not None:
            found[name] = members
    used = {n for members in found.values() for n in members}
    strange = {n for n, name in names.items() if n and n not in used and normal_form(name) not in _FAMILIAR}
    return found, strange - {n for n, name in names.items() if normal_form(name) == "background"}


def known_classes(names: Mapping[int, str], rules: Mapping[str, Sequence[Rule | _Named]]) -> list[str]:
    """The classes that a map with these names (number: name) tells the truth of."""
    return list(_assignment(names, rules)[0])


def class_masks(
    labels: npt.NDArray[np.integer], names: Mapping[int, str], rules: Mapping[str, Sequence[Rule | _Named]]
) -> tuple[dict[str, npt.NDArray[np.bool_]], npt.NDArray[np.bool_]]:
    """The classes that a label map knows.

    Vessels and nodules drawn over a lung are given back to the nearer one.

    Args:
        labels: (X, Y, Z), 0 for nothing.
        names: of its numbers, voxels or not.
        rules: of `class_rules`.

    Returns:
        A mask (X, Y, Z) of every known class, and where a structure of an unfamiliar name leaves all classes open.
    """
    found, strange = _assignment(names, rules)
    masks = {name: _among(labels, members) for name, members in found.items()}
    open_voxels = _among(labels, strange)
    lungs = [name for name in ("lung_left", "lung_right") if name in masks]
    inside = _among(labels, [n for n, name in names.items() if normal_form(name) in _IN_LUNGS])
    if lungs and inside.any():
        if len(lungs) == 1:  # whose vessels these are cannot be told
            return masks, open_voxels | inside
        left = _nearer(masks["lung_left"], masks["lung_right"])
        masks["lung_left"] |= inside & left
        masks["lung_right"] |= inside & ~left
    return masks, open_voxels


def _among(labels: npt.NDArray[np.integer], numbers: Iterable[int]) -> npt.NDArray[np.bool_]:
    table = np.zeros(int(labels.max(initial=0)) + 1, dtype=bool)
    table[[n for n in numbers if 0 < n < len(table)]] = True
    return table[labels]


def _nearer(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Where the first mask is nearer than the second, on every other voxel: eight times as fast, and near enough."""
    few = (slice(None, None, 2),) * 3
    one, other = first[few], second[few]
    if not one.any() or not other.any():
        return np.full(first.shape, bool(one.any()))
    nearest = ndimage.distance_transform_edt(~(one | other), return_distances=False, return_indices=True)
    near = one[tuple(nearest)]
    for axis in range(3):
        near = np.repeat(near, 2, axis)
    return near[: first.shape[0], : first.shape[1], : first.shape[2]]


def pack(member: Tensor, unknown: Tensor) -> Tensor:
    """Two bits a class in one whole number, so that one nearest-neighbour warp moves them all.

    Args:
        member: bool (C, X, Y, Z).
        unknown: bool (C, X, Y, Z), or of a shape that broadcasts.

    Returns:
        int32 (1, X, Y, Z).
    """
    count = len(member)
    if count > MAX_CLASSES:
        raise ValueError(f"at most {MAX_CLASSES} classes, got {count}")
    packed = torch.zeros(member.shape[1:], dtype=torch.int32, device=member.device)
    for bit, (inside, hidden) in enumerate(zip(member, unknown.expand_as(member), strict=True)):
        packed |= ((inside & ~hidden).to(torch.int32) << bit) | (hidden.to(torch.int32) << (bit + count))
    return packed[None]


def unpack(packed: Tensor, count: int) -> Tensor:
    """The inverse of `pack`: uint8 (..., C, X, Y, Z) of 0, 1 and `UNKNOWN` from (..., 1, X, Y, Z)."""
    bits = torch.arange(count, dtype=torch.int32, device=packed.device).reshape(-1, 1, 1, 1)
    packed = packed.to(torch.int32)
    member, unknown = (packed >> bits) & 1, (packed >> (bits + count)) & 1
    return torch.where(unknown.bool(), UNKNOWN, member).to(torch.uint8)
