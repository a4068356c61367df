"""What a hospital sets: options of `fewview-ct reconstruct` as environment variables, and which model.

Nothing here needs the MONAI Deploy App SDK.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from custom.models.model_files import DESCRIPTION

__all__ = ["PREFIX", "Settings", "choose_model"]

#: An option's name in capitals follows: FEWVIEW_RECONSTRUCT_SAMPLES.
PREFIX = "FEWVIEW_RECONSTRUCT_"


def _flag(text: str) -> bool:
    values = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    return values[text.lower()]


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(word) for word in _words(text))


#: How the text of a variable is read, by the type of its field, and what it has to be.
_READERS: dict[str, tuple[Callable[[str], Any], str]] = {
    "int": (int, "a whole number"),
    "float": (float, "a number"),
    "float | None": (float, "a number"),
    "bool": (_flag, "1 or 0"),
    "str": (str, "text"),
    "str | None": (str, "text"),
    "tuple[str, ...]": (_words, "words between commas"),
    "tuple[float, ...] | None": (_numbers, "numbers between commas"),
}


@dataclass(frozen=True)
class Settings:
    """Options of a run; all but `model` are those of `custom.cli.reconstruct_command.command`, with its defaults.

    Attributes:
        model: name of the folder of the model, where the model path holds several.
        samples: how many volumes to draw; 0: the one volume that the model gives.
        geometry: JSON with what the radiographs do not say about themselves.
        accept: assumptions that may be made where nothing says otherwise.
        angles_deg: views to use, by angle; None: all.
        refine_poses: move views until the radiographs agree best, where much speaks for it.
        pose_tolerance_deg, pose_tolerance_mm, pose_tolerance_distance: how far at most.
        seed: of the samples.
        device: torch device; None: a GPU where there is one, else the CPU.
        precision: "auto", "bf16" or "fp32".
        thresholds: of the trust checks; None: those of the model.
        report: write report.html.
        grey_wider_than_hu: hide what is less certain in the report's planes; None: nothing.
        strict: end with exit code 3 if the worst verdict is REJECT, 4 if it is REVIEW.
        overwrite: replace results that are there.
    """

    model: str | None = None
    samples: int = 0
    geometry: str | None = None
    accept: tuple[str, ...] = ()
    angles_deg: tuple[float, ...] | None = None
    refine_poses: bool = False
    pose_tolerance_deg: float = 12.0
    pose_tolerance_mm: float = 20.0
    pose_tolerance_distance: float = 0.05
    seed: int = 0
    device: str | None = None
    precision: str = "auto"
    thresholds: str | None = None
    report: bool = True
    grey_wider_than_hu: float | None = None
    strict: bool = False
    overwrite: bool = False

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """The settings that these environment variables make; an empty one counts as not set.

        Raises:
            ValueError: a variable with our prefix that is no setting, or whose value cannot be read.
        """
        known = {f"{PREFIX}{field.name.upper()}": field for field in fields(cls)}
        values: dict[str, Any] = {}
        for name, text in environment.items():
            if not name.startswith(PREFIX):
                continue
            if name not in known:
                raise ValueError(f"the environment variable {name} is no setting; there are {', '.join(sorted(known))}")
            if not text.strip():
                continue
            read, wanted = _READERS[str(known[name].type)]
            try:
                values[known[name].name] = read(text.strip())
            except (ValueError, KeyError) as error:
                raise ValueError(f"the environment variable {name} is {text!r}; it must be {wanted}") from error
        return cls(**values)


def choose_model(path: Path, name: str | None = None) -> Path:
    """The model at a path, or in a folder of it, as an application package holds its models.

    Args:
        path: an exported model, anything else that `custom.models.load_model` takes, or a folder of exported
            models.
        name: of the folder to take, where there are several.

    Raises:
        ValueError: no folder of that name, or several and none named.
    """
    if not path.is_dir() or (path / DESCRIPTION).is_file():
        return path
    found = {place.parent.name: place.parent for place in sorted(path.glob(f"*/{DESCRIPTION}"))}
    if name is not None and name not in found:
        raise ValueError(f"{path}: holds no model {name}; there are {', '.join(found) or 'none'}")
    if not found:
        return path
    if name is None and len(found) > 1:
        raise ValueError(f"{path}: holds the models {', '.join(found)}; choose one by {PREFIX}MODEL")
    return found[name] if name is not None else next(iter(found.values()))
