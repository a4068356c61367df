"""Reader of the datalists that `prepare` and `simulate` write."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from custom.core.files import read_json_object, write_json
from custom.core.names import plain_name
from custom.data.volume_files import check_training_ct

__all__ = ["FILE_KEYS", "load_cases", "mixing_weights", "read_datalist", "write_fold_datalists"]

#: Entries of a case that are files, relative to the datalist.
FILE_KEYS = ("label", "source", "segmentation", "image", "geometry")


def read_datalist(path: Path) -> dict[str, Any]:
    """A datalist as it is written.

    Raises:
        FileNotFoundError, ValueError: naming the file and what is wrong with it.
    """
    content = read_json_object(path, "no such datalist; 'fewview-ct prepare INPUT OUTPUT' writes one")
    for part, entries in content.items():
        for entry in entries if isinstance(entries, list) else ():
            if isinstance(entry, dict) and "case" in entry:
                plain_name(entry["case"], f"{path}: under {part!r} the case")
            wrong = [key for key in FILE_KEYS if isinstance(entry, dict) and not isinstance(entry.get(key, ""), str)]
            if wrong:
                raise ValueError(
                    f"{path}: under {part!r} {wrong[0]!r} of {entry.get('case')} is not the name of a file"
                )
    return content


def load_cases(
    data_list_file: str | os.PathLike[str] | None, part: str, shuffle_radiographs: bool = False, folds: int = 0
) -> list[dict[str, Any]]:
    """The cases of one part of a datalist, with absolute file names.

    Args:
        data_list_file: datalist.json; None, for a cohort that is optional, gives no cases.
        part: "training", "validation", "test", ...
        shuffle_radiographs: give every case the radiographs of the next one: the control that shows whether a
            network looks at them.
        folds: give every case the entry "fold", a number below this one, the same for all cases of a patient.

    Raises:
        FileNotFoundError: if the datalist or a file that it names is missing.
        ValueError: if there is no such part, it is empty, or a CT to train with has voxels that are NaN.
    """
    if data_list_file is None:
        return []
    path = Path(data_list_file)
    content = read_datalist(path)
    if not content.get(part):
        parts = [name for name, value in content.items() if isinstance(value, list) and value]
        other = "; 'fewview-ct evaluate' takes another part by --data_list_key" if part == "test" else ""
        raise ValueError(
            f"{path}: no cases under {part!r}; it has {parts} (fewview-ct prepare draws them: --counts or --fractions"
            f"{other})"
        )
    if not isinstance(content[part], list) or not all(isinstance(case, dict) for case in content[part]):
        raise ValueError(f"{path}: {part!r} must be a list of objects, each a case")
    cases = [dict(case) for case in content[part]]
    for case in cases:
        for key in FILE_KEYS:
            if key in case:
                case[key] = str(path.parent / case[key])
                if not Path(case[key]).is_file():
                    raise FileNotFoundError(
                        f"{case[key]}: named by {path} as {key!r} of {case.get('case')}, but missing"
                    )
                if part in ("training", "validation") and key in ("label", "source"):
                    check_training_ct(Path(case[key]))
    if shuffle_radiographs:
        pairs = [(case.get("image"), case.get("geometry")) for case in cases]
        for case, (image, geometry) in zip(cases, pairs[1:] + pairs[:1], strict=True):
            case["image"], case["geometry"] = image, geometry
    if folds:
        patients = {patient: n for n, patient in enumerate(dict.fromkeys(case["patient"] for case in cases))}
        for case in cases:
            case["fold"] = patients[case["patient"]] % folds
    return cases


def write_fold_datalists(data_list_file: str | os.PathLike[str], folds: int) -> list[Path]:
    """For every fold a datalist whose training part lacks its patients, numbered as `load_cases` numbers them.

    What is trained on list i has not seen fold i: so are networks made whose reconstructions of training patients are
    as good, and as bad, as of new ones.

    Args:
        data_list_file: datalist.json; the new ones stand beside it, as datalist_without_fold0.json, ...
        folds: number of parts, at least 2.

    Returns:
        The files, by fold.

    Raises:
        FileNotFoundError, ValueError: as `load_cases`, or if a fold would take all patients.
    """
    path = Path(data_list_file)
    content, cases = read_datalist(path), load_cases(path, "training", folds=folds)
    written = []
    for fold in range(folds):
        kept = [entry for entry, case in zip(content["training"], cases, strict=True) if case["fold"] != fold]
        if not kept or len(kept) == len(cases):
            raise ValueError(f"{path}: {folds} folds of {len(cases)} training cases: fold {fold} has none or all")
        target = path.with_name(f"{path.stem}_without_fold{fold}.json")
        write_json(target, {**content, "training": kept, "numTraining": len(kept)})
        written.append(target)
    return written


def mixing_weights(patients: int, phantoms: int, phantom_prob: float) -> list[float]:
    """How often each case of a list of patients, then phantoms, is drawn, for a weighted random sampler.

    Args:
        patients: number of them.
        phantoms: number of them.
        phantom_prob: of the draws that are phantoms, where there are any.

    Raises:
        ValueError: if the share is no share.
    """
    if not 0 <= phantom_prob <= 1:
        raise ValueError(f"phantom_prob must lie between 0 and 1, got {phantom_prob}")
    if not phantoms:
        return [1 / patients] * patients
    return [(1 - phantom_prob) / patients] * patients + [phantom_prob / phantoms] * phantoms
