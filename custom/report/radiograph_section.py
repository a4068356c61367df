"""The part of a report that shows the radiographs: pictures, reprojections and geometry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import Tensor

from custom.geometry import ViewRow
from custom.radiographs import MetadataValue, Origin
from custom.report.document import image
from custom.report.figures import DIFFERENCE_COLOURS
from custom.report.radiograph_pictures import difference_picture, grey_limits, grey_picture, residual, side_letters

if TYPE_CHECKING:
    from custom.radiographs import Radiograph

__all__ = ["geometry_section", "radiographs_section", "value_words"]

#: mm of water at the ends of the residual's colours: fixed, so that pages can be compared by eye.
RESIDUAL_LIMIT_MM = 30.0
#: Radiographs side by side in one table: more do not fit on A4.
_A_TABLE = 3
_WORDS = {"kvp": "Tube voltage", "intent": "Intended use of the picture"}
_UNITS = {"deg": "°"}
#: What marks a value that does not come from a file.
_MARKS = {Origin.OPTION: "assumed: ", Origin.USUAL_VALUE: "usual value: "}


def radiographs_section(
    names: Sequence[str],
    images: Tensor,
    views: Tensor,
    field_mask: Tensor,
    reprojections: Tensor,
    energy_kev: float,
) -> dict[str, Any]:
    """What templates/radiographs.html shows: every radiograph, its reprojection and their difference, with its numbers.

    Args:
        names: of the radiographs.
        images: line integrals (K, V, U), as the model saw them.
        views: (K, 13).
        field_mask: bool (K, V, U).
        reprojections: of the reconstruction, (K, V, U).
        energy_kev: of the line integrals.
    """
    ramp = (np.asarray(DIFFERENCE_COLOURS(np.linspace(0, 1, 256)))[None, :, :3] * 255).round().astype(np.uint8)
    words = "Blue: the reconstruction is too thin. Black: equal. Orange: too dense."
    each = zip(names, images, reprojections, field_mask.bool(), views, strict=True)
    return {
        "flipped": [str(k + 1) for k, view in enumerate(views) if "L" in side_letters(view)[0]],
        "limit_mm": RESIDUAL_LIMIT_MM,
        "ramp": image(Image.fromarray(np.repeat(ramp, 8, axis=0)), words),
        "radiographs": [_pictures(f"radiograph {k} ({one[0]})", *one, energy_kev) for k, one in enumerate(each, 1)],
    }


def _pictures(
    described: str,
    name: str,
    radiograph: Tensor,
    reprojection: Tensor,
    field_mask: Tensor,
    view: Tensor,
    energy_kev: float,
) -> dict[str, Any]:
    """Three pictures that stand side by side; the second is also blended over the first."""
    pixel = tuple(ViewRow.from_tensor(view).pixel_mm.tolist())
    limits = grey_limits(radiograph, field_mask)
    own, again = (grey_picture(one, field_mask, limits, pixel) for one in (radiograph, reprojection))
    between = difference_picture(radiograph, reprojection, field_mask, energy_kev, RESIDUAL_LIMIT_MM, pixel)
    return {
        "name": name,
        "letters": side_letters(view),
        "own": image(own, f"Input: {described}", photograph=True),
        "over": image(again, "", photograph=True),
        "again": image(again, f"Reprojection for {described}", photograph=True),
        "between": image(between, f"Reprojection less radiograph, {described}", photograph=True),
        "hidden_percent": 100 * float((~field_mask).float().mean()),
        "in_numbers": _in_numbers(radiograph, reprojection, field_mask, energy_kev),
    }


def _in_numbers(radiograph: Tensor, reprojection: Tensor, field_mask: Tensor, energy_kev: float) -> str:
    if not bool(field_mask.any()):
        return "No pixel of this radiograph is exposed: there is nothing to compare"
    found = residual(radiograph, reprojection, field_mask, energy_kev)
    return (
        f"Difference: {found.rms_mm:.1f} mm of water root mean square ({100 * found.share:.1f} % of the radiograph), "
        f"{found.mean_mm:+.1f} mm on average; too thin and too dense both count, tissue outside the box too"
    ).replace("-", "−")


def geometry_section(radiographs: Sequence[Radiograph]) -> list[tuple[list[Any], list[Any]]]:
    """What templates/geometry.html shows, a table each: number, name and kind of radiographs, and rows of values.

    A row is a value's label and for each radiograph its `value_words`, or None where it is not known.
    """
    tables = []
    for first in range(0, len(radiographs), _A_TABLE):
        some = radiographs[first : first + _A_TABLE]
        head = [(n, one.label, one.modality or "kind not known") for n, one in enumerate(some, first + 1)]
        names = {key: value for radiograph in some for key, value in radiograph.metadata.known().items()}
        rows = []
        for key, value in names.items():
            found = [radiograph.metadata.get(key) for radiograph in some]
            rows.append((_label(key, value.unit), [None if one is None else value_words(one) for one in found]))
        tables.append((head, rows))
    return tables


def value_words(found: MetadataValue[Any]) -> tuple[str, str, str, str]:
    """Name with unit, value, what marks a value that no file says ("assumed: ", else ""), and where it comes from."""
    by = found.where if found.origin is Origin.USUAL_VALUE else found.provenance
    return _label(found.key, found.unit), _value(found.value), _MARKS.get(found.origin, ""), by


def _label(key: str, unit: str) -> str:
    """The name of a value in words, its unit in brackets."""
    words = _WORDS.get(key) or key.removesuffix(f"_{unit}").replace("_", " ").capitalize()
    return f"{words} [{_UNITS.get(unit, unit)}]" if unit else words


def _value(value: Any) -> str:
    if value is None:
        return "not given"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float | np.floating):
        return f"{value:.6g}"
    if isinstance(value, Tensor | np.ndarray):
        return _value(value.tolist())
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_value(entry)}" for name, entry in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(_value, value)) or "none"
    return str(value)
