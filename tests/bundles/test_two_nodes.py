"""scripts/train.sh: what it starts, and a training on two nodes of which one is lost."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from custom.core.checkpoints import load_checkpoint
from tests.bundles.test_inr_recon import NETWORK_OVERRIDES, TRAIN_OVERRIDES
from tests.bundles.workflow import ROOT, epochs_of
from tests.free_ports import free_ports

SCRIPT = ROOT / "scripts" / "train.sh"


@pytest.mark.parametrize(
    ("environment", "starts"),
    [
        ({}, "python -m monai.bundle run training --config_file ['train','coarse_stage'] --epochs 3"),
        ({"RUN": "encoding"}, "python -m monai.bundle run encoding --config_file ['train','coarse_stage'] --epochs 3"),
        (
            {"NODES": "2", "GPUS": "4", "NODE_RANK": "1", "MASTER_ADDR": "first", "MASTER_PORT": "7"},
            "torchrun --nnodes=2 --nproc_per_node=4 --node_rank=1 --master_addr=first --master_port=7 -m monai.bundle "
            "run training --config_file ['train','coarse_stage','multi_gpu_train'] --epochs 3",
        ),
    ],
)
def test_what_it_starts(environment: dict[str, str], starts: str, tmp_path: Path) -> None:
    for name in ("python", "torchrun"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho "{name} $*"\n')
        (tmp_path / name).chmod(0o755)
    command = ["bash", str(SCRIPT), "inr_recon", "coarse_stage", "--epochs", "3"]
    found = subprocess.run(
        command, env={"PATH": f"{tmp_path}:/usr/bin:/bin", **environment}, capture_output=True, text=True, check=True
    )
    assert found.stdout.replace("bundles/inr_recon/configs/", "").replace(".json", "").strip() == starts


def test_no_such_bundle() -> None:
    found = subprocess.run(["bash", str(SCRIPT), "inr"], capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (2, "bundles/inr/configs/train.json: no such file\n")


def start(rank: int, port: int, overrides: dict[str, Any], log: Path) -> subprocess.Popen[bytes]:
    """One node's agent of a training, as scripts/train.slurm starts it."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        **{"NODES": "2", "GPUS": "1", "NODE_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
    }
    words = [word for key, value in overrides.items() for word in (f"--{key}", str(value))]
    with open(log, "wb") as file:
        command = ["bash", str(SCRIPT), "inr_recon", *words]
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)


def lose(node: subprocess.Popen[bytes]) -> None:
    """End agent and workers at once, as a power failure does."""
    if node.poll() is None:
        agent = psutil.Process(node.pid)
        for process in (*agent.children(recursive=True), agent):
            process.kill()
    node.wait(60)


@pytest.mark.integration
@pytest.mark.parametrize("lost", [0, 1])
def test_a_training_on_two_nodes_goes_on_after_one_was_lost(datalist: Path, tmp_path: Path, lost: int) -> None:
    overrides = {**TRAIN_OVERRIDES, **NETWORK_OVERRIDES, "data_list_file": str(datalist)}
    overrides |= {"bundle_root": str(tmp_path / "bundle"), "iterations_per_epoch": 1, "val_interval": 100000}
    checkpoint = tmp_path / "bundle/models/checkpoint_last.pt"
    (port,), logs = free_ports(1), [tmp_path / f"{rank}.log" for rank in range(2)]
    nodes = [start(rank, port, {**overrides, "epochs": 100000}, logs[rank]) for rank in range(2)]
    try:
        deadline = time.monotonic() + 600
        while all(node.poll() is None for node in nodes) and time.monotonic() < deadline and epochs_of(checkpoint) < 2:
            time.sleep(0.2)
        lose(nodes[lost])
        assert nodes[1 - lost].wait(300) != 0, "the other node notices it"
    finally:
        for node in nodes:
            lose(node)
    reached = epochs_of(checkpoint)
    assert reached >= 2, [log.read_text()[-2000:] for log in logs]
    (port,) = free_ports(1)
    nodes = [start(rank, port, {**overrides, "epochs": reached + 2}, logs[rank]) for rank in range(2)]
    try:
        assert [node.wait(600) for node in nodes] == [0, 0], [log.read_text()[-2000:] for log in logs]
    finally:
        for node in nodes:
            lose(node)
    assert f"resumed {checkpoint} after epoch {reached}" in logs[0].read_text()
    assert epochs_of(checkpoint) == reached + 2
    assert load_checkpoint(tmp_path / "bundle/models/model.pt").network().prior.mean.std() > 0.01  # type: ignore
