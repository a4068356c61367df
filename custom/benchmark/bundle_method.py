"""MONAI bundles as methods of the comparison, users' own ones too (docs/how-to/benchmark.md)."""

from __future__ import annotations

import functools
import inspect
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.utils import set_determinism
from torch import Tensor, nn

from custom.benchmark.methods import Method
from custom.core.files import write_nifti
from custom.core.hu_window import unit_to_hu
from custom.geometry import Geometry, VolumeGrid

__all__ = ["bundle_parser", "bundle_row"]

#: Where an inference config says which weights it loads, and which atlas, whose hash no weights hold.
MODEL_KEY, ATLAS_KEY = "model_file", "atlas_file"


def bundle_parser(
    bundle: Path,
    config_files: Sequence[Path],
    overrides: Mapping[str, Any],
    checkpoint: str | None = None,
    device: str | torch.device | None = None,
) -> ConfigParser:
    """The inference config of a bundle with what replaces some of its keys; nothing is built yet.

    Args:
        bundle: its folder, which becomes the config's bundle_root.
        config_files: configs, the later ones replace keys of the former.
        overrides: keys, nested ones with "#", as on MONAI's command line.
        checkpoint: weights, the config's model_file.
        device: torch device, for a config that has the key.

    Raises:
        FileNotFoundError: a config, or the weights that it names, do not exist.
        ValueError: a config that cannot be read, a key that it does not have.
    """
    for file in config_files:
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such config; the bundle {bundle} needs one for inference")
    parser = ConfigParser()
    try:
        parser.read_config([str(file) for file in config_files])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{', '.join(map(str, config_files))}: not a MONAI config: {error}") from error
    given = dict(overrides)
    if checkpoint is not None:
        given[MODEL_KEY] = checkpoint
    unknown = [key for key in given if key not in parser]
    if unknown:
        config: Any = parser.config
        known = sorted(key for key in config if not key.startswith("_"))
        raise ValueError(f"{config_files[0]}: has no key {unknown[0]!r} to override; it has {', '.join(known)}")
    if "bundle_root" in parser:
        given.setdefault("bundle_root", str(bundle))
    if "device" in parser and device is not None:
        given.setdefault("device", f"$torch.device({str(device)!r})")
    parser.update(given)
    parser.parse(True)
    if MODEL_KEY in parser:
        with _named(bundle):
            weights = parser.get_parsed_content(MODEL_KEY)
        if weights is not None and not Path(weights).is_file():
            raise FileNotFoundError(
                f"{weights}: the bundle {bundle} has no such checkpoint; train it, or name its weights as "
                '"checkpoint" in the methods file'
            )
    return parser


def bundle_row(name: str, bundle: Path, parser: ConfigParser, samples: int = 1, seed: int = 0) -> Method:
    """Build the network of a bundle and call it as its inference does.

    The config's `initialize` is run, which loads the weights. `preprocessing`, where the config has it, gets the file
    names of the radiographs, "image", and of their geometry, "geometry", and gives the tensors "image" (K, V, U) and
    "views" (K, 13); without it they are as stored. `network`, or `network_def`, takes both with a batch axis, and gives
    `pred` (1, 1, X, Y, Z), `hu_window` as [-1, 1], on `grid`: its attributes of this name, else the config's keys.

    Args:
        name: of the row.
        bundle: its folder, on Python's search path from now on.
        parser: of `bundle_parser`.
        samples: number of samples; above 1 the network needs `samples(image, views, count, seed)`, which gives
            pairs of an index and HU (B, 1, X, Y, Z), as `custom.sampling.PosteriorSampler` does.
        seed: of the samples.

    Raises:
        ValueError: the config cannot be built, or lacks what is named above.
    """
    if str(bundle) not in sys.path:
        sys.path.append(str(bundle))
    with _named(bundle):
        for expression in _expressions(parser):
            parser.get_parsed_content(expression)
        network: Any = parser.get_parsed_content("network" if "network" in parser else "network_def")
        preprocessing = parser.get_parsed_content("preprocessing") if "preprocessing" in parser else None
    set_determinism(None)  # `initialize` of a bundle fixes it for the whole process; every job has its own seed
    if isinstance(network, nn.Module):
        network.eval()
    if not callable(network):
        raise ValueError(f"{bundle}: its network is a {type(network).__name__}, which cannot be called")
    grid, hu_window = (_setting(network, parser, key, bundle) for key in ("grid", "hu_window"))
    if not isinstance(grid, VolumeGrid):
        raise ValueError(f"{bundle}: grid must be a custom.geometry.VolumeGrid, got {type(grid).__name__}")
    prepare = functools.partial(_prepared, preprocessing, grid, _device(network, parser))

    @torch.no_grad()
    def run(image: Tensor, views: Tensor) -> Tensor:
        image, views = prepare(image, views)
        return unit_to_hu(_checked(network(image[None], views[None]), grid)[0, 0], hu_window).cpu()

    if samples == 1:
        return Method(name, run, grid=grid)
    if "count" not in inspect.signature(getattr(network, "samples", lambda: None)).parameters:
        raise ValueError(f'{bundle}: "samples" {samples}, but a {type(network).__name__} draws none')

    @torch.no_grad()
    def draw(image: Tensor, views: Tensor) -> Iterator[Tensor]:
        for _, batch in network.samples(*prepare(image, views), samples, seed):
            yield from _checked(batch, grid)[:, 0].cpu()

    return Method(name, run, grid=grid, draw=draw)


def _expressions(parser: ConfigParser) -> list[str]:
    if "initialize" not in parser:
        return []
    given = parser["initialize"]
    return [f"initialize#{i}" for i in range(len(given))] if isinstance(given, list) else ["initialize"]


def _setting(network: Any, parser: ConfigParser, key: str, bundle: Path) -> Any:
    if hasattr(network, key):
        return getattr(network, key)
    if key not in parser:
        raise ValueError(f"{bundle}: neither its network nor its inference config has {key!r}")
    return parser.get_parsed_content(key)


def _device(network: Any, parser: ConfigParser) -> torch.device:
    """Where the radiographs go: the config's device, else that of the weights."""
    if "device" in parser:
        return torch.device(parser.get_parsed_content("device"))
    parameters = network.parameters() if isinstance(network, nn.Module) else iter(())
    return next((p.device for p in parameters), torch.device("cpu"))


def _prepared(
    preprocessing: Callable[[Any], Any] | None, grid: VolumeGrid, device: torch.device, image: Tensor, views: Tensor
) -> tuple[Tensor, Tensor]:
    """What the bundle's preprocessing makes of radiographs (K, V, U) and views (K, 13), on its device."""
    if preprocessing is not None:
        with tempfile.TemporaryDirectory(prefix="fewview-ct-") as folder:
            files = {"image": str(Path(folder) / "radiographs.nii"), "geometry": str(Path(folder) / "geometry.json")}
            stack = np.ascontiguousarray(image.cpu().permute(2, 1, 0).numpy())
            write_nifti(Path(files["image"]), stack, np.eye(4))
            Geometry(views.cpu(), tuple(image.shape[1:]), grid).save(files["geometry"])  # type: ignore[arg-type]
            batch = preprocessing(dict(files))
        image, views = torch.as_tensor(batch["image"]), torch.as_tensor(batch["views"])
    return image.to(device, torch.float32), views.to(device, torch.float32)


def _checked(pred: Any, grid: VolumeGrid) -> Tensor:
    """The volumes (B, 1, X, Y, Z), if they are what the bundle says.

    Raises:
        TypeError: they are not; a fault of the bundle, not a view set that it is not made for.
    """
    if not isinstance(pred, Tensor) or pred.ndim != 5 or tuple(pred.shape[1:]) != (1, *grid.shape):
        found = tuple(pred.shape) if isinstance(pred, Tensor) else type(pred).__name__
        raise TypeError(f"pred must be a tensor (B, 1, {', '.join(map(str, grid.shape))}), got {found}")
    return pred


@contextmanager
def _named(bundle: Path) -> Iterator[None]:
    """Errors out of a config, which MONAI wraps more than once, as one sentence that names the bundle."""
    try:
        yield
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise ValueError(f"{bundle}: its inference config cannot be built: {cause}") from error
