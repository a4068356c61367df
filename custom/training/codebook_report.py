"""Use of the codebook in an evaluation, and the metrics that the autoencoder alone can reach."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.metrics import Metric
from monai.handlers import IgniteMetricHandler, from_engine
from torch import Tensor

from custom.core.files import write_json
from custom.metrics import HU_WINDOW
from custom.metrics.handlers import volume_metrics
from custom.networks.codebook_quantiser import codebook_perplexity

__all__ = ["CodebookReport", "CodebookUse", "autoencoder_metrics"]

logger = logging.getLogger(__name__)


class CodebookUse(Metric):
    """How many codes an evaluation uses, and how evenly.

    Args:
        codes: K, size of the codebook.
        evenness: give the perplexity (1 to K) instead of the share of codes that are used (0 to 1).
    """

    def __init__(self, codes: int, evenness: bool = False) -> None:
        self.codes, self.evenness = codes, evenness
        super().__init__(output_transform=from_engine(["indices"]))

    def reset(self) -> None:
        """Forget all codes."""
        self.counts = torch.zeros(self.codes, dtype=torch.int64)

    def update(self, output: Sequence[Tensor]) -> None:
        """Count the codes of a batch, a list of tensors or one tensor."""
        (indices,) = output if isinstance(output, tuple) and len(output) == 1 else (output,)
        for item in indices:
            self.counts += torch.bincount(torch.as_tensor(item).flatten().cpu().long(), minlength=self.codes)

    def compute(self) -> float:
        """The share or the perplexity over all that was seen, on all processes."""
        counts = self.counts
        if idist.get_world_size() > 1:
            counts = idist.all_reduce(counts.to(idist.device())).cpu()  # type: ignore[union-attr]
        return float(codebook_perplexity(counts) if self.evenness else (counts > 0).float().mean())


def autoencoder_metrics(
    codes: int, names: Sequence[str] = ("psnr_4095", "ssim"), hu_window: Sequence[float] = HU_WINDOW
) -> dict[str, IgniteMetricHandler | Metric]:
    """The ``additional_metrics`` of a `VQGANEvaluator` whose key metric is `psnr_range`.

    Args:
        codes: size of the codebook.
        names: metrics of "pred", besides.
        hu_window: HU at -1 and at 1.

    Returns:
        those, the same and `psnr_range` of "pred_quantised" as "..._quantised", "codebook_use" and "perplexity".
    """
    quantised = volume_metrics(["psnr_range", *names], hu_window, pred_key="pred_quantised")
    return {
        **volume_metrics(names, hu_window),
        **{f"{name}_quantised": metric for name, metric in quantised.items()},
        "codebook_use": CodebookUse(codes),
        "perplexity": CodebookUse(codes, evenness=True),
    }


class CodebookReport:
    """Writes the means of an evaluation, with use and perplexity of the codebook, to ``autoencoder.json``.

    Args:
        output_dir: its folder.
        context: what else goes into it, for example the weights file.
    """

    def __init__(self, output_dir: str | os.PathLike[str], context: Mapping[str, Any] | None = None) -> None:
        self.path, self.context = Path(output_dir) / "autoencoder.json", dict(context or {})

    def attach(self, engine: Engine) -> None:
        """Registers with an evaluator."""
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _write(self, engine: Engine) -> None:
        if idist.get_rank() != 0:
            return
        content = {**self.context, **{name: float(value) for name, value in engine.state.metrics.items()}}
        write_json(self.path, content, sort_keys=False)
        logger.info("%s written", self.path)
