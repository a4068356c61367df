"""Plans as part of a comparison: null rows, the judge on a known thorax, and its tables."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from custom.benchmark import radiotherapy_judge
from custom.benchmark.comparison import compare
from custom.benchmark.methods_file import read_methods, with_null_rows
from custom.benchmark.null_rows import NULL_ROWS, is_control
from custom.benchmark.radiotherapy_judge import RadiotherapyJudge
from custom.benchmark.radiotherapy_tables import radiotherapy_tables
from custom.metrics.tables import read_csv
from custom.models import SEGMENTER, find_model
from custom.radiotherapy import NotPossible, comparison_modes
from tests.custom.benchmark.tiny_benchmark import write_cohort, write_methods
from tests.custom.radiotherapy.thorax_phantom import GRID as THORAX_GRID
from tests.custom.radiotherapy.thorax_phantom import contoured, thorax

needs_engine = pytest.mark.skipif(
    importlib.util.find_spec("pydosert") is None or importlib.util.find_spec("pymedphys") is None,
    reason="pydosert or pymedphys is not installed: pip install 'fewview-ct[radiotherapy]' (Python 3.11 or 3.12)",
)
CT, MASKS = thorax()
HU = torch.from_numpy(CT.hu)


def altered(key: str) -> np.ndarray:
    return NULL_ROWS[key][1](HU, THORAX_GRID).numpy()


def test_null_rows_keep_of_the_truth_what_their_names_say() -> None:
    outside = ~MASKS["External"]
    lungs = MASKS["Lung_L"] | MASKS["Lung_R"]
    for key in ("water", "bulk"):
        assert np.all(altered(key)[outside] == -1000)
        assert np.all(altered(key)[MASKS["Spine"] & MASKS["External"]] == 0)
    assert np.all(altered("water")[lungs] == 0) and np.all(altered("bulk")[lungs] == -750)
    blurred = altered("blurred")
    assert blurred.std() < CT.hu.std() and blurred.mean() == pytest.approx(CT.hu.mean(), abs=2)
    assert torch.equal(NULL_ROWS["another_ct"][1](HU, THORAX_GRID), HU)
    assert all(is_control(name) for name, _ in NULL_ROWS.values()) and not is_control("inr_recon")


def test_null_rows_of_a_comparison_never_win_and_another_ct_is_the_next_patients(tmp_path: Path) -> None:
    """The ball of radius 80 mm shown as that of 120 mm, and the other way round: the same error."""
    cohort = write_cohort(tmp_path)
    methods = write_methods(tmp_path, "mean_training_ct", {"null": "another_ct"}, {"null": "blurred"})
    compare(str(cohort), str(methods), str(tmp_path / "out"), views="2", metrics="mae_hu", montages=0)
    rows = {(row["method"], row["case"]): row for row in read_csv(tmp_path / "out" / "benchmark.csv")}
    another = [rows["another patient's CT", case]["mae_hu"] for case in ("case2", "case3")]
    assert another[0] == pytest.approx(another[1]) and another[0] > 30
    assert rows["truth blurred, sigma 5 mm", "case2"]["mae_hu"] < 20
    assert "**" not in (tmp_path / "out" / "benchmark.md").read_text()


@pytest.mark.parametrize(
    ("entry", "said"),
    [({"null": "nothing"}, "null"), ({"null": "water", "name": "mine"}, "name of its own"),
     ({"null": "another_ct", "shuffled": True}, "never")],
)  # fmt: skip
def test_null_entries_that_cannot_be(tmp_path: Path, entry: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_methods(write_methods(tmp_path, entry))


def test_null_rows_are_added_once(tmp_path: Path) -> None:
    entries, _ = read_methods(write_methods(tmp_path, {"null": "water"}, "sirt"))
    names = [entry.name for entry in with_null_rows(entries)]
    assert sorted(names) == sorted({*names}) and len(names) == 2 + len(NULL_ROWS)
    assert {name for name, _ in NULL_ROWS.values()} < {*names}


@needs_engine
def test_judge_on_a_known_thorax(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contours are those of the phantom; the truth has no error, water has no plan but a dose with the truth's."""

    def known(ct, segmenter, target=None):  # type: ignore[no-untyped-def]
        if not (ct.hu[MASKS["Lung_L"]] < -400).all():
            raise NotPossible("no lungs")
        return contoured(ct, MASKS, target)

    monkeypatch.setattr(comparison_modes, "contour", known)
    monkeypatch.setattr(radiotherapy_judge, "planning_ct", lambda hu, affine: type(CT)(hu, THORAX_GRID))
    judge = RadiotherapyJudge(["ap_pa", "breast_left"], find_model(SEGMENTER).model)
    same, pictures = judge(HU, HU, THORAX_GRID)
    assert same["rt.ap_pa.delivered.isocenter_error_percent"] == pytest.approx(0, abs=1e-3)
    assert same["rt.breast_left.same_mu.gamma_2_2_percent"] == 100
    assert {name: png[:4] for name, png in pictures.items()} == dict.fromkeys(judge.templates, b"\x89PNG")
    water, pictures = judge(torch.from_numpy(altered("water")), HU, THORAX_GRID)
    assert water["rt.ap_pa.delivered.possible"] == 0 and not pictures
    assert water["rt.ap_pa.same_mu.possible"] == 1
    assert abs(water["rt.ap_pa.same_mu.isocenter_error_percent"]) > 0.3
    assert judge(HU, torch.from_numpy(altered("water")), THORAX_GRID)[0] == {
        "rt.ap_pa.possible_on_truth": 0.0, "rt.breast_left.possible_on_truth": 0.0,
    }  # fmt: skip


@needs_engine
def test_unknown_template_is_refused_before_the_cohort_is_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="template 'brest' is not known"):
        compare("none.json", "none.json", str(tmp_path / "out"), radiotherapy=True, templates="brest")


def test_tables_show_absolute_means_and_count_what_is_not_possible() -> None:
    head = "rt.breast_left."

    def row(patient: str, error: float | None, v90: tuple[float, float] = (90.0, 95.0)) -> dict:
        found = {"case": patient, "patient": patient, "method": "m", "views": "2", "status": "done"}
        found |= {f"{head}possible_on_truth": 1.0, f"{head}same_mu.true.breast_l_v90_percent": 97.0}
        if error is None:
            return {**found, f"{head}delivered.possible": 0.0}
        return {
            **found, f"{head}delivered.possible": 1.0, f"{head}delivered.wepl_field_mm": error,
            f"{head}delivered.isocenter_error_percent": error,
            f"{head}delivered.true.breast_l_v90_percent": v90[0], f"{head}delivered.shown.breast_l_v90_percent": v90[1],
        }  # fmt: skip

    rows = [row("a", -1.0), row("b", 3.0, (90.0, 89.0)), row("c", None), {**row("d", 9.0), "status": "failed"}]
    tables = radiotherapy_tables(rows)
    delivered, every = tables[0], tables[-1]
    cells = dict(zip(delivered.head, delivered.rows[0], strict=True))
    assert cells["isocentre dose error [%]"] == "2.00 (1.41)"
    assert cells["V90 of the target, shown minus delivered [%]"] == "3.00 (2.83)"
    assert cells["no plan possible"] == "1 of 3"
    assert every.rows[0][:6] == ["a", "m", "2", "97.0", "95.0", "90.0"]
    assert every.rows[2][3:6] == ["97.0", "no plan", "no plan"]
    # What does not depend on the radiographs has one row for all view sets.
    both = radiotherapy_tables([*rows, *({**one, "views": "4"} for one in rows)])[0]
    assert [one[:2] for one in both.rows] == [["m", "2, 4"]]
    assert radiotherapy_tables([{"case": "a", "status": "done"}]) == []
