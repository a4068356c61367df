"""What a comparison comes to: which method is best at which views, by how much, and where that cannot be told."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from custom.benchmark import summary
from custom.benchmark.null_rows import is_control
from custom.metrics import MIN_PATIENTS_FOR_INTERVAL, summarise_cohort

__all__ = ["Lead", "conclusion", "lead_cells", "leads", "other_metrics"]


class Lead(NamedTuple):
    """The best method of a view set, and how far it is ahead of the next.

    Attributes:
        views: name of the view set.
        best: method with the best mean over the patients of whom all methods gave volumes.
        second: method with the next.
        ahead: mean of the paired differences over these patients, not negative.
        interval: bootstrap 95% interval of it; None below five patients.
        patients: how many these are.
        better: of them, in how many `best` is better.
        unsure: methods that cannot be told from `best`: the interval of their difference is not above zero, or there is
            none.
    """

    views: str
    best: str
    second: str
    ahead: float
    interval: tuple[float, float] | None
    patients: int
    better: int
    unsure: tuple[str, ...]


def leads(rows: Sequence[Mapping[str, Any]], name: str) -> list[Lead]:
    """The best method of every view set from which two or more gave volumes, over the patients of whom all did.

    Controls cannot win. Of a method that draws samples their mean stands for it, not a single one.

    Args:
        rows: of the comparison.
        name: of the metric.
    """
    sign = -1.0 if summary.smaller_is_better(name) else 1.0
    cells, (patients, table) = summary.cells(rows, [name])[name], summary.patient_cells(rows, name)
    found = []
    for views in dict.fromkeys(row["views"] for row in rows):
        values = {
            method: np.array([sign * table.get((method, p), {}).get(views, math.nan) for p in patients])
            for (method, of), cell in cells.items()
            if of == views and cell.patients and not is_control(method) and not method.endswith(", a single sample")
        }
        # Whoever fails on the hard patients must not win by the easy ones.
        shared = np.isfinite([*values.values()]).all(0) if values else np.zeros(0, bool)
        order = sorted(values, key=lambda method: -float(np.mean(values[method][shared]))) if shared.any() else []
        if len(order) < 2:
            continue
        compared = {m: _paired(values[order[0]][shared], values[m][shared]) for m in order[1:]}
        unsure = tuple(m for m, (_, interval, *_) in compared.items() if interval is None or interval[0] <= 0)
        found.append(Lead(views, order[0], order[1], *compared[order[1]], unsure))
    return found


def _paired(one: np.ndarray, other: np.ndarray) -> tuple[float, tuple[float, float] | None, int, int]:
    """Mean of the differences, its interval, their number, and how many are positive."""
    differences = one - other
    found = summarise_cohort([{"difference": float(value)} for value in differences])["metrics"]["difference"]
    return found["mean"], found["ci95"], len(differences), int((differences > 0).sum())


def conclusion(found: Sequence[Lead], name: str, patients: int) -> str:
    """The comparison in a sentence.

    Args:
        found: of `leads`, for this metric.
        name: of the metric.
        patients: of the comparison.
    """
    if not found:
        return "No two methods gave volumes from the same radiographs: there is nothing to rank."
    metric, _, unit = summary.metric_name(name).partition(" [")
    few = patients < MIN_PATIENTS_FOR_INTERVAL
    told = [lead for lead in found if few or not lead.unsure]
    parts = []
    for best in dict.fromkeys(lead.best for lead in told):
        own = [lead for lead in told if lead.best == best]
        low, high = (summary.shown(name, pick(lead.ahead for lead in own)) for pick in (min, max))
        by = f"{high if low == high else f'{low} to {high}'} {unit.rstrip(']')}".rstrip()
        parts.append(f"{best} has the best {metric} {_at(own, len(found))}, on average {by} ahead of the next method")
    if told and not few:
        there = "there " if len(told) < len(found) else ""
        parts.append(f"{there}every 95% interval over the {patients} patients lies above zero")
    alike: dict[frozenset[str], list[Lead]] = {}
    for lead in found:
        if lead not in told:
            alike.setdefault(frozenset((lead.best, *lead.unsure)), []).append(lead)
    for own in alike.values():
        differ = "the difference lies" if len(own) == 1 else "the differences lie"
        parts.append(
            f"{_at(own, len(found))} {own[0].best} and {_and(own[0].unsure)} cannot be told apart: {differ} within the "
            "patients' spread"
        )
    text = "; ".join(parts)
    if any(lead.patients < patients for lead in found):
        text += "; compared are the patients of whom every method gave a volume, "
        text += _and([f"{lead.patients} of {patients} with {lead.views}" for lead in found if lead.patients < patients])
    if few:
        return f"{text}. Fewer than five patients: this may be chance."
    return f"{text[0].upper() if text.startswith('with ') else text[0]}{text[1:]}."


def _at(own: Sequence[Lead], total: int = 0) -> str:
    return "with every view set" if len(own) == total > 1 else f"with view set {_and([lead.views for lead in own])}"


def _and(texts: Sequence[str]) -> str:
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def lead_cells(lead: Lead, name: str) -> list[str]:
    """A lead as the cells of a table: views, best, next, by how much, interval, in how many patients, told apart."""
    low, high = ("", "") if lead.interval is None else (_signed(name, value) for value in lead.interval)
    interval = f"{low} to {high}" if lead.interval else "–"
    told = f"not from {_and(lead.unsure)}" if lead.unsure else "yes"
    ahead, better = _signed(name, lead.ahead), f"{lead.better} of {lead.patients}"
    return [lead.views, lead.best, lead.second, ahead, interval, better, told]


def _signed(name: str, value: float) -> str:
    return ("+" if value > 0 else "") + summary.shown(name, value)


def other_metrics(rows: Sequence[Mapping[str, Any]], found: Sequence[Lead], names: Sequence[str]) -> str:
    """Whether other metrics find the same methods best, in a sentence; nothing where there are none.

    Args:
        rows: of the comparison.
        found: of `leads`, for the first metric.
        names: of the others.
    """
    best, agree, texts = {lead.views: lead.best for lead in found}, [], []
    for name in names:
        metric = summary.metric_name(name).partition(" [")[0]
        differ = [f"{lead.best} with {lead.views}" for lead in leads(rows, name) if lead.best != best.get(lead.views)]
        if differ:
            texts.append(f"Best by {metric}: {_and(differ)}, elsewhere as above.")
        else:
            agree.append(metric)
    if agree:
        texts.insert(0, f"By {_and(agree)} the same methods are best.")
    return " ".join(texts) if found else ""
