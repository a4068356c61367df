"""The report of a reconstruction: one offline HTML file that says what was made of which radiographs, and how far to
trust it."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from custom import __version__
from custom.geometry import VolumeGrid
from custom.metrics import BODY_THRESHOLD_HU, body_mask
from custom.report.document import Document, Markup, escape, image
from custom.report.radiograph_section import add_geometry, add_radiographs, patient_facts
from custom.report.viewer import PackedVolume, add_viewer, pack_volumes, viewer_scripts
from custom.report.volume_pictures import (
    SPREAD_LIMIT_HU,
    TISSUES,
    histogram_picture,
    planes_picture,
    samples_picture,
    tissue_shares,
)
from custom.trust import NAMES, CheckResult, Verdict

if TYPE_CHECKING:
    from custom.radiographs import Radiograph

__all__ = ["STAMP", "ReportContent", "card_tables", "write_report"]

STAMP = "SYNTHETIC CT, NOT FOR DIAGNOSTIC USE"
#: Bytes of a page, and those kept for the controls of the viewer.
LARGEST, _CONTROLS = 15_000_000, 10_000

_UNCHECKED = "NOT CHECKED"
_MEANING = {
    "PASS": "No check found a reason to doubt this result. That does not make it right: most of a CT from few "
    "radiographs is what the model holds for usual. Review it before use.",
    "REVIEW": "At least one check found something unusual. A qualified person must look at the warnings below before "
    "anything is done with this volume.",
    "REJECT": "At least one check found that radiographs, geometry and result do not fit together. Do not use this "
    "volume; correct what the warnings below name and reconstruct again.",
}
_MEANING[_UNCHECKED] = (
    "Nothing was checked, so it is not known whether radiographs, geometry and result fit together. A qualified person "
    "must look at all of them before anything is done with this volume."
)
_SYMBOL = {"PASS": "✓", "REVIEW": "!", "REJECT": "✕", _UNCHECKED: "?"}
_DOUBT = {"REVIEW": "is in doubt", "REJECT": "does not hold"}
_WRITTEN = "written with this report"
_FOLDER = f"{_WRITTEN}; hash of what “LC_ALL=C sha256sum *” prints in it"
_INTENDED = (
    "Research, teaching and the set-up of workflows: a draft volume for review where radiographs are all there is.",
    "Any use beyond that needs local commissioning with CTs of the institution, an independent check of every result, "
    "and the decision of those who are responsible for the patient.",
)
_LIMITS = (
    "Not a medical device. Not for diagnosis, not for finding or excluding lesions, not as the only basis of a "
    "treatment plan.",
    "Radiographs leave most of a volume open. What they do not determine is filled in from the patients that the model "
    "was trained on; disease and anatomy that none of them had is likely to be missing or wrong.",
    "The uncertainty shows where the model's own samples differ. It does not know of errors that they all share, "
    "such as a wrong angle or a mirrored radiograph.",
    "Thresholds of the checks hold for radiographs like those that they were calibrated with.",
)


@dataclass(frozen=True)
class ReportContent:
    """What a report is made of.

    Attributes:
        radiographs: as they were read, one for each of the K views, in their order.
        image: line integrals as the model saw them, (K, V, U).
        views: (K, 13), isocentre frame.
        field_mask: bool (K, V, U); False where there was no exposure.
        reprojections: line integrals of the reconstruction, (K, V, U).
        energy_kev: of the line integrals.
        hu: the reconstruction (X, Y, Z), HU, RAS+.
        grid: of it, isocentre frame.
        checks: of `custom.trust.run_checks`.
        verdict: of them all, `custom.trust.overall`.
        model: "name" and "sha256" of the model; "card", its model card in Markdown; any further entries are shown by
            their names.
        warnings: in plain language, one sentence each, beyond those of the radiographs and checks.
        std: standard deviation of the samples (X, Y, Z), HU, on `grid`; None where none were drawn.
        samples: (X, Y, Z) HU each, of the same box in space, on grids of their own.
        files: SHA-256 by name of what was written beside the report; of a folder, whose name ends in "/", that of
            `custom.reconstruct.outputs.series_sha256`.
        version: of the software.
        created: when the reconstruction was made.
    """

    radiographs: Sequence[Radiograph]
    image: Tensor
    views: Tensor
    field_mask: Tensor
    reprojections: Tensor
    energy_kev: float
    hu: Tensor
    grid: VolumeGrid
    checks: Sequence[CheckResult]
    verdict: Verdict
    model: Mapping[str, str]
    warnings: Sequence[str] = ()
    std: Tensor | None = None
    samples: Sequence[Tensor] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    version: str = __version__
    created: datetime = field(default_factory=lambda: datetime.now().astimezone())

    def __post_init__(self) -> None:
        count = len(self.radiographs)
        if count == 0:
            raise ValueError("a report needs at least one radiograph")
        shapes = {name: tuple(getattr(self, name).shape) for name in ("image", "field_mask", "reprojections")}
        if self.image.ndim != 3 or len(set(shapes.values())) > 1 or len(self.image) != count:
            raise ValueError(f"{count} radiographs, and image, exposed and reprojections must be (K, V, U): {shapes}")
        if tuple(self.views.shape) != (count, 13):
            raise ValueError(f"views must be ({count}, 13), got {tuple(self.views.shape)}")
        for name in ("hu", "std"):
            volume = getattr(self, name)
            if volume is not None and tuple(volume.shape) != self.grid.shape:
                raise ValueError(f"{name} must be on the grid {self.grid.shape}, got {tuple(volume.shape)}")
        if any(sample.ndim != 3 for sample in self.samples):
            raise ValueError(f"samples must be (X, Y, Z), got {[tuple(s.shape) for s in self.samples]}")


def write_report(path: str | os.PathLike[str], content: ReportContent, largest: int = LARGEST) -> Path:
    """Write the report, whole or not at all.

    Args:
        path: of the HTML file.
        content: what it says.
        largest: bytes. Where it would be larger, the volumes in the viewer are coarser, the samples first, and the page
            says so.

    Raises:
        ValueError: if it does not fit, however coarse the volumes are.
    """
    count = len(content.radiographs)
    style = (resources.files("custom.report") / "assets" / "reconstruction.css").read_text(encoding="utf-8")
    page = Document(f"Synthetic CT from {count} radiograph{'s'[: count > 1]}", style=style, scripts=viewer_scripts())
    _head(page, content)
    page.section("Trust checks")
    _checks(page, content)
    page.section("Radiographs and reprojection")
    names = [radiograph.name for radiograph in content.radiographs]
    pictures = content.image, content.views, content.field_mask, content.reprojections
    add_radiographs(page, names, *pictures, content.energy_kev)
    page.section("Geometry and its sources")
    add_geometry(page, content.radiographs)
    page.section("Reconstruction")
    rest = Document("")
    _planes(rest, content)
    rest.section("CT values in the body")
    _histogram(rest, content)
    rest.section("Model")
    _model(rest, content)
    rest.section("Intended use and limits")
    rest.markup(_list(_INTENDED + _LIMITS))
    rest.section("Files")
    _files(rest, content)
    used = len(page.html().encode()) + len(rest.html().encode())
    volumes = pack_volumes(content.hu, content.grid, content.std, content.samples, largest - used - _CONTROLS)
    _about(page, content, volumes)
    add_viewer(page, volumes)
    page.append(rest)
    return page.write(path)


def _head(page: Document, content: ReportContent) -> None:
    facts = patient_facts([radiograph.header for radiograph in content.radiographs])
    facts["Reconstructed"] = content.created.strftime("%Y-%m-%d %H:%M %Z").strip()
    facts["Model"] = content.model.get("name", "not named")
    facts["Software"] = f"fewview-ct {content.version}"
    entries = "".join(f"<div><dt>{escape(k)}</dt><dd><bdi>{escape(v)}</bdi></dd></div>" for k, v in facts.items())
    verdict = content.verdict.value
    meaning = _MEANING[verdict]
    if verdict != "REJECT" and not any(map(_was_made, content.checks)):
        verdict, meaning = "REVIEW", _MEANING[_UNCHECKED]
    page.markup(Markup(f'<p class="stamp">{escape(STAMP)}</p>'))
    page.markup(Markup(f'<dl class="facts">{entries}</dl>'))
    page.markup(
        Markup(
            f'<div class="verdict {_kind(verdict)}" role="note" aria-label="Verdict"><strong><span aria-hidden="true">'
            f"{_SYMBOL[verdict]} </span>{escape(verdict)}</strong><p>{escape(meaning)}</p></div>"
        )
    )
    warnings = _warnings(content)
    page.section(f"Warnings ({len(warnings)})" if warnings else "Warnings")
    if warnings:
        page.markup(_list(warnings))
    else:
        page.paragraph("None beyond the limits that hold for every such volume, see below.")


def _warnings(content: ReportContent) -> list[str]:
    """Every warning once: of the checks that did not pass, then of the reconstruction, then of the radiographs."""
    found = [
        f"{check.verdict.value}: “{NAMES.get(check.name, check.name)}” {_DOUBT[check.verdict.value]}. {check.message}"
        for check in content.checks
        if check.verdict.value in _DOUBT
    ]
    found += content.warnings
    for radiograph in content.radiographs:
        found += [
            f"{radiograph.name}: {warning.removeprefix(f'{radiograph.name}: ')}" for warning in radiograph.warnings
        ]
    return list(dict.fromkeys(found))


def _list(texts: Sequence[str]) -> Markup:
    entries = "".join(f"<li><bdi>{escape(text)}</bdi></li>" for text in texts)
    return Markup(f'<ul class="warnings">{entries}</ul>')


def _checks(page: Document, content: ReportContent) -> None:
    if not content.checks:
        page.paragraph(_MEANING[_UNCHECKED])
        return
    page.paragraph(
        "What was measured against thresholds from cases with known CTs: above the first a person has to look, above "
        "the second the result is not to be used."
    )
    head = ["Check", "Verdict", "In words", "Measured", "Review above", "Reject above"]
    rows = [
        [
            NAMES.get(check.name, check.name),
            _badge(check.verdict.value if _was_made(check) else _UNCHECKED),
            check.message,
            *map(_number, (check.statistic, check.review_above, check.reject_above)),
        ]
        for check in content.checks
    ]
    page.table(head, rows, words=(1, 2), kind="checks")


def _was_made(check: CheckResult) -> bool:
    """False for a check that did not apply: it passes, with a message that begins so (`custom.trust.run_checks`)."""
    return check.verdict.value != "PASS" or not check.message.startswith("Not checked")


def _kind(verdict: str) -> str:
    """Class of a verdict in the style sheet."""
    return verdict.lower().replace(" ", "-")


def _badge(verdict: str) -> Markup:
    symbol = f'<span aria-hidden="true">{_SYMBOL[verdict]} </span>'
    return Markup(f'<span class="badge {_kind(verdict)}">{symbol}{verdict}</span>')


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return "∞" if math.isinf(value) else f"{value:.3g}"


def _about(page: Document, content: ReportContent, volumes: Sequence[PackedVolume]) -> None:
    size, spacing = _times(content.grid.shape), _times(content.grid.spacing_mm)
    words = [f"{size} voxels of {spacing} mm; the patient's right is on the left of the pictures."]
    if content.std is not None:
        words.append(
            "The colours are the standard deviation of the samples: transparent (in print black) where they agree, "
            f"pale yellow where they differ by {SPREAD_LIMIT_HU:g} HU or more."
        )
    else:
        words.append("No samples were drawn: this report cannot say where the radiographs leave the volume open.")
    page.paragraph(" ".join(words))
    coarse = [volume for volume in volumes if volume.reduced]
    if coarse:
        which = "all volumes are" if any(volume.name == "volume-ct" for volume in coarse) else "the samples are"
        page.paragraph(
            f"To keep this file small, {which} shown in the viewer with voxels of {_times(coarse[-1].spacing_mm)} mm. "
            "The files beside it are not reduced."
        )


def _times(numbers: Sequence[float]) -> str:
    return " × ".join(f"{number:g}" for number in numbers)


def _planes(page: Document, content: ReportContent) -> None:
    hu = content.hu.cpu().float().numpy()
    std = None if content.std is None else content.std.cpu().float().numpy()
    words = "Axial, coronal and sagittal plane through the middle of the reconstruction"
    words += ", below them the standard deviation of the samples" if std is not None else ""
    pictures = image(planes_picture(hu, content.grid.spacing_mm, std), words, photograph=True)
    if content.samples:
        samples = [sample.cpu().float().numpy() for sample in content.samples]
        strip = samples_picture(samples, content.grid)
        pictures = Markup(pictures + image(strip, "The coronal plane of each sample, side by side", photograph=True))
    page.markup(Markup(f'<div id="planes">{pictures}</div>'))


def _histogram(page: Document, content: ReportContent) -> None:
    inside = _in_body(content.hu)
    if inside.size == 0:
        page.paragraph(f"The reconstruction holds no body: nothing in it is denser than {BODY_THRESHOLD_HU:g} HU.")
        return
    page.paragraph(
        f"The body is what is denser than {BODY_THRESHOLD_HU:g} HU, and what that encloses. Where the skin is blurred, "
        "the part of its edge below that value counts as air outside, which leaves a step in the histogram there."
    )
    bodies = [values for values in map(_in_body, content.samples) if values.size]
    picture = image(histogram_picture(inside, bodies), "Histogram of the CT values in the body")
    page.markup(Markup(f'<figure class="chart">{picture}</figure>'))
    shares, of_samples = tissue_shares(inside), [tissue_shares(values) for values in bodies]
    rows = []
    for name, limits in TISSUES.items():
        row = [f"{name} ({_between(*limits)})", f"{100 * shares[name]:.1f} %"]
        if of_samples:
            found = [100 * one[name] for one in of_samples]
            row.append(f"{min(found):.1f} to {max(found):.1f} %")
        rows.append(row)
    page.table(["Share of the body's voxels", "Reconstruction"] + (["Samples"] if of_samples else []), rows)


def _between(low: float, high: float) -> str:
    if math.isinf(low):
        return f"below {high:g} HU"
    return f"above {low:g} HU" if math.isinf(high) else f"{low:g} to {high:g} HU"


def _in_body(hu: Tensor) -> np.ndarray:
    values = hu.detach().cpu().float().numpy()
    return values[body_mask(values)]


def _model(page: Document, content: ReportContent) -> None:
    named = {name: "SHA-256" if name == "sha256" else name.replace("_", " ") for name in content.model}
    own = [[named[name], value] for name, value in content.model.items() if name != "card"]
    card = card_tables(content.model.get("card", ""))
    if card and not any(card[0][0]):
        own += [row for row in card.pop(0)[1] if len(row) == 2]
    if own:
        rows = [[name, _text(value)] for name, value in own]
        page.table(["About the model", "What its files say"], rows, words=(1,), kind="wrap")
    else:
        page.paragraph("Nothing is known about the model.")
    for head, rows in card:
        page.table(head, rows, words=range(1, len(head)), kind="wrap")


def _files(page: Document, content: ReportContent) -> None:
    rows = [(radiograph.name, "radiograph", radiograph.sha256) for radiograph in content.radiographs]
    rows += [("model", content.model.get("name", ""), content.model["sha256"])] if "sha256" in content.model else []
    rows += [(name, _FOLDER if name.endswith("/") else _WRITTEN, digest) for name, digest in content.files.items()]
    page.table(["File", "What", "SHA-256"], [[*row[:2], _text(row[2])] for row in rows], words=(1, 2), kind="wrap")
    page.paragraph("This page needs no network and holds all that it shows. Viewer: NiiVue 0.69.0, BSD 2-Clause.")


def _text(value: str) -> Markup:
    """A text from a file, its hashes in letters of equal width."""
    return Markup(re.sub(r"\b[0-9a-f]{64}\b", lambda found: f'<span class="hash">{found[0]}</span>', escape(value)))


def card_tables(card: str) -> list[tuple[list[str], list[list[str]]]]:
    """The tables of a model card: what it is, then, say, the data that it was trained on.

    Args:
        card: Markdown.

    Returns:
        Head and rows of each table, as plain text: marks of code, bold and links are taken off.
    """
    tables: list[tuple[list[str], list[list[str]]]] = []
    lines = [line.strip() for line in card.splitlines()]
    for before, line in zip(["", *lines], lines, strict=False):
        if not line.startswith("|"):
            continue
        cells = [_plain(cell) for cell in re.split(r"(?<!\\)\|", line.strip("|"))]
        if not before.startswith("|"):
            tables.append((cells, []))
        elif len(cells) == len(tables[-1][0]) and not all(set(cell) <= set(":-") and cell for cell in cells):
            tables[-1][1].append(cells)
    return tables


def _plain(markdown: str) -> str:
    without_links = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", markdown)
    return re.sub(r"[`*]+", "", without_links).replace("\\|", "|").strip()
