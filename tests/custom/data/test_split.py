"""Splits by patient."""

import json
from pathlib import Path

import pytest

from custom.data.split import check_leaks, match_names, read_split, seeded_split


def _write(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "split.json"
    path.write_text(json.dumps(content))
    return path


def test_reads_lists_and_ignores_comments(tmp_path: Path) -> None:
    content = {"comment": "x", "training": ["a", 7], "test": ["b"], "sample": ["b"]}
    assert read_split(_write(tmp_path, content)) == {"training": ["a", "7"], "test": ["b"], "sample": ["b"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"training": ["a"], "test": ["a"]}, "twice"),
        ({"training": ["a"], "sample": ["a"]}, "may not be trained on"),
        ({"train": ["a"]}, "known are"),
        (["a"], "not an object"),
        ({}, "known are"),
    ],
)
def test_bad_split_files(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_split(_write(tmp_path, content))


def test_split_file_that_is_missing_or_not_json(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no\.json"):
        read_split(tmp_path / "no.json")
    (tmp_path / "split.json").write_text("{")
    with pytest.raises(ValueError, match="not a JSON file"):
        read_split(tmp_path / "split.json")


def test_names_match_the_most_specific_alias() -> None:
    aliases = {"a": ["a", "1.2", "folder", "P"], "b": ["b", "1.3", "other", "P"], "P": ["P", "1.4", "x", "Q"]}
    assert match_names(["a", "1.3", "folder", "P", "none"], aliases) == {
        "a": ["a"], "1.3": ["b"], "folder": ["a"], "P": ["P"], "none": [],
    }  # fmt: skip
    del aliases["P"]
    assert match_names(["P"], aliases)["P"] == ["a", "b"]


def test_papers_counts_keep_patients_with_two_scans_in_training() -> None:
    """LIDC-IDRI: 1018 scans of 1010 people, 868/50/100 scans."""
    group_of = {f"scan{k}": f"patient{k if k < 1010 else k - 1010}" for k in range(1018)}
    part_of = seeded_split(group_of, counts=(868, 50, 100), seed=3)
    parts = list(part_of.values())
    assert [parts.count(p) for p in ("training", "validation", "test")] == [868, 50, 100]
    assert all(part_of[f"scan{k}"] == part_of[f"scan{1010 + k}"] == "training" for k in range(8))
    check_leaks(part_of, group_of)


def test_seed_decides_and_nothing_else() -> None:
    group_of = {f"c{k}": f"p{k}" for k in range(40)}
    backwards = dict(reversed(group_of.items()))
    assert seeded_split(group_of, seed=1) == seeded_split(backwards, seed=1)
    assert seeded_split(group_of, seed=1) != seeded_split(group_of, seed=2)
    parts = list(seeded_split(group_of, fractions=(0.5, 0.25, 0.25)).values())
    assert [parts.count(p) for p in ("training", "validation", "test")] == [20, 10, 10]


def test_counts_below_the_cohort_leave_the_surplus_out_and_minus_one_takes_it() -> None:
    group_of = {f"c{k}": f"p{k}" for k in range(10)}
    assert len(seeded_split(group_of, counts=(3, 2, 1))) == 6
    parts = list(seeded_split(group_of, counts=(-1, 2, 1)).values())
    assert parts.count("training") == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"counts": (9, 1, 1)}, "more scans than the 10"),
        ({"counts": (9, 1)}, "give three"),
        ({"counts": (-1, -1, 2)}, "at most one"),
        ({"fractions": (0.5, 0.2, 0.2)}, "sum to 1"),
        ({"fractions": (0.8, 0.1, 0.1), "counts": (8, 1, 1)}, "not both"),
        ({"counts": (1, 4, 5)}, "several scans"),
    ],
)
def test_splits_that_cannot_be(options: dict, message: str) -> None:
    group_of = {f"c{k}": f"p{min(k, 8)}" for k in range(10)}
    with pytest.raises(ValueError, match=message):
        seeded_split(group_of, **options)


def test_leak_names_the_patient_and_both_scans() -> None:
    with pytest.raises(ValueError, match=r"patient 'P'.*scan a.*scan b"):
        check_leaks({"a": "training", "b": "test"}, {"a": "P", "b": "P"})


def test_names_without_end_are_refused(tmp_path: Path) -> None:
    (tmp_path / "split.json").write_text(json.dumps({"training": [str(number) for number in range(100_001)]}))
    with pytest.raises(ValueError, match=r"split\.json: 100001 names are more than the 100000 that are read"):
        read_split(tmp_path / "split.json")
