"""What a wrong file says: one line with the file, the key and the value."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import Field

from custom.core.json_models import StrictModel, validated


class Part(StrictModel):
    size: int | float = Field(gt=0)
    kinds: list[str] = Field(default_factory=list)


class Whole(StrictModel):
    name: str
    parts: dict[str, Part] = Field(default_factory=dict)
    switch: bool | list[str] = False


def test_remarks_are_passed_over_and_numbers_stay_what_they_are() -> None:
    found = validated(Whole, {"name": "a", "_why": "", "parts": {"one": {"size": 2}}}, "file.json")
    assert found.parts["one"].size == 2 and isinstance(found.parts["one"].size, int) and found.switch is False


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 3}, "file.json: 'name': input should be a valid string, got 3"),
        ({"colour": 1}, "file.json: unknown key 'colour'; there are name, parts, switch"),
        ({"parts": {"one": {}}}, "file.json: 'parts.one.size' is missing"),
        ({"parts": {"one": {"size": 1, "colour": 1}}}, "file.json: unknown key 'parts.one.colour'"),
        ({"parts": {"one": {"size": True}}}, "file.json: 'parts.one.size': input should be a valid integer, got True"),
        ({"parts": {"one": {"size": 1, "kinds": ["a", 2]}}}, "'parts.one.kinds.1': input should be a valid string"),
        ({"switch": 3}, "file.json: 'switch': input should be a valid boolean, got 3"),
        ({"parts": ["x" * 200]}, "'parts': input should be a valid dictionary, got ['xxx"),
    ],
)
def test_the_key_and_the_value_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        validated(Whole, {"name": "a", **change}, "file.json")
    assert message in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 200
