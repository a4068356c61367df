"""What the benchmark's page says first is what the numbers say, and no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from custom.benchmark.conclusion import conclusion, lead_cells, leads, other_metrics
from custom.benchmark.jobs import DONE
from custom.report.ranking_plot import ranking_plot

CONTROL = "net, another patient's radiographs"


def rows(metric: str = "psnr_range", **values: list[float]) -> list[dict[str, Any]]:
    """`method__views` to a value for each patient."""
    return [
        {"case": f"c{i}", "patient": f"p{i}", "method": key.split("__")[0], "views": key.split("__")[1],
         "status": DONE, "error": "", metric: value}
        for key, found in values.items()
        for i, value in enumerate(found)
    ]  # fmt: skip


CLEAR = rows(
    net__2=[22, 23, 24, 25, 26], sirt__2=[20, 21, 22, 23, 24], mean__2=[15.0] * 5,
    net__8=[30, 31, 32, 33, 34], sirt__8=[27, 28, 29, 30, 31], mean__8=[15.0] * 5,
)  # fmt: skip


def test_a_lead_is_the_mean_paired_difference() -> None:
    two, eight = leads(CLEAR, "psnr_range")
    assert (two.views, two.best, two.second, two.ahead, two.patients, two.better) == ("2", "net", "sirt", 2.0, 5, 5)
    # The patients differ by 4 dB, the differences not at all.
    assert two.interval == (2.0, 2.0) and two.unsure == () and eight.ahead == 3.0
    assert conclusion([two, eight], "psnr_range", 5) == (
        "net has the best PSNR with every view set, on average 2.00 to 3.00 dB ahead of the next method; every 95% "
        "interval over the 5 patients lies above zero."
    )
    assert lead_cells(two, "psnr_range") == ["2", "net", "sirt", "+2.00", "+2.00 to +2.00", "5 of 5", "yes"]


def test_of_errors_the_smallest_is_best() -> None:
    (lead,) = leads(rows("mae_hu", net__2=[80.0] * 5, sirt__2=[100.0] * 5), "mae_hu")
    assert (lead.best, lead.ahead) == ("net", 20.0)


def test_a_difference_within_the_spread_is_called_that() -> None:
    found = leads([*CLEAR, *rows(net__4=[20, 21, 22, 23, 24], sirt__4=[22, 19, 24, 20, 24])], "psnr_range")
    assert found[2].best == "net" and found[2].unsure == ("sirt",)
    low, high = found[2].interval or (0.0, 0.0)
    assert low < 0 < high and found[2].ahead == pytest.approx(0.2)
    said = conclusion(found, "psnr_range", 5)
    assert "net has the best PSNR with view set 2 and 8, on average 2.00 to 3.00 dB" in said
    assert "with view set 4 net and sirt cannot be told apart: the difference lies within the patients' spread" in said
    assert lead_cells(found[2], "psnr_range")[-1] == "not from sirt"
    alone = conclusion(found[2:], "psnr_range", 5)
    assert alone.startswith("With view set 4 net and sirt cannot be told apart") and "has the best" not in alone


def test_view_sets_of_one_outcome_are_named_together() -> None:
    close = {"net__4": [20, 21, 22, 23, 24], "sirt__4": [22, 19, 24, 20, 24]}
    other = {"net__1": [22, 19, 24, 20, 24], "sirt__1": [20, 21, 22, 23, 24]}  # the other way round
    said = conclusion(leads([*CLEAR, *rows(**close, **other)], "psnr_range"), "psnr_range", 5)
    assert said == (
        "net has the best PSNR with view set 2 and 8, on average 2.00 to 3.00 dB ahead of the next method; there every "
        "95% interval over the 5 patients lies above zero; with view set 4 and 1 net and sirt cannot be told apart: "
        "the differences lie within the patients' spread."
    )


def test_a_method_far_behind_on_average_may_still_not_be_told_apart() -> None:
    """The second differs little and always, the third much and not always."""
    found = leads(rows(a__2=[20.0] * 5, b__2=[19.9] * 5, c__2=[20.2, 20.2, 20.2, 10.0, 20.2]), "psnr_range")
    assert found[0].second == "b" and found[0].unsure == ("c",)


def test_who_fails_on_hard_patients_does_not_win_by_the_easy_ones() -> None:
    all_nine = [30.0, 30, 30, 30, 30, 10, 10, 10, 10]
    found = leads(rows(a__2=all_nine, b__2=[29.0] * 5), "psnr_range")
    assert (found[0].best, found[0].ahead, found[0].patients) == ("a", 1.0, 5)
    assert "compared are the patients of whom every method gave a volume, 5 of 9 with 2" in conclusion(
        found, "psnr_range", 9
    )


def test_few_patients_give_no_interval() -> None:
    few = [row for row in CLEAR if row["patient"] in ("p0", "p1")]
    found = leads(few, "psnr_range")
    assert found[0].interval is None and lead_cells(found[0], "psnr_range")[4:6] == ["–", "2 of 2"]
    said = conclusion(found, "psnr_range", 2)
    assert said.endswith("Fewer than five patients: this may be chance.") and "interval" not in said


def test_controls_and_single_samples_do_not_rank() -> None:
    more = rows(**{f"{CONTROL}__2": [40.0] * 5, "ldm, a single sample__2": [39.0] * 5})
    assert [lead.best for lead in leads([*CLEAR, *more], "psnr_range")] == ["net", "net"]
    nothing = leads(rows(**{"net__2": [20.0] * 5, f"{CONTROL}__2": [40.0] * 5}), "psnr_range")
    assert nothing == [] and "nothing to rank" in conclusion(nothing, "psnr_range", 5)


def test_other_metrics_agree_or_say_who_is_best() -> None:
    both = [{**row, "ssim": row["psnr_range"], "mae_hu": row["psnr_range"]} for row in CLEAR]
    found = leads(both, "psnr_range")
    assert other_metrics(both, found, ["ssim"]) == "By SSIM the same methods are best."
    said = other_metrics(both, found, ["ssim", "mae_hu"])
    assert said == "By SSIM the same methods are best. Best by MAE: mean with 2 and mean with 8, elsewhere as above."


@pytest.mark.parametrize("patients", [5, 2])
def test_the_plot_joins_growing_view_sets_of_a_beam(
    tmp_path: Path, patients: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = {"1 frontal": ("parallel", 1), "1 lateral": ("parallel", 1), "2": ("parallel", 2), "2 cone": ("cone", 2)}
    known = [r for v in columns for r in rows(**{f"net__{v}": [20.0, 21, 22, 23, 24][:patients]})]
    drawn: list[Any] = []
    monkeypatch.setattr("custom.report.ranking_plot.save_figure", lambda figure, path: drawn.append(figure) or path)
    ranking_plot(known, tmp_path / "ranking.png", "psnr_range", columns)
    lines = [line for line in drawn[0].axes[0].lines if line.get_linestyle() == "-"]
    joined = [tuple(line.get_xdata()) for line in lines if line.get_xdata()[0] != line.get_xdata()[1]]
    assert joined == [(1.0, 2.0)], "1 lateral to 2 alone"
    bars = [line.get_ydata() for line in lines if line.get_xdata()[0] == line.get_xdata()[1]]
    assert len(bars) == (4 if patients == 5 else 0) and all(low < 22 < high for low, high in bars)
    monkeypatch.undo()
    assert Image.open(ranking_plot(known, tmp_path / "ranking.png", "psnr_range", columns)).size[0] > 1000
    with pytest.raises(ValueError, match="no case has the metric 'ssim'"):
        ranking_plot(known, tmp_path / "ranking.png", "ssim", columns)
