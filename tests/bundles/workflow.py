"""Running a bundle in a test: in this process, or as a command line that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigWorkflow
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
