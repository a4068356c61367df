"""No name out of a file leads out of the folder that it belongs to."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from custom.core.csv_files import csv_bytes
from custom.core.files import read_json, write_json, write_nifti
from custom.core.names import inside, no_link, plain_name
from custom.data.prepare import prepare
from custom.data.simulate import simulate
from custom.evaluation.evaluate import evaluate
from tests.ct_samples import chest


@pytest.mark.parametrize(
    "name",
    ["", " ", ".", "..", "../up", "a/b", "/etc/passwd", ".hidden", "a\\b", "a\0b", "a\nb", "x" * 201, "-o", None, 1.5],
)
def test_what_is_no_name(name: object) -> None:
    with pytest.raises(ValueError, match=r"x.json: case .* cannot name a file"):
        plain_name(name, "x.json: case")


@pytest.mark.parametrize("name", ["lidc0003", "P 12", "Ä_1.5", "0001", 12])
def test_names(name: object) -> None:
    assert plain_name(name, "case") == str(name)


def test_inside_a_folder(tmp_path: Path) -> None:
    assert inside(tmp_path, "a/b.nii.gz", "case") == tmp_path / "a" / "b.nii.gz"
    (tmp_path / "cohort").mkdir()
    (tmp_path / "cohort" / "ct").symlink_to(tmp_path)
    with pytest.raises(ValueError, match=r"case 'ct/b' leads out of .*cohort by a link"):
        inside(tmp_path / "cohort", "ct/b", "case")
    with pytest.raises(ValueError, match="the output is a link to"):
        no_link(tmp_path / "cohort" / "ct")


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """A datalist of one cube."""
    write_nifti(tmp_path / "c" / "ct" / "a.nii.gz", np.zeros((16, 16, 16), np.int16), np.diag([5.0, 5.0, 5.0, 1.0]))
    return write_json(tmp_path / "c" / "datalist.json", {"test": [{"case": "a", "label": "ct/a.nii.gz"}]})


def test_a_datalist_does_not_choose_where_files_go(cohort: Path) -> None:
    outside = cohort.parents[1] / "evil"
    for case in ("../../../evil", str(outside)):
        content = json.loads(cohort.read_text())
        content["test"][0]["case"] = case
        write_json(cohort, content)
        with pytest.raises(ValueError, match=r"datalist.json: under 'test' the case .*evil' cannot name a file"):
            simulate(cohort, setting="paper", angles_deg=(0, 90), name="n")
        with pytest.raises(ValueError, match=r"cannot name a file"):
            evaluate(str(cohort.parent / "ct"), str(cohort.parent), str(cohort.parent / "out"))
    assert not list(cohort.parents[1].glob("**/evil*"))


def test_links_do_not_choose_where_files_go(cohort: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (cohort.parent / "radiographs").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"leads out of .* by a link"):
        simulate(cohort, setting="paper", angles_deg=(0, 90))
    (tmp_path / "out").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="out: the output is a link"):
        simulate(cohort, output=tmp_path / "out", setting="paper", angles_deg=(0, 90))
    with pytest.raises(ValueError, match="out: the output is a link"):
        prepare(str(cohort.parent / "ct"), str(tmp_path / "out"))
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_provenance_inside_the_input_is_not_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_nifti(tmp_path / "in" / "a.nii.gz", chest(), np.diag([5.0, 5.0, 5.0, 1.0]))
    named = write_json(tmp_path / "in" / "provenance.json", [{"name": "../../evil", "patient_id": "x"}])
    options = {"size": 16, "spacing_mm": 5.0, "workers": 1, "min_coverage_mm": 50.0, "fractions": (1, 0, 0)}
    prepare(str(tmp_path / "in"), str(tmp_path / "b" / "out"), **options)  # type: ignore[arg-type]
    assert "provenance.json is not read unless you name it with --provenance" in caplog.text
    with pytest.raises(ValueError, match=r"provenance.json: the name '../../evil' cannot name a file"):
        prepare(str(tmp_path / "in"), str(tmp_path / "b" / "out"), provenance=str(named), **options)  # type: ignore[arg-type]
    assert not list(tmp_path.glob("**/evil*"))


def test_a_metaimage_names_a_file_of_its_folder(tmp_path: Path) -> None:
    from custom.core.rejection import Rejected
    from custom.data.volume_files import metaimage_data

    (tmp_path / "secret.raw").write_bytes(b"\0" * 64)
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "x.mhd"
    for name in ("../secret.raw", str(tmp_path / "secret.raw"), "/dev/zero"):
        path.write_text(f"NDims = 3\nDimSize = 2 2 2\nElementType = MET_SHORT\nElementDataFile = {name}\n")
        with pytest.raises(Rejected, match=r"x.mhd: ElementDataFile .* cannot name a file"):
            metaimage_data(path)


def test_an_output_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    with pytest.raises(ValueError, match="x: the output is a file: name a folder"):
        no_link(tmp_path / "x")


def test_what_is_no_unicode_is_written(tmp_path: Path) -> None:
    """Bytes of a file's name that are none, and halves of a pair in JSON."""
    write_json(tmp_path / "x.json", {"a": "M\udcfcller"})
    assert read_json(tmp_path / "x.json") == {"a": "M\udcfcller"}
    assert csv_bytes([{"a": "M\udcfcller"}], ["a"]) == b"a\nM\\udcfcller\n"
