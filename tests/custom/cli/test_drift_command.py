"""`fewview-ct drift` from result folders to a table, a JSON file and an exit code."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from custom.cli import ExitCode
from custom.cli.drift_command import MEANINGS
from custom.core.files import sha256_file, write_json
from custom.geometry import Geometry
from custom.trust import Thresholds
from custom.trust.check_statistics import STATISTICS
from custom.trust.thresholds import TrainedRange
from tests.fewview_command import fewview_ct

TRAINED = TrainedRange((2,), ("cone",), (700.0, 1700.0), (1000.0, 1900.0), 5.0, 0.5)
VIEWS = Geometry.from_angles([0.0, 90.0], "cone", 1000.0, 1500.0, (8, 8), 10.0).tensor().tolist()


def run(*words: object) -> int:
    return fewview_ct("drift", *words)


@pytest.fixture
def clinic(tmp_path: Path) -> Path:
    """Weights, thresholds, and thirty results in folders of their own."""
    random = np.random.default_rng(0)
    (tmp_path / "weights.pt").write_bytes(b"weights")
    model = {"name": "weights", "sha256": sha256_file(tmp_path / "weights.pt"), "voxels": [64, 64, 64], "samples": 0}
    values = {name: tuple(sorted(random.normal(size=36).tolist())) for name in ("agreement", "population")}
    thresholds = Thresholds({}, {}, TRAINED, {"model": model}, calibrated={"cone 2": values})
    thresholds.save(tmp_path / "thresholds.json")
    for k in range(30):
        write_result(tmp_path, k, dict(zip(values, random.normal(size=2).tolist(), strict=True)))
    return tmp_path


def write_result(clinic: Path, k: int, statistics: dict[str, float], **changes: Any) -> None:
    content = {
        "format": "fewview-ct reconstruction 1",
        "created": (datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=k)).isoformat(),
        "model": {"name": "weights", "sha256": sha256_file(clinic / "weights.pt")},
        "settings": {"samples": 0, "thresholds": {"sha256": sha256_file(clinic / "thresholds.json")}},
        "checks": [{"name": name, "statistic": value} for name, value in statistics.items()],
        "radiographs": [{"sha256": f"{k}-{j}", "view": view} for j, view in enumerate(VIEWS)],
        "volume": {"shape": [64, 64, 64]},
    }
    write_json(clinic / "results" / f"r{k:02d}" / "result.json", content | changes)


def options(clinic: Path) -> list[object]:
    return [clinic / "results", "--model", clinic / "weights.pt", "--thresholds", clinic / "thresholds.json"]


def test_nothing_changed(clinic: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*options(clinic)) == ExitCode.DONE
    said = capsys.readouterr().out
    assert "Patients: 30, compared with 36 calibrated patients" in said and "40 or more" in said
    assert "No alarm; a change" in said and "Left out" not in said
    assert run(clinic / "results" / "r00", "--own_cases") == ExitCode.DONE
    assert "No alarm; none could have come yet" in capsys.readouterr().out


@pytest.mark.parametrize("own", [False, True])
def test_a_new_detector_is_seen(clinic: Path, own: bool, capsys: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(1)
    for k in range(15 if not own else 25, 45):
        write_result(clinic, k, {"agreement": random.normal(), "population": 4 + random.normal()})
    words = [*options(clinic), "--output", clinic / "drift.json", *(["--own_cases"] if own else [])]
    assert run(*words) == ExitCode.DRIFTED
    said, content = capsys.readouterr().out, json.loads((clinic / "drift.json").read_text())
    assert "CHANGED since about r" in said and ': population, the number behind "The radiographs look' in said
    assert MEANINGS["population"][0] in said
    rows = {row["statistic"]: row for row in content["statistics"]}
    assert rows["agreement"]["alarm"] is None and rows["agreement"]["meaning"] is None
    assert Path(rows["population"]["since"]).name in ({"r24", "r25", "r26"} if own else {"r14", "r15", "r16"})
    assert Path(rows["population"]["alarm"]).name < ("r42" if own else "r29")
    assert content["limit"] == 40 and len(content["cases"]) == 45
    assert content["calibrated_patients"] == (0 if own else 36)
    assert run(*words) == ExitCode.BAD_INPUT
    assert "there already" in capsys.readouterr().err


def test_results_that_cannot_be_compared_are_left_out_and_said(
    clinic: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = {"agreement": 0.0}
    write_result(
        clinic, 0, other, settings={"samples": 4, "thresholds": {"sha256": sha256_file(clinic / "thresholds.json")}}
    )
    write_result(clinic, 1, other, settings={"samples": 0, "thresholds": {"sha256": "f" * 64}})
    write_result(clinic, 2, other, settings={"samples": 0, "thresholds": None})
    write_result(clinic, 4, other, radiographs=[{"sha256": "4-0", "view": VIEWS[0]}])
    write_result(clinic, 6, other, radiographs=[{"sha256": "5-0", "view": view} for view in VIEWS])
    assert run(*options(clinic)) == ExitCode.DONE
    said = capsys.readouterr().out
    assert said.startswith("Patients: 25,")
    for text in (
        "other samples 4, not 0: 1", "other thresholds ffffffffffff, not", "without thresholds",
        "cone 1: that beam", "of a patient, or of radiographs, that came before: 1",
    ):  # fmt: skip
        assert text in said, text


def test_on_another_grid_what_depends_on_it_is_left_out(clinic: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The published thresholds were calibrated on a coarser grid than `reconstruct` has."""
    for k in range(30):
        content = json.loads((clinic / "results" / f"r{k:02d}" / "result.json").read_text())
        content["checks"][0]["statistic"] -= 9.0  # agreement
        write_json(clinic / "results" / f"r{k:02d}" / "result.json", content | {"volume": {"shape": [128, 128, 128]}})
    assert run(*options(clinic)) == ExitCode.DONE
    said = capsys.readouterr().out
    assert "agreement, heights, angles of results with 128x128x128 voxels: calibrated were 64x64x64." in said
    assert said.startswith("Patients: 30,") and "20 or more" in said  # one number is followed instead of two
    assert run(*options(clinic), "--own_cases") == ExitCode.DONE
    assert "Left out" not in capsys.readouterr().out


def test_bad_input_is_one_line(clinic: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = replace(Thresholds.load(clinic / "thresholds.json"), calibrated={})
    old.save(clinic / "old.json")
    content = json.loads((clinic / "old.json").read_text())
    del content["calibrated"]  # as older versions wrote it
    (clinic / "old.json").write_text(json.dumps(content))
    for words, message in (
        ([clinic / "results", "--model", clinic / "weights.pt", "--thresholds", clinic / "old.json"], "older version"),
        ([clinic / "results", "--model", clinic / "weights.pt"], "has no thresholds"),
        ([*options(clinic), "--false_alarms", "2"], "between 0 and 1"),
        ([clinic / "nothing", *options(clinic)[1:]], "no such folder"),
        (options(clinic)[1:], "result folders"),
    ):
        assert run(*words) == ExitCode.BAD_INPUT
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error
    for k in range(30):
        write_result(clinic, k, {}, settings={"samples": 4, "thresholds": None})
    assert run(*options(clinic)) == ExitCode.BAD_INPUT
    assert "none of 30 results can be compared" in capsys.readouterr().err


def test_every_number_has_its_meaning() -> None:
    assert set(MEANINGS) == set(STATISTICS)
