"""Running a bundle in a test: in this process, or as a command line that is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow, verify_net_in_out
from monai.utils import set_determinism

from custom.core.checkpoints import load_checkpoint
from tests.bundles.tiny_cohort import CUBE

ROOT = Path(__file__).resolve().parents[2]
#: What `verify_net_in_out` reads.
CHECKED_FILES = {"meta_file": "metadata", "config_file": "inference"}


class Bundle:
    """A bundle of the repository, to read its files and to run them."""

    def __init__(self, name: str) -> None:
        self.name, self.root = name, ROOT / "bundles" / name
        self.configs = self.root / "configs"
        self.presets = sorted(path.stem for path in (self.configs / "presets").glob("*.json"))

    def __str__(self) -> str:
        return self.name

    @property
    def readme(self) -> str:
        return (self.root / "docs/README.md").read_text()

    def config(self, name: str) -> dict[str, Any]:
        return json.loads((self.configs / name).read_text())

    def parser(self, *names: str, preset: str = "default") -> ConfigParser:
        """The configs of these names, one over the other; `preset` stands over the first one."""
        overlay = () if preset == "default" else (f"presets/{preset}.json",)
        parser = ConfigParser()
        parser.read_config([self.configs / name for name in (*names, *overlay)])
        return parser

    def run(self, names: Sequence[str], kind: str, *args: Any, **overrides: Any) -> list[str]:
        """See `run_workflow`."""
        return run_workflow([self.configs / name for name in names], kind, *args, **overrides)

    def takes_an_image_alone(self, overrides: Mapping[str, Any], image: Sequence[int], channels: int = 1) -> None:
        """MONAI's check of the network by metadata.json, which fails for another number of channels."""
        files = {name: str(self.configs / f"{file}.json") for name, file in CHECKED_FILES.items()}
        shapes: dict[str, Any] = {"_meta_#network_data_format#inputs#image#spatial_shape": list(image)}
        outputs = "_meta_#network_data_format#outputs#pred#"
        shapes |= {f"{outputs}spatial_shape": [CUBE] * 3, f"{outputs}num_channels": channels}
        verify_net_in_out(net_id="network_def", device="cpu", **files, **overrides, **shapes)
        shapes[f"{outputs}num_channels"] = channels + 2
        with pytest.raises(ValueError, match="channel"):
            verify_net_in_out(net_id="network_def", device="cpu", **files, **overrides, **shapes)


@contextmanager
def refused(*texts: str) -> Iterator[None]:
    """Something fails with these words in its error or in a cause of it: MONAI wraps what a transform raises."""
    with pytest.raises(Exception) as error:
        yield
    for text in texts:
        assert text in messages(error.value)


def stored(datalist: Path, case: str = "e1") -> dict[str, str]:
    """Overrides that name the radiographs of a case of the tiny cohort."""
    folder = datalist.parent / "radiographs" / "fine"
    return {"image": str(folder / f"{case}.nii.gz"), "geometry": str(folder / f"{case}.json")}


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
    bundle: Bundle, overrides: dict[str, Any], folder: Path, number: signal.Signals = signal.SIGKILL
) -> tuple[dict[str, Any], Path, int]:
    """Start a training by its command, and send it a signal once two epochs are written.

    Returns:
        Overrides of the same training with two epochs more than it got to; its checkpoint; the epochs that it got to.
        What it has said is in first.log of the folder.
    """
    endless = {"iterations_per_epoch": 1, "val_interval": 100000, "epochs": 100000}
    overrides = {**overrides, **endless, "bundle_root": str(folder / "bundle")}
    checkpoint, log = folder / "bundle/models/checkpoint_last.pt", folder / "first.log"
    command = command_line(f"bundles/{bundle}/configs/train.json", overrides)
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
    return {**overrides, "epochs": reached + 2}, checkpoint, reached


def trained_by_two_and_then_by_one(bundle: Bundle, overrides: dict[str, Any], folder: Path, curves: int = 99) -> Any:
    """The network that two processes (torchrun, multi_gpu_train.json) train, with which a single one then goes on.

    Args:
        bundle: whose training it is, of one epoch.
        overrides: of train.json.
        folder: for the bundle's folder.
        curves: files of curves at most: one process writes them.
    """
    overrides = {**overrides, "bundle_root": str(folder / "bundle")}
    files = f"['{bundle.configs / 'train.json'}','{bundle.configs / 'multi_gpu_train.json'}']"
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m")
    command = command_line(files, overrides, *launcher)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    network = load_checkpoint(folder / "bundle/models/model.pt").network()
    assert len(list((folder / "bundle/eval").glob("events.out.tfevents*"))) <= curves
    bundle.run(["train.json"], "train", "run", False, **{**overrides, "epochs": 2})
    assert epochs_of(folder / "bundle/models/checkpoint_last.pt") == 2 * overrides["iterations_per_epoch"]
    return network


def keys_in_order_of_inr_recon(bundle: Bundle) -> set[str]:
    """Keys of a train.json that inr_recon's has too; they must stand in its order: who knows one bundle knows all."""
    ours, theirs = (one.config("train.json") for one in (bundle, Bundle("inr_recon")))
    common = [key for key in theirs if key in ours]
    assert [key for key in ours if key in theirs] == common
    for group in ("train", "validate"):
        shared = [key for key in theirs[group] if key in ours[group]]
        assert [key for key in ours[group] if key in theirs[group]] == shared
    return set(common)
