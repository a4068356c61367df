"""What a plan on a reconstruction does to the patient, as numbers of a comparison's rows."""

from __future__ import annotations

import functools
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from custom.core.files import sha256_file
from custom.geometry import VolumeGrid
from custom.networks.segmentation_unet import load_segmenter
from custom.radiotherapy import (
    ModeResult,
    Patient,
    PencilBeamEngine,
    PlannedCase,
    compare_modes,
    dose_rules,
    find_template,
    plan_patient,
    planning_ct,
)
from custom.radiotherapy.dose_metrics import require_gamma
from custom.report.plan_pictures import isodose_picture

__all__ = ["PREFIX", "RadiotherapyJudge"]

#: Of all its columns: "rt.TEMPLATE.MODE.NUMBER".
PREFIX = "rt."
#: True patients whose plans are kept.
_KEPT = 8

Found = tuple[dict[str, float], dict[str, bytes]]


class RadiotherapyJudge:
    """Plans on reconstructions, compared with the truth in the three modes of `comparison_modes`.

    Args:
        templates: of planning.json.
        segmenter: weights that contour lungs, heart and spine.

    Raises:
        ValueError: an unknown template.
        FileNotFoundError: no weights.
        ModuleNotFoundError: the extra radiotherapy is not installed.
    """

    def __init__(self, templates: Sequence[str], segmenter: Path) -> None:
        for name in templates:
            find_template(name)
        require_gamma()
        self.templates, self.engine = tuple(templates), PencilBeamEngine()
        self.segmenter = load_segmenter(segmenter)
        self.identity = {"templates": list(templates), **dose_rules(self.engine.name, sha256_file(segmenter))}
        self._truths = functools.lru_cache(maxsize=_KEPT)(self._planned)
        self._memory: dict[tuple[_Volume, _Volume], Found] = {}

    def __call__(self, hu: Tensor, truth: Tensor, grid: VolumeGrid) -> Found:
        """Numbers and pictures.

        Args:
            hu: reconstruction, (X, Y, Z) HU.
            truth: the same.
            grid: of both.

        Returns:
            "rt.TEMPLATE.possible_on_truth" (0 or 1), and where it is 1 for each mode "rt.TEMPLATE.MODE.possible" (0 or
            1), the errors of `ModeResult`, and its numbers after ".true." and ".shown."; and PNG files by template, of
            the dose that the true patient gets from the plan on the reconstruction.
        """
        key = (_Volume(hu, grid), _Volume(truth, grid))
        if key not in self._memory:  # a null row is the same for every view set
            numbers: dict[str, float] = {}
            pictures: dict[str, bytes] = {}
            for template in self.templates:
                true = self._truths(key[1], template)
                numbers[f"{PREFIX}{template}.possible_on_truth"] = float(true.case is not None)
                if true.case is None:
                    continue
                estimate = self._planned(key[0], template)
                modes = compare_modes(estimate, true, self.engine)
                for mode, result in modes.items():
                    numbers |= _flat(f"{PREFIX}{template}.{mode}", result)
                delivered = modes["delivered"].true_dose_gy
                if estimate.case is not None and delivered is not None:
                    case = PlannedCase(true.ct, true.contours, estimate.case.plan, delivered)
                    stream = io.BytesIO()
                    isodose_picture(case).save(stream, "PNG")
                    pictures[template] = stream.getvalue()
            for volume in key:
                volume.forget()
            self._memory[key] = numbers, pictures
        return self._memory[key]

    def _planned(self, volume: _Volume, template: str) -> Patient:
        assert volume.hu is not None
        ct = planning_ct(volume.hu.numpy(), volume.grid.affine())
        return plan_patient(ct, template, self.segmenter, self.engine)


class _Volume:
    """A volume that is known by its content, which is forgotten after it was planned on."""

    def __init__(self, hu: Tensor, grid: VolumeGrid) -> None:
        self.hu: Tensor | None = hu.float().contiguous()
        self.grid = grid
        self.digest = hashlib.sha256(self.hu.numpy().tobytes() + repr(grid).encode()).digest()

    def forget(self) -> None:
        self.hu = None

    def __hash__(self) -> int:
        return hash(self.digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Volume) and self.digest == other.digest


def _flat(head: str, result: ModeResult) -> dict[str, float]:
    found = {f"{head}.possible": float(result.possible)}
    found |= {f"{head}.{name}": value for name, value in result.errors.items()}
    found |= {f"{head}.true.{name}": value for name, value in result.true.items()}
    found |= {f"{head}.shown.{name}": value for name, value in result.estimated.items()}
    return found
