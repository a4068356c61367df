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
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from custom import __version__
from custom.geometry import ViewRow, VolumeGrid
from custom.metrics import BODY_THRESHOLD_HU, body_mask
from custom.report.document import Markup, fragment, hashes, image, render_page, write_page
from custom.report.interval_section import interval_section
from custom.report.patient_head import patient_facts, patient_line, running_head
from custom.report.pose_section import pose_section
from custom.report.radiograph_pictures import grey_limits, grey_picture, side_letters
from custom.report.radiograph_section import geometry_section, radiographs_section
from custom.report.viewer import PackedVolume, pack_volumes, viewer_content, viewer_scripts
from custom.report.volume_pictures import (
    SPREAD_LIMIT_HU,
    TISSUES,
    histogram_picture,
    planes_picture,
    samples_picture,
    tissue_shares,
)
from custom.sampling.atlas import WHOSE_DETAIL
from custom.trust import NAMES, CheckResult, PoseRefinement, StatedIntervals, Verdict

if TYPE_CHECKING:
    from custom.radiographs import Radiograph

__all__ = ["STAMP", "ReportContent", "card_tables", "head", "write_report"]

STAMP = "SYNTHETIC CT, NOT FOR DIAGNOSTIC USE"
#: Bytes of a page, and those kept for the controls of the viewer.
LARGEST, _CONTROLS = 15_000_000, 10_000

#: Of a verdict, and radiographs beside the CT, that are taken in at a glance.
REASONS, OVERVIEW_RADIOGRAPHS = 3, 2

_DOUBT = {"REVIEW": "is in doubt", "REJECT": "does not hold"}
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_WRITTEN = "written with this report"
_FOLDER = f"{_WRITTEN}; hash of what “LC_ALL=C sha256sum *” prints in it"


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
        intervals: of voxels and measures, or why there are none; None: nothing was calibrated.
        poses: what views were moved by, or why not; None: nobody asked.
        grey_wider_than_hu: where intervals are wider, the planes beside them hide the CT; None: nowhere.
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
    intervals: StatedIntervals | None = None
    poses: PoseRefinement | None = None
    grey_wider_than_hu: float | None = None
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
    folder, count = resources.files("custom.report") / "assets", len(content.radiographs)
    facts = patient_facts([one.header for one in content.radiographs])
    subject = patient_line(facts, nameless="patient not named in the radiographs")
    page = {
        "template": "reconstruction.html",
        "title": f"Synthetic CT from {count} radiograph{'s'[: count > 1]}",
        "subject": subject,
        "style": (folder / "reconstruction.css").read_text(encoding="utf-8")
        + running_head(f"{subject} · reconstructed {_made_at(content)}"),
        "scripts": viewer_scripts(),
        **head(content),
        "checks": _checks(content.checks),
        "radiographs": _radiographs(content),
        "geometry": fragment("geometry.html", geometry=geometry_section(content.radiographs)),
        **pose_section(content.poses, [radiograph.label for radiograph in content.radiographs]),
        "size": _times(content.grid.shape),
        "spacing": _times(content.grid.spacing_mm),
        "has_spread": content.std is not None,
        "spread_limit_hu": SPREAD_LIMIT_HU,
        "whose_detail": WHOSE_DETAIL if content.std is not None and "atlas_sha256" in content.model else "",
        "planes": _planes(content),
        "samples": _samples(content),
        **interval_section(content.intervals, content.hu, content.grid, content.grey_wider_than_hu),
        **_histogram(content),
        **_model(content.model),
        "files": _files(content),
    }
    used = len(render_page(**page, **_viewer([])).encode())
    volumes = pack_volumes(content.hu, content.grid, content.std, content.samples, largest - used - _CONTROLS)
    return write_page(path, **page, **_viewer(volumes))


def _made_at(content: ReportContent) -> str:
    return content.created.strftime("%Y-%m-%d %H:%M %Z").strip()


def head(content: ReportContent) -> dict[str, Any]:
    """What the report begins with: stamp, verdict, overview, facts and warnings."""
    facts = patient_facts([radiograph.header for radiograph in content.radiographs])
    facts["Reconstructed"] = _made_at(content)
    facts["Model"] = content.model.get("name", "not named")
    facts["Software"] = f"fewview-ct {content.version}"
    verdict = meaning = content.verdict.value
    if verdict != "REJECT" and not _made(content.checks):
        verdict, meaning = "REVIEW", "NOT CHECKED"
    expected = [
        f"E{check.message.removeprefix('As usual: ')[1:]}"
        for check in _made(content.checks)
        if check.name == "expected_error"
    ]
    return {
        "stamp": STAMP,
        "facts": facts,
        "verdict": verdict,
        "meaning": meaning,
        "reasons": _reasons(content.checks),
        "expected": "".join(expected),
        "overview": _overview(content),
        "warnings": _warnings(content),
    }


def _reasons(checks: Sequence[CheckResult]) -> list[str]:
    """What the worst checks say, at most `REASONS` of them; the others stand among the warnings."""
    found = [check for verdict in ("REJECT", "REVIEW") for check in checks if check.verdict.value == verdict]
    return [check.message for check in found if check.name != "expected_error"][:REASONS]


def _overview(content: ReportContent) -> list[tuple[Markup, str, str, str]]:
    """The first radiographs, each with the patient's sides at its left and right, and a caption."""
    found = []
    for k, view in enumerate(content.views[:OVERVIEW_RADIOGRAPHS]):
        seen, pixel = content.field_mask[k].bool(), tuple(ViewRow.from_tensor(view).pixel_mm.tolist())
        picture = grey_picture(content.image[k], seen, grey_limits(content.image[k], seen), pixel)
        found.append(
            (image(picture, f"Radiograph {k + 1}", photograph=True), *side_letters(view), f"Radiograph {k + 1}")
        )
    return found


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
            f"{radiograph.label}: {warning.removeprefix(f'{radiograph.name}: ')}" for warning in radiograph.warnings
        ]
    return list(dict.fromkeys(found))


def _checks(checks: Sequence[CheckResult]) -> list[tuple[str, str, str, list[str]]]:
    """Name, verdict, message and numbers of each."""
    return [
        (
            NAMES.get(check.name, check.name),
            check.verdict.value,
            check.message,
            [_number(value) for value in (check.statistic, check.review_above, check.reject_above)],
        )
        for check in checks
    ]


def _made(checks: Sequence[CheckResult]) -> list[CheckResult]:
    return [check for check in checks if check.verdict is not Verdict.NOT_CHECKED]


def _number(value: float | None) -> str:
    """Three digits that count, however small or large, such as 2.1·10⁻⁷."""
    if value is None:
        return "–"
    if math.isinf(value):
        return "∞"
    digits, _, exponent = f"{value:.3g}".partition("e")
    power = f"·10{str(int(exponent)).translate(_RAISED)}" if exponent else ""
    return digits.replace("-", "−") + power


def _radiographs(content: ReportContent) -> Markup:
    names = [radiograph.label for radiograph in content.radiographs]
    pictures = content.image, content.views, content.field_mask, content.reprojections
    return fragment("radiographs.html", **radiographs_section(names, *pictures, content.energy_kev))


def _viewer(volumes: Sequence[PackedVolume]) -> dict[str, Any]:
    """The viewer, and how coarse it is where it is coarser than the reconstruction."""
    coarse = [volume for volume in volumes if volume.reduced]
    return {
        "viewer": viewer_content(volumes),
        "coarse_mm": _times(coarse[-1].spacing_mm) if coarse else "",
        "coarse_ct": any(volume.name == "volume-ct" for volume in coarse),
    }


def _times(numbers: Sequence[float]) -> str:
    return " × ".join(f"{number:g}" for number in numbers)


def _planes(content: ReportContent) -> Markup:
    hu = content.hu.cpu().float().numpy()
    std = None if content.std is None else content.std.cpu().float().numpy()
    words = "Axial, coronal and sagittal plane through the middle of the reconstruction"
    words += ", below them the standard deviation of the samples" if std is not None else ""
    return image(planes_picture(hu, content.grid.spacing_mm, std), words, photograph=True)


def _samples(content: ReportContent) -> Markup | None:
    if not content.samples:
        return None
    strip = samples_picture([sample.cpu().float().numpy() for sample in content.samples], content.grid)
    return image(strip, "The coronal plane of each sample, side by side", photograph=True)


def _histogram(content: ReportContent) -> dict[str, Any]:
    """The histogram of the body (None where there is none), and shares of tissues in it and in the samples' bodies."""
    found: dict[str, Any] = {"body_hu": BODY_THRESHOLD_HU, "histogram": None, "tissues": []}
    inside = _in_body(content.hu)
    if inside.size == 0:
        return found
    bodies = [values for values in map(_in_body, content.samples) if values.size]
    found["histogram"] = image(histogram_picture(inside, bodies), "Histogram of the CT values in the body")
    shares, of_samples = tissue_shares(inside), [tissue_shares(values) for values in bodies]
    for name, limits in TISSUES.items():
        row = [f"{name} ({_between(*limits)})", f"{100 * shares[name]:.1f} %"]
        if of_samples:
            percents = [100 * one[name] for one in of_samples]
            row.append(f"{min(percents):.1f} to {max(percents):.1f} %")
        found["tissues"].append(row)
    return found


def _between(low: float, high: float) -> str:
    if math.isinf(low):
        return f"below {high:g} HU"
    return f"above {low:g} HU" if math.isinf(high) else f"{low:g} to {high:g} HU"


def _in_body(hu: Tensor) -> np.ndarray:
    values = hu.detach().cpu().float().numpy()
    return values[body_mask(values)]


def _model(model: Mapping[str, str]) -> dict[str, Any]:
    """Names and values of what the model's files and its card's tables without a head say, and the card's others."""
    named = {name: "SHA-256" if name == "sha256" else name.replace("_", " ") for name in model}
    own = [[named[name], value] for name, value in model.items() if name != "card"]
    tables = card_tables(model.get("card", ""))
    own += [row for head, rows in tables if not any(head) for row in rows if len(row) == 2]
    return {"model": [[name, hashes(value)] for name, value in own], "card": [t for t in tables if any(t[0])]}


def _files(content: ReportContent) -> list[list[str]]:
    rows = [(radiograph.label, "radiograph", radiograph.sha256) for radiograph in content.radiographs]
    rows += [("model", content.model.get("name", ""), content.model["sha256"])] if "sha256" in content.model else []
    rows += [(name, _FOLDER if name.endswith("/") else _WRITTEN, digest) for name, digest in content.files.items()]
    return [[name, what, hashes(digest)] for name, what, digest in rows]


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
