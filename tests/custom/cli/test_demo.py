"""The demonstration on the sample patient, with an untrained network in place of the real weights."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from custom.cli import demo
from custom.core.checkpoints import save_checkpoint
from custom.data.sample import sample_ct
from custom.geometry import VolumeGrid
from custom.metrics.tables import read_csv
from custom.networks import FeatureUNet, FourierFeatures, ImplicitReconstructor
from custom.projection.radiograph_stack import load_stack


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    network = ImplicitReconstructor(
        encoder=FeatureUNet(out_channels=4, widths=[4, 8]),
        grid=VolumeGrid((16, 16, 16), (20.0, 20.0, 20.0)),
        fourier=FourierFeatures(count=2),
        view_mlp={"width": 4, "depth": 1},
        volume_mlp={"width": 4, "depth": 1},
    )
    return str(save_checkpoint(tmp_path_factory.mktemp("weights") / "model.pt", network))


def test_demo_leaves_volume_picture_and_metrics(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "SIRT_ITERATIONS", 2)
    demo.run(checkpoint, str(tmp_path))
    volume, sample = nib.load(tmp_path / "reconstruction.nii.gz"), nib.load(sample_ct())
    corner, sample_corner = (image.affine @ [-0.5, -0.5, -0.5, 1] for image in (volume, sample))
    assert np.allclose(corner, sample_corner, atol=1e-3), "the reconstruction must lie where the sample lies"
    radiographs, geometry = load_stack(tmp_path / "radiographs.nii.gz", tmp_path / "radiographs.json")
    assert geometry.angles_deg == [0, 90]
    assert 3 < float(radiographs.max()) < 15
    (row,) = read_csv(tmp_path / "metrics.csv")
    assert 0 < row["psnr_range"] < 40
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert content["sirt"]["case"] == "SIRT (clipped)"
    assert (tmp_path / "reconstruction.png").stat().st_size > 100_000
    text = capsys.readouterr().out
    assert "SIRT (clipped)" in text
    assert "mean" not in text
    assert f"{row['psnr_range']:.2f}" in text


def test_demo_without_weights_starts_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.pt"):
        demo.run("none.pt", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
