#!/usr/bin/env python
"""Accuracy and speed of the projector, beside other projectors in the same process. Prints Markdown.

    pip install 'fewview-ct[benchmark]'      # nanodrr
    pip install itk-rtk astra-toolbox        # RTK (cone) and ASTRA (parallel), on a CPU; ASTRA's licence is GPL 3
    OMP_NUM_THREADS=1 python scripts/benchmark_projector.py
    python scripts/benchmark_projector.py --device cuda

Task: 128^3 voxels at 2.5 mm, 4 views (0, 30, 60, 90 degrees), 128 x 128 pixels, float32. Error: relative L2 against the
exact line integrals of five ellipsoids (tests/analytic.py), with a smooth profile and with a uniform one. Adjoint: the
peer's own, or the backward pass of its forward one. Everything runs in turns, and the smallest time counts.
"""

from __future__ import annotations

import argparse
import gc
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
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
PEERS = ["nanodrr", "itk-rtk", "astra-toolbox"]
# From volume (1, 1, X, Y, Z) or image (1, K, V, U), in the peer's layout after this call, to what is timed.
Prepared = Callable[[Tensor], Callable[[], Tensor]]


@dataclass
class Engine:
    """One row: the timed part of `forward` gives (1, K, V, U), that of `adjoint` (1, 1, X, Y, Z)."""

    name: str
    forward: Prepared
    adjoint: Prepared


def seconds(run: Callable[[], object], device: str) -> float:
    """Time of this process on a CPU (other jobs do not count), of the clock on a GPU."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    gc.collect()
    if device != "cpu":
        torch.cuda.synchronize()
    start = clock()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - start


def nanodrr_engine(views: Tensor, volume: Tensor, n_samples: int, backend: str) -> Engine:
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

    def forward(x: Tensor) -> Callable[[], Tensor]:
        return torch.no_grad()(lambda: run(x))

    def adjoint(weights: Tensor) -> Callable[[], Tensor]:
        leaf = torch.zeros_like(volume, requires_grad=True)
        traced = run(leaf)
        return lambda: torch.autograd.grad(traced, leaf, weights)[0]

    name = f"nanodrr {backend}, {n_samples} samples" + (" (its default)" if n_samples == 500 else "")
    return Engine(name, forward, adjoint)


def rtk_engine() -> Engine:
    """RTK's Joseph filters in cone beam. Its axes (x, y, z) are our y, z, x: it turns about its second one."""
    import itk
    from itk import RTK as rtk

    kind = itk.Image[itk.F, 3]
    geometry = rtk.ThreeDCircularProjectionGeometry.New()
    for angle in ANGLES:
        geometry.AddProjection(1000.0, 1500.0, angle)

    def image_of(array: np.ndarray, spacing: float) -> itk.Image:
        image = itk.image_view_from_array(np.ascontiguousarray(array, np.float32))
        image.SetSpacing([spacing] * 3)
        image.SetOrigin([-(n - 1) / 2 * spacing for n in array.shape[::-1]])
        return image

    def run(kind_of_filter: itk.template, onto: tuple[int, ...], spacing: float, other: itk.Image) -> Tensor:
        chosen = kind_of_filter[kind, kind].New(Geometry=geometry)
        # Named, because ITK does not keep the memory of an array.
        zeros = image_of(np.zeros(onto), spacing)
        chosen.SetInput(0, zeros)
        chosen.SetInput(1, other)
        chosen.SetNumberOfWorkUnits(torch.get_num_threads())
        chosen.InPlaceOff()  # or the next run finds its input changed
        chosen.Update()
        return torch.from_numpy(np.array(itk.array_view_from_image(chosen.GetOutput())))

    pixel, voxel = PIXEL_MM["cone"], GRID.spacing_mm[0]
    shape, turned = (len(ANGLES), *SHAPE), tuple(GRID.shape[i] for i in (0, 2, 1))

    def forward(volume: Tensor) -> Callable[[], Tensor]:
        image = image_of(volume[0, 0].transpose(1, 2).numpy(), voxel)
        return lambda: run(rtk.JosephForwardProjectionImageFilter, shape, pixel, image).flip(1)[None]

    def adjoint(weights: Tensor) -> Callable[[], Tensor]:
        image = image_of(weights[0].flip(1).numpy(), pixel)
        return lambda: run(rtk.JosephBackProjectionImageFilter, turned, voxel, image).transpose(1, 2)[None, None]

    return Engine("RTK Joseph, one work unit a thread", forward, adjoint)


def astra_engine() -> Engine:
    """ASTRA's `linear` projector for CPUs in parallel beam, one axial slice after another: rows are slices here."""
    import astra

    half = GRID.half_extent_mm
    slices = astra.create_vol_geom(GRID.shape[1], GRID.shape[0], -half[0], half[0], -half[1], half[1])
    # Its detector axis at an angle is ours at 90 degrees less.
    angles = np.deg2rad(np.array(ANGLES) + 90)
    rows = astra.create_proj_geom("parallel", PIXEL_MM["parallel"], SHAPE[1], angles)
    operator = astra.OpTomo(astra.create_projector("linear", rows, slices))

    def forward(volume: Tensor) -> Callable[[], Tensor]:
        # Slices from the top, with rows from the largest y.
        stack = np.ascontiguousarray(volume[0, 0].permute(2, 1, 0).flip(0, 1).numpy())
        return lambda: torch.from_numpy(np.stack([operator.FP(one) for one in stack], 1))[None]

    def adjoint(weights: Tensor) -> Callable[[], Tensor]:
        stack = np.ascontiguousarray(weights[0].transpose(0, 1).numpy())
        return lambda: (
            torch.from_numpy(np.stack([operator.BP(one) for one in stack])).flip(0, 1).permute(2, 1, 0)[None, None]
        )

    return Engine("ASTRA linear, slice by slice", forward, adjoint)


def own_engines(views: Tensor) -> list[Engine]:
    cached = Projector(GRID, SHAPE, views)
    return [
        Engine(
            "fewview-ct, new angles at every call",
            lambda x: lambda: Projector(GRID, SHAPE)(x, views),
            lambda y: lambda: Projector(GRID, SHAPE).adjoint(y, views),
        ),
        Engine("fewview-ct, operator cached", lambda x: lambda: cached(x), lambda y: lambda: cached.adjoint(y)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peers", nargs="*", default=PEERS, choices=PEERS, help="which others to run")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device, repeats = arguments.device, arguments.repeats
    peers = {}
    for name in arguments.peers:
        try:
            peers[name] = version(name)
        except PackageNotFoundError:
            print(f"{name} is not installed and left out: pip install {name}", file=sys.stderr)
    smooth = ellipsoid_volume(GRID, SMOOTH).float().to(device)
    uniform = ellipsoid_volume(GRID, UNIFORM, 2).float().to(device)

    where = torch.cuda.get_device_name() if device == "cuda" else f"{arguments.threads} thread(s), process time"
    versions = ", ".join(f"{name} {found}" for name, found in {"torch": torch.__version__, **peers}.items())
    print(f"{versions}, {platform.machine()}, {where}; smallest of {repeats} runs in turns.\n")
    print("| beam | engine | error, smooth | error, uniform | forward ms | adjoint ms |")
    print("|---|---|---|---|---|---|")
    for beam in ("parallel", "cone"):
        views = views_from_angles(ANGLES, beam, pixel_mm=PIXEL_MM[beam]).float().to(device)
        truth = [ellipsoid_integrals(views.double().cpu(), SHAPE, power) for power in (SMOOTH, UNIFORM)]
        engines: list[Engine] = []
        if "nanodrr" in peers:
            for backend in ["torch"] if device == "cpu" else ["torch", "triton"]:
                engines += [nanodrr_engine(views, smooth, samples, backend) for samples in (500, 250, 128)]
        if device == "cpu" and "astra-toolbox" in peers and beam == "parallel":
            engines.append(astra_engine())
        if device == "cpu" and "itk-rtk" in peers and beam == "cone":
            engines.append(rtk_engine())
        engines += own_engines(views)
        image = torch.rand(1, len(ANGLES), *SHAPE, generator=torch.Generator().manual_seed(0)).to(device)
        times = [
            [(seconds(e.forward(smooth), device), seconds(e.adjoint(image), device)) for e in engines]
            for _ in range(repeats + 1)
        ]
        for engine, *runs in zip(engines, *times[1:], strict=True):  # the first run of all warms up
            errors = [
                relative_error(engine.forward(v)()[0].cpu(), t) for v, t in zip((smooth, uniform), truth, strict=True)
            ]
            forward, adjoint = (1e3 * min(run) for run in zip(*runs, strict=True))
            print(
                f"| {beam} | {engine.name} | {errors[0]:.2e} | {errors[1]:.2e} | {forward:.1f} | {adjoint:.1f} |",
                flush=True,
            )
    print("\nSIRT, 8 views, 192 columns, 100 iterations (preparation included):\n")
    print("| beam | seconds |\n|---|---|")
    for beam in ("parallel", "cone"):
        views = views_from_angles([22.5 * i for i in range(8)], beam, pixel_mm=2.5 if beam == "parallel" else 3.75)
        projector = Projector(GRID, (128, 192), views.float().to(device))
        image = projector(smooth)
        taken = seconds(lambda p=projector, i=image: sirt(p, i), device)
        print(f"| {beam} | {taken:.1f} |", flush=True)


if __name__ == "__main__":
    main()
