"""A type checker for jaxtyping that looks at the shapes of arrays alone; other annotations are mypy's business."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any

from jaxtyping import AbstractArray


def shapes_only(function: Callable[..., Any]) -> Callable[..., Any]:
    """Raises TypeError where an argument, or the result, has not the shape that its annotation says."""
    hints = typing.get_type_hints(function)
    signature = inspect.signature(function)

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            _check(name, value, hints.get(name))
        result = function(*args, **kwargs)
        _check("return", result, hints.get("return"))
        return result

    return checked


def _check(name: str, value: Any, hint: Any) -> None:
    if inspect.isclass(hint) and issubclass(hint, AbstractArray):
        if not isinstance(value, hint):
            raise TypeError(f"{name}: {getattr(value, 'shape', value)} is not {hint.__name__}")
    elif typing.get_origin(hint) in (typing.Union, types.UnionType) and value is not None:
        arrays = [part for part in typing.get_args(hint) if inspect.isclass(part) and issubclass(part, AbstractArray)]
        if len(arrays) == 1 and hasattr(value, "shape"):
            _check(name, value, arrays[0])
    elif typing.get_origin(hint) is tuple and isinstance(value, tuple) and len(typing.get_args(hint)) == len(value):
        for each, part in zip(value, typing.get_args(hint), strict=True):
            _check(name, each, part)
