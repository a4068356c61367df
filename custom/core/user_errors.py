"""Errors that a user can do something about, found in what frameworks wrap around them."""

from __future__ import annotations

import sys
from types import TracebackType

__all__ = ["BAD_INPUT_ERRORS", "said_last", "user_error"]

BAD_INPUT_ERRORS = (
    ValueError, FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError,
)  # fmt: skip


def user_error(error: BaseException) -> BaseException:
    """The outermost of an error and its causes that is one of `BAD_INPUT_ERRORS`; the error itself where none is."""
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    return next((cause for cause in causes if isinstance(cause, BAD_INPUT_ERRORS)), error)


def said_last(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A `sys.excepthook`: the whole traceback as always, and below it, on one line, what was wrong at first."""
    sys.__excepthook__(kind, error, trace)
    if (found := user_error(error)) is not error:
        sys.stderr.write(f"error: {' '.join(str(found).split())}\n")
