"""Label maps out of LIDC's and LUNA16's annotations: where they lie, who has to agree, what is missing."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from custom.data.label_maps import label_files, load_labels
from custom.segmentation import class_rules, known_classes
from custom.segmentation.lidc_labels import consensus_nodules, read_annotations, sphere_nodules, write_lidc_labels
from tests.ct_samples import SPACING, affine, chest, write_nifti, write_series

HEADER = "seriesuid,coordX,coordY,coordZ,diameter_mm\n"


def stub(findings: list[tuple[np.ndarray, tuple[slice, slice, slice], int]], heights: np.ndarray) -> Any:
    """pylidc with these findings: mask (rows, columns, slices), where it lies, number of readers."""

    class Scan:
        series_instance_uid = "uid"
        slice_zvals = heights

        def cluster_annotations(self, verbose: bool) -> Iterator[list[int]]:
            return iter([[number] * readers for number, (_, _, readers) in enumerate(findings)])

    class Query:
        def filter(self, _: bool) -> Query:
            return self

        def all(self) -> list[Scan]:
            return [Scan()]

    def consensus(cluster: list[int], clevel: float, ret_masks: bool) -> tuple[np.ndarray, tuple]:
        assert clevel == 0.5 and not ret_masks
        return findings[cluster[0]][:2]

    module = types.ModuleType("pylidc")
    module.utils = types.ModuleType("pylidc.utils")  # type: ignore[attr-defined]
    module.utils.consensus = consensus  # type: ignore[attr-defined]
    module.Scan, module.query = Scan, lambda _: Query()  # type: ignore[attr-defined]
    return module


def test_contours_land_on_their_slices_and_disputed_ones_are_told_apart() -> None:
    mask = np.zeros((2, 3, 2), dtype=bool)
    mask[0, 2, 0] = mask[1, 0, 1] = True
    where = (slice(4, 6), slice(7, 10), slice(1, 3))
    lone = (np.ones((1, 1, 1), dtype=bool), (slice(0, 1), slice(0, 1), slice(0, 1)), 1)
    heights = np.array([-10.0, -7.5, -5.0])
    pylidc = stub([(mask, where, 4), lone], heights)
    matrix = np.diag([-0.7, -0.7, 2.5, 1.0])
    matrix[2, 3] = -12.5  # the series has a slice below the first that was annotated
    labels = consensus_nodules(pylidc.Scan(), matrix, (16, 12, 5), 3, pylidc)
    assert np.argwhere(labels == 1).tolist() == [[7, 5, 3], [9, 4, 2]], "columns first, then rows"
    assert np.argwhere(labels == 2).tolist() == [[0, 0, 1]]
    matrix[2, 3] = -11.0
    with pytest.raises(Exception, match=r"no slice at z = -7\.5 mm"):
        consensus_nodules(pylidc.Scan(), matrix, (16, 12, 5), 3, pylidc)


def test_spheres_in_world_coordinates(tmp_path: Path) -> None:
    path = tmp_path / "annotations.csv"
    path.write_text(HEADER + "a,-10.0,20.0,30.0,12.0\na,900,0,0,5\n")
    nodules = read_annotations(path)["a"]
    assert nodules[0] == (10.0, -20.0, 30.0, 12.0), "LUNA16 counts in LPS"
    matrix = np.diag([-2.0, 2.0, 3.0, 1.0])
    matrix[:3, 3] = [50.0, -50.0, 0.0]
    labels = sphere_nodules(nodules, matrix, (40, 40, 20))
    points = np.argwhere(labels) @ matrix[:3, :3].T + matrix[:3, 3]
    assert np.linalg.norm(points - (10.0, -20.0, 30.0), axis=1).max() <= 6.0
    assert labels.sum() * 12 == pytest.approx(4 / 3 * np.pi * 6**3, rel=0.15)
    path.write_text("seriesuid,x\n")
    with pytest.raises(ValueError, match=r"annotations\.csv is not LUNA16's annotations\.csv: no column coordX"):
        read_annotations(path)


def test_luna16_from_annotations_to_the_cube(tmp_path: Path) -> None:
    """A scan without nodule is known to have none: `prepare` keeps a name that has no voxel."""
    for name in ("uid.with", "uid.none"):
        write_nifti(tmp_path / f"ct/{name}.nii.gz", chest())
    (tmp_path / "annotations.csv").write_text(HEADER + "uid.with,-65,-10,0,40\n")
    folder = write_lidc_labels(str(tmp_path / "ct"), str(tmp_path / "labels"), str(tmp_path / "annotations.csv"))
    found, strays = label_files(Path(folder), ["uid.with", "uid.none"])
    assert not strays
    grid = np.diag([10.0, 10.0, 10.0, 1.0])
    grid[:3, 3] = -155.0
    volumes = {}
    for case, paths in found.items():
        values, names = load_labels(paths, grid, (32, 32, 32))
        assert names == {1: "nodule", 2: "disputed_finding"}
        assert known_classes(names, class_rules(["nodule"])) == ["nodule"]
        volumes[case] = values.sum() * 10.0**3
        if values.any():
            np.testing.assert_allclose((grid @ [*np.argwhere(values).mean(0), 1])[:3], [65, 10, 0], atol=3)
    assert volumes["uid.none"] == 0 and volumes["uid.with"] == pytest.approx(4 / 3 * np.pi * 20**3, rel=0.2)


def test_lidc_series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hu = chest()
    write_series(tmp_path / "ct", hu)
    heights = affine()[2, 3] + SPACING * np.arange(hu.shape[2])
    found = (np.ones((2, 2, 1), dtype=bool), (slice(30, 32), slice(20, 22), slice(10, 11)), 3)
    pylidc = stub([found], heights)
    monkeypatch.setitem(sys.modules, "pylidc", pylidc)
    monkeypatch.setitem(sys.modules, "pylidc.utils", pylidc.utils)
    write_lidc_labels(str(tmp_path / "ct"), str(tmp_path / "labels"))
    (path,) = (tmp_path / "labels").glob("*_nodule.nii.gz")
    image = nib.nifti1.load(path)
    assert np.argwhere(np.asarray(image.dataobj)).tolist() == [[20, 30, 10], [20, 31, 10], [21, 30, 10], [21, 31, 10]]
    assert abs(image.affine @ [0, 0, 10, 1] - [0, 0, heights[10], 1])[2] < 1e-3


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_nifti(tmp_path / "ct/a.nii.gz", chest())
    monkeypatch.setitem(sys.modules, "pylidc", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'fewview-ct\[lidc\]'"):
        write_lidc_labels(str(tmp_path / "ct"), str(tmp_path / "labels"))
    pylidc = stub([], np.zeros(0))
    monkeypatch.setitem(sys.modules, "pylidc", pylidc)
    monkeypatch.setitem(sys.modules, "pylidc.utils", pylidc.utils)
    with pytest.raises(ValueError, match="none of its 1 scans is one of LIDC-IDRI"):
        write_lidc_labels(str(tmp_path / "ct"), str(tmp_path / "labels"))
    with pytest.raises(FileNotFoundError, match=r"none\.csv: no such file"):
        write_lidc_labels(str(tmp_path / "ct"), str(tmp_path / "labels"), str(tmp_path / "none.csv"))
    with pytest.raises(FileNotFoundError, match="no such folder of lung masks"):
        write_lidc_labels(str(tmp_path / "ct"), str(tmp_path / "labels"), lung_masks=str(tmp_path / "masks"))
    with pytest.raises(ValueError, match="min_readers must be 1 to 4"):
        write_lidc_labels(str(tmp_path / "ct"), str(tmp_path / "labels"), min_readers=5)
