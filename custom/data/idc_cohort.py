"""Which public chest CTs make a cohort: a query against the index of the Imaging Data Commons (idc-index-data).

The index is a Parquet file inside that package, so choosing needs no network. Thickness of slices alone stands in a
table that the library idc-index fetches.
"""

from __future__ import annotations

import difflib
import hashlib
import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from custom.core.files import read_json_object
from custom.core.json_models import StrictModel, validated
from custom.core.optional_packages import required
from custom.data.scan import safe_name

__all__ = ["CohortQuery", "choose", "index_version", "preset_query", "require"]

PRESETS = Path(__file__).with_name("cohort_presets.json")

#: Words of a Series Description (0008,103E) that tell of what is no stack of axial slices as they were measured.
NOT_AXIAL = "cor|coronal|sag|sagittal|oblique|mip|minip|mpr|vessel suppress|projections?|scout|topogram|localizer"


class CohortQuery(StrictModel):
    """What a series, its patient and the cohort have to be. An empty tuple asks for nothing.

    Attributes:
        collections: identifiers of the index, such as "nlst".
        licences: short names, such as "CC BY 4.0".
        manufacturers: how Manufacturer (0008,0070) begins, in any case.
        body_parts: Body Part Examined (0018,0015), in any case.
        exclude_patients: Patient ID (0010,0020) of those that are left out.
        min_slices, max_slices: images of the series, both included.
        max_slice_thickness_mm: largest Slice Thickness (0018,0050) in mm; None asks for nothing.
        series_per_patient: "one" takes the series with most slices.
        count: patients; None: all.
        parts: numbers of scans for training, validation, test; None: 0.8, 0.1 and 0.1 of them.
        seed: of the draws.
    """

    collections: tuple[str, ...] = Field((), strict=False)
    licences: tuple[str, ...] = Field(("CC BY 3.0", "CC BY 4.0"), strict=False)
    manufacturers: tuple[str, ...] = Field((), strict=False)
    body_parts: tuple[str, ...] = Field(("CHEST", "LUNG", "THORAX"), strict=False)
    exclude_patients: tuple[str, ...] = Field((), strict=False)
    min_slices: int = Field(100, ge=1)
    max_slices: int = Field(1000, ge=1)
    max_slice_thickness_mm: float | None = Field(None, gt=0)
    series_per_patient: Literal["one", "all"] = "one"
    count: int | None = Field(None, ge=1)
    parts: tuple[int, int, int] | None = Field(None, strict=False)
    seed: int = 0


def preset_query(name: str | None, changes: Mapping[str, Any]) -> CohortQuery:
    """A query of `cohort_presets.json`, with what the caller wants otherwise.

    Args:
        name: of the preset; None: the defaults of `CohortQuery`.
        changes: its fields; None leaves one as it is, "any" asks for nothing. What draws other scans than the preset's
            makes its ``parts`` void, which count them.

    Raises:
        ValueError: no such preset, a value that is none.
    """
    presets = read_json_object(PRESETS)
    if name is not None and name not in presets:
        raise ValueError(f"--preset {name!r}: there are {', '.join(presets)}")
    given = {key: () if value in (["any"], ("any",)) else value for key, value in changes.items() if value is not None}
    base = dict(presets[name]) if name else {}
    if given.keys() - {"seed"}:
        base.pop("parts", None)
    return validated(CohortQuery, {**base, **given}, "the query")


def require(module: str) -> Any:
    """Imports a module of the extra ``cohort``, or says how to install it."""
    return required(module, "cohort", "public cohorts need")


def index_version() -> str:
    """Version of idc-index-data; its first number is the release of the Imaging Data Commons."""
    return str(require("idc_index_data").__version__)


def choose(query: CohortQuery, thickness_table: Path | None = None) -> list[dict[str, Any]]:
    """The series of a cohort: facts, licence and source of each, sorted by name.

    Collections take turns, and each gives its patients in an order that is random in the seed, so that a small
    collection is taken whole before a large one fills the rest. The same index, query and seed choose the same.

    Args:
        query: what is wanted.
        thickness_table: ``ct_index.parquet`` of the same index, where the query asks for a thickness.

    Returns:
        One object a series, of the keys that `fewview-ct prepare --provenance` reads: ``name``, ``collection``,
        ``patient_id``, ``series_instance_uid``, ``licence``, ``doi``, ``citation``; and ``bytes``, ``slices``, ``url``.

    Raises:
        ModuleNotFoundError: the extra is not installed.
        ValueError: a collection or licence that the index does not know, or fewer patients than asked for.
    """
    duckdb, data = require("duckdb"), require("idc_index_data")
    with duckdb.connect(config={"threads": 2}) as connection:
        connection.read_parquet(str(data.IDC_INDEX_PARQUET_FILEPATH)).create_view("series")
        _check_known(connection, "collections", "collection_id", query.collections)
        _check_known(connection, "licences", "license_short_name", query.licences)
        join, thickness = "", "NULL"
        if query.max_slice_thickness_mm is not None:
            if thickness_table is None:
                raise ValueError("the thickness of slices stands in a table that the index does not hold: give it")
            connection.read_parquet(str(thickness_table)).create_view("ct")
            join, thickness = "JOIN ct USING (SeriesInstanceUID)", "SliceThickness"
        values = query.model_dump(mode="json", exclude={"parts"}) | {
            "body_parts": [part.upper() for part in query.body_parts],
            "manufacturers": f"^({'|'.join(re.escape(name.upper()) for name in query.manufacturers)})",
            "not_axial": f"(^|[^a-z])({NOT_AXIAL})([^a-z]|$)",
            "seed": str(query.seed),
        }
        answer = connection.execute(_SQL.format(join=join, thickness=thickness), values)
        names = [column[0] for column in answer.description]
        rows = [dict(zip(names, row, strict=True)) for row in answer.fetchall()]
        citations = _citations(connection, data, {str(row["collection"]) for row in rows})
    patients = {(row["collection"], row["patient_id"]) for row in rows}
    if not patients or (query.count is not None and len(patients) < query.count):
        wanted = f"{query.count} patients were asked for" if query.count else "no patient"
        raise ValueError(f"{wanted}, {len(patients)} fit the query: take more collections, or ask for less of a series")
    for row in rows:
        row["citation"] = citations.get(str(row["doi"]).lower(), f"https://doi.org/{row['doi']}")
    return sorted(_named(rows), key=lambda row: str(row["name"]))


_SQL = """
WITH fitting AS (
    SELECT *, {thickness} AS thickness, md5($seed || '|' || collection_id || '|' || PatientID) AS draw,
        row_number() OVER (
            PARTITION BY collection_id, PatientID ORDER BY instanceCount DESC, md5($seed || SeriesInstanceUID)
        ) AS of_patient
    FROM series {join}
    WHERE Modality = 'CT' AND sop_class_name = 'CT Image Storage' AND analysis_result_id IS NULL
        AND NOT list_contains($exclude_patients, PatientID)
        AND instanceCount BETWEEN $min_slices AND $max_slices
        AND (len($collections) = 0 OR list_contains($collections, collection_id))
        AND (len($licences) = 0 OR list_contains($licences, license_short_name))
        AND (len($body_parts) = 0 OR list_contains($body_parts, upper(BodyPartExamined)))
        AND regexp_matches(upper(coalesce(Manufacturer, '')), $manufacturers)
        AND ($max_slice_thickness_mm IS NULL OR {thickness} <= $max_slice_thickness_mm)
        AND NOT regexp_matches(lower(coalesce(SeriesDescription, '')), $not_axial)
), turns AS (
    SELECT *, dense_rank() OVER (PARTITION BY collection_id ORDER BY draw) AS turn
    FROM fitting WHERE $series_per_patient = 'all' OR of_patient = 1
), places AS (
    SELECT *, dense_rank() OVER (ORDER BY turn, draw) AS place FROM turns
)
SELECT collection_id AS collection, PatientID AS patient_id, StudyInstanceUID AS study_instance_uid,
    SeriesInstanceUID AS series_instance_uid, license_short_name AS licence, source_DOI AS doi,
    Manufacturer AS manufacturer, ManufacturerModelName AS scanner, SeriesDescription AS description,
    PatientSex AS sex, PatientAge AS age, thickness AS slice_thickness_mm, instanceCount AS slices,
    CAST(round(series_size_MB * 1000000) AS BIGINT) AS bytes, series_aws_url AS url
FROM places WHERE $count IS NULL OR place <= $count
"""


def _check_known(connection: Any, option: str, column: str, values: Sequence[str]) -> None:
    """Raise ValueError for a value that no CT of the index has."""
    found = connection.execute(f"SELECT DISTINCT {column} FROM series WHERE Modality = 'CT' AND {column} IS NOT NULL")
    known = {str(row[0]).lower(): str(row[0]) for row in found.fetchall()}
    for value in values:
        if value not in known.values():
            close = difflib.get_close_matches(value.lower(), known, 1)
            some = ", ".join(sorted(known.values())[:4])
            hint = f"did you mean {known[close[0]]!r}?" if close else f"it has {len(known)}, such as {some}"
            raise ValueError(f"--{option} {value!r}: no CT of the index has it; {hint}")


def _citations(connection: Any, data: Any, collections: set[str]) -> dict[str, str]:
    """How the data sets of the collections ask to be cited, as plain text by DOI in lower case."""
    table = data.INDEX_METADATA["collections_index"]["parquet_filepath"]
    found = connection.read_parquet(str(table)).select("collection_id, sources").fetchall()
    sources = [source for collection, those in found if collection in collections for source in those or ()]
    return {str(source["source_doi"]).lower(): _plain(source["citation"]) for source in sources if source["citation"]}


def _plain(text: str) -> str:
    return " ".join(html.unescape(re.sub(r"</?\w+>", "", text)).split())


def _named(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every row with the name of its case: that of the patient, as `prepare` has it without a manifest."""
    stems = [safe_name(str(row["patient_id"])) or "case" for row in rows]
    named = []
    for row, stem in zip(rows, stems, strict=True):
        digest = hashlib.sha256(str(row["series_instance_uid"]).encode()).hexdigest()[:8]
        named.append({"name": stem if stems.count(stem) == 1 else f"{stem}_{digest}", **row})
    return named
