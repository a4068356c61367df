"""The whole of `prepare` on small trees: outputs, split, rejections, resuming after a kill."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from monai.data import load_decathlon_datalist

from custom.core.files import sha256_file
from custom.data.prepare import prepare
from tests.ct_samples import ROOT, SPACING, affine, chest, circle, write_nifti, write_rtstruct, write_series

SMALL: dict[str, Any] = {"size": 16, "spacing_mm": SPACING, "workers": 1}


def _rejected(output: Path) -> dict[str, str]:
    with open(output / "rejected.csv", newline="") as stream:
        return {row["source"]: row["reason"] for row in csv.DictReader(stream)}


def _hashes(output: Path) -> dict[str, str]:
    return {
        str(p.relative_to(output)): sha256_file(p)
        for p in sorted(output.rglob("*"))
        if p.is_file() and p.parent.name != "cases"
    }


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DICOM and NIfTI of the same and of other patients, labels, provenance, a split file, and broken inputs."""
    root = tmp_path_factory.mktemp("tree")
    write_series(root / "dicom" / "folder_b", chest(seed=1), "11", PatientID="PB")
    heights = affine()[2, 3] + SPACING * np.arange(15, 30)
    write_rtstruct(
        root / "dicom" / "folder_b" / "rs.dcm", {"GTV": [circle(30, z, (60, 0)) for z in heights]}, patient="PB"
    )
    write_nifti(root / "ct" / "b.nii.gz", chest(seed=1))
    for k, name in enumerate(("a", "c", "d")):
        write_nifti(root / "ct" / f"{name}.nii.gz", chest(seed=2 + k))
    write_nifti(root / "ct" / "e.nii.gz", chest(seed=9))
    nan = chest().astype(np.float32)
    nan[0, 0, 0] = np.nan
    write_nifti(root / "ct" / "nan.nii.gz", nan)
    organs = np.zeros(chest().shape, dtype=np.uint8)
    organs[30:40, 30:40, 20:30] = 2
    write_nifti(root / "labels" / "a_organs.nii.gz", organs)
    facts = [{"name": n, "patient_id": f"P{n.upper()}", "licence": "CC BY 4.0"} for n in "abcd"]
    facts[1]["series_instance_uid"] = f"{ROOT}.11"
    (root / "provenance.json").write_text(json.dumps(facts))
    split = {"training": ["a", "nan"], "validation": ["PC"], "test": ["b", "d", "gone"], "sample": ["d"]}
    (root / "split.json").write_text(json.dumps(split))
    return root


@pytest.fixture(scope="module")
def prepared(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("out")
    named = str(tree / "provenance.json")
    assert prepare(str(tree), str(output), provenance=named, **SMALL) == str(output / "datalist.json")
    return output


def test_datalist_is_monai_s_with_the_fixed_split(prepared: Path) -> None:
    target = prepared / "datalist.json"
    content = json.loads(target.read_text())
    cases = {part: [e["case"] for e in content[part]] for part in ("training", "validation", "test")}
    assert cases == {"training": ["a"], "validation": ["PC"], "test": ["b", "d"]}
    assert [e.get("sample") for e in content["test"]] == [None, True]
    entries = load_decathlon_datalist(str(target), is_segmentation=True, data_list_key="test")
    assert entries[0]["patient"] == "PB"
    for part in cases:
        for entry in content[part]:
            image = nib.load(prepared / entry["label"])
            assert image.shape == (16, 16, 16) and image.get_data_dtype() == np.int16
            assert nib.load(prepared / entry["source"]).get_data_dtype() == np.int16


def test_everything_left_out_has_its_reason(prepared: Path, tree: Path) -> None:
    rejected = _rejected(prepared)
    assert rejected.pop("ct/b.nii.gz") == "the same scan as dicom/folder_b, which is used"
    assert rejected.pop("ct/e.nii.gz") == "the split file does not name it"
    assert rejected.pop("ct/nan.nii.gz") == "nan.nii.gz has 1 voxels that are NaN or infinite"
    assert rejected.pop("gone") == "the split file names it for 'test', the input has no such scan"
    assert not rejected
    assert len(json.loads((prepared / "rejected.json").read_text())) == 4


def test_manifest_tells_where_everything_comes_from(prepared: Path, tree: Path) -> None:
    content = json.loads((prepared / "manifest.json").read_text())
    assert content["datalist_sha256"] == sha256_file(prepared / "datalist.json")
    case = content["cases"]["b"]
    assert case["series_instance_uid"] == f"{ROOT}.11" and case["kind"] == "dicom"
    assert case["native_spacing_mm"] == [SPACING] * 3 and case["input_files"] == 48
    assert case["licence"] == "CC BY 4.0" and case["lateral_truncation"] == 0.0
    assert content["software"]["pydicom"]
    for record in content["cases"].values():
        for output in record["outputs"].values():
            assert sha256_file(prepared / output["path"]) == output["sha256"]
    assert str(tree) not in json.dumps(content), "a manifest must not hold the machine's paths"


def test_labels_stand_on_the_cube_s_grid(prepared: Path) -> None:
    for case, number, name in (("a", 2, "a_organs"), ("b", 1, "GTV")):
        labels, cube = (nib.load(prepared / kind / f"{case}.nii.gz") for kind in ("labels", "ct"))
        np.testing.assert_allclose(labels.affine, cube.affine)
        assert set(np.unique(np.asarray(labels.dataobj))) == {0, number}
        assert json.loads((prepared / "labels" / f"{case}.json").read_text()) == {str(number): name}
    tumour = nib.load(prepared / "labels" / "b.nii.gz")
    centre = tumour.affine[:3, :3] @ np.argwhere(np.asarray(tumour.dataobj)).mean(0) + tumour.affine[:3, 3]
    assert centre[0] == pytest.approx(60, abs=10), "the tumour was drawn on the right"


def test_dicom_and_nifti_of_one_scan_agree(prepared: Path, tree: Path, tmp_path: Path) -> None:
    prepare(str(tree / "ct" / "b.nii.gz"), str(tmp_path), **SMALL)
    np.testing.assert_array_equal(
        nib.load(tmp_path / "ct" / "b.nii.gz").get_fdata(), nib.load(prepared / "ct" / "b.nii.gz").get_fdata()
    )


def test_second_run_writes_nothing_new_but_repairs(prepared: Path, tree: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in (prepared / "source").iterdir()}
    hashes = _hashes(prepared)
    (prepared / "ct" / "d.nii.gz").write_bytes(b"damaged")
    prepare(str(tree), str(prepared), provenance=str(tree / "provenance.json"), **SMALL)
    assert _hashes(prepared) == hashes
    changed = [p.name for p, stamp in before.items() if p.stat().st_mtime_ns != stamp]
    assert changed == ["d.nii.gz"]


def test_broken_dicom_falls_back_to_the_nifti_of_the_scan(tree: Path, tmp_path: Path) -> None:
    root = tmp_path / "in"
    paths = write_series(root / "b", chest()[:, :, :48], "11")
    paths[7].write_bytes(paths[7].read_bytes()[:5000])
    write_nifti(root / "b.nii.gz", chest())
    prepare(str(root), str(tmp_path / "out"), **SMALL)
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["cases"]["b"]["kind"] == "nifti"
    assert paths[7].name in _rejected(tmp_path / "out")["b"]


def test_labels_that_cannot_be_carried_are_told(tmp_path: Path) -> None:
    write_nifti(tmp_path / "in" / "a.nii.gz", chest())
    write_nifti(tmp_path / "seg" / "a.nii.gz", chest().astype(np.float32) / 7)
    write_nifti(tmp_path / "seg" / "z.nii.gz", chest())
    prepare(str(tmp_path / "in"), str(tmp_path / "out"), labels=str(tmp_path / "seg"), **SMALL)
    assert "segmentation" not in json.loads((tmp_path / "out" / "datalist.json").read_text())["training"][0]
    rejected = _rejected(tmp_path / "out")
    assert "no label map" in rejected["a.nii.gz"] and "no prepared case" in rejected["z.nii.gz"]


def test_counts_as_text_and_two_workers(tree: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = {**SMALL, "workers": 2}
    prepare(str(tree / "ct"), str(tmp_path), counts="2,1,1", seed=4, licence="CC0", **options)
    assert not any("validation cases" in said for said in caplog.messages)
    content = json.loads((tmp_path / "datalist.json").read_text())
    assert [len(content[p]) for p in ("training", "validation", "test")] == [2, 1, 1]
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert {c["licence"] for c in manifest["cases"].values()} == {"CC0"}
    assert manifest["options"]["split"] == {"counts": [2, 1, 1], "fractions": None, "seed": 4}
    assert sum(reason == "beyond the counts: not drawn" for reason in _rejected(tmp_path).values()) == 1


def test_nothing_usable_is_an_error_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no usable CT in .*empty \(no CT file in it\)"):
        prepare(str(tmp_path / "empty"), str(tmp_path / "out"), **SMALL)
    write_series(tmp_path / "mr", chest()[:, :, :3], Modality="PT")
    with pytest.raises(ValueError, match=r"no usable CT .* not CT: modality PT"):
        prepare(str(tmp_path / "mr"), str(tmp_path / "out"), **SMALL)
    assert "not CT: modality PT" in _rejected(tmp_path / "out")["."]


def test_filters_do_not_make_cases_again(tmp_path: Path) -> None:
    write_nifti(tmp_path / "in" / "long.nii.gz", chest())
    write_nifti(tmp_path / "in" / "short.nii.gz", chest()[:, :, 3:])
    folder, output = str(tmp_path / "in"), tmp_path / "out"
    prepare(folder, str(output), counts=(2, 0, 0), **SMALL)
    before = {p: p.stat().st_mtime_ns for p in (output / "ct").iterdir()}
    prepare(folder, str(output), counts=(1, 0, 0), min_coverage_mm=230, max_slice_mm=6, **SMALL)
    assert {p: p.stat().st_mtime_ns for p in (output / "ct").iterdir()} == before
    assert list(json.loads((output / "manifest.json").read_text())["cases"]) == ["long"]
    assert _rejected(output) == {"short.nii.gz": "the scan covers 225 mm only, min_coverage_mm is 230"}


def test_values_decide_where_the_rescale_type_says_nothing(tmp_path: Path) -> None:
    write_series(tmp_path / "in" / "hu", chest(), "11", RescaleType="US")
    other = {"PatientID": "P2", "StudyInstanceUID": f"{ROOT}.2", "RescaleIntercept": 0}
    write_series(tmp_path / "in" / "other", chest(), "12", RescaleType="US", **other)
    prepare(str(tmp_path / "in"), str(tmp_path / "out"), counts=(1, 0, 0), **SMALL)
    (record,) = json.loads((tmp_path / "out" / "manifest.json").read_text())["cases"].values()
    assert record["patient"] == "P1" and "Rescale Type (0028,1054) is US" in record["note"]
    assert _rejected(tmp_path / "out")["other"].startswith("HU calibration")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"anchor": "left"}, ValueError, "'left'; choose one of center"),
        ({"split": "nowhere.json"}, FileNotFoundError, r"nowhere\.json does not exist"),
        ({"labels": "nowhere"}, FileNotFoundError, "nowhere does not exist"),
        ({"fractions": "0.8;0.1"}, ValueError, "not three numbers"),
        ({"split": "x", "counts": (1, 1, 1)}, ValueError, "one of them"),
        ({"workers": -2}, ValueError, "workers is -2"),
        ({"cube_mm": float("inf")}, ValueError, "--cube_mm is inf: it must be mm above 0"),
        ({"spacing_mm": float("nan")}, ValueError, "--spacing_mm is nan: it must be mm above 0"),
        ({"spacing_mm": 0}, ValueError, "--spacing_mm is 0"),
        ({"max_slice_mm": float("nan")}, ValueError, "is no number"),
    ],
)
def test_bad_options(tree: Path, tmp_path: Path, options: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        prepare(str(tree), str(tmp_path / "out"), **{**SMALL, **options})


def test_one_patient_in_two_parts_is_refused(tree: Path, tmp_path: Path) -> None:
    facts = [{"name": n, "patient_id": "same"} for n in "ac"]
    (tmp_path / "p.json").write_text(json.dumps(facts))
    (tmp_path / "s.json").write_text(json.dumps({"training": ["a"], "test": ["c"]}))
    with pytest.raises(ValueError, match="patient 'same' would be in"):
        prepare(
            str(tree / "ct"), str(tmp_path / "out"), split=str(tmp_path / "s.json"),
            provenance=str(tmp_path / "p.json"), **SMALL,
        )  # fmt: skip


def test_killed_and_started_again_it_ends_with_the_same_hashes(prepared: Path, tree: Path, tmp_path: Path) -> None:
    options = f"size=16, spacing_mm=5.0, workers=1, provenance={str(tree / 'provenance.json')!r}"
    code = f"import sys; from custom.data.prepare import prepare; prepare(*sys.argv[1:3], {options})"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tree), str(tmp_path)], env=environment, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob("cases/*.json")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    finished = [p.name for p in (tmp_path / "cases").iterdir()]
    assert len(finished) > 0, "it must have finished a case before it was killed"
    assert not (tmp_path / "datalist.json").exists(), "it was killed too late to test anything"
    (tmp_path / "ct" / ".x.nii.gz.99.part").write_bytes(b"half a file")
    prepare(str(tree), str(tmp_path), provenance=str(tree / "provenance.json"), **SMALL)
    assert _hashes(tmp_path) == _hashes(prepared)


def test_first_line_says_what_was_found_in_the_input(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A split and labels that nobody named decide what is learnt: they are said, and can be left out."""
    root, labels = tmp_path / "tree", np.zeros(chest().shape, dtype=np.uint8)
    labels[30:40, 30:40, 20:30] = 2
    for k, case in enumerate("abc"):
        write_nifti(root / "ct" / f"{case}.nii.gz", chest(seed=k))
    write_nifti(root / "labels" / "a.nii.gz", labels)
    (root / "split.json").write_text(json.dumps({"training": ["a"], "validation": [], "test": ["b"]}))
    with caplog.at_level("INFO"):
        first = json.loads(Path(prepare(str(root), str(tmp_path / "one"), **SMALL)).read_text())
    line = caplog.messages[0]
    assert caplog.messages[-1].startswith(
        "a training needs validation cases too, and there are none: give the numbers of scans, such as --counts 1,1,0"
    )
    assert f"{root / 'split.json'} (--split none leaves" in line and f"{root / 'labels'} (--labels none leaves" in line
    assert "segmentation" in first["training"][0] and len(first["test"]) == 1
    caplog.clear()
    with caplog.at_level("INFO"):
        target = prepare(str(root), str(tmp_path / "two"), split="none", labels="none", **SMALL)
    second = json.loads(Path(target).read_text())
    entries = [entry for part in ("training", "validation", "test") for entry in second[part]]
    assert len(entries) == 3 and not any("segmentation" in entry for entry in entries)
    assert not any("found in the input" in said for said in caplog.messages)


def test_output_in_place_of_the_input_is_refused(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz", chest())
    with pytest.raises(ValueError, match="is the input, too"):
        prepare(str(tmp_path), str(tmp_path), **SMALL)


def test_two_facts_about_one_case_are_refused(tmp_path: Path) -> None:
    write_nifti(tmp_path / "in" / "a.nii.gz", chest())
    facts = [{"name": "a", "patient_id": "P1"}, {"name": "a", "patient_id": "P2"}]
    (tmp_path / "facts.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match=r"facts\.json: 'a' is there twice"):
        prepare(str(tmp_path / "in"), str(tmp_path / "out"), provenance=str(tmp_path / "facts.json"), **SMALL)


def test_names_that_are_no_unicode_and_markup_end_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Archives of other systems have file names in Latin-1; rich takes brackets for markup."""
    write_nifti(tmp_path / "in" / "a.nii.gz", chest())
    for name in (b"M\xfcller.mha", b"\x1b[31m[/red].mha"):
        path = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path / "in"), name)))
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"no image")
    write_series(tmp_path / "in" / os.fsdecode(b"h\xf6he"), chest()[:, :, :48], "11")
    write_rtstruct(tmp_path / "in" / "rs.dcm", {"heart": []}, series="99")
    prepare(str(tmp_path / "in"), str(tmp_path / "out"), **SMALL)
    written = (tmp_path / "out" / "rejected.csv").read_text()
    assert "M\\udcfcller.mha" in written and "refers to no series which was prepared" in written
    cases = json.loads((tmp_path / "out" / "manifest.json").read_text())["cases"]
    assert sorted(cases) == ["P1", "a"]
    said = capsys.readouterr().err
    assert "?[31m[/red].mha" in said and "\x1b[31m[/red]" not in said


def test_a_spacing_that_takes_a_terabyte_is_refused(tmp_path: Path) -> None:
    write_nifti(tmp_path / "in" / "a.nii.gz", chest())
    with pytest.raises(ValueError, match="voxels at --spacing_mm are more than the 1073741824 that are read"):
        prepare(str(tmp_path / "in"), str(tmp_path / "out"), **{**SMALL, "spacing_mm": 0.05})
