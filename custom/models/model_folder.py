"""Loading and exporting models: by a published name, a bundle, an exported folder or a weights file.

`export` packs a bundle's weights, those of its parents, thresholds of the trust checks and the card into one folder;
`load_model` makes a `Model` of it, whatever it was given.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from custom import __version__
from custom.core.atomic_directory import atomic_directory
from custom.core.checkpoints import Checkpoint, load_checkpoint
from custom.core.devices import usable_device
from custom.core.files import sha256_file, write_json
from custom.core.hu_window import require_finite, unit_to_hu
from custom.core.precision import check_precision
from custom.geometry import VolumeGrid
from custom.models.bundle_archive import write_bundle_archive
from custom.models.model_files import (
    ATLAS,
    AUTOENCODER,
    CARD,
    DESCRIPTION,
    FORMAT,
    LICENSE,
    MEAN,
    MODEL_NAMES,
    SAMPLER_OPTIONS,
    THRESHOLDS,
    WEIGHTS,
    ModelFiles,
    find_model,
)
from custom.networks.denoiser import LatentDenoiser
from custom.sampling import PosteriorSampler, load_sampler

__all__ = ["Model", "export", "load_model"]

logger = logging.getLogger(__name__)


class Model:
    """A network that turns radiographs into a CT, ready to run.

    Attributes:
        name: as in `MODEL_NAMES`, or what its folder or file is called.
        sha256: of model.pt, which names the hashes of its parents.
        parents: SHA-256 of "autoencoder", "mean" and "atlas", where it has them.
        meta: of its checkpoint (`custom.core.checkpoints`).
        grid: voxels of its volumes, in the isocentre frame.
        hu_window: lowest and highest HU that it gives.
        energy_kev: of the line integrals that it reads.
        pixel_at_isocenter_mm: of the radiographs that it reads.
        detector_shape: rows and columns (V, U) that it was trained with; None: its checkpoint does not say. It reads
            others too.
        can_sample: whether `samples` works.
        thresholds: file of thresholds for the trust checks; None: none came with it.
        card: the model card (Markdown); None: none came with it.
        network: the network itself, or its `PosteriorSampler`.
        device: that it runs on.
        precision: "auto", "bf16" or "fp32", as it was asked for.
    """

    def __init__(
        self,
        files: ModelFiles,
        checkpoint: Checkpoint,
        network: Any,
        device: torch.device,
        precision: str,
        parents: Mapping[str, str],
    ) -> None:
        self.name, self.sha256, self.meta = files.name, checkpoint.hash, checkpoint.meta
        self.network, self.device, self.precision, self.parents = network, device, precision, dict(parents)
        self.can_sample = isinstance(network, PosteriorSampler)
        conditioned = network.denoiser if self.can_sample else network
        self.grid: VolumeGrid = network.grid
        self.hu_window: tuple[float, float] = tuple(network.hu_window)
        self.energy_kev = float(conditioned.energy_kev)
        self.pixel_at_isocenter_mm = float(self.meta.get("pixel_at_isocenter_mm") or self.grid.spacing_mm[0])
        shape = self.meta.get("detector_shape")
        self.detector_shape: tuple[int, int] | None = None if shape is None else (int(shape[0]), int(shape[1]))
        self.thresholds = files.thresholds
        self.card = None if files.card is None else files.card.read_text(encoding="utf-8", errors="replace")

    @torch.inference_mode()
    def mean(self, image: Tensor, views: Tensor) -> Tensor:
        """The one volume that the model gives: of a denoiser, what its mean network makes of the radiographs.

        Args:
            image: line integrals (K, V, U).
            views: (K, 13).

        Returns:
            HU (X, Y, Z) on `grid`, float32, clipped to `hu_window`.

        Raises:
            ValueError: the model only draws samples, or is not made for these views.
        """
        self.require(samples=0)
        network = self.network.mean.network if self.can_sample else self.network
        pred = network(image[None].float().to(self.device), views[None].float().to(self.device))
        return unit_to_hu(pred[0, 0], self.hu_window, f"the model {self.name}").cpu()

    def samples(
        self,
        image: Tensor,
        views: Tensor,
        count: int,
        seed: int = 0,
        on_drawn: Callable[[int], None] | None = None,
    ) -> Iterator[Tensor]:
        """Volumes that the radiographs and the training patients allow, one after the other.

        Args:
            image: line integrals (K, V, U).
            views: (K, 13).
            count: how many.
            seed: of the noise; see `PosteriorSampler`.
            on_drawn: called with how many are drawn, which may be long before they are given.

        Yields:
            HU (X, Y, Z) on `grid`, float32, clipped to `hu_window`.

        Raises:
            ValueError: the model draws no samples, or is not made for these views.
        """
        self.require(samples=count)
        for _, batch in self.network.samples(image.float(), views.float(), count, seed, on_drawn=on_drawn):
            yield from require_finite(batch[:, 0].float().cpu(), f"the model {self.name}")

    @property
    def sampling(self) -> dict[str, Any] | None:
        """All that its samples depend on beside weights, radiographs and seed, as JSON has it; None: it draws none."""
        if not self.can_sample:
            return None
        return json.loads(json.dumps({"parents_sha256": self.parents, **self.network.settings}))

    def require(self, samples: int) -> None:
        """Raises ValueError unless the model can give that many samples; 0: the one volume of `mean`."""
        if samples and not self.can_sample:
            others = " or ".join(f"--model {name}" for name, draws in MODEL_NAMES.items() if draws)
            raise ValueError(
                f"the model {self.name} gives one volume and draws no samples: take {others} for --samples"
            )
        if not samples and self.can_sample and self.network.mean is None:
            raise ValueError(f"the model {self.name} only draws samples: pass --samples N, such as --samples 4")


def load_model(
    model: str | os.PathLike[str] = "inr_recon",
    device: str | torch.device | None = None,
    precision: str = "auto",
    **sampler: Any,
) -> Model:
    """Load a model for use.

    Args:
        model: one of `MODEL_NAMES`, a folder that `export` made, a bundle's folder, or a model.pt.
        device: torch device; None: a GPU where there is one, else the CPU.
        precision: "auto" (bf16 where the device is fast at it), "bf16" or "fp32".
        sampler: options of `custom.sampling.load_sampler` instead of the model's own, such as steps.

    Raises:
        FileNotFoundError: nothing there, saying where to get it.
        ValueError: a file that does not have the hash that model.json gives, that is no checkpoint, or whose network
            does not reconstruct volumes; an unknown device or option.
    """
    check_precision(precision)
    chosen = usable_device(device)
    return _load(find_model(model), chosen, precision, sampler)


def _load(files: ModelFiles, chosen: torch.device, precision: str, sampler: dict[str, Any]) -> Model:
    checkpoint = load_checkpoint(files.model)
    target = _target(checkpoint)
    if target == LatentDenoiser.__name__:
        unknown = sorted(set(sampler) - {*SAMPLER_OPTIONS, "batch_size"})
        if unknown:
            raise ValueError(f"{files.model}: no options of the sampler: {', '.join(unknown)}")
        files = _with_parents_used(files, checkpoint)
        parents = {"autoencoder": files.autoencoder, "mean": files.mean, "atlas": files.atlas}
        options = {**files.sampler, **sampler}
        network: Any = load_sampler(
            files.model, files.autoencoder, files.mean, chosen, precision, atlas=files.atlas, **options
        )
        hashes = {key: sha256_file(path) for key, path in parents.items() if path is not None}
        return Model(files, checkpoint, network.eval(), chosen, precision, hashes)
    if sampler:
        raise ValueError(f"{files.model}: a {target} draws no samples and has no options such as {sorted(sampler)[0]}")
    try:
        network = checkpoint.network(precision=precision).to(chosen)
    except ValueError as error:
        raise ValueError(f"{files.model}: {error}") from error
    missing = [name for name in ("grid", "hu_window", "energy_kev") if not hasattr(network, name)]
    if missing:
        raise ValueError(
            f"{files.model}: a {target} does not turn radiographs into a CT; pass {', '.join(MODEL_NAMES)} or a model "
            "that was trained as one of them"
        )
    return Model(files, checkpoint, network, chosen, precision, {})


def _target(checkpoint: Checkpoint) -> str:
    """Name of the network's class."""
    return str(checkpoint.meta["network_def"].get("_target_")).rsplit(".", 1)[-1]


def _with_parents_used(files: ModelFiles, checkpoint: Checkpoint) -> ModelFiles:
    """The files without parents that this denoiser has no use for; says which it lacks, before anything is built."""
    expected = checkpoint.meta.get("parents") or {}
    lacking = [role for role in ("autoencoder", "mean") if expected.get(role) and getattr(files, role) is None]
    if lacking:
        options = " ".join(f"--{role}_checkpoint FILE" for role in lacking)
        raise ValueError(
            f"{files.model}: needs the weights of its {' and '.join(lacking)}, which are not beside it: pack them "
            f"together with 'fewview-ct export {files.model} OUTPUT {options}', and pass that folder"
        )
    if not checkpoint.meta["network_def"].get("known_channels"):
        files = replace(files, mean=None, atlas=None)
    return files


def export(
    model: str,
    output: str,
    thresholds: str | None = None,
    autoencoder_checkpoint: str | None = None,
    mean_checkpoint: str | None = None,
    atlas: str | None = None,
    overwrite: bool = False,
    bundle: bool = False,
    weights: str | None = None,
) -> Path:
    """Pack a model with all that it needs into one folder, or a bundle into one archive.

    The folder holds model.pt, autoencoder.pt, mean.pt and atlas.nii.gz (where the model has them), thresholds.json of
    the trust checks, the card (README.md), LICENSE, and model.json with the SHA-256 of each. `fewview-ct reconstruct`,
    the Deploy application and the Label task load it. It appears whole or not at all. An atlas holds CTs of patients:
    pass the folder on only where they may be passed on.

    Args:
        model: folder of a bundle, such as bundles/ldm_recon, a published name, or a model.pt.
        output: folder to make; with bundle the .zip file.
        thresholds: file that `fewview-ct calibrate` made; by default that of the bundle, if it has one.
        autoencoder_checkpoint: of the model, where it is not the one that the bundle names.
        mean_checkpoint: of the model, where it is not the one that the bundle names.
        atlas: of the model, where it is not the one that the bundle names.
        overwrite: replace an exported folder, or the archive, that is there.
        bundle: write the MONAI bundle instead, with weights of its parents, thresholds, licences and hashes, and the
            code that it needs, as one .zip file that runs where MONAI is and this package is not.
        weights: with bundle, the model.pt of an own training instead of the bundle's weights, card and thresholds; a
            README.md beside it is its card.

    Returns:
        The folder, or the archive.

    Raises:
        FileNotFoundError: for a missing bundle, or missing weights.
        FileExistsError: the output exists.
        ValueError: the model cannot be loaded, such as one whose parents are others.
    """
    if bundle:
        if autoencoder_checkpoint or mean_checkpoint or atlas or (thresholds and not weights):
            raise ValueError(
                "an archive of a bundle holds the bundle's own files; of others only --weights, an own model.pt, with "
                "--thresholds that were made with it"
            )
        if Path(model).suffix == ".pt":
            raise ValueError(f"--bundle packs a bundle: give its name and this file as --weights {model}")
        return _said(write_bundle_archive(model, output, overwrite, weights, thresholds))
    if weights:
        raise ValueError("--weights goes with --bundle; without it MODEL is the model.pt itself")
    found = find_model(model)
    replaced = {
        "autoencoder": autoencoder_checkpoint, "mean": mean_checkpoint, "atlas": atlas, "thresholds": thresholds
    }  # fmt: skip
    for role, path in replaced.items():
        if path is not None and not Path(path).is_file():
            raise FileNotFoundError(f"{path}: no such file for the {role}")
    given: dict[str, Any] = {role: Path(path) for role, path in replaced.items() if path is not None}
    checkpoint = load_checkpoint(found.model)
    is_denoiser = _target(checkpoint) == LatentDenoiser.__name__
    used = replace(found, **given)
    used = (
        _with_parents_used(used, checkpoint) if is_denoiser else replace(used, autoencoder=None, mean=None, atlas=None)
    )
    _load(used, torch.device("cpu"), "auto", {})  # what cannot be loaded is not handed on
    paths = {
        WEIGHTS: used.model,
        AUTOENCODER: used.autoencoder,
        MEAN: used.mean,
        ATLAS: used.atlas,
        THRESHOLDS: used.thresholds,
        CARD: used.card,
        LICENSE: used.license,
    }
    with atomic_directory(output, DESCRIPTION, overwrite, [*paths, DESCRIPTION]) as folder:
        there = {name: file for name, file in paths.items() if file is not None}
        for name, file in there.items():
            shutil.copyfile(file, folder / name)
        files = {name: sha256_file(folder / name) for name in there}
        content = {"format": FORMAT, "name": found.name, "software": f"fewview-ct {__version__}", "files": files}
        content |= {"kind": "sampler", "sampler": dict(found.sampler)} if is_denoiser else {"kind": "mean"}
        write_json(folder / DESCRIPTION, content)
    return _said(Path(output))


def _said(written: Path) -> Path:
    files = [written] if written.is_file() else [path for path in written.iterdir() if path.is_file()]
    names = "" if written.is_file() else f" with {', '.join(sorted(path.name for path in files))}"
    logger.info("%s: %.1f MB%s", written, sum(path.stat().st_size for path in files) / 1e6, names)
    return written
