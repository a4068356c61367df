"""What the guard says of the checkpoint that it leaves behind."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from custom.core.files import write_tensors
from custom.training.collapse_guard import CollapseGuard


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"No checkpoint was written\."),
        ({"net": {"weight": torch.ones(3)}}, r"last\.pt, is intact\."),
        ({"net": {"weight": torch.tensor([1.0, math.nan])}}, r"last\.pt, holds NaN or infinity in net\.weight"),
        (b"cut", r"last\.pt, cannot be read"),
    ],
)
def test_only_a_checkpoint_that_is_intact_is_called_so(content: object, message: str, tmp_path: Path) -> None:
    guard, path = CollapseGuard(), tmp_path / "last.pt"
    guard.checkpoint = path
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        write_tensors(path, content)
    with pytest.raises(RuntimeError, match=message):
        guard.check(7, math.nan, {"l1": math.nan, "perplexity": 1.0})
