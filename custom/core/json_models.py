"""Base of the pydantic models for JSON that users write: errors in one line name file, key and value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

__all__ = ["StrictModel", "validated"]

Model = TypeVar("Model")


class StrictModel(BaseModel):
    """A model that neither converts values nor passes over keys that it does not know, since they are typing errors."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


def validated(model: type[Model], content: Mapping[str, Any], where: str, context: Any = None) -> Model:
    """What a model makes of an object. Keys that begin with an underscore are remarks.

    Args:
        model: pydantic model or dataclass.
        content: of the JSON file, or of a part of it.
        where: the file, and the part; the error begins with it.
        context: for the model's own validators.

    Raises:
        ValueError: in one line, the first key that is wrong and why.
    """
    given = {key: value for key, value in content.items() if not key.startswith("_")}
    try:
        return TypeAdapter(model).validate_python(given, context=context)
    except ValidationError as error:
        raise ValueError(f"{where}: {_words(error, model, given)}") from error


def _words(error: ValidationError, model: type, given: Any) -> str:
    first = error.errors()[0]
    keys: list[str] = []
    value: Any = given
    for part in first["loc"]:
        there = part in (range(len(value)) if isinstance(value, list) else value if isinstance(value, dict) else ())
        if not there and first["type"] != "missing":
            break  # of several types that are allowed pydantic names each as if it were a key
        keys.append(str(part))
        value = value[part] if there else None
    key = repr(".".join(keys))
    if first["type"] == "missing":
        return f"{key} is missing"
    if first["type"] == "extra_forbidden":
        known = ", ".join(sorted(getattr(model, "model_fields", ())))
        return f"unknown key {key}" + (f"; there are {known}" if known and len(first["loc"]) == 1 else "")
    if first["type"] == "value_error":
        own = str(first["ctx"]["error"])
        return f"{key}: {own}" if first["loc"] else own
    found, words = repr(first["input"]), first["msg"]
    shown = found if len(found) < 80 else f"{found[:77]}..."
    return f"{key}: {words[:1].lower()}{words[1:]}, got {shown}"
