"""Trust checks that find one thing."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import pytest

from custom.reconstruct import pipeline
from custom.trust import CheckResult


def the_only_check(
    monkeypatch: pytest.MonkeyPatch, check: CheckResult, tmp_path: Path, thresholds: Mock | None = None
) -> str:
    """Checks that find this alone; the name of their thresholds' file."""
    found = thresholds or Mock(intervals={})
    monkeypatch.setattr(pipeline, "run_checks", lambda evidence, thresholds: [check])
    monkeypatch.setattr(pipeline.Thresholds, "load", classmethod(lambda cls, path: found))
    (tmp_path / "thresholds.json").write_text("{}")
    return str(tmp_path / "thresholds.json")
