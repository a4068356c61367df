"""`required`: a module of an optional package, or an error that says which extra has it."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["required"]


def required(module: str, extra: str, what: str) -> Any:
    """Import a module.

    Args:
        module: such as "pynetdicom.status".
        extra: of fewview-ct that installs it.
        what: needs it, to begin the message with.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        name = (error.name or module).replace("_", "-")
        raise ModuleNotFoundError(
            f"{what} {name}, which is not installed: pip install 'fewview-ct[{extra}]'"
        ) from error
