"""Procedural thoraces: anatomy where it belongs, HU as in people, the same phantom for the same seed."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from custom.data.phantom import LABELS, make_thorax, write_phantoms
from custom.data.phantom.anatomy import Spine, draw_person
from custom.data.phantom.canvas import Canvas, curve, ellipsoid, smooth_union
from custom.data.phantom.vessels import grow_tree, sample_pieces

SPACING = 5.0


@pytest.fixture(scope="module")
def phantom():
    return make_thorax(3, shape=(80, 80, 72), spacing_mm=SPACING, limit_scan=False)


def _centre(phantom, name: str) -> np.ndarray:
    points = np.argwhere(phantom.labels == phantom.names[name])
    assert len(points), f"no voxel of {name}"
    return (points.mean(axis=0) - (np.array(phantom.labels.shape) - 1) / 2) * phantom.spacing_mm


def test_types_air_and_background(phantom) -> None:
    assert phantom.volume_hu.dtype == np.int16
    assert phantom.labels.dtype == np.uint8
    assert phantom.names == LABELS
    assert len(set(LABELS.values())) == len(LABELS)
    outside = phantom.labels == 0
    assert (phantom.volume_hu[outside] == -1000).all()
    assert outside[[0, -1]].mean() > 0.5
    assert np.abs(phantom.volume_hu[~outside].astype(int)).max() <= 3071


def test_organs_lie_where_they_belong(phantom) -> None:
    at = {name: _centre(phantom, name) for name in LABELS if name not in ("background", "breast", "lung_lesion")}
    x, y, z = ({name: c[k] for name, c in at.items()} for k in range(3))
    assert x["heart"] < x["vertebrae"] - 5, "the heart is on the patient's left (x < 0)"
    assert x["lung_left"] < -30 and x["lung_right"] > 30
    assert x["liver"] > 20 and x["spleen"] < -50 and x["stomach"] < 0
    assert y["vertebrae"] < y["spinal_cord"] + 15 < y["heart"] < y["sternum"]
    assert y["scapulae"] < y["clavicles"]
    assert z["kidneys"] < z["liver"] < z["heart"] < z["clavicles"]
    assert y["esophagus"] < y["airways"] + 20


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("fat", -130, -60),
        ("muscle", 10, 90),
        ("lung_left", -930, -740),
        ("lung_right", -930, -740),
        ("liver", 30, 150),
        ("heart", 20, 400),
        ("vertebrae", 120, 500),
        ("ribs", 120, 700),
    ],
)
def test_median_hu_by_organ(phantom, name: str, low: float, high: float) -> None:
    assert low < np.median(phantom.volume_hu[phantom.labels == LABELS[name]]) < high


def test_volumes_are_those_of_adults(phantom) -> None:
    litres = {name: (phantom.labels == value).sum() * SPACING**3 / 1e6 for name, value in LABELS.items()}
    assert 2.0 < litres["lung_left"] + litres["lung_right"] < 7.0
    assert litres["lung_right"] > 0.85 * litres["lung_left"]
    assert 0.25 < litres["heart"] < 1.3
    assert 0.6 < litres["liver"] < 3.5
    assert 0.1 < litres["ribs"] < 0.8


def test_rib_cage_closes_around_the_lungs(phantom) -> None:
    """On an axial slice through the heart, a ray sideways from each lung meets a rib or muscle before the air."""
    lung = np.isin(phantom.labels, (LABELS["lung_left"], LABELS["lung_right"]))
    skin = phantom.labels == 0
    touching = (lung[1:] & skin[:-1]) | (lung[:-1] & skin[1:])
    assert not touching.any(), "lung touches the air outside"


def test_same_seed_same_phantom() -> None:
    first, again, other = (make_thorax(seed, shape=36, spacing_mm=9.0) for seed in (3, 3, 4))
    assert np.array_equal(again.volume_hu, first.volume_hu)
    assert np.array_equal(again.labels, first.labels)
    assert not np.array_equal(other.labels, first.labels)


def test_population_varies() -> None:
    persons = [draw_person(np.random.RandomState(n)) for n in range(200)]
    size = np.array([p.size for p in persons])
    fat = np.array([p.fat_mm for p in persons])
    assert (size.std(axis=0) > 0.03).all()
    assert fat.min() < 9 and fat.max() > 30
    assert 0.3 < np.mean([p.female for p in persons]) < 0.6
    assert 0.35 < np.mean([p.contrast > 0 for p in persons]) < 0.75
    assert all(np.isfinite(list(p.hu.values())).all() for p in persons)


def test_scan_limits_cut_the_volume() -> None:
    whole = make_thorax(11, shape=(40, 40, 48), spacing_mm=10.0, limit_scan=False)
    cut = make_thorax(11, shape=(40, 40, 48), spacing_mm=10.0)
    assert cut.scan["length_mm"] < 480
    filled = np.flatnonzero((cut.labels > 0).any(axis=(0, 1)))
    assert abs((filled[-1] - filled[0] + 1) * 10.0 - cut.scan["length_mm"]) <= 20
    assert (whole.labels[:, :, 0] > 0).any()


@pytest.mark.parametrize("arms", ["down", "none"])
def test_arms(arms: str) -> None:
    humeri = make_thorax(2, shape=(56, 48, 40), spacing_mm=8.0, arms=arms, limit_scan=False).labels == LABELS["humeri"]
    z = np.flatnonzero(humeri.any(axis=(0, 1)))
    assert (len(z) == 0) if arms == "none" else (z[0] < 12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"shape": (10, 10)}, "shape"), ({"spacing_mm": 0.1}, "spacing_mm"), ({"arms": "crossed"}, "crossed")],
)
def test_bad_arguments_are_named(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        make_thorax(0, **arguments)


def test_canvas_shapes_are_metric() -> None:
    canvas = Canvas((40, 40, 40), 2.5, np.random.RandomState(0), (1, 1, 1), (0, 0, 0), warp_mm=0.0)
    ball = ellipsoid(canvas, (5.0, 0, 0), (30.0, 30.0, 30.0))
    canvas.paint_coarse(ball, 100.0, 7)
    assert (canvas.labels == 7).sum() * 2.5**3 == pytest.approx(4 / 3 * np.pi * 30**3, rel=0.03)
    assert np.argwhere(canvas.labels == 7).mean(axis=0) == pytest.approx([21.5, 19.5, 19.5], abs=0.05)
    found = canvas.tube(*curve([(-30, 0, 0), (30, 0, 0)], 6.0))
    assert found is not None
    distance, box = found
    tube = np.zeros(canvas.shape)
    tube[box] = np.clip(0.5 - distance / canvas.voxel_mm, 0, 1)
    assert tube[12:28].sum(axis=(1, 2)).mean() * 2.5**2 == pytest.approx(np.pi * 36, rel=0.06)
    two = smooth_union([ball, ball + 50], 2.0)
    assert np.abs(two - ball).max() < 1e-3


def test_points_and_fields_are_warped_alike() -> None:
    """A tube drawn around a point lies where the coarse template coordinates say that point is."""
    canvas = Canvas((48, 48, 48), 2.5, np.random.RandomState(1), (1.1, 0.9, 1.2), (4, -3, 8), (3, -2, 4), warp_mm=12.0)
    target = np.array([[15.0, -20.0, 30.0]])
    world = canvas.to_world(target)[0]
    index = (world - canvas.first) / canvas.spacing
    distance = np.sqrt(
        sum((canvas.fine(c) - t) ** 2 for c, t in zip((canvas.x, canvas.y, canvas.z), target[0], strict=True))
    )
    assert np.unravel_index(distance.argmin(), distance.shape) == pytest.approx(index, abs=1.0)
    assert np.abs(canvas.warp).max() > 2


def test_vessel_tree_reaches_every_target_and_thins_out() -> None:
    rng = np.random.RandomState(0)
    targets = rng.uniform(-50, 50, size=(120, 3))
    root = np.array([[0.0, 0, 0], [0, 0, -5.0]])
    starts, ends, radii = grow_tree(root, targets, rng, tip_mm=0.5)
    gap = np.linalg.norm(ends[:, None] - targets[None], axis=2).min(axis=0)
    assert gap.max() < 1e-9
    leaving = np.linalg.norm(starts - root[0], axis=1) == 0
    assert (radii[leaving] ** 3).sum() == pytest.approx(120 * 0.5**3), "Murray's law from the root to all ends"
    assert radii.min() == 0.5
    known = np.concatenate([root, ends])
    assert np.linalg.norm(starts[:, None] - known[None], axis=2).min(axis=1).max() < 1e-9
    points, widths = sample_pieces(starts, ends, radii)
    assert len(points) == len(widths) > len(starts)


def test_spine_is_ordered() -> None:
    spine = Spine(draw_person(np.random.RandomState(0)))
    assert (np.diff(spine.z) < 0).all()
    _, y = spine.at(np.array([144.0, 11.0, -116.0]))
    assert y[1] < y[0] and y[1] < y[2], "the chest's curve is convex to the back"


def test_write_phantoms(tmp_path) -> None:
    arguments = {"seed": 5, "size": 32, "spacing_mm": 10.0, "wide_mm": (400.0, 400.0, 340.0)}
    halves = {"fractions": (0.5, 0.5, 0.0), **arguments}
    path = write_phantoms(tmp_path / "a", 2, **halves)
    datalist = json.loads(path.read_text())
    assert [len(datalist[part]) for part in ("training", "validation", "test")] == [1, 1, 0]
    entry = datalist["training"][0]
    cube, source, labels = (nib.load(path.parent / entry[key]) for key in ("label", "source", "segmentation"))
    assert cube.shape == labels.shape == (32, 32, 32)
    assert source.shape == (40, 40, 34)
    assert nib.aff2axcodes(cube.affine) == ("R", "A", "S")
    assert cube.get_data_dtype() == np.int16 and labels.get_data_dtype() == np.uint8
    centre = [i.affine @ np.append((np.array(i.shape) - 1) / 2, 1) for i in (cube, source, labels)]
    np.testing.assert_allclose(centre, np.tile([0, 0, 0, 1], (3, 1)), atol=1e-4)
    assert np.array_equal(np.asarray(source.dataobj)[4:36, 4:36, 1:33], np.asarray(cube.dataobj))
    assert not list(path.parent.rglob(".*"))
    # resuming keeps what is there, extending adds, and another process makes the same bytes
    before = (path.parent / entry["label"]).stat().st_mtime_ns
    write_phantoms(tmp_path / "a", 3, **halves)
    assert json.loads(path.read_text())["validation"] == datalist["validation"]
    assert (path.parent / entry["label"]).stat().st_mtime_ns == before
    first = json.loads((tmp_path / "a" / "manifest.json").read_text())["cases"]
    assert sorted(first) == ["phantom_0001", "phantom_0002", "phantom_0003"]
    write_phantoms(tmp_path / "b", 1, **arguments)
    second = json.loads((tmp_path / "b" / "manifest.json").read_text())["cases"]
    assert first["phantom_0001"] == second["phantom_0001"]
    with pytest.raises(ValueError, match="other settings"):
        write_phantoms(tmp_path / "a", 1, **{**arguments, "seed": 6})


@pytest.mark.parametrize("arguments", [{"count": 0}, {"fractions": (0.5, 0.2, 0.1)}, {"workers": 0}])
def test_write_phantoms_rejects(tmp_path, arguments) -> None:
    with pytest.raises(ValueError):
        write_phantoms(tmp_path, **arguments)
    assert not list(tmp_path.iterdir())


def test_a_phantom_that_is_there_is_judged_by_its_content(tmp_path) -> None:
    arguments = {"seed": 5, "size": 16, "spacing_mm": 10.0, "wide_mm": (160.0, 160.0, 160.0)}
    write_phantoms(tmp_path, 1, **arguments)
    cube = tmp_path / "ct" / "phantom_0001.nii.gz"
    whole = cube.read_bytes()
    cube.write_bytes(whole[:-20])
    write_phantoms(tmp_path, 1, **arguments)
    assert cube.read_bytes() == whole
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest.json: is not a JSON file"):
        write_phantoms(tmp_path, 1, **arguments)
