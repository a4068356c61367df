"""Volumes that MONAI's SaveImage leaves whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from monai.data import NibabelWriter

__all__ = ["AtomicNibabelWriter"]


class AtomicNibabelWriter(NibabelWriter):
    """MONAI's `NibabelWriter` by way of a temporary name: a kill leaves no half volume under the name of a whole one.

    In a config it is the `writer` of `SaveImaged`, as "custom.core.nibabel_writer.AtomicNibabelWriter".
    """

    def write(self, filename: str | os.PathLike[str], verbose: bool = False, **obj_kwargs: Any) -> None:
        """Write the volume.

        Raises:
            OSError: naming the file, if it cannot be written; no partial file is left.
        """
        path = Path(filename)
        partial = path.with_name(f".partial.{path.name}")
        try:
            super().write(partial, verbose=verbose, **obj_kwargs)
            os.replace(partial, path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise OSError(f"{path}: the volume could not be written (disk full?): {error}") from error
