"""The residual's variance on training and validation patients, with means whose error is known."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from custom.core.checkpoints import save_checkpoint
from custom.data.augmentation import RandThoraxAugment
from custom.geometry import Geometry
from custom.training.latent_dataset import LatentDataset, write_latents
from custom.training.prepare_batch import AIR_HU
from custom.training.residual_scale import residual_ratio
from tests.custom.networks.tiny_diffusion import GRID, autoencoder

SOURCE = GRID.padded([2, 0, 0])


class Off:
    """A mean network that knows the latent and adds an error of a given size, in latent deviations."""

    def __init__(self, dataset: LatentDataset, error: float, folds: int) -> None:
        self.autoencoder, self.networks = autoencoder(), [None] * folds
        self.error, self.deviation, self.seen = error, dataset.latent_std[:, None, None, None], []  # type: ignore[var-annotated]

    def __call__(self, image: Tensor, views: Tensor, mask: Tensor, batch: Mapping[str, Any] | None = None) -> Tensor:
        self.seen.append((image, views, batch))
        latent = batch["latent"] if batch is not None else self.autoencoder.encode(LABEL / 1000)
        return latent + self.error * self.deviation


LABEL = torch.where(GRID.points().norm(dim=-1) < 100, 0.0, -1000.0)[None, None]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> LatentDataset:
    folder = tmp_path_factory.mktemp("residuals")
    path = save_checkpoint(folder / "vqgan.pt", autoencoder())
    cases = [
        {"source": torch.where(SOURCE.points().norm(dim=-1) < 90 + 20 * n, 0.0, AIR_HU)[None], "fold": n}
        for n in range(2)
    ]
    augment = RandThoraxAugment(SOURCE.shape, SOURCE.spacing_mm, SOURCE.spacing_mm)
    write_latents(folder / "latents", cases, [0.5, 0.5], augment, path, SOURCE, 5)
    return LatentDataset(folder / "latents", path)


def validation() -> list[dict[str, Any]]:
    """Two cases, at other angles."""
    cases = []
    for angles in ([0.0, 90.0], [45.0]):
        geometry = Geometry.from_angles(angles, "parallel", grid=GRID, detector_shape=(16, 24))
        image, mask = torch.rand(len(angles), 16, 24), torch.ones(len(angles), dtype=torch.bool)
        cases.append({"label": LABEL[0], "image": image, "views": geometry.tensor(), "view_mask": mask})
    return cases


@pytest.mark.parametrize(("error", "warned"), [(0.5, False), (0.8, True), (0.2, True)])
def test_the_ratio_is_that_of_the_means_errors(
    dataset: LatentDataset, tmp_path: Path, caplog: pytest.LogCaptureFixture, error: float, warned: bool
) -> None:
    fold_mean, mean = Off(dataset, 0.5, dataset.folds), Off(dataset, error, 1)
    with caplog.at_level(logging.INFO, "custom.training.residual_scale"):
        found = residual_ratio(dataset, validation(), fold_mean, mean, SOURCE, tmp_path, entries=4)  # type: ignore[arg-type]
    assert found["training_variance"] == pytest.approx(0.25, rel=1e-3)
    assert found["validation_variance"] == pytest.approx(error**2, rel=1e-3)
    assert found["ratio"] == pytest.approx(error**2 / 0.25, rel=1e-3)
    assert json.loads((tmp_path / "residual_variance.json").read_text()) == found
    assert found["training_entries"] == 4 and found["validation_cases"] == 2 and found["views"] == [1, 2]
    assert any(record.levelno == logging.WARNING for record in caplog.records) == warned


def test_training_patients_are_seen_at_the_views_of_the_validation(dataset: LatentDataset, tmp_path: Path) -> None:
    fold_mean, cases = Off(dataset, 0.5, dataset.folds), validation()
    residual_ratio(dataset, cases, fold_mean, Off(dataset, 0.5, 1), SOURCE, tmp_path, entries=9)  # type: ignore[arg-type]
    assert len(fold_mean.seen) == 5, "all entries that there are"
    for number, (image, views, batch) in enumerate(fold_mean.seen):
        assert torch.equal(views[0], cases[number % 2]["views"].float()) and image.shape[2:] == (16, 24)
        assert float(image.max()) > 1 and batch["fold"].shape == (1,)


def test_what_is_missing_is_named(dataset: LatentDataset, tmp_path: Path) -> None:
    mean: Any = Off(dataset, 0.5, 1)
    with pytest.raises(ValueError, match="need fold_mean_checkpoints"):
        residual_ratio(dataset, validation(), None, mean, SOURCE, tmp_path)
    with pytest.raises(ValueError, match="1 fold_mean_checkpoints for latents of 2 folds"):
        residual_ratio(dataset, validation(), mean, mean, SOURCE, tmp_path)
    folds: Any = Off(dataset, 0.5, 2)
    with pytest.raises(ValueError, match="at least 1 training entry"):
        residual_ratio(dataset, validation(), folds, mean, SOURCE, tmp_path, entries=0)
