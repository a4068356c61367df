"""Sorting of the slices of a CT series into scans, by position and pixels, each acquisition judged for itself."""

import hashlib
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from custom.core.rejection import Rejected
from custom.dicom.ct_series import UNSPECIFIED, Slice, check_stack, stored_pixels

__all__ = ["Stack", "judge_stacks"]

_SAME_MM = 0.01


@dataclass(frozen=True)
class Stack:
    """Slices that belong together.

    Attributes:
        slices: sorted from feet to head, without copies.
        facts: geometry for the manifest.
        notes: what was found out of order and could be put right.
        refused: why they are no scan; "" where they are one.
    """

    slices: tuple[Slice, ...]
    facts: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    refused: str = ""


def judge_stacks(slices: Sequence[Slice]) -> list[Stack]:
    """The scan that the slices of one series form, or its acquisitions (0020,0012; 0020,0100), each with its verdict.

    A series is taken apart only where it is no scan as a whole: acquisitions that stand at the same positions, or one
    that holds a quarter of the slices or more. Scans that have an acquisition for each turn of the tube stay whole.
    """
    whole = _judge(slices)
    parts: dict[tuple[str, str], list[Slice]] = {}
    for item in slices:
        parts.setdefault(item.acquisition, []).append(item)
    if not whole.refused or len(parts) == 1:
        return [whole]
    overlap = _overlap(slices)
    if not overlap and 4 * max(map(len, parts.values())) < len(slices):
        return [whole]
    judged = [_judge(parts[key]) for key in sorted(parts)]
    return judged if overlap or not all(stack.refused for stack in judged) else [whole]


def _sorted(slices: Sequence[Slice]) -> list[Slice]:
    return sorted(slices, key=lambda s: (s.depth, str(s.path), s.frame or 0))


def _overlap(slices: Sequence[Slice]) -> bool:
    """Whether two acquisitions stand at one position."""
    ordered = _sorted(slices)
    pairs = itertools.pairwise(ordered)
    return any(b.depth - a.depth < _SAME_MM and a.acquisition != b.acquisition for a, b in pairs)


def _judge(slices: Sequence[Slice]) -> Stack:
    ordered = _sorted(slices)
    try:
        kept, notes = _without_copies(ordered)
        _, facts = check_stack(kept)
    except Rejected as error:
        return Stack(tuple(ordered), refused=str(error))
    for uid, count in Counter(s.sop_uid for s in kept if s.frame is None).items():
        if not uid:
            notes.append(f"SOP Instance UID (0008,0018) of {count} files is empty (anonymised?): sorted by position")
        elif count > 1:
            notes.append(f"{count} files carry one SOP Instance UID (0008,0018), {uid}: told apart by position")
    if any(s.rescale_type == UNSPECIFIED for s in kept):
        notes.append("Rescale Type (0028,1054) is US (unspecified): taken as HU if air and soft tissue measure so")
    if len(lines := {s.rescale for s in kept if s.rescale}) > 1:
        # Slopes of their own are usual in PET; of CTs the slices have one.
        notes.append(f"Rescale Slope and Intercept differ within the scan, {len(lines)} of them: are all slices in HU?")
    turns = [key for key, _ in itertools.groupby(s.acquisition for s in kept)]
    if len(turns) > len(set(turns)):
        notes.append(f"slices of {len(set(turns))} acquisitions alternate (0020,0012; 0020,0100): did anything move?")
    return Stack(tuple(kept), facts, tuple(notes))


def _without_copies(ordered: Sequence[Slice]) -> tuple[list[Slice], list[str]]:
    """One slice for each position, and a note on the copies that were dropped.

    Raises:
        Rejected: two different images stand at one position.
    """
    kept: list[Slice] = []
    copies: list[Slice] = []
    digests: dict[Path, list[bytes]] = {}
    for item in ordered:
        if not kept or item.depth - kept[-1].depth >= _SAME_MM:
            kept.append(item)
        elif _equal(kept[-1], item, digests):
            copies.append(item)
        else:
            same = kept[-1].path.name == item.path.name
            names = [f"{s.path.parent.name}/{s.path.name}" if same else s.path.name for s in (kept[-1], item)]
            raise Rejected(
                f"two different images at one position (z = {item.position[2]:g} mm): {names[0]} and {names[1]}; "
                "separate the acquisitions into series"
            )
    if not copies:
        return kept, []
    return kept, [f"copies of slices (equal position and pixels) dropped: {len(copies)}, such as {copies[0].path.name}"]


def _equal(one: Slice, other: Slice, digests: dict[Path, list[bytes]]) -> bool:
    """Whether two slices at one depth are one image of one acquisition; ``digests`` of pixels are filled as needed."""
    headers = [(s.acquisition, s.shape, s.rescale, s.rescale_type) for s in (one, other)]
    place, beside = (np.array([*s.position, *s.orientation, *s.pixel_spacing]) for s in (one, other))
    if headers[0] != headers[1] or not np.allclose(place, beside, rtol=0, atol=_SAME_MM):
        return False
    found = []
    for item in (one, other):
        if item.path not in digests:
            pairs = stored_pixels(item.path)
            frames = zip(*(a if item.frame is not None and a.ndim == 3 else a[None] for a in pairs), strict=True)
            digests[item.path] = [hashlib.sha256(p.tobytes() + outside.tobytes()).digest() for p, outside in frames]
        found.append(digests[item.path][min(item.frame or 0, len(digests[item.path]) - 1)])
    return found[0] == found[1]
