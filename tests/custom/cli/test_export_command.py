"""`fewview-ct export` hands on only thresholds that were made with the model that it packs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from custom.core.checkpoints import save_checkpoint
from custom.core.files import sha256_file
from custom.trust import Thresholds
from tests.custom.benchmark.tiny_benchmark import tiny_network
from tests.fewview_command import fewview_ct

PUBLISHED = Path(__file__).resolve().parents[3] / "bundles" / "inr_recon" / "models" / "thresholds.json"


def run(*words: object) -> int:
    return fewview_ct("export", *words)


def test_thresholds_of_another_model_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = save_checkpoint(tmp_path / "model.pt", tiny_network())
    for words in ((model, tmp_path / "out"), ("inr_recon", tmp_path / "out.zip", "--bundle", "--weights", model)):
        assert run(*words, "--thresholds", PUBLISHED) == 2
        said = capsys.readouterr().err.strip()
        assert said.startswith(f"error: {PUBLISHED}: thresholds of another model (inr_recon") and "\n" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]
    made = Thresholds.load(PUBLISHED)
    own = replace(made, made_from={"model": {"name": "own", "sha256": sha256_file(model)}}).save(tmp_path / "own.json")
    assert run(model, tmp_path / "out", "--thresholds", own) == 0
    assert "thresholds.json" in json.loads((tmp_path / "out" / "model.json").read_text())["files"]
