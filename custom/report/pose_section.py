"""The section of a report that says where the views stood, where their poses were refined."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from custom.trust import PoseRefinement
from custom.trust.pose_words import angles_deg, pose_sentences

__all__ = ["pose_section"]


def pose_section(found: PoseRefinement | None, names: Sequence[str]) -> dict[str, Any]:
    """What the template is given: sentences, a table of moves, and how well the radiographs agree.

    Args:
        found: None: nobody asked, and there is no section.
        names: of the K radiographs.
    """
    if found is None or found.disagreement is None:
        return {"pose_sentences": pose_sentences(found, names) if found else [], "pose_rows": []}
    told = zip(names, angles_deg(found), found.moves, found.gains, strict=True)
    rows = [
        [name, f"{stated:.1f}", f"{taken:.1f}", f"{move.along_rows_mm:+.1f}", f"{move.along_columns_mm:+.1f}",
         f"{100 * move.distance:+.1f}" if "distance" in found.free else "–", f"{gain:.0f}"]
        for name, (stated, taken), move, gain in told
    ]  # fmt: skip
    before, after = found.disagreement
    return {
        "pose_sentences": pose_sentences(found, names),
        "pose_rows": rows,
        "pose_agreement": (
            f"The radiographs contradict each other by {before:.1%} as stated, and by {after:.1%} as taken (root mean "
            "square of what they share). Angles are in degrees; shifts are of source and detector in the picture; the "
            "last column is twice the logarithm of how much likelier the radiographs are with the move."
        ),
    }
