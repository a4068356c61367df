"""Weights files: round trip, architecture from the file, nothing executable, clear errors."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from custom.core.checkpoints import build_network, definition, load_checkpoint, save_checkpoint, trained_setting
from custom.geometry import Geometry, VolumeGrid
from custom.networks import FeatureUNet, FourierFeatures, ImplicitReconstructor


def make(width: int = 8, **options: object) -> ImplicitReconstructor:
    torch.manual_seed(width)
    network = ImplicitReconstructor(
        FeatureUNet(4, (4, 6), 3),
        VolumeGrid.cube(8, 320),
        FourierFeatures(count=2),
        {"width": width, "depth": 1},
        {"width": 8, "depth": 1},
        precision="fp32",
        **options,  # type: ignore[arg-type]
    )
    return network.eval()


def test_round_trip_builds_the_same_network(tmp_path: Path) -> None:
    views = Geometry.from_angles([0, 90], grid=VolumeGrid.cube(8, 320), detector_shape=(8, 8)).tensor()
    network = make(views=views)
    path = save_checkpoint(tmp_path / "model.pt", network, {"preset": "test"})
    loaded = load_checkpoint(path)
    image = torch.rand(1, 2, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(loaded.network()(image), network(image), atol=0, rtol=0)
    assert loaded.meta["preset"] == "test"
    assert len(loaded.hash) == 64
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.pt"]


def test_half_precision_file_gives_float32_weights(tmp_path: Path) -> None:
    network = make()
    loaded = load_checkpoint(save_checkpoint(tmp_path / "model.pt", network, half=True))
    assert {t.dtype for t in loaded.state.values()} == {torch.float32}
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(loaded.state[name], tensor, atol=1e-3, rtol=1e-3)


def test_definition_is_plain_json() -> None:
    written = definition(make())
    assert written["_target_"] == "custom.networks.ImplicitReconstructor"
    assert written["encoder"]["_target_"] == "custom.networks.FeatureUNet"
    assert definition(build_network(json.loads(json.dumps(written)))) == written


def test_definition_refuses_what_it_does_not_know() -> None:
    with pytest.raises(TypeError, match="does not describe itself"):
        definition(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("poison", "message"),
    [
        ({"_target_": "os.system", "command": "true"}, "os.system"),
        ({"_target_": "custom.networks.FeatureUNet", "out_channels": "$__import__('os').getpid()"}, "expression"),
        ({"_target_": "custom.networks.FeatureUNet", "_mode_": "callable"}, "_mode_"),
    ],
)
def test_a_file_from_elsewhere_runs_no_code(poison: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_network({**definition(make()), "encoder": poison})


def test_another_architecture_is_named(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "model.pt", make(width=8))
    with pytest.raises(ValueError, match=r"model\.pt.*another architecture"):
        load_checkpoint(path).load_into(make(width=16))


def test_files_that_are_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "missing.pt")
    torch.save({"model": {}}, tmp_path / "other.pt")
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    (tmp_path / "text.pt").write_text("hello")
    for name in ("other.pt", "text.pt", "tensor.pt"):
        with pytest.raises(ValueError, match=f"{name}.*not a checkpoint"):
            load_checkpoint(tmp_path / name)
    whole = save_checkpoint(tmp_path / "model.pt", make()).read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="damaged"):
        load_checkpoint(tmp_path / "cut.pt")


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"pixel_at_isocenter_mm": -1}, "pixel_at_isocenter_mm"),
        ({"pixel_at_isocenter_mm": float("nan")}, "pixel_at_isocenter_mm"),
        ({"pixel_at_isocenter_mm": "wide"}, "pixel_at_isocenter_mm"),
        ({"detector_shape": [8]}, "detector_shape"),
        ({"detector_shape": [10**9, 10**9]}, "detector_shape"),
        ({"training_views": {"two": 1}}, "training_views"),
        ({"parents": [1]}, "parents"),
        ({"cone_prob": float("inf")}, "cone_prob"),
        ({"source_to_isocenter_mm": "far"}, "source_to_isocenter_mm"),
        ({"network_def": {}}, "makes a dict, which is no network"),
        (
            {"network_def": {"_target_": "custom.geometry.VolumeGrid", "shape": [8, 8, 8], "spacing_mm": [1, 1, 1]}},
            "makes a VolumeGrid, which is no network",
        ),
    ],
)
def test_a_meta_that_cannot_be_is_refused(meta: dict, message: str, tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "model.pt", make(), meta)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(path).network()


def test_a_setting_is_the_trainings_unless_another_is_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = save_checkpoint(tmp_path / "model.pt", make(), {"pixel_at_isocenter_mm": 5.0})
    assert trained_setting(path, "pixel_at_isocenter_mm") == 5.0
    assert trained_setting(path, "pixel_at_isocenter_mm", 5) == 5 and not caplog.records
    with caplog.at_level(logging.WARNING, "custom.core.checkpoints"):
        assert trained_setting(path, "pixel_at_isocenter_mm", 2.5) == 2.5
    assert "pixel_at_isocenter_mm 2.5" in caplog.text and "was trained with 5.0" in caplog.text
    older = save_checkpoint(tmp_path / "older.pt", make())
    assert trained_setting(older, "pixel_at_isocenter_mm", 2.5) == 2.5
    with pytest.raises(ValueError, match=r"older\.pt: .*pass --pixel_at_isocenter_mm"):
        trained_setting(older, "pixel_at_isocenter_mm")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_checkpoint(tmp_path / "model.pt", make())
    before = path.read_bytes()

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("custom.core.checkpoints.torch.save", full_disk)
    with pytest.raises(OSError, match=r"no space left to write .*model\.pt"):
        save_checkpoint(path, make(width=16))
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1
