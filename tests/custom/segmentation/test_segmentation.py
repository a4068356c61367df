"""Classes out of label maps, what stays open, weak labels from HU, what a segmenter learns, and how it is judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from custom.core.checkpoints import save_checkpoint
from custom.data.phantom.anatomy import LABELS
from custom.data.sample import __file__ as sample_module
from custom.geometry import VolumeGrid
from custom.networks import SegmentationUNet
from custom.segmentation import (
    UNKNOWN,
    ClassDice,
    ClassMasksd,
    JitterHUd,
    LabelledVolumes,
    PlaceClassesd,
    RandScanQualityd,
    SegmenterDice,
    UnpackClassesd,
    check_taught,
    class_dice,
    class_masks,
    class_rules,
    compare_classes,
    hold_out,
    known_classes,
    load_labelled_cases,
    pack,
    unpack,
    weak_masks,
)
from custom.segmentation.classes import CLASSES, MAX_CLASSES
from tests.ct_samples import SPACING, affine, chest, write_nifti

TOTAL = {
    "lung_left": ["lung_upper_lobe_left", "lung_lower_lobe_left"],
    "lung_right": ["lung_upper_lobe_right", "lung_middle_lobe_right", "lung_lower_lobe_right"],
    "spine": [f"vertebrae_T{n}" for n in range(1, 13)],
}


def numbered(names: list[str]) -> dict[int, str]:
    return dict(enumerate(names, 1))


def tiny_segmenter(classes: tuple[str, ...] = ("lung_left", "heart"), **options: Any) -> SegmentationUNet:
    torch.manual_seed(0)
    grid = VolumeGrid((16, 16, 16), (5.0, 5.0, 5.0))
    return SegmentationUNet(classes, grid, {"channels": [4, 8, 8], "num_res_units": 1}, precision="fp32", **options)


# --- names ---


@pytest.mark.parametrize(
    ("names", "known"),
    [
        (["Lung_L", "Lung_R", "Heart", "SpinalCord"], ["lung_left", "lung_right", "heart", "spinal_cord"]),
        (["lung left", "HEART"], ["lung_left", "heart"]),
        ([*TOTAL["lung_left"], *TOTAL["spine"]], ["lung_left", "spine"]),
        (TOTAL["lung_right"][:2], []),
        (["Vertebra_c40", "vertebrae_T8"], []),
        (["BrachialPlex_L"], []),
        (["BrachialPlex_L", "BrachialPlex_R"], ["brachial_plexus"]),
        (["heart_myocardium", "heart_atrium_left"], []),
        ([name for name, number in LABELS.items() if number], None),
    ],
)
def test_a_class_is_known_where_all_its_structures_are_named(names: list[str], known: list[str] | None) -> None:
    """One lobe is not a lung, one vertebra not the spine."""
    classes = ["body", "bone", "lung_left", "lung_right", "heart", "esophagus", "spine", "spinal_cord", "nodule"]
    if known is None:
        known = classes
    elif "brachial_plexus" in known:
        classes.append("brachial_plexus")
    assert known_classes(numbered(names), class_rules(classes)) == known


def test_every_class_is_known_under_its_own_name_and_by_its_output() -> None:
    """A segmentation that the bundle wrote can be a label map again."""
    for name in CLASSES:
        assert known_classes({1: name}, class_rules([name])) == [name]


def test_names_of_ones_own() -> None:
    rules = class_rules(["heart", "tumour"], {"heart": ["Herz*"], "tumour": ["*_gtv"]})
    assert known_classes({1: "herz_planung", 2: "a_GTV"}, rules) == ["heart", "tumour"]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["hart"], "unknown class 'hart': known are body, bone, lung_left"),
        ([], "1 to 12"),
        (["heart", "heart"], "different"),
        (list(CLASSES)[: MAX_CLASSES + 1], "1 to 12"),
    ],
)
def test_bad_classes(classes: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        class_rules(classes)


# --- masks ---


def test_unions_and_what_was_drawn_over_the_lungs() -> None:
    labels = np.zeros((12, 4, 4), dtype=np.int32)
    labels[0:3], labels[3:5], labels[7:12], labels[1, 1], labels[10, 2] = 1, 2, 3, 4, 5
    names = {1: "lung_upper_lobe_left", 2: "lung_lower_lobe_left", 3: "lung_right", 4: "pulmonary_vessels", 5: "gtv"}
    masks, strange = class_masks(labels, names, class_rules(["lung_left", "lung_right", "heart"]))
    assert set(masks) == {"lung_left", "lung_right"}
    assert masks["lung_left"].sum() == 5 * 16, "both lobes, with the vessel in them"
    assert masks["lung_right"].sum() == 5 * 16 - 4 and strange.sum() == 4, "a tumour is open: it may lie in anything"
    assert (strange == (labels == 5)).all()


def test_a_vessel_beside_the_only_lung_that_is_known_is_open() -> None:
    labels = np.zeros((6, 2, 2), dtype=np.int32)
    labels[:3], labels[3] = 1, 2
    _, strange = class_masks(labels, {1: "lung_left", 2: "nodule"}, class_rules(["lung_left", "nodule"]))
    assert (strange == (labels == 2)).all()


def test_packed_classes_survive_a_trip_through_float32() -> None:
    torch.manual_seed(1)
    member = torch.rand(MAX_CLASSES, 3, 4, 5) < 0.5
    unknown = torch.rand(MAX_CLASSES, 3, 4, 5) < 0.3
    packed = pack(member, unknown)
    assert packed.shape == (1, 3, 4, 5) and packed.dtype == torch.int32
    label = unpack(packed.float().to(torch.int32)[None], MAX_CLASSES)[0]
    expected = torch.where(unknown, UNKNOWN, member.to(torch.int32))
    torch.testing.assert_close(label.to(torch.int32), expected.to(torch.int32))
    with pytest.raises(ValueError, match="at most 12"):
        pack(torch.ones(13, 1, 1, 1, dtype=torch.bool), torch.zeros(1, dtype=torch.bool))


def masksd(labels: np.ndarray, hu: np.ndarray, grid: VolumeGrid, **case: Any) -> torch.Tensor:
    matrix = torch.as_tensor(affine())
    data = {
        "image": MetaTensor(torch.as_tensor(hu[None], dtype=torch.float32), affine=matrix),
        "segmentation": MetaTensor(
            torch.as_tensor(labels[None], dtype=torch.float32), affine=case.pop("affine", matrix)
        ),
        **case,
    }
    transform = ClassMasksd(["body", "lung_left", "heart"], grid, air_key="air" if "air" in case else None)
    return unpack(transform(data)["classes"], 3)


def test_classes_on_a_coarser_and_wider_grid() -> None:
    """Two 5 mm voxels make one of 10 mm, in place; outside the cube only air is known."""
    hu = chest(couch=False)
    labels = np.zeros(hu.shape, dtype=np.int16)
    labels[20:30, 20:40, 10:40] = 1  # even borders: whole voxels of the coarse grid
    labels[40:50, 20:40, 10:41] = 2  # the last slice fills half a voxel, which is not more than half
    wide = VolumeGrid((44, 36, 28), (10.0, 10.0, 10.0))
    air = torch.full((1, 44, 36, 28), 40.0)
    air[:, :2] = -1000.0
    label = masksd(labels, hu, wide, names={1: "Lung_L", 2: "Heart"}, weak=[], air=air)
    inner = label[:, 2:42, 2:34, 2:26]
    assert (label[0, 2:] == UNKNOWN).all(), "nobody said where the body is, but it is not in the air outside"
    assert (label[0, :2, :2] == 0).all() and (label[1, :2] == 0).all(), "air outside the cube"
    assert (label[1, 42:] == UNKNOWN).all(), "tissue outside the cube is open"
    expected = torch.zeros(40, 32, 24, dtype=torch.uint8)
    expected[10:15, 10:20, 5:20] = 1
    torch.testing.assert_close(inner[1], expected)
    assert inner[2].sum() == 5 * 10 * 15 and inner[2, 20:25, 10:20, 5:20].all()


def test_weak_labels_fill_what_the_map_does_not_know() -> None:
    hu = chest(couch=False)
    labels = np.zeros(hu.shape, dtype=np.int16)
    labels[30:34, 40:44, 20:24] = 3
    grid = VolumeGrid(hu.shape, (SPACING,) * 3)
    label = masksd(labels, hu, grid, names={3: "some tumour"}, weak=["body", "lung_left"])
    assert (label[2] == UNKNOWN).all(), "nothing says where the heart is"
    assert (label[:, 30:34, 40:44, 20:24] == UNKNOWN).all(), "the tumour teaches nothing"
    lung = (torch.as_tensor(hu) < -500) & (label[0] == 1) & (torch.arange(80) < 40)[:, None, None]
    agrees = (label[1] == 1) == lung
    assert agrees[label[1] != UNKNOWN].float().mean() > 0.99 and lung.sum() > 10_000


def test_a_label_map_of_another_grid_is_refused() -> None:
    hu, grid = chest(couch=False), VolumeGrid((8, 8, 8), (40.0, 30.0, 30.0))
    shifted = torch.as_tensor(affine()).clone()
    shifted[0, 3] += 3
    with pytest.raises(ValueError, match=r"another grid than its CT.*3\.0 mm apart; 'fewview-ct prepare'"):
        masksd(np.zeros(hu.shape), hu, grid, names={1: "heart"}, weak=[], affine=shifted)
    with pytest.raises(ValueError, match="another grid"):
        masksd(np.zeros((4, 4, 4)), hu, grid, names={1: "heart"}, weak=[])
    with pytest.raises(ValueError, match=r"no label map: values from 0 to 0\.5"):
        masksd(np.where(hu > 0, 0.5, 0), hu, grid, names={1: "heart"}, weak=[])


# --- weak labels ---


def test_lungs_of_the_sample_patient() -> None:
    """An automatic segmenter finds 1742 cm3 left and 1958 cm3 right in this CT."""
    image = nib.nifti1.load(Path(sample_module).parent / "lidc0001.nii.gz")
    masks, doubt = weak_masks(np.asarray(image.dataobj, dtype=np.float32), (2.5, 2.5, 2.5))
    volumes = {name: masks[name].sum() * 2.5**3 / 1000 for name in ("lung_left", "lung_right")}
    assert volumes == pytest.approx({"lung_left": 1742, "lung_right": 1958}, rel=0.05)
    left, right = (np.nonzero(masks[name])[0].mean() for name in ("lung_left", "lung_right"))
    assert left < 64 < right, "the patient's left has the smaller x"
    assert not (masks["lung_left"] & masks["lung_right"]).any() and not (masks["lung_left"] & ~masks["body"]).any()
    assert not (masks["bone"] & doubt["bone"]).any()
    assert doubt["bone"][60:70, 68:80, 58:62].mean() > 0.7, "the heart is full of contrast medium, as dense as bone"


def test_weak_labels_of_a_made_chest() -> None:
    hu = chest(couch=False).astype(np.float32)
    masks, doubt = weak_masks(hu, (SPACING,) * 3)
    x = np.arange(80)[:, None, None]
    for name, side in (("lung_left", x < 40), ("lung_right", x >= 40)):
        truth = (hu < -500) & side & masks["body"]
        both = 2 * (masks[name] & truth).sum() / (masks[name].sum() + truth.sum())
        assert both > 0.99, name
    spine = hu > 300
    assert (masks["bone"] | doubt["bone"])[spine & masks["body"]].mean() > 0.95
    assert not masks["bone"][hu < 100].any()


def test_one_lung_alone_is_no_weak_label() -> None:
    hu = chest(couch=False).astype(np.float32)
    hu[:40][hu[:40] < -500] = 30.0
    masks, _ = weak_masks(np.where(weak_masks(hu, (SPACING,) * 3)[0]["body"], hu, -1000), (SPACING,) * 3)
    assert "body" in masks and "lung_left" not in masks and "lung_right" not in masks


# --- cases ---


def cohort(folder: Path, **names: Any) -> Path:
    """One training case for each keyword: the names of its label map; None: it has none."""
    entries = []
    for case, content in names.items():
        write_nifti(folder / f"ct/{case}.nii.gz", chest(couch=False))
        entry = {"case": case, "patient": case, "label": f"ct/{case}.nii.gz", "source": f"ct/{case}.nii.gz"}
        if content is not None:
            write_nifti(folder / f"labels/{case}.nii.gz", np.ones((80, 64, 48), dtype=np.uint8))
            if content:
                (folder / f"labels/{case}.json").write_text(json.dumps(content))
            entry["segmentation"] = f"labels/{case}.nii.gz"
        entries.append(entry)
    (folder / "datalist.json").write_text(json.dumps({"labels": {"1": "heart"}, "training": entries}))
    return folder / "datalist.json"


def test_cases_say_what_they_know(tmp_path: Path) -> None:
    path = cohort(tmp_path, mapped={"1": "mapped_Lung_L", "2": "Body"}, shared={}, bare=None)
    cases = load_labelled_cases(path, "training", ["body", "lung_left", "heart"])
    assert [(case["case"], case["known"], case["weak"]) for case in cases] == [
        ("mapped", ["body", "lung_left"], []),
        ("shared", ["heart"], ["body", "lung_left"]),
        ("bare", [], ["body", "lung_left"]),
    ]
    assert cases[1]["weak_classes"] == "body lung_left" and cases[0]["image"] == str(tmp_path / "ct/mapped.nii.gz")
    strict = load_labelled_cases(path, "training", ["heart"], weak_labels=False, jitter=True)
    assert [case["case"] for case in strict] == ["shared"] and strict[0]["jitter"]
    with pytest.raises(ValueError, match="no case under 'training' has a label of any of liver; set weak_labels"):
        load_labelled_cases(path, "training", ["liver"])
    assert load_labelled_cases(None, "training", ["liver"]) == []
    (tmp_path / "labels/mapped.json").write_text("{")
    with pytest.raises(ValueError, match=r"names of .*mapped\.nii\.gz cannot be read"):
        load_labelled_cases(path, "training", ["heart"])


def test_every_class_needs_a_teacher() -> None:
    cases = [{"known": ["heart"], "weak": []}, {"known": [], "weak": ["body"]}]
    assert check_taught(cases, ["heart", "body"]) == cases
    with pytest.raises(ValueError, match=r"no training case has a label of aorta: add phantoms \(phantom_list_file\)"):
        check_taught(cases, ["heart", "aorta"])
    assert hold_out([1, 2, 3], 1) == ([1, 2], [3]) and hold_out([], 8) == ([], [])
    with pytest.raises(ValueError, match="leave none"):
        hold_out([1, 2], 2)


# --- another scan of the same patient ---


def test_another_scan_keeps_anatomy_air_and_open_voxels() -> None:
    hu = torch.as_tensor(chest(couch=False)[None].astype(np.float32))
    hu[hu < -950] = -1000.0
    inside = hu > -100
    classes = pack(torch.cat([inside, hu > 300]), torch.zeros(1, 1, 1, 1, dtype=torch.bool))
    transform = RandScanQualityd(classes=["heart", "bone"], contrast_classes=["heart"], cut_mm=60)
    transform.set_random_state(0)
    cuts, changes = [], []
    for _ in range(12):
        out = transform({"source": hu, "classes": classes})
        label = unpack(out["classes"], 2)
        kept = torch.nonzero((out["source"] > -990).any(0).any(0).any(0)).flatten()
        cuts.append(48 - len(kept))
        middle = slice(int(kept[0]), int(kept[-1]) + 1)
        torch.testing.assert_close(label[..., middle], unpack(classes, 2)[..., middle])
        assert label.sum() == label[..., middle].sum(), "nothing is left where the scan was cut off"
        assert (out["source"][:, 0, 0] + 1000).abs().max() < 0.01, "air far from the body stays air"
        changes.append(float((out["source"] - hu)[..., middle][inside[..., middle]].abs().mean()))
    assert min(cuts) == 0 and 0 < max(cuts) <= 24
    assert max(changes) > 40 and min(changes) > 1
    still = RandScanQualityd(contrast_hu=0, shading_hu=0, blur_mm=0, noise_hu=0, cut_mm=0)
    torch.testing.assert_close(still({"source": hu, "classes": classes})["source"], hu)
    with pytest.raises(ValueError, match="blur_mm must be zero or positive"):
        RandScanQualityd(blur_mm=-1)


def test_jitter_is_the_same_for_the_same_case() -> None:
    grid = VolumeGrid((80, 64, 48), (SPACING,) * 3)
    hu = torch.as_tensor(chest(couch=False)[None].astype(np.float32))
    transform = JitterHUd("image", grid)
    first, again, other = (transform({"image": hu, "jitter": True, "case": case})["image"] for case in "aab")
    torch.testing.assert_close(first, again)
    assert 1 < (first - hu)[hu > -100].abs().mean() < 60 and not torch.equal(first, other)
    torch.testing.assert_close(transform({"image": hu, "jitter": False, "case": "a"})["image"], hu)


def test_batches_and_label_maps() -> None:
    prepare = LabelledVolumes((-1000, 1000))
    image, label = prepare({"image": torch.tensor([[[[[-2000.0, 0.0, 500.0]]]]]), "label": torch.ones(1, 2, 1, 1, 3)})
    torch.testing.assert_close(image.flatten(), torch.tensor([-1.0, 0.0, 0.5]))
    assert label is not None and prepare({"image": torch.zeros(1, 1, 2, 2, 2)})[1] is None
    grid = VolumeGrid((2, 1, 1), (5.0, 5.0, 5.0))
    logits = torch.tensor([[3.0, 1.0], [-1.0, 2.0], [-2.0, -3.0]]).reshape(3, 2, 1, 1)
    placed = PlaceClassesd("pred", grid)({"pred": logits, "isocenter_mm": torch.tensor([10.0, 0, 0]), "name": "x"})
    assert placed["pred"].flatten().tolist() == [1, 2], "the later class stands"
    assert placed["pred"].affine[0, 3] == 7.5
    assert UnpackClassesd("classes", 2)({"classes": torch.tensor([[[[1]]]])})["label"].flatten().tolist() == [1, 0]


# --- the network and what it judges ---


def test_the_network_takes_any_shape_and_finer_voxels() -> None:
    network = tiny_segmenter()
    assert network(torch.zeros(2, 1, 13, 16, 10)).shape == (2, 2, 13, 16, 10)
    volume = torch.rand(1, 1, 8, 8, 8)
    torch.testing.assert_close(
        network.at_its_resolution(volume, (2.5, 2.5, 2.5)), torch.nn.functional.avg_pool3d(volume, 2)
    )
    assert network.at_its_resolution(volume, (5.0, 5.0, 5.0)) is volume
    other = network.at_its_resolution(volume, (5.0, 5.0, 5.0), (-1000, 0))
    torch.testing.assert_close(other, (volume + 1) / 2 - 1)
    with pytest.raises(ValueError, match=r"volumes of \(4\.0, 4\.0, 4\.0\) mm cannot be averaged"):
        network.at_its_resolution(volume, (4.0, 4.0, 4.0))
    with pytest.raises(ValueError, match="at least one class"):
        tiny_segmenter(())


def test_dice_and_distance_by_hand() -> None:
    label = torch.zeros(3, 10, 10, 10, dtype=torch.uint8)
    label[0, 2:6], label[2] = 1, UNKNOWN
    logits = torch.full((3, 10, 10, 10), -1.0)
    logits[0, 3:7] = 1.0  # moved by one voxel: 3 of 4 planes agree
    values = compare_classes(logits, label, ["a", "b", "c"], (5.0, 2.0, 2.0))
    assert values["dice_a"] == pytest.approx(0.75) and values["dice"] == pytest.approx(0.75)
    assert 0 < values["surface_mm_a"] <= 5.0
    assert np.isnan([values[f"dice_{n}"] for n in "bc"] + [values["surface_mm_b"]]).all()
    label[0, 6] = UNKNOWN  # what is not known does not count against it
    assert class_dice(logits[None], label[None])[0, 0] == pytest.approx(2 * 3 / (4 + 3))
    metric = ClassDice()
    metric(logits[None], label[None])
    assert metric.aggregate() == pytest.approx(6 / 7)
    with pytest.raises(ValueError, match="diverged"):
        metric(logits[None] * torch.nan, label[None])


def test_judging_a_reconstruction(tmp_path: Path) -> None:
    network = tiny_segmenter()
    path = save_checkpoint(tmp_path / "model.pt", network)
    judge = SegmenterDice(path)
    torch.manual_seed(0)
    truth = torch.rand(1, 32, 32, 32) * 2 - 1
    same = judge(truth, truth, (2.5, 2.5, 2.5))
    assert set(same) == {"dice", "dice_lung_left", "dice_heart"} and same["dice"] == 1.0
    assert judge(-truth, truth, (2.5, 2.5, 2.5))["dice"] < 1
    assert judge.hash and SegmenterDice(network).hash is None
