"""A cohort of ellipsoids with exact radiographs, a methods file, and a user's own method as a bundle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from custom.core.attenuation import hu_to_attenuation
from custom.core.checkpoints import save_checkpoint
from custom.core.files import sha256_file
from custom.geometry import Geometry, VolumeGrid
from custom.networks import FeatureUNet, FourierFeatures, ImplicitReconstructor
from custom.projection import Projector
from tests.custom.networks.tiny_diffusion import autoencoder, denoiser

GRID = VolumeGrid.cube(16, 320)
ISOCENTER = (5.0, 6.0, 7.0)

#: What a user writes: nothing of this project but the grid and the window.
TOY_METHOD = """
import torch


class Level(torch.nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.shape, self.level = tuple(shape), torch.nn.Parameter(torch.zeros(()))

    def load(self, path):
        self.level.data = torch.load(path, weights_only=True)["level"]

    def forward(self, image, views):
        if image.shape[1] != 2:
            raise ValueError(f"this method is made for two views, got {image.shape[1]}")
        assert views.shape == (1, 2, 13)
        if not image.mean() > 0:
            raise RuntimeError("the radiographs are empty")
        return self.level.expand(1, 1, *self.shape)


class Levels(Level):
    def samples(self, image, views, count, seed=0):
        for index in range(count):
            yield index, torch.full((1, 1, *self.shape), -900.0 + 200.0 * index + seed)
"""


def patient(radius: float) -> Tensor:
    """An ellipsoid of water in air, (X, Y, Z) HU."""
    distance = (GRID.points() / torch.tensor([1.2, 0.8, 1.0])).norm(dim=-1)
    return torch.where(distance < radius, 0.0, -1000.0)


def tiny_network(**options: Any) -> ImplicitReconstructor:
    """A reconstructor that has learnt nothing, on `GRID`."""
    torch.manual_seed(0)
    return ImplicitReconstructor(
        FeatureUNet(4, (4, 6), 3),
        GRID,
        FourierFeatures(count=2),
        {"width": 8, "depth": 1},
        {"width": 8, "depth": 1},
        precision="fp32",
        **options,
    ).eval()


def write_tiny_sampler(folder: Path, residual: bool = False) -> None:
    """A model folder that draws samples in a moment, with nothing learnt; its name is "tiny"."""
    folder.mkdir()
    parents = {"autoencoder": autoencoder(), "mean": tiny_network()}
    hashes = {role: sha256_file(save_checkpoint(folder / f"{role}.pt", network)) for role, network in parents.items()}
    meta = {"parents": hashes, "pixel_at_isocenter_mm": 20.0}
    network = denoiser(known_channels=3, residual=residual)
    files = hashes | {"model": sha256_file(save_checkpoint(folder / "model.pt", network, meta))}
    content = {"format": "fewview-ct model 1", "name": "tiny", "files": {f"{k}.pt": v for k, v in files.items()}}
    (folder / "model.json").write_text(json.dumps({**content, "sampler": {"steps": 2}}))


def write_cohort(folder: Path, test_radii: Sequence[float] = (80.0, 120.0)) -> Path:
    """Two training patients and some to test, with parallel radiographs at 0 and 90 degrees; the datalist."""
    geometry = Geometry.from_angles([0.0, 90.0], beam="parallel", grid=GRID, isocenter_mm=ISOCENTER)
    projector = Projector.from_geometry(geometry)
    content: dict[str, list] = {"training": [], "test": []}
    for index, radius in enumerate((90.0, 110.0, *test_radii)):
        name, hu = f"case{index}", patient(radius)
        nib.save(nib.Nifti1Image(hu.numpy().astype(np.int16), GRID.affine(ISOCENTER)), folder / f"{name}.nii.gz")
        image = projector(hu_to_attenuation(hu[None, None]))[0]
        stack = nib.Nifti1Image(image.permute(2, 1, 0).numpy(), np.eye(4))
        nib.save(stack, folder / f"{name}_radiographs.nii.gz")
        geometry.save(folder / f"{name}.json")
        entry = {"case": name, "label": f"{name}.nii.gz"}
        entry |= {"image": f"{name}_radiographs.nii.gz", "geometry": f"{name}.json"}
        content["training" if index < 2 else "test"].append(entry)
    path = folder / "datalist.json"
    path.write_text(json.dumps(content))
    return path


def write_methods(folder: Path, *methods: Any, **views: Any) -> Path:
    """A methods file with the view sets "1" (lateral) and "2" unless others are given."""
    known = views or {"1": {"angles_deg": [0]}, "2": {"angles_deg": [0, 90]}}
    path = folder / "methods.json"
    path.write_text(json.dumps({"view_sets": known, "methods": list(methods)}))
    return path


def write_toy_bundle(folder: Path, level: float = 0.5, target: str = "Level", **changes: Any) -> Path:
    """A bundle that gives one level everywhere, `level` in [-1, 1] from its weights; the folder."""
    root = folder / "toy"
    (root / "configs").mkdir(parents=True, exist_ok=True)
    (root / "models").mkdir(exist_ok=True)
    (root / "toy_level_method.py").write_text(TOY_METHOD)
    torch.save({"level": torch.tensor(level)}, root / "models" / "model.pt")
    config = {
        "bundle_root": "nowhere",
        "model_file": "$@bundle_root + '/models/model.pt'",
        "hu_window": [-1000, 1000],
        "grid": {"_target_": "custom.geometry.VolumeGrid", "shape": [16, 16, 16], "spacing_mm": [20.0, 20.0, 20.0]},
        "network_def": {"_target_": f"toy_level_method.{target}", "shape": "$@grid.shape"},
        "initialize": ["$@network_def.load(@model_file)"],
        **changes,
    }
    (root / "configs" / "inference.json").write_text(json.dumps(config))
    return root
