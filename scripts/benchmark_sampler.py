"""The sampler of ldm_recon: how many steps it needs, and what a sample costs.

    python scripts/benchmark_sampler.py cost
    python scripts/benchmark_sampler.py steps outputs/ldm/models/model.pt outputs/vqgan/models/model.pt \
        data/prepared/datalist_fine.json outputs/sampler

`cost` times the default networks at 128^3 with random weights: time and memory do not depend on what they learnt.
`steps` compares solvers and numbers of steps on the same noise with a reference of 1000 steps.
"""

from __future__ import annotations

import os
import platform
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fire
import torch
from monai.bundle import ConfigParser
from torch import Tensor

from custom.core.hu_window import unit_to_hu
from custom.data.datalist import load_cases
from custom.data.transforms import LoadNiftid, LoadRadiographsd, SampleOnGridd
from custom.geometry import views_from_angles
from custom.metrics import evaluate_volume
from custom.metrics.tables import write_csv
from custom.sampling import PosteriorSampler, load_sampler

ROOT = Path(__file__).resolve().parents[1]
REFERENCE_STEPS = 1000
SOLVERS: dict[str, dict[str, Any]] = {
    "DDIM (order 1)": {"order": 1},
    "DPM-Solver++ 2M, uniform in time": {"order": 2},
    "DPM-Solver++ 2M, quadratic": {"order": 2, "spacing": "time_quadratic"},
    "DPM-Solver++ 2M, uniform in log-SNR": {"order": 2, "spacing": "log_snr_uniform"},
    "DPM-Solver++ 3M, quadratic": {"order": 3, "spacing": "time_quadratic"},
}


def _network(bundle: str, *presets: str) -> Any:
    folder = ROOT / "bundles" / bundle / "configs"
    parser = ConfigParser()
    parser.read_config([str(folder / "train.json"), *(str(folder / "presets" / f"{p}.json") for p in presets)])
    return parser.get_parsed_content("network_def").eval()


def cost(
    steps: int = 20,
    guidance_scale: float = 2.0,
    repeats: int = 3,
    preset: str = "",
    threads: int = 0,
    device: str = "cpu",
    batch_size: int = 1,
) -> None:
    """Seconds of `batch_size` samples from two views, with and without guidance, and the peak memory.

    Args:
        steps: evaluations of the denoiser.
        guidance_scale: of the second line; the first has none.
        repeats: the fastest and the slowest are printed; one more before them warms up.
        preset: of both bundles; none: 128^3.
        threads: of the CPU; 0: as many as torch takes.
        device: "cpu" or "cuda"; the peak memory is that of the process, or of the device's tensors.
        batch_size: samples at a time.
    """
    if threads:
        torch.set_num_threads(threads)
    presets = [preset] if preset else []
    autoencoder, denoiser = (_network(bundle, *presets).to(device) for bundle in ("vqgan", "ldm_recon"))
    size = autoencoder.grid.shape[0]
    views = views_from_angles(torch.tensor([0.0, 90.0]), "parallel", pixel_mm=autoencoder.grid.spacing_mm[0])
    image = torch.rand(2, size, size * 3 // 2) * 5
    cuda = torch.device(device).type == "cuda"
    place = torch.cuda.get_device_name() if cuda else f"{platform.machine()}, {torch.get_num_threads()} threads"
    print(f"{place}, torch {torch.__version__}, {size}^3, {steps} steps, {batch_size} samples at a time")
    for scale in (1.0, guidance_scale):
        sampler = PosteriorSampler(denoiser, autoencoder, denoiser.scheduler(), steps, scale, batch_size)
        seconds = []
        for repeat in range(repeats + 1):
            start = time.perf_counter()
            for _, samples in sampler.samples(image, views.float(), batch_size, seed=repeat):
                samples.cpu()
            seconds.append(time.perf_counter() - start)
        fastest, slowest = min(seconds[1:]), max(seconds[1:])
        print(f"guidance {scale:g}: {fastest:.2f} to {slowest:.2f} s, {batch_size / fastest:.2f} samples per second")
    if cuda:
        print(f"peak memory of the device {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB")
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"peak memory of the process {peak:.2f} GiB")


def _cases(datalist: str, part: str, sampler: PosteriorSampler, angles: list[float]) -> Iterator[tuple[dict, Tensor]]:
    load = LoadNiftid(["label"])
    grid = SampleOnGridd(["label"], "label", sampler.grid)
    radiographs = LoadRadiographsd(angles_deg=angles, pixel_at_isocenter_mm=sampler.grid.spacing_mm[0])
    for case in load_cases(datalist, part):
        loaded = radiographs({"image": case["image"], "geometry": case["geometry"]})
        yield {**loaded, "case": case["case"]}, grid(load({"label": case["label"]}))["label"][0].float()


def steps(
    checkpoint: str,
    autoencoder_checkpoint: str,
    datalist: str,
    output: str,
    mean_checkpoint: str | None = None,
    part: str = "test",
    angles: tuple[float, ...] = (0.0, 90.0),
    counts: tuple[int, ...] = (5, 10, 15, 20, 50, 250),
    cases: int = 2,
    noises: int = 2,
) -> None:
    """Distance of the latents to those of 1000 steps on the same noise, PSNR and seconds of a sample, for every solver.

    Args:
        checkpoint: model.pt of ldm_recon.
        autoencoder_checkpoint: of its vqgan.
        datalist: with stored radiographs.
        output: folder of steps.csv.
        mean_checkpoint: of inr_recon, if the denoiser is told its reconstruction.
        part: of the datalist.
        angles: of the views.
        counts: numbers of steps.
        cases: patients.
        noises: noises of each.
    """
    sampler = load_sampler(checkpoint, autoencoder_checkpoint, mean_checkpoint)
    rows: list[dict[str, Any]] = []
    for number, (case, truth) in enumerate(_cases(datalist, part, sampler, list(angles))):
        if number == cases:
            break
        image, views = case["image"][None], case["views"][None]
        for index in range(noises):
            noise = sampler.noise(0, index)
            sampler.scheduler, sampler.steps = sampler.denoiser.scheduler(order=2), REFERENCE_STEPS
            reference = sampler.sample_latents(image, views, None, noise)
            for name, options in SOLVERS.items():
                for count in counts:
                    sampler.scheduler, sampler.steps = sampler.denoiser.scheduler(**options), count
                    start = time.perf_counter()
                    latent = sampler.sample_latents(image, views, None, noise)
                    seconds = time.perf_counter() - start
                    hu = unit_to_hu(sampler._decode(latent)[0, 0], sampler.hu_window)
                    distance = float((latent - reference).norm() / reference.norm())
                    psnr = evaluate_volume(hu, truth, sampler.hu_window, ["psnr_range"])["psnr_range"]
                    row = {"case": case["case"], "noise": index, "solver": name, "steps": count}
                    rows.append({**row, "distance": distance, "psnr_range": psnr, "seconds": seconds})
            write_csv(rows, Path(output) / "steps.csv")
    print("| solver | steps | distance to 1000 steps | psnr_range | seconds |\n|---|---|---|---|---|")
    for name in SOLVERS:
        for count in counts:
            found = [row for row in rows if row["solver"] == name and row["steps"] == count]
            means = [sum(row[key] for row in found) / len(found) for key in ("distance", "psnr_range", "seconds")]
            print(f"| {name} | {count} | {means[0]:.4f} | {means[1]:.2f} | {means[2]:.2f} |")
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")


if __name__ == "__main__":
    fire.Fire({"cost": cost, "steps": steps})
