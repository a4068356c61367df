"""`fewview-ct train`, `infer` and `evaluate BUNDLE`: what MONAI's command does, with errors in one line."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from custom.cli.command_line import main
from custom.core.checkpoints import load_checkpoint
from tests.bundles.tiny_cohort import NETWORK_OVERRIDES, TRAIN_OVERRIDES


def call(*words: str) -> int:
    level, plain = logging.root.level, logging.getLogRecordFactory()
    with pytest.raises(SystemExit) as end:
        main(list(words))
    assert logging.getLogRecordFactory() is plain
    logging.root.setLevel(level)
    return end.value.code if isinstance(end.value.code, int) else 1


def options(**keys: object) -> list[str]:
    return [word for key, value in keys.items() for word in (f"--{key}", str(value))]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train inr_recon --learning_rat 3", "unknown key learning_rat: .*; did you mean learning_rate?"),
        ("train inr_recon --learning_rate abc", "--learning_rate takes a number, such as 0.001; got 'abc'"),
        ("train inr_recon --train#trainer#max_epoch 3", "did you mean train#trainer#max_epochs?"),
        ("train inr_recon --network_def#featur_spacing_mm 3", "did you mean network_def#feature_spacing_mm?"),
        ("train inr_recon --network_def#encoder#widhts 3", "did you mean network_def#encoder#widths?"),
        ("evaluate inr_recon --batch_siz 3", "did you mean batch_size?"),
        ("train inr_recon --trian#trainer#max_epochs 3", "By 'trian', did you mean 'train'?"),
        ("infer vqgan --imag x", "did you mean image?"),
        ("train inr_recon --data_list_file none.json", "error: none.json: no such datalist"),
        ("infer naf --geometry none.json", "error: none.json: no such geometry file"),
        ("train inr_recon --with pape", "pape: no such config; .*presets/paper"),
        ("train naf", "train.json: no such config of the bundle naf"),
        ("train inr_recn", "inr_recn: no such bundle: pass inr_recon"),
        ("train inr_recon 3", "'3' belongs to no option"),
    ],
)
def test_mistakes_are_one_line(
    words: str, message: str, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(*words.split()) == 2
    out, err = capfd.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and all(part in lines[0] for part in message.split(".*"))
    assert "Traceback" not in out + err
    assert not list(tmp_path.iterdir())


def test_under_monais_own_command_the_last_line_says_what_is_wrong(tmp_path: Path) -> None:
    """MONAI wraps an error once for every component; the traceback stays, for who needs it."""
    bundle = Path(__file__).resolve().parents[2] / "bundles" / "inr_recon"
    words = ["run", "--config_file", str(bundle / "configs" / "train.json"), "--data_list_file", "none.json"]
    command = [sys.executable, "-m", "monai.bundle", *words, "--bundle_root", str(tmp_path / "bundle")]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 1 and "Traceback" in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("error: none.json: no such datalist")


def test_a_bundle_lists_its_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("train", "inr_recon", "--with", "paper", "--help") == 0
    said = capsys.readouterr()
    assert "--warmup_iterations" in said.out and "presets/paper.json" in said.out
    assert "workflow type" not in said.out + said.err, "MONAI's remarks on itself"


def test_a_bundle_is_trained_and_evaluated(datalist: Path, tmp_path: Path) -> None:
    common = {**TRAIN_OVERRIDES, **NETWORK_OVERRIDES, "bundle_root": tmp_path / "bundle", "data_list_file": datalist}
    assert call("train", "inr_recon", *options(**common, learning_rate=0.001)) == 0
    weights = load_checkpoint(tmp_path / "bundle/models/model.pt")
    assert list(weights.network().grid.shape) == TRAIN_OVERRIDES["grid#shape"]
    assert call("evaluate", "inr_recon", *options(**common, output_dir=tmp_path / "out", val_angles_deg="0,90")) == 0
    assert (tmp_path / "out/metrics.csv").read_text().count("\n") == 3
