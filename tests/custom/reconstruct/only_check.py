"""Trust checks that find one thing."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import pytest

from custom.reconstruct import pipeline
from custom.trust import CheckResult


def the_only_check(monkeypatch: pytest.MonkeyPatch, check: CheckResult, tmp_path: Path) -> str:
    """Checks that find this alone; the name of their thresholds' file."""
    monkeypatch.setattr(pipeline, "run_checks", lambda evidence, thresholds: [check])
    monkeypatch.setattr(pipeline.Thresholds, "load", classmethod(lambda cls, path: Mock(intervals={})))
    (tmp_path / "thresholds.json").write_text("{}")
    return str(tmp_path / "thresholds.json")
