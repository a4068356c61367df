"""pytest plugin (`-p tests.integration.pydicom2`): the suite's own writers, made for pydicom 3, run with pydicom 2.

The package itself gets no help: it has to write with either version.
"""

from __future__ import annotations

import sys
from typing import Any

import pydicom

_dcmwrite = pydicom.dcmwrite


def dcmwrite(target: Any, dataset: pydicom.Dataset, *args: Any, **options: Any) -> None:
    caller = sys._getframe(1).f_globals["__name__"]
    if "enforce_file_format" in options and not caller.startswith("custom"):
        syntax = pydicom.uid.UID(dataset.file_meta.TransferSyntaxUID)
        dataset.is_little_endian, dataset.is_implicit_VR = syntax.is_little_endian, syntax.is_implicit_VR
        options["write_like_original"] = not options.pop("enforce_file_format")
    _dcmwrite(target, dataset, *args, **options)


if int(pydicom.__version__.split(".")[0]) < 3:
    pydicom.dcmwrite = dcmwrite
