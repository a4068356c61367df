"""Choosing public CTs: real queries against the index that comes with idc-index-data."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from custom.core.names import plain_name
from custom.data.idc_cohort import CohortQuery, choose, preset_query

duckdb = pytest.importorskip("duckdb", reason="the extra 'cohort' is not installed")
data = pytest.importorskip("idc_index_data", reason="the extra 'cohort' is not installed")


def _index(columns: str, where: str) -> list[tuple[Any, ...]]:
    with duckdb.connect() as connection:
        connection.read_parquet(str(data.IDC_INDEX_PARQUET_FILEPATH)).create_view("i")
        return connection.execute(f"SELECT {columns} FROM i WHERE {where}").fetchall()


@pytest.fixture(scope="module")
def lidc() -> list[dict[str, Any]]:
    return choose(preset_query("lidc", {}))


@pytest.fixture(scope="module")
def open_1000() -> list[dict[str, Any]]:
    return choose(preset_query("open-1000", {}))


def test_lidc_is_the_papers_1018_scans_of_1010_patients(lidc: list[dict[str, Any]]) -> None:
    assert len(lidc) == 1018 == sum(preset_query("lidc", {}).parts or ())
    assert len({case["patient_id"] for case in lidc}) == 1010
    (truth,) = _index("sum(series_size_MB)", "collection_id = 'lidc_idri' AND Modality = 'CT'")
    assert sum(case["bytes"] for case in lidc) == round(truth[0] * 1e6)
    several = [case["name"] for case in lidc if case["name"] != case["patient_id"]]
    assert len(several) == 16 and all("_" in name for name in several)  # the eight patients with two scans


def test_open_1000_has_a_patient_a_series_under_licences_that_allow_commercial_use(
    open_1000: list[dict[str, Any]],
) -> None:
    assert len(open_1000) == 1000 == len({(c["collection"], c["patient_id"]) for c in open_1000})
    assert {case["licence"] for case in open_1000} == {"CC BY 3.0", "CC BY 4.0"}
    collections = Counter(case["collection"] for case in open_1000)
    assert len(collections) == 16 and "lidc_idri" not in collections
    assert max(collections.values()) < 200  # none outweighs the others
    tested = {"100252", "Lung_Dx-A0001", "QIN-LSC-0003", "QIN-LSC-0049"}  # docs/explanation/protocol.md
    assert not tested & {case["patient_id"] for case in open_1000}
    every_query = CohortQuery(collections=("qin_lung_ct", "lung_pet_ct_dx", "nlst"), body_parts=(), min_slices=1)
    every = {case["patient_id"] for case in choose(every_query)}
    assert tested <= every  # they would be there
    assert all(100 <= case["slices"] <= 1000 for case in open_1000)
    assert all(case["doi"] and case["doi"].lower() in case["citation"].lower() for case in open_1000)


def test_the_table_of_the_documentation_is_what_the_index_gives(
    lidc: list[dict[str, Any]], open_1000: list[dict[str, Any]]
) -> None:
    page = (Path(__file__).parents[3] / "docs" / "how-to" / "prepare-a-cohort.md").read_text(encoding="utf-8")
    if f"By the index {data.__version__} " not in page:
        pytest.skip(f"the page states another index than {data.__version__}")
    for cases in (lidc, open_1000):
        for collection in {case["collection"] for case in cases}:
            those = [case for case in cases if case["collection"] == collection]
            patients, size = len({case["patient_id"] for case in those}), sum(case["bytes"] for case in those) / 1e9
            assert f"| {collection} | {those[0]['licence']} | {patients} | {len(those)} | {size:.1f} |" in page


@pytest.mark.parametrize("name", ["lidc", "open_1000"])
def test_names_and_addresses_are_plain(name: str, request: pytest.FixtureRequest) -> None:
    cases = request.getfixturevalue(name)
    names = [plain_name(case["name"], "case") for case in cases]
    assert len(set(names)) == len(names) and names == sorted(names)
    assert all(case["url"].startswith("s3://idc-open-data") and case["url"].endswith("/*") for case in cases)
    assert not any("<" in case["citation"] or "\n" in case["citation"] for case in cases)


def test_the_seed_draws_and_more_patients_keep_the_first(open_1000: list[dict[str, Any]]) -> None:
    def uids(**changes: Any) -> set[str]:
        query = preset_query("open-1000", {"collections": ["nlst", "eay131"], **changes})
        return {case["series_instance_uid"] for case in choose(query)}

    small = uids(count=40, seed=3)
    assert small == uids(count=40, seed=3)
    assert small < uids(count=60, seed=3)
    assert len(small & uids(count=40, seed=4)) < 10


def test_collections_take_turns() -> None:
    cases = choose(CohortQuery(collections=("nlst", "qin_lung_ct", "covid_19_ar"), count=100))
    counted = Counter(case["collection"] for case in cases)
    small = {
        name: len({c["patient_id"] for c in choose(CohortQuery(collections=(name,)))})
        for name in ("qin_lung_ct", "covid_19_ar")
    }
    assert max(small.values()) < 33
    assert counted == {**small, "nlst": 100 - sum(small.values())}


def test_one_series_a_patient_is_that_with_most_slices() -> None:
    query = CohortQuery(collections=("rider_lung_ct",))
    one, every = choose(query), choose(query.model_copy(update={"series_per_patient": "all"}))
    assert len(every) > len(one) == len({case["patient_id"] for case in every})
    most: dict[str, int] = {}
    for case in every:
        most[case["patient_id"]] = max(case["slices"], most.get(case["patient_id"], 0))
    assert {case["patient_id"]: case["slices"] for case in one} == most


def test_filters_hold_for_every_series() -> None:
    cases = choose(
        CohortQuery(
            collections=("lidc_idri", "cmb_lca"), manufacturers=("ge", "Siemens"), body_parts=("chest",),
            min_slices=150, max_slices=300, series_per_patient="all",
        )
    )  # fmt: skip
    assert {case["manufacturer"].upper()[:2] for case in cases} == {"GE", "SI"}
    assert all(150 <= case["slices"] <= 300 for case in cases)
    uids = [case["series_instance_uid"] for case in cases]
    found = dict(_index("SeriesInstanceUID, BodyPartExamined || Modality", f"SeriesInstanceUID IN {tuple(uids)}"))
    assert set(found.values()) == {"CHESTCT"} and len(found) == len(uids)
    described = {str(case["description"]).lower() for case in cases}
    assert not described & {"coronal", "sagittal", "cor chest", "sag chest", "ax mip", "cor", "sag"}


def test_licences_that_forbid_commercial_use_are_taken_only_when_named() -> None:
    asked = {"collections": ["nsclc_radiomics"], "count": 5}
    with pytest.raises(ValueError, match="5 patients were asked for, 0 fit"):
        choose(preset_query(None, asked))
    for licences in (["CC BY-NC 3.0"], ["any"]):
        assert {c["licence"] for c in choose(preset_query(None, {**asked, "licences": licences}))} == {"CC BY-NC 3.0"}


def test_thickness_comes_from_the_further_table(tmp_path: Path) -> None:
    table = tmp_path / "ct_index.parquet"
    with duckdb.connect() as connection:
        connection.read_parquet(str(data.IDC_INDEX_PARQUET_FILEPATH)).create_view("i")
        connection.execute(
            "COPY (SELECT SeriesInstanceUID, instanceCount / 100.0 AS SliceThickness FROM i "
            f"WHERE collection_id = 'lctsc') TO '{table}' (FORMAT PARQUET)"
        )
    query = CohortQuery(collections=("lctsc",), max_slice_thickness_mm=1.5)
    cases = choose(query, table)
    assert cases and all(case["slice_thickness_mm"] == case["slices"] / 100 <= 1.5 for case in cases)
    assert len(cases) == len(choose(CohortQuery(collections=("lctsc",), max_slices=150)))
    with pytest.raises(ValueError, match="table that the index does not hold"):
        choose(query)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"collections": ["nlts"]}, r"--collections 'nlts'.* did you mean 'nlst'"),
        ({"licences": ["cc by 4.0"]}, r"--licences 'cc by 4.0'.* did you mean 'CC BY 4.0'"),
        ({"collections": ["lctsc"], "count": 500}, r"500 patients were asked for, 60 fit"),
        ({"collections": ["lctsc"], "body_parts": ["FOOT"]}, r"no patient, 0 fit"),
    ],
)
def test_what_fits_nothing_is_said(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        choose(preset_query(None, changes))


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("luna", {}, "there are lidc, open-1000"),
        (None, {"min_slices": 0}, "'min_slices'"),
        (None, {"count": -1}, "'count'"),
        (None, {"parts": [1, 2]}, "'parts"),
        (None, {"series_per_patient": "best"}, "'series_per_patient'"),
        (None, {"max_slice_thickness_mm": float("nan")}, "'max_slice_thickness_mm'"),
    ],
)
def test_a_wrong_query_is_said(name: str | None, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        preset_query(name, changes)


def test_parts_of_a_preset_hold_for_its_own_scans_alone() -> None:
    assert preset_query("lidc", {"seed": 5}).parts == (868, 50, 100)
    assert preset_query("lidc", {"count": 50}).parts is None
    assert preset_query("lidc", {"count": 50, "parts": (30, 10, 10)}).parts == (30, 10, 10)


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(ModuleNotFoundError, match=r"need duckdb.*pip install 'fewview-ct\[cohort\]'"):
        choose(CohortQuery())
