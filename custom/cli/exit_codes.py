"""Exit codes of the command."""

from __future__ import annotations

import enum

__all__ = ["ExitCode"]


class ExitCode(enum.IntEnum):
    """What the process ends with. A verb that returns one ends with it, any other with DONE."""

    DONE = 0
    FAILED = 1
    BAD_INPUT = 2
    REJECTED = 3  # reconstruct --strict: the verdict is REJECT
    TO_REVIEW = 4  # reconstruct --strict: the verdict is REVIEW
    NOT_POSSIBLE = 5  # plan: no plan of this kind is possible
    DRIFTED = 6  # drift: patients or devices have changed
    INTERRUPTED = 130
