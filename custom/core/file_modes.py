"""Permissions of the files and folders that are written."""

from __future__ import annotations

import os
import re

__all__ = ["UMASK_VARIABLE", "new_mode"]

UMASK_VARIABLE = "FEWVIEW_UMASK"


def new_mode(most: int) -> int:
    """The mode of a new file (0o666) or folder (0o777): for the user alone, since it may hold data of a patient.

    The environment variable FEWVIEW_UMASK, such as 027, loosens it.

    Raises:
        ValueError: the variable is no umask.
    """
    text = os.environ.get(UMASK_VARIABLE, "077")
    if not re.fullmatch(r"0?[0-7]{1,3}", text):
        raise ValueError(f"{UMASK_VARIABLE} is {text!r}: it must be a umask in octal, such as 077 or 027")
    return most & ~int(text, 8)
