"""The viewer in the report: its volumes in HU and in place, in a page that stays small."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from report_content import content

from custom.geometry import VolumeGrid
from custom.report.reconstruction_page import write_report
from custom.report.viewer import pack_volumes
from tests.custom.report.page_reader import Page, written


def test_the_viewer_has_every_volume_in_hu_and_in_place(tmp_path: Path) -> None:
    page = written(tmp_path)
    given_content = content()
    ct = page.volume("volume-ct")
    np.testing.assert_array_equal(np.asarray(ct.dataobj), given_content.hu.round().numpy().astype(np.int16))
    np.testing.assert_allclose(ct.affine, given_content.grid.affine())
    names = re.findall(r'id="(volume-[a-z0-9-]+)"', page.html)
    assert names == ["volume-ct", "volume-spread", "volume-sample-1", "volume-sample-2"]
    assert re.findall(r'<option value="(volume-[^"]*)">([^<]*)', page.html) == [
        ("volume-ct", "Reconstruction"), ("volume-sample-1", "Sample 1"), ("volume-sample-2", "Sample 2"),
    ]  # fmt: skip
    assert json.loads(page.data("viewer-settings"))["spread"] == "volume-spread"
    # A coarser grid of the same box: its corners stand where the fine one's do.
    fine, coarse = given_content.grid, page.volume("volume-sample-1")
    edge = np.array([-0.5, -0.5, -0.5, 1])
    np.testing.assert_allclose(coarse.affine @ edge, fine.affine() @ edge)


def test_without_samples_the_page_says_so_and_has_no_overlay(tmp_path: Path) -> None:
    page = written(tmp_path, std=None, samples=[])
    order = [page.text.index(words) for words in ("voxels of", "No samples were drawn", "Share of the body")]
    assert order == sorted(order)
    assert "Warnings (4)" in page.text and 'viewer-spread"' not in page.html.split("<script>")[0]
    assert json.loads(page.data("viewer-settings"))["spread"] is None


def test_samples_with_an_atlas_are_said_to_show_other_people(tmp_path: Path) -> None:
    words = "may be another person's"
    assert words not in written(tmp_path).text
    model = {**content().model, "atlas_sha256": "0" * 64}
    assert words in written(tmp_path, model=model).text
    assert words not in written(tmp_path, model=model, std=None, samples=[]).text


def test_a_large_case_fits_and_says_what_it_costs(tmp_path: Path) -> None:
    """Noise, which no compression makes smaller: the samples alone would be half a megabyte more than is allowed."""
    generator = torch.Generator().manual_seed(0)
    grid = VolumeGrid((48,) * 3, (2.5,) * 3)
    noise = torch.randn(48, 48, 48, generator=generator) * 300
    changes = {"grid": grid, "hu": noise, "std": None, "samples": [noise] * 3}
    free, bound = (tmp_path / f"{name}.html" for name in ("free", "bound"))
    write_report(free, content(**changes))
    largest = free.stat().st_size - 500_000
    assert write_report(bound, content(**changes), largest).stat().st_size <= largest
    page = Page(bound.read_text(encoding="utf-8"))
    assert page.volume("volume-ct").shape == (48,) * 3 and page.volume("volume-sample-3").shape == (24,) * 3
    words = "the samples are shown in the viewer with voxels of 5 × 5 × 5 mm"
    assert words in page.text and words not in Page(free.read_text(encoding="utf-8")).text


def test_packing_reduces_samples_first_then_everything_then_gives_up() -> None:
    volume = torch.randn(64, 64, 64, generator=torch.Generator().manual_seed(1)) * 300
    grid = VolumeGrid((64,) * 3, (5.0,) * 3)
    largest = sum(4 * -(-len(v.content) // 3) for v in pack_volumes(volume, grid, None, [volume], 10**9))
    for share, sizes in ((1.0, (64, 64)), (0.8, (64, 32)), (0.4, (32, 32)), (0.08, (32, 16))):
        packed = pack_volumes(volume, grid, None, [volume], int(largest * share))
        shapes = [nib.Nifti1Image.from_bytes(gzip.decompress(v.content)).shape[0] for v in packed]
        assert tuple(shapes) == sizes, share
        assert [v.reduced for v in packed] == [size < 64 for size in sizes]
    with pytest.raises(ValueError, match="do not fit into 100 bytes"):
        pack_volumes(volume, grid, None, [volume], 100)
    # Halving averages: it keeps the mean, and an odd size the box.
    odd = pack_volumes(torch.full((33, 33, 33), 7.0), VolumeGrid((33,) * 3), None, [], 200)
    small = nib.Nifti1Image.from_bytes(gzip.decompress(odd[0].content))
    assert small.shape == (17, 17, 17) and bool((np.asarray(small.dataobj) == 7).all())
