"""What pose refinement found, in words."""

from __future__ import annotations

from collections.abc import Sequence

from custom.geometry import ViewRow
from custom.trust.pose_refinement import PoseRefinement, ViewMove

__all__ = ["angles_deg", "pose_sentences", "pose_warnings"]


def angles_deg(found: PoseRefinement) -> list[tuple[float, float]]:
    """For every view the angle of its source as it is stated and as it was taken [degrees]."""
    both = (ViewRow.from_tensor(views).angle_deg.tolist() for views in (found.stated, found.views))
    return list(zip(*both, strict=True))


def pose_sentences(found: PoseRefinement, names: Sequence[str]) -> list[str]:
    """One sentence for every view, or one for all where nothing could be told.

    Args:
        names: of the K radiographs.
    """
    if found.why_not is not None:
        return [f"No position could be refined: {found.why_not}. All radiographs stand as stated."]
    return [_sentence(found, k, name) for k, name in enumerate(names)]


def pose_warnings(found: PoseRefinement, names: Sequence[str]) -> list[str]:
    """Of `pose_sentences` those that a reader must not miss: what was moved, and what could not be told."""
    sentences = pose_sentences(found, names)
    if found.why_not is not None:
        return sentences
    told = zip(sentences, found.moves, found.at_limit, strict=True)
    return [sentence for sentence, move, at_limit in told if at_limit or move != ViewMove()]


def _sentence(found: PoseRefinement, k: int, name: str) -> str:
    move = found.moves[k]
    if move != ViewMove():
        stated, taken = (_angle(angle) for angle in angles_deg(found)[k])
        return (
            f"{name} was taken as if from {taken} instead of {stated} degrees{_shift(move)}: the radiographs agree "
            "better so. Make sure that this is how the patient stood."
        )
    if k == 0:
        return f"{name} stands as stated: the others are moved relative to it."
    if found.at_limit[k]:
        return (
            f"{name} stands as stated, although the radiographs disagree: they would agree best at the end of what a "
            "radiograph may be moved by, so that something else may be wrong with it."
        )
    return f"{name} stands as stated: little speaks for any other position."


def _angle(degrees: float) -> str:
    return f"{round(degrees, 1) % 360:.1f}"


def _shift(move: ViewMove) -> str:
    """Of source and detector; u runs to the right of a picture, v downwards."""
    parts = []
    for value, names in (
        (move.along_rows_mm, ("right edge", "left edge")),
        (move.along_columns_mm, ("lower edge", "upper edge")),
    ):
        if abs(value) >= 0.5:
            parts.append(f"{abs(value):.0f} mm towards the picture's {names[value < 0]}")
    if abs(move.distance) >= 0.0005:
        parts.append(f"{abs(move.distance):.1%} {'closer' if move.distance < 0 else 'farther away'}")
    return f", with source and detector {', '.join(parts)}" if parts else ""
