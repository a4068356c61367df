"""`Reconstruction`: a CT from radiographs with all that is known of it, and the content of result.json."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from custom import __version__
from custom.geometry import VolumeGrid
from custom.models import Model
from custom.radiographs import MetadataValue, Radiograph
from custom.sampling.atlas import WHOSE_DETAIL
from custom.trust import CheckResult, PoseRefinement, StatedIntervals, Verdict
from custom.trust.pose_words import angles_deg, pose_sentences

__all__ = ["FORMAT", "WARNING", "Reconstruction", "hu_sha256"]

FORMAT = "fewview-ct reconstruction 1"
WARNING = "A CT from few radiographs is mostly prior knowledge. Not for diagnosis or primary planning."


def hu_sha256(hu: Tensor | npt.NDArray[Any]) -> str:
    """SHA-256 of a CT's values, hexadecimal: int16 HU, little endian, (X, Y, Z) of the RAS+ grid, z running fastest.

    Args:
        hu: (X, Y, Z), whole HU.
    """
    values = hu.cpu().numpy() if isinstance(hu, Tensor) else np.asarray(hu)
    return hashlib.sha256(np.ascontiguousarray(values, dtype="<i2").tobytes()).hexdigest()


@dataclass
class Reconstruction:
    """A CT from radiographs, with all that is known of it.

    Attributes:
        hu: (X, Y, Z) HU, int16: the model's one volume, or the mean of the samples.
        grid: of `hu`, in the isocentre frame.
        isocenter_mm: the isocentre in the frame that files are written in: the CT's own where the radiographs name it,
            else (0, 0, 0), the isocentre frame itself.
        std: standard deviation of the samples (X, Y, Z) [HU], float32; None: no samples were drawn.
        samples: (X, Y, Z) HU each, int16.
        radiographs: as they were read, in the order of the views.
        image: line integrals as the model saw them (K, V, U).
        views: (K, 13), as it was made of them: moved where poses were refined.
        field_mask: bool (K, V, U), the exposed fields.
        reprojections: line integrals of `hu` (K, V, U).
        checks: of `custom.trust`; empty where `checked` is False.
        verdict: of all checks; REVIEW where none could be made.
        intervals: of voxels and measures, or why there are none; None: no thresholds came with the model.
        poses: what was moved, or why nothing could be told; None: nobody asked.
        model: that made it.
        settings: seed, precision, device and others that it depends on.
        seconds: what each stage took.
        warnings: in plain language, beyond those of radiographs and checks.
        created: when.
        folder: where it was written; None: nowhere.
    """

    hu: Tensor
    grid: VolumeGrid
    isocenter_mm: tuple[float, float, float]
    std: Tensor | None
    samples: list[Tensor]
    radiographs: list[Radiograph]
    image: Tensor
    views: Tensor
    field_mask: Tensor
    reprojections: Tensor
    checks: list[CheckResult]
    verdict: Verdict
    intervals: StatedIntervals | None
    poses: PoseRefinement | None
    model: Model
    settings: dict[str, Any]
    seconds: dict[str, float]
    warnings: list[str] = field(default_factory=list)
    created: datetime = field(default_factory=lambda: datetime.now().astimezone())
    folder: Path | None = None

    @property
    def affine(self) -> npt.NDArray[np.float64]:
        """Voxel index to millimetres, RAS+, (4, 4)."""
        return self.grid.affine(self.isocenter_mm)

    @property
    def hu_sha256(self) -> str:
        """Of `hu`, see `hu_sha256`."""
        return hu_sha256(self.hu)

    @property
    def model_identity(self) -> dict[str, str]:
        """What the DICOM writers take: name, sha256, version."""
        return {"name": self.model.name, "sha256": self.model.sha256, "version": __version__}

    @property
    def derivation(self) -> str:
        """What was done, in a sentence or two."""
        count = len(self.views)
        views = f"{count} radiograph{'s'[: count > 1]}"
        what = f"Mean of {len(self.samples)} samples" if self.samples else "Volume"
        detail = f" {WHOSE_DETAIL}" if self.samples and "atlas" in self.model.parents else ""
        return (
            f"{what} estimated from {views} by fewview-ct {__version__}, model {self.model.name} (SHA-256 "
            f"{self.model.sha256}); what the radiographs leave open is filled in from the model's training patients."
            f"{detail}"
        )

    def all_warnings(self) -> list[str]:
        """Every warning once: of checks, of the reconstruction, of the radiographs."""
        found = [f"{c.name}: {c.message}" for c in self.checks if c.verdict in (Verdict.REVIEW, Verdict.REJECT)]
        found += self.warnings
        found += [warning for radiograph in self.radiographs for warning in radiograph.warnings]
        return list(dict.fromkeys(found))

    def record(self, files: Mapping[str, str]) -> dict[str, Any]:
        """The content of result.json.

        Args:
            files: SHA-256 of what was written, by name.
        """
        return {
            "format": FORMAT,
            "software": f"fewview-ct {__version__}",
            "torch": torch.__version__,
            "created": self.created.isoformat(timespec="seconds"),
            "warning": WARNING,
            "verdict": self.verdict.value,
            "checks": [
                {**asdict(check), "verdict": check.verdict.value, "statistic": _finite(check.statistic)}
                for check in self.checks
            ],
            "intervals": _intervals(self.intervals),
            "poses": _poses(self.poses, [radiograph.name for radiograph in self.radiographs]),
            "warnings": self.all_warnings(),
            "model": {
                "name": self.model.name,
                "sha256": self.model.sha256,
                "parents": self.model.parents,
                "sampling": self.model.sampling if self.samples else None,
                "energy_kev": self.model.energy_kev,
                "pixel_at_isocenter_mm": self.model.pixel_at_isocenter_mm,
            },
            "settings": self.settings,
            "radiographs": [_radiograph(r, v) for r, v in zip(self.radiographs, self.views.tolist(), strict=True)],
            "detector_shape": list(self.image.shape[1:]),
            "volume": {
                "hu_sha256": self.hu_sha256,
                "shape": list(self.grid.shape),
                "spacing_mm": list(self.grid.spacing_mm),
                "affine": self.affine.tolist(),
                "isocenter_mm": list(self.isocenter_mm),
            },
            "seconds": {stage: round(value, 2) for stage, value in self.seconds.items()},
            "files": dict(files),
        }


def _finite(value: float | None) -> float | None:
    """None also for what JSON has no number for, such as how far a beam is from those that were trained."""
    return None if value is None or not math.isfinite(value) else value


def _intervals(stated: StatedIntervals | None) -> dict[str, Any] | None:
    if stated is None:
        return None
    measures = {
        one.name: {"value": one.value, "lower": one.lower, "upper": one.upper, "why_not": one.why_not}
        for one in stated.measures
    }
    block = None if stated.block_mm is None else list(stated.block_mm)
    return {
        "abstained": stated.abstained,
        "basis": stated.basis,
        "coverage": stated.coverage,
        "patients": stated.patients,
        "block_mm": block,
        "measures": measures,
        "isocenter_dose": _isocenter_dose(stated),
    }


def _isocenter_dose(stated: StatedIntervals) -> dict[str, Any] | None:
    """Dose delivered / dose planned, by template: what `fewview-ct plan` says of a plan on this reconstruction."""
    if stated.doses is None:
        return None
    templates = {}
    for name, one in stated.doses.templates.items():
        lower, upper = one.around(1.0, positive=True)
        templates[name] = {"lower": lower, "upper": upper, "patients": one.patients}
    return {"coverage": stated.coverage, "rules": dict(stated.doses.rules), "templates": templates}


def _poses(found: PoseRefinement | None, names: Sequence[str]) -> dict[str, Any] | None:
    if found is None:
        return None
    views = [
        {
            "stated_angle_deg": stated,
            "angle_deg": taken,
            "moved": asdict(move),
            "gain": gain,
            "at_limit": at_limit,
            "stated_view": view,
        }
        for (stated, taken), move, gain, at_limit, view in zip(
            angles_deg(found), found.moves, found.gains, found.at_limit, found.stated.tolist(), strict=True
        )
    ]
    before, after = found.disagreement or (None, None)
    return {
        "why_not": found.why_not,
        "free": list(found.free),
        "disagreement_before": before,
        "disagreement_after": after,
        "views": views,
        "in_words": pose_sentences(found, names),
    }


def _radiograph(radiograph: Radiograph, view: Sequence[float]) -> dict[str, Any]:
    return {
        "file": radiograph.name,
        "sha256": radiograph.sha256,
        "modality": radiograph.modality,
        "view": list(view),
        "metadata": {key: _metadata(found) for key, found in radiograph.metadata.known().items()},
        "warnings": list(radiograph.warnings),
    }


def _metadata(found: MetadataValue[Any]) -> dict[str, Any]:
    value = list(found.value) if isinstance(found.value, tuple) else found.value
    return {
        "value": value,
        "unit": found.unit,
        "origin": found.origin.value,
        "where": found.where,
        "provenance": found.provenance,
    }
