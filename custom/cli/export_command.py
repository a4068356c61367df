"""The verb `fewview-ct export`: thresholds that are given are those of the model that is packed."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from custom.core.files import sha256_file
from custom.models import find_model
from custom.models.model_folder import export
from custom.trust import Thresholds

__all__ = ["command"]


@functools.wraps(export)
def command(model: str, output: str, **options: Any) -> Path:
    """As `export`, which lies below the room that knows thresholds."""
    if thresholds := options.get("thresholds"):
        packed = find_model(options.get("weights") or model)
        Thresholds.load(thresholds).require_model(sha256_file(packed.model), packed.name, thresholds)
    return export(model, output, **options)
