"""Feature fusion against `grid_sample` over all points, in the same process: time, gradient, memory, difference.

    OMP_NUM_THREADS=1 python scripts/benchmark_fusion.py                   # the table of docs/reference/fusion.md
    OMP_NUM_THREADS=1 python scripts/benchmark_fusion.py --sizes 32 64     # smaller grids only
    python scripts/benchmark_fusion.py --device cuda

Every call is repeated and the minimum counts (CPU: process time, so that other work on the machine disturbs little).
The peer gets its sampling positions for nothing, samples view by view and adds in place where no gradient is needed.
Every voxel is seen by every view, so that the peer needs no mask. Memory is the peak above the inputs, in a process of
its own (CPU: high-water mark of the resident set).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from custom.fusion import antialiasing_factors, fuse_features
from custom.fusion.plans import _parallel_plan
from custom.geometry import VolumeGrid, pixel_coordinates, views_from_angles

DETECTOR = (128, 128)
SIDE_MM = 320.0
ANGLES_DEG = (0.0, 45.0, 90.0, 135.0)


class Case:
    """Inputs of one row, and both ways to fuse them."""

    def __init__(self, beam: str, size: int, channels: int, device: str, dtype: str = "float32") -> None:
        self.device = torch.device(device)
        self.grid = VolumeGrid.cube(size, SIDE_MM)
        # The detector sees the cube's diagonal from every angle; cone beam magnifies by up to 1.94.
        pixel = SIDE_MM * 2**0.5 * (1.0 if beam == "parallel" else 1.95) / DETECTOR[1]
        self.views = views_from_angles(ANGLES_DEG, beam, pixel_mm=pixel).to(self.device, torch.float32)
        generator = torch.Generator().manual_seed(0)
        shape = (1, len(ANGLES_DEG), channels, *DETECTOR)
        self.features = torch.randn(shape, generator=generator).to(self.device, getattr(torch, dtype))
        self.features.requires_grad_()
        factors = antialiasing_factors(self.views, self.grid, DETECTOR, DETECTOR)
        self.factor = int(factors.min())
        assert int(factors.max()) == self.factor
        index, seen = pixel_coordinates(self.grid.points(device).reshape(-1, 3), self.views, DETECTOR)
        assert bool(seen.all()), "the peer has no mask"
        positions = (index + 0.5) * (2 / DETECTOR[0]) - 1
        self.positions = positions.view(len(ANGLES_DEG), 1, -1, 2)
        self.gradient = torch.randn(1, channels, *self.grid.shape, generator=generator).to(self.features)

    def ours(self) -> Tensor:
        return fuse_features(self.features, self.views, self.grid, DETECTOR)

    def ours_with_new_views(self) -> Tensor:
        _parallel_plan.cache_clear()
        return self.ours()

    def peer(self) -> Tensor:
        maps = self.features[0]
        maps = F.avg_pool2d(maps, self.factor) if self.factor > 1 else maps
        total: Tensor | None = None
        for image, position in zip(maps.float(), self.positions, strict=True):
            value = F.grid_sample(image[None], position[None], padding_mode="border", align_corners=False)
            if total is not None:
                value = total + value if torch.is_grad_enabled() else total.add_(value)
            total = value
        assert total is not None
        total = total / len(maps) if torch.is_grad_enabled() else total.div_(len(maps))
        return total.view(1, -1, *self.grid.shape).to(self.features.dtype)

    def gradient_like(self, out: Tensor) -> Tensor:
        """The upstream gradient, in the memory layout of the output (as the next convolution hands it back)."""
        return torch.empty_like(out).copy_(self.gradient)


def seconds(call: Callable[[], object], repeats: int, device: torch.device) -> float:
    best = float("inf")
    for _ in range(repeats):
        if device.type == "cuda":
            torch.cuda.synchronize()
            start = time.perf_counter()
            call()
            torch.cuda.synchronize()
            best = min(best, time.perf_counter() - start)
        else:
            start = time.process_time()
            call()
            best = min(best, time.process_time() - start)
    return best


def forward_seconds(call: Callable[[], Tensor], repeats: int, device: torch.device) -> float:
    with torch.no_grad():
        return seconds(call, repeats, device)


def backward_seconds(case: Case, call: Callable[[], Tensor], repeats: int) -> float:
    out = call()
    upstream = case.gradient_like(out)
    return seconds(lambda: torch.autograd.grad(out, case.features, upstream, retain_graph=True), repeats, case.device)


def resident(field: str) -> int:
    """A field of /proc/self/status in bytes (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def measure_peak(case: Case, method: str) -> dict[str, float]:
    """Peak of forward, and of backward with the output and its gradient at hand, above what was there before; in units
    of the output."""
    call = {"ours": case.ours, "peer": case.peer}[method]
    size = case.gradient.numel() * case.gradient.element_size()

    def peak(run: Callable[[], object]) -> tuple[float, object]:
        if case.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            result = run()
            return (torch.cuda.max_memory_allocated() - before) / size, result
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
        result = run()
        return (resident("VmHWM") - before) / size, result

    with torch.no_grad():
        forward, out = peak(call)
    del out
    out = call()
    upstream = case.gradient_like(out)
    backward, _ = peak(lambda: torch.autograd.grad(out, case.features, upstream))
    return {"forward": forward, "backward": backward}


def peak_in_process(arguments: argparse.Namespace, beam: str, size: int, method: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--device", arguments.device, "--channels", str(arguments.channels)]
    command += ["--dtype", arguments.dtype, "--beams", beam, "--sizes", str(size), "--peak", method]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def row(arguments: argparse.Namespace, beam: str, size: int) -> list[str]:
    case = Case(beam, size, arguments.channels, arguments.device, arguments.dtype)
    repeats = arguments.repeats if size <= 64 else max(1, arguments.repeats // 3)
    with torch.no_grad():
        difference = (case.ours().float() - case.peer().float()).abs().max().item()
    ours, peer = (forward_seconds(call, repeats, case.device) for call in (case.ours, case.peer))
    new_views = forward_seconds(case.ours_with_new_views, repeats, case.device)
    ours_back, peer_back = (backward_seconds(case, call, repeats) for call in (case.ours, case.peer))
    del case
    peaks = {method: peak_in_process(arguments, beam, size, method) for method in ("ours", "peer")}
    return [
        beam,
        f"{size}^3",
        f"{DETECTOR[0]}^2" if (factor := DETECTOR[0] // maps_size(beam, size)) == 1 else f"{DETECTOR[0]}^2 / {factor}",
        f"{1e3 * ours:.1f}",
        f"{1e3 * new_views:.1f}",
        f"{1e3 * peer:.0f}",
        f"**{peer / ours:.1f}**",
        f"{1e3 * ours_back:.1f}",
        f"{1e3 * peer_back:.0f}",
        f"**{peer_back / ours_back:.1f}**",
        f"{peaks['ours']['forward']:.2f} / {peaks['peer']['forward']:.2f}",
        f"{peaks['ours']['backward']:.2f} / {peaks['peer']['backward']:.2f}",
        f"{difference:.0e}",
    ]


def maps_size(beam: str, size: int) -> int:
    """Side of the maps that are sampled, after antialiasing."""
    return DETECTOR[0] // Case(beam, size, 1, "cpu").factor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 128], help="voxels along a side of the grid")
    parser.add_argument("--beams", nargs="+", default=["parallel", "cone"])
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=6, help="at 128^3 a third of it")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--peak", choices=["ours", "peer"], help="print only the memory peak of one way, as JSON")
    arguments = parser.parse_args()
    if arguments.peak:
        case = Case(arguments.beams[0], arguments.sizes[0], arguments.channels, arguments.device, arguments.dtype)
        print(json.dumps(measure_peak(case, arguments.peak)))
        return
    where = torch.cuda.get_device_name() if arguments.device == "cuda" else f"CPU, {torch.get_num_threads()} thread(s)"
    print(f"K = {len(ANGLES_DEG)}, C = {arguments.channels}, {arguments.dtype}; {where}; torch {torch.__version__}\n")
    header = ["beam", "grid", "maps", "forward ms", "new views ms", "grid_sample ms", "ratio", "backward ms"]
    header += ["grid_sample ms", "ratio", "peak forward", "peak backward", "max difference"]
    print("| " + " | ".join(header) + " |\n|" + "---|" * len(header))
    for beam in arguments.beams:
        for size in arguments.sizes:
            print("| " + " | ".join(row(arguments, beam, size)) + " |", flush=True)


if __name__ == "__main__":
    main()
