"""`AtomicNibabelWriter`: a writer for MONAI's SaveImage whose files are whole or absent."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import ImageWriter, NibabelWriter

from custom.core.files import write_nifti

__all__ = ["AtomicNibabelWriter"]


class AtomicNibabelWriter(NibabelWriter):
    """MONAI's `NibabelWriter` by way of `write_nifti`: a kill leaves no half volume under the name of a whole one.

    In a config it is the `writer` of `SaveImaged`, as "custom.core.nibabel_writer.AtomicNibabelWriter".
    """

    def write(self, filename: str | os.PathLike[str], verbose: bool = False, **obj_kwargs: Any) -> None:
        """Write the volume.

        Raises:
            OSError: naming the file, if it cannot be written; no partial file is left.
        """
        ImageWriter.write(self, filename, verbose=verbose)
        image = self.create_backend_obj(self.data_obj, affine=self.affine, dtype=self.output_dtype, **obj_kwargs)
        write_nifti(Path(filename), np.asanyarray(image.dataobj), image.affine)
