"""Split of a cohort into training, validation and test patients, from a file or from a seed."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from custom.core.files import read_json
from custom.core.limits import check_count

PARTS = ("training", "validation", "test", "stress")
"""Parts a case belongs to, one each. "stress" holds faulty scans: neither trained on nor averaged."""

MOST_NAMES = 100_000
FLAG = "sample"
"""A list of a split file that flags cases of other parts: shown as the example, never trained on."""


def read_split(path: Path) -> dict[str, list[str]]:
    """A split file: JSON object with lists of names under `PARTS` and, optionally, `FLAG`.

    A name is a case's name, a patient identifier, the name of a DICOM folder or a SeriesInstanceUID.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such an object, an unknown part, more names than are read, or one that stands in two parts.
    """
    content = read_json(path, "no such split file")
    if not isinstance(content, dict):
        raise ValueError(f"split file {path} holds a {type(content).__name__}, not an object of lists")
    lists = {key: value for key, value in content.items() if isinstance(value, list)}
    unknown = set(lists) - {*PARTS, FLAG}
    if unknown or not lists:
        raise ValueError(f"split file {path} has the lists {sorted(lists)}; known are {', '.join((*PARTS, FLAG))}")
    check_count(path, "names", sum(map(len, lists.values())), MOST_NAMES)
    split = {key: [str(name) for name in value] for key, value in lists.items()}
    seen: dict[str, str] = {}
    for part in PARTS:
        for name in split.get(part, []):
            if name in seen:
                raise ValueError(f"split file {path} has {name!r} twice: in {seen[name]!r} and in {part!r}")
            seen[name] = part
    trained = [name for name in split.get(FLAG, []) if seen.get(name) in ("training", "validation")]
    if trained:
        raise ValueError(f"split file {path}: the sample case {trained[0]!r} may not be trained on")
    return split


def match_names(names: Sequence[str], aliases: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Which cases each name of a split file means.

    Args:
        names: the file's names.
        aliases: for every case its names, the most specific first: case name, SeriesInstanceUID, folder, patient.

    Returns:
        For every name its cases: those that carry it at the most specific level; empty where there is none.
    """
    result: dict[str, list[str]] = {}
    depth = max((len(a) for a in aliases.values()), default=0)
    for name in names:
        hits: list[str] = []
        for level in range(depth):
            hits = [case for case, own in aliases.items() if level < len(own) and own[level] == name]
            if hits:
                break
        result[name] = sorted(hits)
    return result


def check_leaks(part_of: Mapping[str, str], group_of: Mapping[str, str]) -> None:
    """Raise ValueError where one patient (group) stands in two parts."""
    first: dict[str, str] = {}
    for case, part in sorted(part_of.items()):
        other = first.setdefault(group_of[case], case)
        if part_of[other] != part:
            raise ValueError(
                f"patient {group_of[case]!r} would be in {part_of[other]!r} (scan {other}) and in {part!r} (scan "
                f"{case}): put all scans of one patient into one part of the split file"
            )


def _order(seed: int, group: str) -> str:
    """A sort key that is random in the seed and does not depend on who else is in the cohort."""
    return hashlib.sha256(f"{seed}|{group}".encode()).hexdigest()


def seeded_split(
    group_of: Mapping[str, str],
    fractions: Sequence[float] | None = None,
    counts: Sequence[int] | None = None,
    seed: int = 0,
) -> dict[str, str]:
    """Split scans by patient at random: a patient with several scans goes to training (1018 scans of 1010 people).

    Args:
        group_of: the patient of every case.
        fractions: shares of scans for training, validation, test; they sum to 1. Default (0.8, 0.1, 0.1).
        counts: numbers of scans instead, e.g. (868, 50, 100); one may be -1, meaning the rest.
        seed: any integer; the same cohort and seed give the same split.

    Returns:
        Part of every case. With ``counts`` below the cohort's size the surplus is absent.

    Raises:
        ValueError: fractions or counts that cannot be met.
    """
    total = len(group_of)
    if fractions is not None and counts is not None:
        raise ValueError("give fractions or counts, not both")
    if counts is not None:
        wanted = [int(c) for c in counts]
        if len(wanted) != 3 or min(wanted) < -1 or wanted.count(-1) > 1:
            raise ValueError(
                f"counts are {list(counts)}: give three (training, validation, test), at most one of them -1"
            )
        if -1 in wanted:
            wanted[wanted.index(-1)] = total - sum(c for c in wanted if c >= 0)
        if sum(wanted) > total or min(wanted) < 0:
            raise ValueError(f"counts {list(counts)} ask for more scans than the {total} that are usable")
    else:
        shares = (0.8, 0.1, 0.1) if fractions is None else tuple(float(f) for f in fractions)
        if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1.0) > 1e-6:
            raise ValueError(f"fractions are {list(shares)}: give three (training, validation, test) that sum to 1")
        wanted = [0, round(shares[1] * total), round(shares[2] * total)]
        wanted[0] = total - wanted[1] - wanted[2]

    groups: dict[str, list[str]] = {}
    for case in sorted(group_of):
        groups.setdefault(group_of[case], []).append(case)
    several = [case for members in groups.values() if len(members) > 1 for case in members]
    single = sorted((g for g, members in groups.items() if len(members) == 1), key=lambda g: _order(seed, g))
    if len(several) > wanted[0]:
        raise ValueError(
            f"{len(several)} scans belong to patients with several scans and must be in training, "
            f"which takes {wanted[0]} only: ask for more training scans"
        )
    part_of = dict.fromkeys(several, "training")
    ordered = [groups[g][0] for g in single]
    parts = ["validation"] * wanted[1] + ["test"] * wanted[2] + ["training"] * (wanted[0] - len(several))
    part_of.update(zip(ordered, parts, strict=False))
    return part_of
