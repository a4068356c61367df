"""Cases of a datalist with the names of their label maps, and which classes each of them can teach."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from custom.core.rejection import Rejected
from custom.data.datalist import load_cases, read_datalist
from custom.data.label_maps import names_beside
from custom.segmentation.classes import class_rules, known_classes
from custom.segmentation.weak_labels import WEAK_CLASSES

__all__ = ["check_taught", "hold_out", "load_labelled_cases"]

logger = logging.getLogger(__name__)


def load_labelled_cases(
    data_list_file: str | os.PathLike[str] | None,
    part: str,
    classes: Sequence[str],
    label_names: Mapping[str, Sequence[str]] | None = None,
    weak_labels: bool = True,
    jitter: bool = False,
) -> list[dict[str, Any]]:
    """The cases of one part of a datalist that tell the truth of at least one class.

    Names of a label map stand in the JSON or CSV file beside it, as `prepare` writes it, or under "labels" in the
    datalist, as `fewview-ct phantom` writes it. A name that begins with the case's loses that part.

    Args:
        data_list_file: datalist.json; None gives no cases.
        part: "training", "validation", "test", ...
        classes: names, see `custom.segmentation.classes.CLASSES`.
        label_names: further names by class, see `class_rules`.
        weak_labels: lungs, body and bone of a case without them come from its HU.
        jitter: the entry of that name, which `JitterHUd` reads.

    Returns:
        The entries of `load_cases`, "image", the prepared cube, "names" {number: name}, "known", the classes of the
        label map, "weak", those that will come from the HU, the same as "weak_classes" in one word, and "jitter".

    Raises:
        FileNotFoundError, ValueError: as `load_cases` and `class_rules`; names that cannot be read; no case that knows
            any class.
    """
    rules = class_rules(classes, label_names)
    if data_list_file is None:
        return []
    path = Path(data_list_file)
    shared = {int(number): str(name) for number, name in read_datalist(path).get("labels", {}).items()}
    found, silent = [], []
    for case in load_cases(path, part):
        names = dict(shared)
        if "segmentation" in case:
            try:
                names = names_beside(Path(case["segmentation"])) or shared
            except (Rejected, ValueError) as error:
                raise ValueError(f"the names of {case['segmentation']} cannot be read: {error}") from error
        # One file a structure: prepare calls it by the file, which begins with the case's name.
        prefix = str(case.get("case", ""))
        names = {n: name.removeprefix(prefix).lstrip("_-.") or name for n, name in names.items()}
        known = known_classes(names, rules) if "segmentation" in case else []
        weak = [name for name in classes if weak_labels and name in WEAK_CLASSES and name not in known]
        if known or weak:
            entry = {"names": names, "known": known, "weak": weak, "weak_classes": " ".join(weak), "jitter": jitter}
            found.append({**case, "image": case["label"], **entry})
        else:
            silent.append(str(case.get("case")))
    if not found:
        raise ValueError(
            f"{path}: no case under {part!r} has a label of any of {', '.join(classes)}; set "
            "weak_labels (weak_truth in an evaluation) for lungs, body and bone from the HU, or say in label_names how "
            "the maps call them"
        )
    if silent:
        logger.warning("%s: without a label of these classes, left out: %s", path, ", ".join(silent))
    return found


def check_taught(cases: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> list[Mapping[str, Any]]:
    """The cases themselves, if every class is known in one of them.

    Raises:
        ValueError: naming the classes that nobody can teach.
    """
    taught = {name for case in cases for name in (*case["known"], *case["weak"])}
    missing = [name for name in classes if name not in taught]
    if missing:
        raise ValueError(
            f"no training case has a label of {', '.join(missing)}: add phantoms (phantom_list_file) or cases with "
            "label maps, say in label_names how they call it, or leave it out of classes"
        )
    counts = {name: sum(name in (*c["known"], *c["weak"]) for c in cases) for name in classes}
    logger.info("cases by class: %s", ", ".join(f"{name} {count}" for name, count in counts.items()))
    return list(cases)


def hold_out(cases: Sequence[Any], count: int) -> tuple[list[Any], list[Any]]:
    """All cases but the last `count`, and those, for validation.

    Raises:
        ValueError: if nothing would be left to train on.
    """
    if not cases:
        return [], []
    if not 0 <= count < len(cases):
        raise ValueError(f"{count} of {len(cases)} phantoms for validation leave none for training")
    return list(cases[: len(cases) - count]), list(cases[len(cases) - count :])
