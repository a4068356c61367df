#!/usr/bin/env python
"""Accuracy and speed of the projector, beside nanodrr's torch backend in the same process. Prints Markdown.

    pip install 'fewview-ct[benchmark]'
    python scripts/benchmark_projector.py
    python scripts/benchmark_projector.py --device cuda

Task: 128^3 voxels at 2.5 mm, 4 views (0, 30, 60, 90 degrees), 128 x 128 pixels, float32. Error: relative L2 against the
exact line integrals of five ellipsoids (tests/analytic.py), with a smooth profile and with a uniform one.
"""

from __future__ import annotations

import argparse
import gc
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from custom.geometry import VolumeGrid, rays, views_from_angles
from custom.projection import Projector, sirt

# After the package: tests/ has a folder named custom as well.
sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
from analytic import SMOOTH, UNIFORM, ellipsoid_integrals, ellipsoid_volume, relative_error

ANGLES = [0.0, 30.0, 60.0, 90.0]
SHAPE = (128, 128)
GRID = VolumeGrid()
PIXEL_MM = {"parallel": 2.5, "cone": 4.0}
Render = Callable[[Tensor], Tensor]


def milliseconds(run: Callable[[], object], device: str, repeats: int) -> float:
    """Median time: of this process on a CPU (other jobs do not count), of the clock on a GPU."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    run()
    times = []
    for _ in range(repeats):
        gc.collect()
        if device != "cpu":
            torch.cuda.synchronize()
        start = clock()
        run()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(clock() - start)
    return 1e3 * statistics.median(times)


def forward_and_backward(render: Render, volume: Tensor) -> None:
    leaf = volume.clone().requires_grad_(True)
    render(leaf).square().sum().backward()


def nanodrr_render(views: Tensor, volume: Tensor, n_samples: int, backend: str) -> Render:
    """The peer on the same rays, one view at a time (less memory, and no slower)."""
    import torchio
    from nanodrr.data import Subject
    from nanodrr.drr.renderer import render

    image = torchio.ScalarImage(tensor=volume[0].cpu(), affine=GRID.affine())
    subject = Subject.from_images(image, convert_to_mu=False).to(volume.device)
    origin, direction = rays(views, SHAPE)
    cone = views[:, None, None, 12:] > 0.5
    far = 2000.0 * direction
    source = torch.where(cone, origin, origin - far).flatten(1, 2)
    target = torch.where(cone, origin + far, origin).flatten(1, 2)
    identity = torch.eye(4, device=volume.device)[None]

    def run(x: Tensor) -> Tensor:
        subject._image_hu = x.permute(0, 1, 4, 3, 2)
        images = [
            render(
                subject,
                identity[:, :3, :3],
                identity,
                torch.ones(1, device=x.device),
                *SHAPE,
                n_samples=n_samples,
                src=source[k : k + 1],
                tgt=target[k : k + 1],
                backend=backend,
            )
            for k in range(len(views))
        ]
        return torch.cat(images, 1)

    return run


def fresh_projector(views: Tensor) -> Render:
    """New angles at every call: nothing is remembered."""
    return lambda x: Projector(GRID, SHAPE)(x, views)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peer-repeats", type=int, default=2)
    parser.add_argument("--no-peer", action="store_true", help="leave nanodrr out")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device, repeats = arguments.device, arguments.repeats
    smooth = ellipsoid_volume(GRID, SMOOTH).float().to(device)
    uniform = ellipsoid_volume(GRID, UNIFORM, 2).float().to(device)

    where = torch.cuda.get_device_name() if device == "cuda" else f"{arguments.threads} thread(s), process time"
    print(f"torch {torch.__version__}, {platform.machine()}, {where}; median of {repeats} runs.\n")
    print("| beam | engine | error, smooth | error, uniform | forward ms | forward + backward ms | speed ratio |")
    print("|---|---|---|---|---|---|---|")
    for beam in ("parallel", "cone"):
        views = views_from_angles(ANGLES, beam, pixel_mm=PIXEL_MM[beam]).float().to(device)
        truth = [ellipsoid_integrals(views.double().cpu(), SHAPE, power) for power in (SMOOTH, UNIFORM)]
        engines: list[tuple[str, Render, int]] = []
        if not arguments.no_peer:
            backends = ["torch"] if device == "cpu" else ["torch", "triton"]
            for backend in backends:
                for samples in (500, 250, 128):
                    name = f"nanodrr {backend}, {samples} samples" + (" (its default)" if samples == 500 else "")
                    engines.append((name, nanodrr_render(views, smooth, samples, backend), arguments.peer_repeats))
        cached = Projector(GRID, SHAPE, views)
        engines.append(("fewview-ct, new angles at every call", fresh_projector(views), repeats))
        engines.append(("fewview-ct, operator cached", cached, repeats))
        slowest = None
        for name, engine, runs in engines:
            with torch.no_grad():
                errors = [relative_error(engine(v)[0].cpu(), t) for v, t in zip((smooth, uniform), truth, strict=True)]
                forward = milliseconds(lambda engine=engine: engine(smooth), device, runs)
            both = milliseconds(lambda engine=engine: forward_and_backward(engine, smooth), device, runs)
            slowest = forward if slowest is None else slowest
            print(
                f"| {beam} | {name} | {errors[0]:.2e} | {errors[1]:.2e} | {forward:.1f} | {both:.1f} "
                f"| {slowest / forward:.0f} |",
                flush=True,
            )
    print("\nSIRT, 8 views, 192 columns, 100 iterations (preparation included):\n")
    print("| beam | seconds |\n|---|---|")
    for beam in ("parallel", "cone"):
        views = views_from_angles([22.5 * i for i in range(8)], beam, pixel_mm=2.5 if beam == "parallel" else 3.75)
        projector = Projector(GRID, (128, 192), views.float().to(device))
        image = projector(smooth)
        seconds = milliseconds(lambda p=projector, i=image: sirt(p, i), device, 1) / 1e3 / 1
        print(f"| {beam} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
