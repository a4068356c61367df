"""Orientation and content of pictures, on volumes whose every corner is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from custom.report.boxplots import method_boxplots
from custom.report.figures import plane, reconstruction_figure

SHAPE = (20, 24, 28)


def marked(x: int, y: int, z: int) -> np.ndarray:
    volume = np.zeros(SHAPE)
    volume[x, y, z] = 1
    return volume


@pytest.mark.parametrize(
    ("name", "voxel", "pixel"),
    [
        # A voxel at the patient's right, anterior, inferior side: x high, y high, z low.
        ("axial", (19, 23, 14), (0, 0)),
        ("axial", (0, 0, 14), (23, 19)),
        ("axial", (18, 1, 14), (22, 1)),
        ("coronal", (19, 12, 27), (0, 0)),
        ("coronal", (0, 12, 3), (24, 19)),
        ("sagittal", (10, 23, 27), (0, 0)),
        ("sagittal", (10, 0, 1), (26, 23)),
    ],
)
def test_planes_are_radiological(name: str, voxel: tuple[int, int, int], pixel: tuple[int, int]) -> None:
    picture = plane(marked(*voxel), name)
    assert tuple(np.argwhere(picture)[0]) == pixel


def test_plane_through_a_given_index() -> None:
    assert plane(marked(3, 4, 5), "axial", index=5).any()
    assert not plane(marked(3, 4, 5), "axial").any()
    with pytest.raises(ValueError, match="oblique"):
        plane(marked(0, 0, 0), "oblique")


def body() -> np.ndarray:
    volume = np.full(SHAPE, -1000.0)
    volume[2:-2, 2:-2, 2:-2] = 40
    volume[12:17, 8:16, 6:20] = -850
    return volume


@pytest.mark.parametrize("views", [1, 3, 8])
def test_figure_is_written_whole(tmp_path: Path, views: int) -> None:
    truth = body()
    radiographs = np.random.default_rng(0).uniform(0, 5, (views, 28, 42)).astype(np.float32)
    labels = [f"{angle}°" for angle in range(views)]
    path = reconstruction_figure(
        radiographs, truth, truth + 20, (2.0, 2.0, 3.0), tmp_path / "a" / "x.png", "title", "text", labels
    )
    picture = imread(path)
    assert picture.shape[1] == 1500
    assert picture[..., :3].std() > 0.1
    assert list(path.parent.iterdir()) == [path]
    alone = imread(reconstruction_figure(radiographs, None, truth, (2.0, 2.0, 3.0), tmp_path / "b.png"))
    assert alone.shape[0] < picture.shape[0]


def test_colours_of_the_difference_tell_the_sign(tmp_path: Path) -> None:
    truth = body()
    radiographs = np.ones((1, 8, 8))

    def difference_panel(offset: float) -> np.ndarray:
        path = reconstruction_figure(radiographs, truth, truth + offset, (1, 1, 1), tmp_path / "d.png")
        picture = imread(path)[..., :3]
        height, width = picture.shape[:2]
        return picture[height // 2 : height * 3 // 4, int(width * 0.7) : int(width * 0.9)].reshape(-1, 3).mean(0)

    thin, equal, dense = (difference_panel(offset) for offset in (-300, 0, 300))
    assert thin[2] > thin[0] + 0.2
    assert dense[0] > dense[2] + 0.2
    assert equal.max() < 0.15


def test_figure_refuses_what_does_not_fit(tmp_path: Path) -> None:
    truth, radiographs = body(), np.ones((2, 8, 8))
    path = tmp_path / "x.png"
    with pytest.raises(ValueError, match="differ in shape"):
        reconstruction_figure(radiographs, truth, truth[1:], (1, 1, 1), path)
    with pytest.raises(ValueError, match=r"\(K, V, U\)"):
        reconstruction_figure(radiographs[0], truth, truth, (1, 1, 1), path)
    with pytest.raises(ValueError, match="1 labels for 2"):
        reconstruction_figure(radiographs, truth, truth, (1, 1, 1), path, view_labels=["a"])
    with pytest.raises(ValueError, match=r"\(X, Y, Z\)"):
        reconstruction_figure(radiographs, None, truth[0], (1, 1, 1), path)
    assert not path.exists()


def test_boxplots_of_many_methods_have_a_panel_for_every_view_set(tmp_path: Path) -> None:
    rows = [
        {"views": views, "method": f"method {m}", "dice": 0.5 + m / 50 + i / 100}
        for views in ("1 frontal", "2", "4", "8")
        for m in range(12)
        for i in range(5)
        if (views, m) != ("8", 3)
    ]
    paths = [
        method_boxplots(rows, tmp_path / f"{name}.png", "dice", groups)
        for name, groups in (("all", ["1 frontal", "2", "4", "8", "2 cone"]), ("again", ()), ("one", ["2"]))
    ]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    heights = [imread(path).shape[0] for path in paths]
    assert heights[0] > 1.8 * heights[2], "four panels take two lines, one panel one"
    assert imread(paths[0])[..., :3].std() > 0.05
    few = method_boxplots([row for row in rows if row["dice"] < 0.53], tmp_path / "few.png", "dice")
    assert imread(few)[..., :3].std() > 0.01, "dots without boxes"
    for none in (rows, []):
        with pytest.raises(ValueError, match="nosuch"):
            method_boxplots(none, tmp_path / "none.png", "nosuch")
