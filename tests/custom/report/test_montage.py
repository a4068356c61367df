"""The montage: what stands where, and what is refused."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from custom.report.montage import Panel, montage

SHAPES = {"axial": (12, 16), "coronal": (8, 16), "sagittal": (8, 12)}


def slices(hu: float) -> dict[str, np.ndarray]:
    return {name: np.full(shape, hu, np.int16) for name, shape in SHAPES.items()}


def draw(path: Path, *panels: Panel) -> np.ndarray:
    return matplotlib.image.imread(montage(slices(400), panels, (2.0, 2.0, 3.0), path))[..., :3]


def test_an_exact_method_has_no_difference_and_a_wrong_one_has(tmp_path: Path) -> None:
    def coloured(hu: float) -> float:
        picture = draw(tmp_path / "m.png", Panel("a", slices(hu)))
        # Orange: the method is too dense. The bar of the colours is at the bottom of the page.
        page = picture[: int(0.9 * len(picture))]
        return float(((page[..., 0] > 0.9) & (page[..., 2] < 0.85) & (page[..., 1] < 0.95)).mean())

    letters = coloured(400)
    assert letters < 0.01, "the letters of the directions alone"
    assert coloured(900) > letters + 0.1


def test_more_methods_go_into_further_bands(tmp_path: Path) -> None:
    one = draw(tmp_path / "a.png", *[Panel(f"m{i}", slices(0)) for i in range(5)])
    two = draw(tmp_path / "b.png", *[Panel(f"m{i}", slices(0)) for i in range(6)])
    assert one.shape[1] == two.shape[1]
    # Six methods are two bands of three, whose pictures are wider than those of one band of five.
    assert two.shape[0] > 2 * one.shape[0]


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no method to show"):
        draw(tmp_path / "d.png")
    with pytest.raises(ValueError, match="planes must be some of"):
        montage({"oblique": np.zeros((2, 2))}, [Panel("a", {})], (1, 1, 1), tmp_path / "e.png")
    wrong = {**slices(0), "axial": np.zeros((3, 3))}
    with pytest.raises(ValueError, match=r"a: axial slice of shape \(3, 3\), the truth's is \(12, 16\)"):
        draw(tmp_path / "f.png", Panel("a", wrong))
    assert not list(tmp_path.glob("*.png"))
