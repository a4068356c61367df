"""The task behind POST /infer/MODEL: radiographs in, a CT in its own frame and what is known of it out."""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from custom.models import Model, save_volume
from custom.reconstruct import Reconstruction, reconstruct
from lib.request import VOLUMES, Request, parse

__all__ = ["Reconstruct"]


class Reconstruct(InferTask):
    """Reconstructs by `custom.reconstruct.reconstruct`, as the command line does.

    It is an `InferTask` and no `BasicInferTask`: that one loads one image and brings the result back onto its grid.

    Args:
        model: loaded; it stays in memory.
        find: turns an id or a path of a request into a file or folder that may be read.
    """

    def __init__(self, model: Model, find: Callable[[str], Path]) -> None:
        config: dict[str, Any] = {"views": "", "accept": "", "seed": 0}
        if model.can_sample:
            config |= {"samples": 0, "volume": list(VOLUMES)}
        size = " x ".join(map(str, model.grid.shape))
        super().__init__(
            type=InferType.OTHERS,
            labels=[],
            dimension=3,
            description=f"CT in HU from 1 to 8 radiographs, {size} voxels; an estimate, not for diagnosis",
            config=config,
        )
        self.model = model
        self._find = find
        self._busy = threading.Lock()

    def is_valid(self) -> bool:
        return True

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Reconstruct.

        Args:
            request: "image", an id or a path, and the parameters of `lib.request`.

        Returns:
            A NIfTI file (the caller removes it) and the result as result.json of the command line has it, with
            "hu_sha256" beside it.

        Raises:
            FileNotFoundError, PermissionError, ValueError, ModuleNotFoundError: the request is at fault; one line.
        """
        asked = parse(request)
        names = dict.fromkeys((request["image"], *asked.views))
        with self._busy:
            found = self._run([self._find(name) for name in names], asked)
        shown = found.hu if asked.volume == "mean" else found.std
        dtype = torch.int16 if asked.volume == "mean" else torch.float32
        assert shown is not None  # `parse` wants samples for the uncertainty
        with tempfile.NamedTemporaryFile(suffix=asked.extension, delete=False) as stream:
            path = Path(stream.name)
        try:
            save_volume(path, shown, found.grid, found.isocenter_mm, dtype)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        record = found.record({}) | {"hu_sha256": found.hu_sha256, "returned": asked.volume, "label_names": []}
        return str(path), record

    def _run(self, radiographs: list[Path], asked: Request) -> Reconstruction:
        with tempfile.TemporaryDirectory() as folder:
            geometry: Path | None = None
            if isinstance(asked.geometry, dict):
                geometry = Path(folder, "geometry.json")
                geometry.write_text(json.dumps(asked.geometry))
            elif asked.geometry is not None:
                geometry = self._find(asked.geometry)
            return reconstruct(
                radiographs,
                model=self.model,
                samples=asked.samples,
                geometry=geometry,
                accept=asked.accept,
                angles_deg=asked.angles_deg,
                seed=asked.seed,
            )
