"""The residual's variance on training and validation patients, with means whose error is known."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from custom.geometry import Geometry
from custom.training.residual_scale import residual_ratio
from tests.custom.networks.tiny_diffusion import GRID, autoencoder

LABEL = torch.where(GRID.points().norm(dim=-1) < 100, 0.0, -1000.0)[None, None]


class Entries(list):
    """Latents of deviation 2 whose reconstructions are off by a given size, in deviations, at one to four views."""

    latent_std = torch.full((3,), 2.0)

    def __init__(self, error: float) -> None:
        for count in (1, 2, 3, 4, 2, 1):
            latent = torch.randn(3, 4, 4, 4)
            off = error if count < 3 else 9.0
            self.append({"latent": latent, "known": latent - 2 * off, "views": torch.zeros(count, 13)})


class Off:
    """A mean network that knows the latent and adds an error of a given size, in latent deviations."""

    def __init__(self, error: float) -> None:
        self.autoencoder, self.error = autoencoder(), error

    def __call__(self, image: Tensor, views: Tensor, mask: Tensor) -> Tensor:
        return self.autoencoder.encode(LABEL / 1000) + 2 * self.error


def validation() -> list[dict[str, Any]]:
    """Two cases, at other angles."""
    cases = []
    for angles in ([0.0, 90.0], [45.0]):
        geometry = Geometry.from_angles(angles, "parallel", grid=GRID, detector_shape=(16, 24))
        image, mask = torch.rand(len(angles), 16, 24), torch.ones(len(angles), dtype=torch.bool)
        cases.append({"label": LABEL[0], "image": image, "views": geometry.tensor(), "view_mask": mask})
    return cases


@pytest.mark.parametrize(("error", "warned"), [(0.5, False), (0.8, True), (0.2, True)])
def test_the_ratio_is_that_of_the_errors_at_as_many_views(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, error: float, warned: bool
) -> None:
    training, mean = Entries(0.5), Off(error)
    with caplog.at_level(logging.INFO, "custom.training.residual_scale"):
        found = residual_ratio(training, validation(), mean, tmp_path)  # type: ignore[arg-type]
    assert found["training_variance"] == pytest.approx(0.25, rel=1e-3)
    assert found["validation_variance"] == pytest.approx(error**2, rel=1e-3)
    assert found["ratio"] == pytest.approx(error**2 / 0.25, rel=1e-3)
    assert json.loads((tmp_path / "residual_variance.json").read_text()) == found
    assert found["training_entries"] == 4 and found["validation_cases"] == 2 and found["views"] == [1, 2]
    assert any(record.levelno == logging.WARNING for record in caplog.records) == warned


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    training: Any = Entries(0.5)
    mean: Any = Off(0.5)
    with pytest.raises(ValueError, match="at least 1 validation case"):
        residual_ratio(training, [], mean, tmp_path)
    training[:] = training[2:4]
    with pytest.raises(ValueError, match=r"no entry of the latents has \[1, 2\] views"):
        residual_ratio(training, validation(), mean, tmp_path)
    del training[0]["known"]
    with pytest.raises(ValueError, match="write them with the mean_checkpoints"):
        residual_ratio(training, validation(), mean, tmp_path)
