"""Can the network tell two patients apart by their radiographs? It learns two CTs together from four radiographs each.

    python scripts/overfit_check.py data/prepared --size 64 --steps 900

Both must reach 28 dB (`psnr_range`), and exchanging the radiographs must cost at least 8 dB; otherwise the exit status
is 1. The network is the default preset's, its grids at the size asked for.
"""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path

import fire
import torch
import torch.nn.functional as F
from monai.bundle import ConfigParser
from tqdm import trange

from custom.benchmark import read_volume
from custom.core.attenuation import hu_to_attenuation
from custom.core.hu_window import hu_to_unit, unit_to_hu
from custom.data.datalist import load_cases
from custom.geometry import Geometry, VolumeGrid
from custom.metrics import evaluate_volume
from custom.projection import Projector
from custom.training.learning_rates import warmup_cosine

CONFIG = Path(__file__).parents[1] / "bundles/inr_recon/configs/train.json"


def main(prepared: str, size: int = 64, steps: int = 900, points: int = 16384, learning_rate: float = 2e-3) -> None:
    """Train on the first two training cases and print the four figures.

    Args:
        prepared: folder of `fewview-ct prepare`.
        size: voxels per side.
        steps: of training, one patient each.
        points: per step.
        learning_rate: its maximum.
    """
    torch.manual_seed(0)
    cases = load_cases(Path(prepared) / "datalist.json", "training")[:2]
    grid = VolumeGrid.cube(size, 320)
    geometry = Geometry.from_angles([0, 45, 90, 135], beam="parallel", grid=grid)
    parser = ConfigParser()
    parser.read_config(str(CONFIG))
    parser["grid"] = {
        "_target_": "custom.geometry.VolumeGrid",
        "shape": list(grid.shape),
        "spacing_mm": list(grid.spacing_mm),
    }
    coarse_shape = [math.ceil(n * size / 128 / 8) * 8 for n in (88, 64, 64)]
    coarse = {"shape": coarse_shape, "spacing_mm": [640 / size] * 3}
    parser["coarse_grid"] = {"_target_": "custom.geometry.VolumeGrid", **coarse}
    network = parser.get_parsed_content("network_def")

    truths = [F.adaptive_avg_pool3d(read_volume(case["label"])[None], size)[0].clamp(-1000, 1000) for case in cases]
    labels = [hu_to_unit(truth, (-1000, 1000)).flatten() for truth in truths]
    projector = Projector.from_geometry(geometry)
    images = [projector(hu_to_attenuation(truth[None, None], network.energy_kev)) for truth in truths]
    views, voxels = geometry.tensor()[None], grid.points().reshape(-1, 3)
    optimizer = torch.optim.AdamW(network.parameters(), learning_rate, betas=(0.9, 0.99))
    schedule = warmup_cosine(optimizer, 50, steps)
    start = time.perf_counter()
    for step in trange(steps, desc="overfit", disable=None):
        chosen = torch.randint(len(voxels), (points,))
        pred = network(images[step % 2], views, points=voxels[chosen][None])
        loss = F.mse_loss(pred[0, 0], labels[step % 2][chosen])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    network.eval()
    network.consistency_iterations = 0  # what the network learnt, without the help of SIRT
    with torch.no_grad():
        preds = [unit_to_hu(network(image, views)[0, 0], network.hu_window) for image in images]

    def psnr(pred: torch.Tensor, truth: torch.Tensor) -> float:
        return evaluate_volume(pred, truth, names=["psnr_range"])["psnr_range"]

    own = [psnr(pred, truth) for pred, truth in zip(preds, truths, strict=True)]
    exchanged = [psnr(preds[1 - k], truth) for k, truth in enumerate(truths)]
    for case, right, wrong in zip(cases, own, exchanged, strict=True):
        print(f"{case['case']}: {right:.2f} dB from its own radiographs, {wrong:.2f} dB from the other's")
    print(f"{size}^3 voxels, {steps} steps, {time.perf_counter() - start:.0f} s")
    if min(own) < 28 or min(r - w for r, w in zip(own, exchanged, strict=True)) < 8:
        sys.exit("below the bar: 28 dB each, and 8 dB between own and exchanged radiographs")


if __name__ == "__main__":
    fire.Fire(main)
