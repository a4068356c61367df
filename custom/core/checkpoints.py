"""The format of weights files: reading, writing, and building the network that a file describes.

A file is `{"model": weights, "meta": JSON string}` and loads with `weights_only=True`. The meta's `network_def` holds
every argument of the network, so that whoever has the file can build it: no architecture is copied into a config.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import logging
import os
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
from monai.bundle import ConfigParser
from pydantic import BaseModel, ConfigDict, Field
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from custom import __version__
from custom.core.files import parsed_json, sha256_file, write_tensors
from custom.core.json_models import validated
from custom.core.tensor_files import load_tensors

__all__ = [
    "PUBLISHED_CLASSES",
    "RENAMED_ARGUMENTS",
    "Checkpoint",
    "build_network",
    "definition",
    "load_checkpoint",
    "save_checkpoint",
    "trained_setting",
]

FORMAT = "fewview-ct checkpoint 1"

#: Classes that a checkpoint may name, since a file from elsewhere must not run code of its choice: the name that
#: published checkpoints have, and where the class is today. Who moves or renames a class changes the right side and
#: leaves the left one, so that no file is orphaned. Of several names of one class the last is written.
PUBLISHED_CLASSES: Mapping[str, str] = {
    "custom.geometry.VolumeGrid": "custom.geometry.grid.VolumeGrid",
    "custom.networks.CoarseToFineReconstructor": "custom.networks.coarse_to_fine.CoarseToFineReconstructor",
    "custom.networks.FeatureUNet": "custom.networks.feature_unet.FeatureUNet",
    "custom.networks.FourierFeatures": "custom.networks.fourier_mlp.FourierFeatures",
    "custom.networks.ImplicitReconstructor": "custom.networks.implicit_reconstructor.ImplicitReconstructor",
    "custom.networks.LatentDenoiser": "custom.networks.denoiser.LatentDenoiser",
    "custom.networks.PopulationPrior": "custom.networks.population_prior.PopulationPrior",
    "custom.networks.SegmentationUNet": "custom.networks.segmentation_unet.SegmentationUNet",
    "custom.networks.VQGAN": "custom.networks.vqgan.VQGAN",
    "custom.networks.X2CT": "custom.networks.x2ct.X2CT",
}
#: Arguments that were renamed since a class was published: by the class's published name, from the old name to today's.
RENAMED_ARGUMENTS: Mapping[str, Mapping[str, str]] = {
    "custom.networks.LatentDenoiser": {"patch": "space_to_depth", "schedule": "noise_schedule"},
    "custom.networks.VQGAN": {"fold": "space_to_depth"},
}
_NAMES = {path: name for name, path in PUBLISHED_CLASSES.items()}

T = TypeVar("T")
Pixels = Annotated[int, Field(ge=1, le=100_000)]
Share = Annotated[float, Field(ge=0, le=1)]

#: No argument of a network is larger.
LARGEST_NUMBER = 10_000_000

logger = logging.getLogger(__name__)


def describes_itself(cls: type[T]) -> type[T]:
    """Class decorator: instances remember the arguments they were made with, for `definition`.

    Keywords that a constructor hands on by `**` are those of its base class.
    """
    original = cls.__init__
    signature = _signature(cls)

    @functools.wraps(original)
    def remember(self: Any, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        original(self, *args, **kwargs)
        self.arguments = dict(list(bound.arguments.items())[1:])

    remember.__signature__ = signature  # type: ignore[attr-defined]  # without `**`, so that it can be checked
    cls.__init__ = remember  # type: ignore[method-assign]
    return cls


def _signature(cls: type) -> inspect.Signature:
    """Of the constructor, with the base's parameters in the place of `**`."""
    own = inspect.signature(cls.__init__)  # type: ignore[misc]
    named = [parameter for parameter in own.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
    if len(named) < len(own.parameters):
        known = {parameter.name for parameter in named}
        inherited = [p for p in _signature(cls.__mro__[1]).parameters.values() if p.name not in known]
        named += [parameter.replace(kind=parameter.KEYWORD_ONLY) for parameter in inherited]
    return own.replace(parameters=named)


def definition(value: Any) -> Any:
    """A network, grid or plain value as JSON: `{"_target_": class, argument: value, ...}`.

    Raises:
        TypeError: for an object that does not say how it was made.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): definition(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [definition(entry) for entry in value]
    path = f"{type(value).__module__}.{type(value).__qualname__}"
    target = _NAMES.get(path, path)
    if is_dataclass(value):
        return {"_target_": target} | {f.name: definition(getattr(value, f.name)) for f in fields(value)}
    if hasattr(value, "arguments"):
        return {"_target_": target} | {name: definition(entry) for name, entry in value.arguments.items()}
    raise TypeError(f"{type(value).__name__} does not describe itself: decorate the class with describes_itself")


def build_network(network_def: Mapping[str, Any]) -> nn.Module:
    """Build a network from the `network_def` of a checkpoint's meta.

    Raises:
        ValueError: if it names a class that is not in `PUBLISHED_CLASSES`, or holds a config expression.
    """
    try:
        network = ConfigParser({"network": _checked(network_def)}).get_parsed_content("network")
    except (RuntimeError, TypeError, RecursionError, MemoryError) as error:
        cause = error.__cause__ or error  # MONAI's parser says only which class it was
        raise ValueError(f"the checkpoint's network cannot be built by fewview-ct {__version__}: {cause}") from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"the checkpoint's definition makes a {type(network).__name__}, which is no network")
    return network


def _checked(value: Any) -> Any:
    """A definition that is safe to build, with its classes by the paths that they have today."""
    if isinstance(value, Mapping):
        surplus = [key for key in value if str(key).startswith("_") and key != "_target_"]
        if surplus:
            raise ValueError(f"the checkpoint's network definition holds {surplus[0]!r}, which is not allowed")
        target = value.get("_target_")
        renamed = RENAMED_ARGUMENTS.get(str(target), {})
        checked = {renamed.get(key, key): _checked(entry) for key, entry in value.items() if key != "_target_"}
        if target is None:
            return checked
        if target not in PUBLISHED_CLASSES:
            raise ValueError(f"the checkpoint names {target!r}, which is not one of {sorted(PUBLISHED_CLASSES)}")
        return {"_target_": PUBLISHED_CLASSES[target], **checked}
    if isinstance(value, list | tuple):
        return [_checked(entry) for entry in value]
    if isinstance(value, int | float) and not abs(value) <= LARGEST_NUMBER:
        raise ValueError(f"the checkpoint's network definition holds the number {value}, which cannot be")
    if isinstance(value, str) and value[:1] in ("$", "@", "%"):
        raise ValueError(f"the checkpoint's network definition holds the expression {value!r}, which is not allowed")
    return value


def save_checkpoint(
    path: str | os.PathLike[str], network: nn.Module, meta: Mapping[str, Any] | None = None, half: bool = False
) -> Path:
    """Write weights and meta; never half-written.

    Args:
        path: target, usually `models/model.pt`.
        network: whose state is written; it must describe itself.
        meta: what else is worth knowing: geometry, hashes of the datalist and of parents, figures.
        half: store floating point weights in half precision, for a small file.
    """
    path = Path(path)
    state = {
        k: v.detach().cpu().half() if half and v.is_floating_point() else v.detach().cpu()
        for k, v in network.state_dict().items()
    }
    content = {
        "format": FORMAT,
        "software": f"fewview-ct {__version__}",
        "network_def": definition(network),
        **(meta or {}),
    }
    write_tensors(path, {"model": state, "meta": json.dumps(content, indent=1)})
    return path


class _Meta(BaseModel):
    """What readers of a meta take from it; other entries are remarks."""

    model_config = ConfigDict(allow_inf_nan=False)

    network_def: dict[str, Any]
    detector_shape: tuple[Pixels, Pixels] | None = None
    pixel_at_isocenter_mm: Annotated[float, Field(gt=0, le=100)] | None = None
    training_views: dict[Annotated[str, Field(pattern=r"^\d{1,3}$")], float] | None = None
    cone_prob: Share | None = None
    cone_share: Share | None = None
    source_to_isocenter_mm: tuple[float, float] | None = None
    source_to_detector_mm: tuple[float, float] | None = None
    parents: dict[str, str | None] = {}
    guidance: dict[str, Any] | None = None


class Checkpoint:
    """A weights file that was read.

    Attributes:
        path: where from.
        meta: its meta.
        state: its weights, float32.
        hash: SHA-256 of the file.
    """

    def __init__(self, path: Path, meta: dict[str, Any], state: dict[str, torch.Tensor]) -> None:
        self.path, self.meta, self.state, self.hash = path, meta, state, sha256_file(path)

    def network(self, **overrides: Any) -> nn.Module:
        """The network with its weights, in evaluation mode. `overrides` replace arguments that hold no weights, such
        as precision or points_per_chunk."""
        network_def = {**self.meta["network_def"], **overrides}
        with _few_parameters(self), torch.device("meta"):
            self._require_fit(build_network(network_def))  # without memory: a file may claim a network of any size
        network = build_network(network_def)
        self.load_into(network)
        return network.eval()

    def load_into(self, network: nn.Module, stages: bool = False) -> None:
        """Load the weights into a network that exists.

        Args:
            network: its weights are overwritten.
            stages: the network may have whole parts that the checkpoint knows nothing of, such as a stage that is
                trained next; they stay as they are.

        Raises:
            ValueError: naming the first differences, if the architecture is another.
        """
        self._require_fit(network, stages)
        network.load_state_dict(self.state, strict=not stages)

    def _require_fit(self, network: nn.Module, stages: bool = False) -> None:
        expected = network.state_dict()
        known = {key.split(".")[0] for key in self.state}
        missing = sorted(k for k in set(expected) - set(self.state) if not (stages and k.split(".")[0] not in known))
        surplus = sorted(set(self.state) - set(expected))
        shapes = [k for k in expected if k in self.state and expected[k].shape != self.state[k].shape]
        if missing or surplus or shapes:
            raise ValueError(
                f"{self.path}: the weights belong to another architecture: {len(missing)} missing {missing[:3]}, "
                f"{len(surplus)} unknown {surplus[:3]}, {len(shapes)} of another shape {shapes[:3]}; build the network "
                "from the checkpoint's own definition, or pass the checkpoint of this configuration"
            )


@contextlib.contextmanager
def _few_parameters(checkpoint: Checkpoint) -> Iterator[None]:
    """Stop a definition that makes more parameters than the checkpoint has weights, such as a million layers."""
    left = len(checkpoint.state)

    def count(module: nn.Module, name: str, parameter: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise ValueError(f"{checkpoint.path}: its definition makes more parameters than it has weights")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a weights file.

    Raises:
        FileNotFoundError: if there is none, saying how to get one.
        ValueError: if it is not a checkpoint of fewview-ct.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such checkpoint; train one with 'python -m monai.bundle run training', or pass the path of a "
            "model.pt"
        )
    try:
        content = load_tensors(path)
        if not isinstance(content, dict):
            raise TypeError(f"holds a {type(content).__name__}, no weights with their meta")
        meta = parsed_json(content["meta"])
        state = {k: v.float() if v.is_floating_point() else v for k, v in content["model"].items()}
    except (
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        RuntimeError,
        OSError,
        EOFError,
        pickle.UnpicklingError,
    ) as error:
        raise ValueError(f"{path}: not a checkpoint of fewview-ct, or damaged: {error}") from error
    if not isinstance(meta, dict) or meta.get("format") != FORMAT or not isinstance(meta.get("network_def"), dict):
        found = meta.get("format") if isinstance(meta, dict) else None
        raise ValueError(f"{path}: format {found!r}, expected {FORMAT!r}")
    validated(_Meta, meta, f"{path}: meta")
    bad = next((name for name, value in state.items() if not torch.isfinite(value).all()), None)
    if bad is not None:
        raise ValueError(f"{path}: the weights {bad} hold NaN or infinity: the file is damaged, get or train it again")
    network_def = meta["network_def"]
    if "feature_pixels" in network_def:  # the denoisers of version 0.1.0 counted pixels of their radiographs
        pixels, pixel_mm = network_def.pop("feature_pixels"), meta.get("pixel_at_isocenter_mm")
        if pixels != 1 and not (isinstance(pixels, int) and isinstance(pixel_mm, int | float)):
            raise ValueError(f"{path}: averages {pixels} pixels of {pixel_mm} mm, which is not known: train it again")
        network_def["feature_spacing_mm"] = None if pixels == 1 else pixels * pixel_mm
    return Checkpoint(path, meta, state)


def trained_setting(path: str | os.PathLike[str], name: str, value: Any = None) -> Any:
    """A setting that a network was trained with, from its checkpoint's meta, unless another one is asked for.

    Args:
        path: model.pt.
        name: of the meta's entry and of the config's key, such as "pixel_at_isocenter_mm".
        value: asked for; None: as trained. Another than the training's is logged as a warning.

    Raises:
        FileNotFoundError, ValueError: as `load_checkpoint`, or where neither the meta nor `value` has it.
    """
    checkpoint = load_checkpoint(path)
    trained = checkpoint.meta.get(name)
    if value is None and trained is None:
        raise ValueError(
            f"{checkpoint.path}: the checkpoint does not say with which {name} it was trained (older ones do not): "
            f"pass --{name}"
        )
    if value is not None and trained is not None and value != trained:
        logger.warning("%s %s, but %s was trained with %s", name, value, checkpoint.path, trained)
    return trained if value is None else value
