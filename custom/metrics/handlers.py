"""Metrics for MONAI's engines, by name, and a handler that writes every case's metrics."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.handlers import IgniteMetricHandler, from_engine

from custom.metrics.image_metrics import HU_WINDOW, METRIC_NAMES, VolumeMetric, evaluate_batch
from custom.metrics.tables import write_metrics

__all__ = ["CaseMetricsWriter", "case_entries", "volume_metrics"]

logger = logging.getLogger(__name__)


def volume_metrics(
    names: Sequence[str] = ("psnr_range",),
    hu_window: Sequence[float] = HU_WINDOW,
    pred_key: str = "pred",
    in_hu: bool = False,
) -> dict[str, IgniteMetricHandler]:
    """Metrics by name, as ``key_val_metric`` and ``additional_metrics`` of an evaluator take them.

    Args:
        names: of `custom.metrics.METRIC_NAMES`.
        hu_window: HU at -1 and at 1 of the network's range.
        pred_key: entry of the engine's output with the reconstruction, (B, 1, X, Y, Z) in [-1, 1], beside the truth
            ("label").
        in_hu: both are in HU already.

    Raises:
        ValueError: an unknown name.
    """
    pair = from_engine([pred_key, "label"])
    return {
        name: IgniteMetricHandler(metric_fn=VolumeMetric(name, hu_window, in_hu=in_hu), output_transform=pair)
        for name in names
    }


class CaseMetricsWriter:
    """Measures every case of an evaluation and writes ``metrics.csv`` and ``metrics.json`` at its end.

    Cases are named by the batch's ``case`` and ``patient`` entries, as the datalist of `prepare` has them; without
    them by their order. With several processes the cases of all are gathered and the first one writes; a case that
    the sampler gave to two of them, to fill up, is counted once.

    Args:
        output_dir: folder of the files.
        hu_window: HU at -1 and at 1 of the network's range.
        names: which metrics, all by default.
        stem: name of the files.
        context: what goes into the JSON beside the numbers, for example the checkpoint and the number of views.
        pred_key: entry of the engine's output with the reconstruction; "label" is the truth.
        in_hu: both are in HU already.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        hu_window: Sequence[float] = HU_WINDOW,
        names: Sequence[str] = METRIC_NAMES,
        stem: str = "metrics",
        context: Mapping[str, Any] | None = None,
        pred_key: str = "pred",
        in_hu: bool = False,
    ) -> None:
        self.output_dir = output_dir
        self.hu_window = tuple(hu_window)
        self.names = list(names)
        self.stem = stem
        self.context = dict(context or {})
        self.in_hu = in_hu
        self.pair = from_engine([pred_key, "label"])
        self.rows: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        """Registers with an evaluator; MONAI calls this for every handler."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._measure)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _start(self, _engine: Engine) -> None:
        self.rows = []

    def _measure(self, engine: Engine) -> None:
        preds, labels = self.pair(engine.state.output)
        cases = case_entries(engine.state.batch, "case", len(preds))
        patients = case_entries(engine.state.batch, "patient", len(preds))
        for pred, label, case, patient in zip(preds, labels, cases, patients, strict=True):
            values = self._compare(pred, label)
            case = case or f"rank{idist.get_rank()}_{len(self.rows):04d}"
            self.rows.append({"case": case, "patient": patient or case, **values})

    def _compare(self, pred: torch.Tensor, label: torch.Tensor) -> dict[str, float]:
        """The metrics of one case, (1, X, Y, Z) each."""
        (values,) = evaluate_batch(pred[None], label[None], self.hu_window, self.names, self.in_hu)
        return values

    def _write(self, _engine: Engine) -> None:
        rows = self.rows
        if idist.get_world_size() > 1:
            gathered: list[list[dict[str, Any]]] = [[] for _ in range(idist.get_world_size())]
            torch.distributed.all_gather_object(gathered, rows)
            rows = list({row["case"]: row for part in gathered for row in part}.values())
        if idist.get_rank() != 0 or not rows:
            return
        write_metrics(rows, self.output_dir, self.stem, hu_window=list(self.hu_window), **self.context)
        logger.info("metrics of %d cases written to %s", len(rows), self.output_dir)


def case_entries(batch: Any, key: str, count: int) -> list[str | None]:
    """The entry ``key`` of every case, of a batch as a dictionary of lists or decollated as a list of dictionaries."""
    if isinstance(batch, Mapping):
        values = batch.get(key)
    else:
        values = [case.get(key) if isinstance(case, Mapping) else None for case in batch]
    if not isinstance(values, list | tuple) or len(values) != count:
        return [None] * count
    return [None if value is None else str(value) for value in values]
