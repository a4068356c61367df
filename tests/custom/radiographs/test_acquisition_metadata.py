"""Whom `merge` believes, what it calls a contradiction, and that nobody can change what was read."""

from __future__ import annotations

import itertools
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path
from typing import Any

import pytest

from custom.radiographs import AcquisitionMetadata, Contradiction, MetadataValue, Origin
from custom.radiographs.acquisition_metadata import value_of
from custom.radiographs.readings import Reading, exclude, found, merge

KNOWN = (Origin.GEOMETRY_FILE, Origin.SIDECAR, Origin.FILE)
STAND_INS = (Origin.OPTION, Origin.USUAL_VALUE)


def reading(key: str, value: Any, origin: Origin, **keywords: Any) -> Reading:
    return found(key, value, origin, f"the {origin.value}", **keywords)


@pytest.mark.parametrize("order", itertools.permutations(range(3)))
@pytest.mark.parametrize("first", range(len(Origin)))
def test_the_origin_that_is_believed_most_wins_in_any_order(first: int, order: tuple[int, ...]) -> None:
    origins = list(Origin)[first:]
    readings = [reading("kvp", 100.0 + k, origins[k]) for k in order if k < len(origins)]
    assert value_of(merge(*readings).kvp) == 100.0


@pytest.mark.parametrize(("known", "other"), itertools.combinations((*KNOWN, *STAND_INS), 2))
def test_a_value_of_another_origin_is_a_settled_contradiction_unless_it_stands_in(known: Origin, other: Origin) -> None:
    metadata = merge(reading("kvp", 90.0, other), reading("kvp", 120.0, known))
    assert metadata.questions == ()
    assert len(metadata.contradictions) == (other not in STAND_INS)
    for contradiction in metadata.contradictions:
        assert contradiction.settled and [one.value for one in contradiction.values] == [120.0, 90.0]
        assert "kvp is 120.0" in metadata.warnings()[0] and "90.0" in metadata.warnings()[0]


@pytest.mark.parametrize(
    ("key", "one", "other", "agree"),
    [
        ("pixel_mm", (0.14, 0.14), (0.14, 0.14005), True),
        ("pixel_mm", (0.14, 0.14), (0.14084, 0.14084), False),  # 0.6 %, which passed as equal: a thousandth of a mm
        ("pixel_mm", (0.14, 0.14), (0.14, 0.1402), False),
        ("source_to_detector_mm", 1800.0, 1801.0, True),
        ("source_to_detector_mm", 1800.0, 1803.0, False),
        ("angle_deg", 359.9, 0.1, True),
        ("angle_deg", 90.0, 91.0, False),
        ("detector_offset_mm", (0.0, 500.0), (0.4, 500.4), True),
        ("detector_offset_mm", (0.0, 500.0), (0.6, 500.0), False),
        ("orientation", "L\\F", "R\\F", False),
    ],
)
def test_what_differs_by_more_than_its_tolerance_contradicts(key: str, one: Any, other: Any, agree: bool) -> None:
    metadata = merge(reading(key, one, Origin.SIDECAR), reading(key, other, Origin.FILE))
    assert (metadata.contradictions == ()) == agree


def test_a_value_may_be_known_less_exactly_than_others() -> None:
    rough = reading("source_to_isocenter_mm", 1515.0, Origin.FILE, tolerance=0.01)
    assert merge(reading("source_to_isocenter_mm", 1500.0, Origin.FILE), rough).contradictions == ()


def test_a_file_that_contradicts_itself_is_asked_about_unless_something_else_answers() -> None:
    both = reading("view_position", "AP", Origin.FILE) + reading("view_position", "PA", Origin.FILE)
    (question,) = merge(both).questions
    assert '"view_position": "AP" or "PA"' in question.remedy and "AP by the file, but PA" in question.problem
    for answer in (reading("view_position", "AP", Origin.SIDECAR), reading("angle_deg", 90.0, Origin.SIDECAR)):
        metadata = merge(both, answer)
        assert metadata.questions == () and "the first is used" in metadata.warnings()[0]
    assert merge(both, reading("angle_deg", 90.0, Origin.FILE)).questions == (question,)


def test_what_cannot_be_is_not_used_and_named() -> None:
    metadata = merge(reading("pixel_mm", (1e30, 0.1), Origin.FILE), reading("pixel_mm", (0.2, 0.2), Origin.OPTION))
    assert value_of(metadata.pixel_mm) == (0.2, 0.2)
    assert "cannot be and is not used" in metadata.warnings()[0]
    assert metadata.state_of_tag("pixel_mm") == "is (1e+30, 0.1), which cannot be"
    assert metadata.state_of_tag("kvp") == "is absent"


def test_values_are_plain_have_units_and_cannot_be_changed() -> None:
    value = MetadataValue("pixel_mm", [-0.0, 0.12345678], Origin.OPTION, "x")
    assert str(value.value) == "(0.0, 0.123457)" and value.unit == "mm"
    assert value.provenance == "option --accept x"
    metadata = merge(Reading((value,)))
    with pytest.raises(FrozenInstanceError):
        metadata.pixel_mm = None  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        value.origin = Origin.FILE  # type: ignore[misc]
    assert list(metadata.known()) == ["pixel_mm"] and metadata.get("contradictions") is None


def test_every_value_with_a_unit_in_its_name_has_that_unit() -> None:
    for one in fields(AcquisitionMetadata):
        unit = one.name.rpartition("_")[2]
        assert unit not in ("mm", "deg") or MetadataValue(one.name, 0.0, Origin.FILE, "").unit == unit


@pytest.mark.parametrize("keys", [("angle_deg", "view_position"), ("intensity_sign", "photometric")])
def test_values_that_exclude_each_other_are_asked_about(keys: tuple[str, ...]) -> None:
    """Of geometry and of intensity alike."""
    values = [MetadataValue(key, "x", Origin.FILE, "the file") for key in keys]
    (question,) = merge(Reading(tuple(values)), exclude("both cannot be", keys, "one of them", *values)).questions
    assert isinstance(question, Contradiction) and not question.settled and list(question.values) == values
    assert str(replace(question, file="a.dcm", sidecar="a.json")).startswith("a.dcm: both cannot be; write one of them")


def test_the_documentation_has_the_order_of_belief() -> None:
    text = (Path(__file__).parents[3] / "docs/reference/radiographs.md").read_text()
    places = [text.index(f"| `{origin.value}` |") for origin in Origin]
    assert places == sorted(places)
