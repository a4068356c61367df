"""Running a bundle in a test: in this process, or as a command line that is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.utils import set_determinism

ROOT = Path(__file__).resolve().parents[2]


def run_workflow(
    files: Sequence[Path], kind: str, run_id: str = "run", check: bool = True, **overrides: Any
) -> list[str]:
    """Run a workflow as `python -m monai.bundle run` does, in this process; returns the properties that are missing."""
    workflow = ConfigWorkflow(
        [str(file) for file in files], workflow_type=kind, logging_file=False, run_id=run_id, **overrides
    )
    try:
        workflow.initialize()
        missing = workflow.check_properties() if check else []
        workflow.run()
        workflow.finalize()
    finally:
        set_determinism(None)
    return missing or []


def command_line(config_file: str, overrides: dict[str, Any], *launcher: str) -> list[str]:
    """The command of a training; `launcher` replaces `python -m`."""
    options = [word for key, value in overrides.items() for word in (f"--{key}", str(value))]
    start = launcher or (sys.executable, "-m")
    return [*start, "monai.bundle", "run", "training", "--config_file", config_file, *options]


def messages(error: BaseException | None) -> str:
    """An error and its causes: MONAI wraps what a transform raises."""
    return "" if error is None else f"{error}\n{messages(error.__cause__ or error.__context__)}"


def epochs_of(checkpoint: Path) -> int:
    """Iterations that a checkpoint_last.pt has behind it; in tests of kills an epoch has one."""
    return torch.load(checkpoint, weights_only=True)["trainer"]["iteration"] if checkpoint.is_file() else 0


def killed_after_two_epochs(
    command: Sequence[str], checkpoint: Path, log: Path, number: signal.Signals = signal.SIGKILL
) -> int:
    """Start a training, send it a signal once two epochs are written, and return how many there are in the end."""
    with open(log, "w") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            deadline = time.monotonic() + 600
            while process.poll() is None and time.monotonic() < deadline and not epochs_of(checkpoint) >= 2:
                time.sleep(0.2)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, number)
            try:
                process.wait(120)
            finally:
                process.kill()
    code = 128 + number if number == signal.SIGTERM else -number
    assert process.returncode == code, log.read_text()[-2000:]
    reached = epochs_of(checkpoint)
    assert reached >= 2
    return reached


def train_in_two_processes(configs: Path, overrides: dict[str, Any]) -> None:
    """A training by torchrun with multi_gpu_train.json of the folder `configs`; fails with what it has said."""
    files = f"['{configs / 'train.json'}','{configs / 'multi_gpu_train.json'}']"
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m")
    command = command_line(files, overrides, *launcher)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]


def keys_in_order_of_inr_recon(configs: Path) -> set[str]:
    """Keys of a train.json that inr_recon's has too; they must stand in its order: who knows one bundle knows all."""
    ours, theirs = (json.loads((f / "train.json").read_text()) for f in (configs, ROOT / "bundles/inr_recon/configs"))
    common = [key for key in theirs if key in ours]
    assert [key for key in ours if key in theirs] == common
    for group in ("train", "validate"):
        shared = [key for key in theirs[group] if key in ours[group]]
        assert [key for key in ours[group] if key in theirs[group]] == shared
    return set(common)


def assert_overlay(overlay: Path, added: set[str]) -> None:
    """An overlay of train.json is small, and replaces or merges what is there, but for the keys that it may add."""
    assert len(overlay.read_text().splitlines()) <= 45
    train = ConfigParser(json.loads((overlay.parent / "train.json").read_text()))
    for key in json.loads(overlay.read_text()):
        assert key in added or key.startswith("_desc_") or key.lstrip("+").replace("#", "::") in train, key
