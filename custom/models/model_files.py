"""Paths of the files of a model: of a published name, a bundle, an exported folder or a weights file.

An exported folder (`fewview-ct export`) has a model.json with the SHA-256 of each of its files, which are checked.
"""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from custom.core.bundle_folders import published_bundles
from custom.core.files import read_json_object, sha256_file

__all__ = ["MODEL_NAMES", "SEGMENTER", "ModelFiles", "find_model", "user_models"]

logger = logging.getLogger(__name__)

FORMAT = "fewview-ct model 1"
DESCRIPTION = "model.json"

#: Models that `load_model` finds by their name, and whether they draw samples.
MODEL_NAMES: dict[str, bool] = {"inr_recon": False, "ldm_recon": True, "x2ct": False, "voxel_diffusion": True}

#: The model that contours CTs; it is found by its name too, but reconstructs nothing.
SEGMENTER = "seg_guidance"

#: Environment variable: folders (separated as in PATH) that hold exported models, each in a folder of its name.
FOLDERS_VARIABLE = "FEWVIEW_MODELS"

#: Options of `custom.sampling.load_sampler` that a bundle's inference.json sets, and a model.json keeps.
SAMPLER_OPTIONS = (
    "steps",
    "guidance_scale",
    "quantise",
    "residual_scale",
    "recentring",
    "atlas_coarse_mm",
    "consistency_weight",
    "consistency_iterations",
    "consistency_final",
    "solver",
)

#: Names of the files in an exported folder.
WEIGHTS, AUTOENCODER, MEAN, ATLAS = "model.pt", "autoencoder.pt", "mean.pt", "atlas.nii.gz"
THRESHOLDS, CARD, LICENSE = "thresholds.json", "README.md", "LICENSE"


@dataclass(frozen=True)
class ModelFiles:
    """Where a model's files are.

    Attributes:
        name: of the model.
        model: weights.
        autoencoder: weights of the `vqgan` that a latent denoiser needs.
        mean: weights of the `inr_recon` that a denoiser with `known_channels` needs.
        atlas: CTs that give samples their detail, of `custom.sampling.Atlas`.
        thresholds: of the trust checks; None: there are none.
        card: the model card (Markdown); None: there is none.
        license: the weights' licence; None: there is none.
        sampler: options of `custom.sampling.load_sampler`.
    """

    name: str
    model: Path
    autoencoder: Path | None = None
    mean: Path | None = None
    atlas: Path | None = None
    thresholds: Path | None = None
    card: Path | None = None
    license: Path | None = None
    sampler: Mapping[str, Any] = field(default_factory=dict)


def find_model(model: str | os.PathLike[str]) -> ModelFiles:
    """The files of a model, those of an exported folder with their hashes checked; nothing is loaded.

    A name is looked for in the folders of the environment variable FEWVIEW_MODELS, then as `NAME/model.json` in the
    working directory, in the folder that `fewview-ct weights` fills (`user_models`), as `bundles/NAME` in the working
    directory, then among the bundles that come with the package.

    Args:
        model: as in `load_model`.

    Raises:
        FileNotFoundError, ValueError: as `load_model`.
    """
    if isinstance(model, str) and (model in MODEL_NAMES or model == SEGMENTER):
        return _find_name(model)
    path = Path(model)
    if path.is_dir():
        return _in_folder(path)
    if path.is_file():
        return _of_checkpoint(path)
    raise FileNotFoundError(
        f"{model}: no such model: pass {', '.join(MODEL_NAMES)}, a folder made by 'fewview-ct export', or a model.pt"
    )


def user_models() -> Path:
    """The folder of models that this user has fetched: XDG_DATA_HOME/fewview-ct/models."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "fewview-ct" / "models"


def _find_name(name: str) -> ModelFiles:
    folders = [Path(entry) / name for entry in os.environ.get(FOLDERS_VARIABLE, "").split(os.pathsep) if entry]
    if Path(name, DESCRIPTION).is_file():
        folders.append(Path(name))
    if (user_models() / name / DESCRIPTION).is_file():
        folders.append(user_models() / name)
    bundles, published = [Path("bundles", name)], None
    try:
        published = published_bundles() / name
        bundles.append(published)
    except FileNotFoundError:  # a package without bundles, such as that of a Deploy application
        pass
    for folder in folders:
        if (folder / DESCRIPTION).is_file():
            _say_if_local(folder, published)
            return _exported(folder)
    for folder in bundles:
        if (folder / "models" / WEIGHTS).is_file():
            _say_if_local(folder, published)
            return _bundle(folder)
    train = f"fewview-ct train {name}"
    raise FileNotFoundError(
        f"the model {name} has no published weights here: get them ('fewview-ct weights'), set {FOLDERS_VARIABLE} to "
        f"the folder that holds the exported {name}, or train it ('{train}')"
    )


def _say_if_local(folder: Path, published: Path | None) -> None:
    """Say that a name did not give the published model but one of this folder, which others may have put there."""
    if published is not None and folder.resolve() != published.resolve():
        _say(f"{folder.name}: taken from {folder.resolve()}, which is not the published model in {published}")


@functools.lru_cache
def _say(text: str) -> None:
    """Once in a process: a model is looked for before anything is read, and again when it is loaded."""
    logger.warning("%s", text)


def _check_card(weights: Path) -> None:
    """Weights beside a card that gives other hashes are not the ones that it describes."""
    card = weights.parent / CARD
    if not card.is_file():
        return
    known = re.findall(r"\b[0-9a-f]{64}\b", card.read_text(encoding="utf-8", errors="replace"))
    found = sha256_file(weights)
    if known and found not in known:
        raise ValueError(
            f"{weights}: SHA-256 {found[:12]}, but the card beside it ({CARD}) describes {known[0][:12]}: changed or "
            "damaged weights, or trained anew; get them again, or give them a card of their own"
        )


def _in_folder(folder: Path) -> ModelFiles:
    if (folder / DESCRIPTION).is_file():
        return _exported(folder)
    if (folder / "configs" / "inference.json").is_file():
        return _bundle(folder)
    raise ValueError(
        f"{folder}: holds neither {DESCRIPTION} nor configs/inference.json: pass a folder made by 'fewview-ct export', "
        "a bundle or a model.pt"
    )


def _of_checkpoint(path: Path) -> ModelFiles:
    """A weights file, with what lies beside it where it is that of a bundle or of an exported folder."""
    if path.name == WEIGHTS:
        if (path.parent / DESCRIPTION).is_file():
            return _exported(path.parent)
        if path.parent.name == "models" and (path.parent.parent / "configs" / "inference.json").is_file():
            return _bundle(path.parent.parent)
    _check_card(path)
    name = path.parent.parent.name if path.parent.name == "models" else path.stem
    return ModelFiles(name or path.stem, path)


def _exported(folder: Path) -> ModelFiles:
    content = read_json_object(folder / DESCRIPTION)
    if content.get("format") != FORMAT or not isinstance(content.get("files"), dict):
        raise ValueError(f"{folder / DESCRIPTION}: format {content.get('format')!r}, expected {FORMAT!r}")
    for name, expected in content["files"].items():
        if Path(name).name != name:
            raise ValueError(f"{folder / DESCRIPTION}: names {name!r}, which is not a file of its folder")
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name}: missing, but {DESCRIPTION} lists it: export the model again")
        found = sha256_file(folder / name)
        if found != expected:
            raise ValueError(
                f"{folder / name}: SHA-256 {found[:12]}, but {DESCRIPTION} says {str(expected)[:12]}: the file was "
                "changed or damaged: export the model again"
            )
    if WEIGHTS not in content["files"]:
        raise ValueError(f"{folder / DESCRIPTION}: lists no {WEIGHTS}")

    def listed(name: str) -> Path | None:
        return folder / name if name in content["files"] else None

    return ModelFiles(
        str(content.get("name", folder.name)),
        folder / WEIGHTS,
        listed(AUTOENCODER),
        listed(MEAN),
        listed(ATLAS),
        listed(THRESHOLDS),
        listed(CARD),
        listed(LICENSE),
        _sampler_options(content.get("sampler", {}), folder / DESCRIPTION),
    )


def _bundle(folder: Path) -> ModelFiles:
    """A bundle: its own weights, and the parents and settings of sampling that its inference.json names."""
    config = read_json_object(folder / "configs" / "inference.json")
    models = folder / "models"

    def parent(key: str) -> Path | None:
        value = config.get(key)
        if value is None:
            return None
        # Configs name parents from the folder that bundles/ lies in.
        found = [p for p in (folder.resolve().parents[1] / value, folder / value, Path(value)) if p.is_file()]
        if not found:
            raise FileNotFoundError(f"{value}: missing; {folder.name} needs it as its {key} (configs/inference.json)")
        return found[0]

    def beside(*paths: Path) -> Path | None:
        return next((path for path in paths if path.is_file()), None)

    if not (models / WEIGHTS).is_file():
        train = f"python -m monai.bundle run training --config_file {folder}/configs/train.json"
        remedy = (
            f"train it ('{train}')"
            if (folder / "configs" / "train.json").is_file()
            else ("it is fitted to each case and has none: run its configs/inference.json")
        )
        raise FileNotFoundError(f"{models / WEIGHTS}: the bundle {folder.name} has no weights: {remedy}")
    parents = parent("autoencoder_checkpoint"), parent("mean_checkpoint"), parent("atlas")
    for weights in (models / WEIGHTS, *parents):
        if weights is not None:
            _check_card(weights)
    return ModelFiles(
        folder.resolve().name,
        models / WEIGHTS,
        *parents,
        beside(models / THRESHOLDS),
        beside(models / CARD),
        beside(folder / LICENSE),
        _sampler_options({key: config[key] for key in SAMPLER_OPTIONS if key in config}, folder),
    )


def _sampler_options(options: Any, path: Path) -> dict[str, Any]:
    if not isinstance(options, dict) or not set(options) <= set(SAMPLER_OPTIONS):
        raise ValueError(f"{path}: settings of sampling must be among {', '.join(SAMPLER_OPTIONS)}; got {options!r}")
    if any(isinstance(value, str) and value[:1] in "$@%" for value in options.values()):
        raise ValueError(f"{path}: settings of sampling must be plain values; got {options!r}")
    return dict(options)
