"""The part of a report that shows the radiographs: pictures, reprojections, geometry, and whose they are."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pydicom
from PIL import Image
from torch import Tensor

from custom.geometry import ViewRow
from custom.radiographs import MetadataValue, Origin
from custom.report.document import Document, Markup, escape, image
from custom.report.figures import DIFFERENCE_COLOURS
from custom.report.radiograph_pictures import difference_picture, grey_limits, grey_picture, residual, side_letters

if TYPE_CHECKING:
    from custom.radiographs import Radiograph

__all__ = ["NOT_GIVEN", "add_geometry", "add_radiographs", "patient_facts", "value_words"]

#: mm of water at the ends of the residual's colours: fixed, so that pages can be compared by eye.
RESIDUAL_LIMIT_MM = 30.0
#: Radiographs side by side in one table: more do not fit on A4.
_A_TABLE = 3
_WORDS = {"kvp": "Tube voltage", "intent": "Intended use of the picture"}
_UNITS = {"deg": "°"}
#: What marks a value that does not come from a file.
_MARKS = {Origin.OPTION: "assumed: ", Origin.USUAL_VALUE: "usual value: "}
#: Stands for what no header says.
NOT_GIVEN = "not in the radiographs' headers"


def patient_facts(headers: Sequence[pydicom.Dataset | None]) -> dict[str, str]:
    """Patient's name, ID and study date as they stand in the radiographs' headers, every different one.

    Args:
        headers: of the radiographs; None where a file has none.

    Returns:
        Texts by label: Patient Name (0010,0010), Patient ID (0010,0020), Study Date (0008,0020).
    """
    found = {}
    for label, keyword in (("Patient", "PatientName"), ("Patient ID", "PatientID"), ("Study date", "StudyDate")):
        texts = dict.fromkeys(_read(header, keyword) for header in headers if header is not None)
        found[label] = "; ".join(text for text in texts if text) or NOT_GIVEN
    return found


def _read(header: pydicom.Dataset, keyword: str) -> str:
    try:
        value = header.get(keyword)
        text = "" if value is None else str(value).strip(" \0")
    except (ValueError, TypeError, LookupError, OverflowError, AttributeError):
        return "(cannot be read)"
    if keyword == "StudyDate" and re.fullmatch(r"\d{8}", text):
        return f"{text[:4]}-{text[4:6]}-{text[6:]}"
    if keyword == "PatientName":
        groups = [" ".join(filter(None, group.split("^"))) for group in text.split("=")]
        return " = ".join(filter(None, groups))
    return text


def add_radiographs(
    document: Document,
    names: Sequence[str],
    images: Tensor,
    views: Tensor,
    field_mask: Tensor,
    reprojections: Tensor,
    energy_kev: float,
) -> None:
    """Pictures of every radiograph, of its reprojection and of their difference, with its numbers.

    Args:
        document: the page.
        names: of the radiographs.
        images: line integrals (K, V, U), as the model saw them.
        views: (K, 13).
        field_mask: bool (K, V, U).
        reprojections: of the reconstruction, (K, V, U).
        energy_kev: of the line integrals.
    """
    document.paragraph(
        "The reconstruction is projected again the way each radiograph was taken. Where both agree, the difference is "
        "black. Agreement is necessary and not sufficient: many volumes give the same few radiographs. Tissue outside "
        "the reconstructed box is in the radiograph and not in its reprojection: the numbers below count it too. "
        "The trust check of the reprojection leaves out all that is too thin, and takes off the scatter that fits best."
    )
    flipped = [str(k + 1) for k, view in enumerate(views) if "L" in side_letters(view)[0]]
    if flipped:
        document.paragraph(
            f"Each is shown as seen from its source. So in radiograph {', '.join(flipped)} the patient's left (L) is "
            "on the left, and in the planes of the reconstruction further down it is on the right."
        )
    document.markup(_legend())
    for k, name in enumerate(names):
        document.markup(Markup(f"<h3>{k + 1}. <bdi>{escape(name)}</bdi></h3>"))
        parts = images[k], reprojections[k], field_mask[k].bool()
        document.markup(_pictures(f"radiograph {k + 1} ({name})", *parts, views[k], energy_kev))


def _pictures(
    name: str, radiograph: Tensor, reprojection: Tensor, field_mask: Tensor, view: Tensor, energy_kev: float
) -> Markup:
    """Three pictures side by side; the first can be blended into the second."""
    pixel = tuple(ViewRow.from_tensor(view).pixel_mm.tolist())
    limits = grey_limits(radiograph, field_mask)
    own, again = (grey_picture(one, field_mask, limits, pixel) for one in (radiograph, reprojection))
    between = difference_picture(radiograph, reprojection, field_mask, energy_kev, RESIDUAL_LIMIT_MM, pixel)
    left, right = side_letters(view)
    letters = f'<span class="left">{left}</span><span class="right">{right}</span>'
    hidden = 100 * float((~field_mask).float().mean())
    first = "Radiograph as the model saw it" + (f". {hidden:.0f} % of it is not exposed (hatched)" if hidden else "")
    slider = (
        '<label class="blend">radiograph<input type="range" min="0" max="1" step="0.05" value="0" autocomplete="off" '
        f'aria-label="{escape(f"Blend {name} into its reprojection")}">reprojection</label>'
    )
    over = f'<div class="over">{image(again, "", photograph=True)}</div>'
    return Markup(
        '<div class="pictures">'
        + _picture(image(own, f"Input: {name}", photograph=True) + over + letters, first, slider)
        + _picture(
            image(again, f"Reprojection for {name}", photograph=True) + letters,
            "Reprojection of the reconstruction, same grey scale",
        )
        + _picture(
            image(between, f"Reprojection less radiograph, {name}", photograph=True) + letters,
            _in_numbers(radiograph, reprojection, field_mask, energy_kev),
        )
        + "</div>"
    )


def _picture(content: str, caption: str, control: str = "") -> str:
    return f'<figure><div class="stack">{content}</div>{control}<figcaption>{escape(caption)}</figcaption></figure>'


def _in_numbers(radiograph: Tensor, reprojection: Tensor, field_mask: Tensor, energy_kev: float) -> str:
    if not bool(field_mask.any()):
        return "No pixel of this radiograph is exposed: there is nothing to compare"
    found = residual(radiograph, reprojection, field_mask, energy_kev)
    return (
        f"Difference: {found.rms_mm:.1f} mm of water root mean square ({100 * found.share:.1f} % of the radiograph), "
        f"{found.mean_mm:+.1f} mm on average; too thin and too dense both count, tissue outside the box too"
    ).replace("-", "−")


def _legend() -> Markup:
    """A bar of the residual's colours with its ends and its name."""
    ramp = (np.asarray(DIFFERENCE_COLOURS(np.linspace(0, 1, 256)))[None, :, :3] * 255).round().astype(np.uint8)
    bar = image(
        Image.fromarray(np.repeat(ramp, 8, axis=0)),
        "Blue: the reconstruction is too thin. Black: equal. Orange: too dense.",
    )
    words = "Difference: reprojection less radiograph, in mm of water. Blue: the reconstruction is too thin; orange: "
    words += "too dense"
    low, high = f"−{RESIDUAL_LIMIT_MM:g}", f"+{RESIDUAL_LIMIT_MM:g}"
    return Markup(f'<div class="legend"><b>{words}</b><span>{low}</span>{bar}<span>{high}</span></div>')


def add_geometry(document: Document, radiographs: Sequence[Radiograph]) -> None:
    """Tables of what is known about each radiograph, each value with where it comes from."""
    document.paragraph(
        "Every value with its origin. What is marked does not come from a file: “assumed” was allowed by an option, a "
        "“usual value” stands where the file says nothing. Both hold only as far as they are true of this radiograph."
    )
    for first in range(0, len(radiographs), _A_TABLE):
        some = radiographs[first : first + _A_TABLE]
        head = [
            Markup(f"{n}. <bdi>{escape(one.name)}</bdi><small>{escape(one.modality or 'kind not known')}</small>")
            for n, one in enumerate(some, first + 1)
        ]
        names = {key: value for radiograph in some for key, value in radiograph.metadata.known().items()}
        rows = [
            [_label(key, value.unit), *(_cell(radiograph.metadata.get(key)) for radiograph in some)]
            for key, value in names.items()
        ]
        document.table(["Value", *head], rows, words=range(1, len(some) + 1), kind="wrap")


def _cell(found: MetadataValue[Any] | None) -> Markup:
    if found is None:
        return Markup('<span class="muted">not given</span>')
    _, value, mark, by = value_words(found)
    mark = f'<span class="assumed">{mark}</span>' if mark else ""
    return Markup(f"<bdi>{escape(value)}</bdi><small>{mark}<bdi>{escape(by)}</bdi></small>")


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
