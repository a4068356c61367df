"""Fetching a cohort: resuming, what is not whole, what `prepare` carries on.

The library's download is a fake here, but for the last test, where the store is one.
"""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import requests

from custom.data import fetch_cohort as module
from custom.data.fetch_cohort import fetch_cohort
from custom.data.prepare import prepare
from tests.ct_samples import ROOT, SPACING, chest, write_series
from tests.custom.data.s3_stand_in import Store, serving
from tests.fewview_command import fewview_ct


class Library:
    """What `IDCClient` does at its border: copies the series of a file of commands, or some of it, without a word."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self.most = 10**6  # files until the connection breaks
        self.asked: list[str] = []

    def download_from_manifest(self, manifest: str, folder: str, **options: Any) -> None:
        assert options["dirTemplate"] == "%SeriesInstanceUID" and options["use_s5cmd_sync"]
        for line in Path(manifest).read_text().splitlines():
            word, url, here = line.split()
            assert word == "cp" and here.startswith("dicom/P")
            uid = url.removeprefix("s3://idc-open-data/").removesuffix("/*")
            self.asked.append(uid)
            target = Path(folder, uid)
            for source in sorted((self.store / uid).iterdir()):
                if (target / source.name).exists():
                    continue
                if self.most == 0:
                    return
                self.most -= 1
                target.mkdir(exist_ok=True)
                shutil.copy(source, target)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("store")
    for number in (1, 2, 3):
        write_series(root / f"{ROOT}.{number}", chest(seed=number), str(number), PatientID=f"P{number}")
    return root


@pytest.fixture
def library(store: Path, monkeypatch: pytest.MonkeyPatch) -> Library:
    cases = [
        {
            "name": f"P{number}", "collection": "first" if number < 3 else "second", "patient_id": f"P{number}",
            "series_instance_uid": f"{ROOT}.{number}", "licence": "CC BY 4.0", "doi": f"10.1/{number // 3}",
            "citation": "A. Author (2020). Data | more.", "sex": None,
            "slices": len(list((store / f"{ROOT}.{number}").iterdir())),
            "bytes": sum(p.stat().st_size for p in (store / f"{ROOT}.{number}").iterdir()),
            "url": f"s3://idc-open-data/{ROOT}.{number}/*",
        }
        for number in (1, 2, 3)
    ]  # fmt: skip
    fake = Library(store)
    monkeypatch.setattr(module, "choose", lambda query, table: cases)
    monkeypatch.setattr(module, "index_version", lambda: "25.0.5")
    monkeypatch.setattr(module, "_client", lambda: fake)
    monkeypatch.setattr(module, "_check_network", lambda: None)
    return fake


def _there(folder: Path) -> set[str]:
    return {path.name for path in (folder / "dicom").iterdir()}


def test_a_stopped_download_goes_on_and_parts_are_not_taken_for_whole(tmp_path: Path, library: Library) -> None:
    per_series = len(list((library.store / f"{ROOT}.1").iterdir()))
    library.most = per_series + 3
    with pytest.raises(ValueError, match=rf"2 of 3 series did not come whole, such as P2 \(3 of {per_series} files"):
        fetch_cohort(str(tmp_path / "c"))
    assert _there(tmp_path / "c") == {"P1"}
    library.asked, library.most = [], 10**6
    manifest = fetch_cohort(str(tmp_path / "c"))
    assert library.asked == [f"{ROOT}.2", f"{ROOT}.3"]
    assert _there(tmp_path / "c") == {"P1", "P2", "P3"}
    assert not list((tmp_path / "c").glob(".*"))
    library.asked, before = [], manifest.read_bytes()
    fetch_cohort(str(tmp_path / "c"))
    assert library.asked == [] and manifest.read_bytes() == before


@pytest.mark.parametrize("harm", ["shorter", "missing", "more"])
def test_a_series_that_was_harmed_is_fetched_again(tmp_path: Path, library: Library, harm: str) -> None:
    fetch_cohort(str(tmp_path))
    folder = tmp_path / "dicom" / "P2"
    first = min(folder.iterdir())
    if harm == "shorter":
        first.write_bytes(first.read_bytes()[:-1])
    elif harm == "missing":
        first.unlink()
    else:
        shutil.copy(first, folder / "copy.dcm")
    library.asked = []
    fetch_cohort(str(tmp_path))
    assert library.asked == [f"{ROOT}.2"]
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {
        p.name: p.read_bytes() for p in (library.store / f"{ROOT}.2").iterdir()
    }


def test_leftovers_that_can_never_be_whole_are_thrown_away(tmp_path: Path, library: Library) -> None:
    part = tmp_path / ".part" / f"{ROOT}.1"
    part.mkdir(parents=True)
    (part / "stray.dcm.tmp").write_bytes(b"0" * 100)
    with pytest.raises(ValueError, match="1 of 3 series did not come whole, such as P1"):
        fetch_cohort(str(tmp_path))
    fetch_cohort(str(tmp_path))
    assert _there(tmp_path) == {"P1", "P2", "P3"}
    assert not (tmp_path / "dicom" / "P1" / "stray.dcm.tmp").exists()


def test_after_a_batch_of_nothing_no_other_is_asked_for(
    tmp_path: Path, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", 1)
    library.most = 0
    with pytest.raises(ValueError, match="3 of 3 series did not come whole"):
        fetch_cohort(str(tmp_path))
    assert library.asked == [f"{ROOT}.1"]


def test_prepare_carries_licences_query_and_index(tmp_path: Path, library: Library) -> None:
    manifest = fetch_cohort(str(tmp_path / "c"), parts=(1, 1, 1), seed=4)
    split = json.loads((tmp_path / "c" / "split.json").read_text())
    assert sorted(name for names in split.values() for name in names) == ["P1", "P2", "P3"]
    datalist = prepare(
        str(tmp_path / "c"), str(tmp_path / "out"), provenance=str(manifest), size=16, spacing_mm=SPACING, workers=1
    )
    lists = json.loads(Path(datalist).read_text())
    assert {part: [entry["case"] for entry in lists[part]] for part in split} == split
    prepared = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert prepared["chosen"]["index"] == {"package": "idc-index-data", "version": "25.0.5"}
    assert prepared["chosen"]["query"]["seed"] == 4
    assert prepared["cases"]["P3"]["licence"] == "CC BY 4.0"
    assert prepared["cases"]["P3"]["provenance"]["doi"] == "10.1/1"
    notice = (tmp_path / "out" / "NOTICE.md").read_text()
    assert notice == (tmp_path / "c" / "NOTICE.md").read_text()
    assert "| first | CC BY 4.0 | 2 | 2 | 10.1/0 |\n| second | CC BY 4.0 | 1 | 1 | 10.1/1 |" in notice
    assert "- second: A. Author (2020). Data \\| more." in notice


def test_a_folder_keeps_its_cohort(tmp_path: Path, library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fetch_cohort(str(tmp_path), manifest_only=True)
    assert not (tmp_path / "dicom").exists() and library.asked == []
    assert (tmp_path / "cohort.s5cmd").read_text().splitlines()[1] == f"cp s3://idc-open-data/{ROOT}.2/* dicom/P2/"
    with pytest.raises(ValueError, match=r"another cohort \(query differs\): give the same options"):
        fetch_cohort(str(tmp_path), seed=1)
    monkeypatch.setattr(module, "index_version", lambda: "26.0.0")
    with pytest.raises(ValueError, match=r"index differs\): install that of .*25\.0\.5.* again"):
        fetch_cohort(str(tmp_path))
    monkeypatch.setattr(module, "index_version", lambda: "25.0.5")
    content = json.loads(path.read_text())
    content["cases"][0]["name"] = "../elsewhere"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="it was changed"):
        fetch_cohort(str(tmp_path))


def test_dry_run_writes_nothing(tmp_path: Path, library: Library, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "custom"):
        fetch_cohort(str(tmp_path / "c"), dry_run=True)
    assert not (tmp_path / "c").exists()
    assert "first (CC BY 4.0): 2 patients, 2 series" in caplog.text


def test_too_little_space_is_said_before_anything_is_fetched(
    tmp_path: Path, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage._replace(free=10))
    with pytest.raises(ValueError, match="still to be fetched"):
        fetch_cohort(str(tmp_path))
    assert library.asked == []


def _unreachable(*args: Any, **options: Any) -> Any:
    raise requests.ConnectionError("no such host")


def test_without_network_one_line_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("idc_index_data", reason="the extra 'cohort' is not installed")
    monkeypatch.setattr(module.requests, "head", _unreachable)
    words = ["fetch-cohort", str(tmp_path / "c"), "--collections", "lctsc", "--count", "2", "--licences", "CC BY 3.0"]
    assert fewview_ct(*words) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1 and "https://s3.amazonaws.com cannot be reached (ConnectionError)" in error[0]
    assert len(json.loads((tmp_path / "c" / "cohort.json").read_text())["cases"]) == 2
    assert not (tmp_path / "c" / "dicom").exists()


def test_thickness_needs_the_network_and_says_so(tmp_path: Path, library: Library) -> None:
    library.fetch_index = _unreachable  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"--max_slice_thickness_mm needs a table that is fetched from github\.com"):
        fetch_cohort(str(tmp_path / "c"), max_slice_thickness_mm=2.5)
    assert not (tmp_path / "c").exists()


@pytest.mark.integration
def test_the_library_itself_fetches_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real index, idc-index and s5cmd, with a store on loopback; reading the whole index takes 1.7 GB of memory."""
    library = pytest.importorskip("idc_index.index", reason="the extra 'cohort' is not installed")
    query: dict[str, Any] = {
        "collections": ["nlst", "acrin_nsclc_fdg_pet"],
        "min_slices": 3,
        "max_slices": 8,
        "count": 4,
    }
    folder = tmp_path / "c"
    cases = json.loads(fetch_cohort(str(folder), manifest_only=True, **query).read_text())["cases"]
    objects = {}
    for case in cases:
        start, count = case["url"].removeprefix("s3:/").removesuffix("*"), case["slices"]
        for number in range(count):
            size = case["bytes"] // count + (case["bytes"] % count if number == 0 else 0)
            objects[f"{start}{number}.dcm"] = bytes([number]) * size
    with serving(Store(objects)) as store:
        monkeypatch.setattr(library, "aws_endpoint_url", store.url)
        monkeypatch.setattr(module, "STORE", store.url)
        store.broken = {max(objects)}
        with pytest.raises(ValueError, match="1 of 4 series did not come whole"):
            fetch_cohort(str(folder), **query)
        assert sorted(store.sent) == sorted(objects.keys() - store.broken)
        partial = max((folder / ".part").glob("*/*.dcm"))
        partial.write_bytes(partial.read_bytes()[:1000])  # as a break within a file would leave it
        store.broken, store.sent = set(), []
        fetch_cohort(str(folder), **query)
        assert len(store.sent) == 2
        there = {p.relative_to(folder).as_posix(): p.read_bytes() for p in (folder / "dicom").glob("*/*")}
        assert {name.split("/")[1] for name in there} == {case["name"] for case in cases}
        assert sorted(there.values()) == sorted(objects.values())
        program = str(Path(sys.executable).with_name("s5cmd"))
        words = ["--no-sign-request", "--endpoint-url", store.url, "run", str(folder / "cohort.s5cmd")]
        subprocess.run([program, *words], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
        alone = {p.relative_to(tmp_path).as_posix(): p.read_bytes() for p in (tmp_path / "dicom").glob("*/*")}
        assert alone == there
