"""Mean and variance of posterior samples, accumulated as the samples come.

A generative network gives samples x_1 ... x_N of the volumes that its radiographs allow. They are taken in one by one
and not kept, so that memory does not grow with N. All values are Hounsfield units. docs/explanation/uncertainty.md
says how the numbers are to be read.

Source: DIFR3CT paper, section IV-C and figure 8.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from custom.metrics.image_metrics import HU_WINDOW, body_mask, check_window

__all__ = ["NOISE_GROUP", "SampleStatistics", "Volume", "check_shape", "one_volume"]


Volume = Tensor | npt.NDArray[Any]

#: So many samples in a row of `custom.sampling.PosteriorSampler` begin with noises that sum to zero.
NOISE_GROUP = 16


def _plain(values: Volume) -> Tensor:
    """Without gradient and MONAI's metadata. Arrays are copied: torch takes neither flipped nor big-endian ones."""
    if isinstance(values, np.ndarray):
        return torch.from_numpy(np.array(values, dtype=np.float64, order="C"))
    return values.detach().as_subclass(Tensor)


def one_volume(values: Volume, name: str) -> Tensor:
    volume = _plain(values).cpu()
    if volume.ndim == 5 and volume.shape[:2] == (1, 1):
        volume = volume[0, 0]
    if volume.ndim != 3 or volume.numel() == 0:
        raise ValueError(f"{name} must be one volume (X, Y, Z) or (1, 1, X, Y, Z); got shape {tuple(volume.shape)}")
    return volume


def check_shape(name: str, shape: Sequence[int], other: str, expected: Sequence[int]) -> None:
    if tuple(shape) != tuple(expected):
        raise ValueError(
            f"{name} has shape {tuple(shape)}, {other} {tuple(expected)}: they must lie on one grid; resample first, "
            "and use one object per patient"
        )


class SampleStatistics:
    """Mean and variance of samples that come one after the other.

    Samples are added one by one in float64 on the CPU (Welford's recurrence), whatever batches they come in: how N
    samples are split into batches, or into runs with a kill between them, does not change a bit of the result.
    Memory: two float64 volumes, 34 MB for 128^3.

    At N = 2, 4, 8, 16, ... the root mean variance inside the body is recorded, see `convergence`.

    Args:
        body: (X, Y, Z), non-zero inside the patient: where single numbers are taken. Give `body_mask` of the truth
            where there is one. None: `body_mask` of the mean of the samples so far, which moves a little with N.
        hu_window: HU to which samples and truths are clipped, as in `custom.metrics`.
        noise_group: samples 0 to n - 1, n to 2n - 1, ... begin with noises that sum to zero (`NOISE_GROUP`), see
            `mean_variance_share`. None: they are independent.

    Raises:
        ValueError: a mask that is no volume or without any voxel, a window that is none.

    Source: Welford, "Note on a method for calculating corrected sums of squares and products", 1962.
    """

    def __init__(
        self, body: Volume | None = None, hu_window: Sequence[float] = HU_WINDOW, noise_group: int | None = None
    ) -> None:
        self.hu_window = check_window(hu_window)
        self.noise_group = noise_group
        self.count = 0
        self._body = None if body is None else one_volume(body, "the body mask") != 0
        if self._body is not None and not self._body.any():
            raise ValueError("the body mask is empty: nothing to measure; None takes the body of the samples' mean")
        self._mean: Tensor | None = None
        self._squares: Tensor | None = None  # sum of squared deviations from the mean
        self._convergence: list[tuple[int, float]] = []

    def update(self, samples: Tensor) -> None:
        """Adds samples; a batch with a bad sample is refused as a whole.

        Args:
            samples: (X, Y, Z) or (B, 1, X, Y, Z) HU, any precision and device.

        Raises:
            ValueError: NaN or infinite voxels, a shape that is none of these or not that of earlier samples; at the
                second sample, if no body was given and the mean shows none (values that are not HU).
        """
        for sample in self._check_batch(samples):
            self._add(sample)

    def _check_batch(self, samples: Tensor) -> Tensor:
        """(B, X, Y, Z), every sample fit to be added."""
        batch = _plain(samples)
        if batch.numel() == 0 or not (batch.ndim == 3 or (batch.ndim == 5 and batch.shape[1] == 1)):
            raise ValueError(f"samples must be (X, Y, Z) or (B, 1, X, Y, Z), none empty; got {tuple(batch.shape)}")
        batch = batch[None] if batch.ndim == 3 else batch[:, 0]
        for name, known in (("the body mask", self._body), ("earlier samples", self._mean)):
            if known is not None:
                check_shape("a sample", batch.shape[1:], name, known.shape)
        for index, sample in enumerate(batch):
            bad = int((~torch.isfinite(sample)).sum())
            if bad:
                raise ValueError(
                    f"sample {self.count + index + 1} (index {index} of its batch) holds {bad} voxels of "
                    f"{sample.numel()} that are NaN or infinite: the sampler diverged. Sample in float32, or with a "
                    "smaller guidance scale; the batch was not added"
                )
        return batch

    @torch.no_grad()
    def _add(self, sample: Tensor) -> None:
        value = sample.to("cpu", torch.float64).clamp(*self.hu_window)
        if self._mean is None or self._squares is None:
            self._mean, self._squares = torch.zeros_like(value), torch.zeros_like(value)
        self.count += 1
        deviation = value.sub_(self._mean)
        self._mean.add_(deviation / self.count)
        self._squares.addcmul_(deviation, deviation, value=(self.count - 1) / self.count)
        if self.count > 1 and self.count.bit_count() == 1:
            self._convergence.append((self.count, self.spread_hu()))

    def mean(self) -> Tensor:
        """(X, Y, Z) HU, float64. Raises ValueError without any sample."""
        if self._mean is None:
            raise ValueError("there is no mean of 0 samples: draw at least one (N >= 1) and pass it to update()")
        return self._mean.clone()

    def mean_variance_share(self) -> float:
        """Variance of the samples' mean over that of a sample: 1 / N where they are independent.

        Of n noises that sum to zero any two correlate by -1 / (n - 1), and samples do as their noises do as far as
        they follow them linearly: N = q n + r of them give r (1 - (r - 1) / (n - 1)) / N^2, nothing for a full group.
        """
        n = self.noise_group or math.inf
        r = self.count % n
        return r * (1 - (r - 1) / (n - 1)) / self.count**2

    def variance(self, unbiased: bool = True) -> Tensor:
        """(X, Y, Z) HU^2, float64.

        Args:
            unbiased: divide by N (1 - `mean_variance_share`), N - 1 for independent samples: the estimate of the
                variance that infinitely many samples would have. False: by N, the variance of these very samples,
                which the decomposition of their error needs.

        Raises:
            ValueError: with fewer than two samples.
        """
        if self._squares is None or self.count < 2:
            raise ValueError(f"a variance needs at least 2 samples, got {self.count}: draw more (N >= 2)")
        return self._squares / (self.count * (1 - self.mean_variance_share() * unbiased))

    def std(self) -> Tensor:
        """Square root of the unbiased variance, (X, Y, Z) HU, float64."""
        return self.variance().sqrt_()

    def body(self) -> Tensor:
        """(X, Y, Z) bool: the mask given, else that of the mean; ValueError if the mean shows no body."""
        if self._body is not None:
            return self._body.clone()
        mean = self.mean()
        body = torch.from_numpy(body_mask(mean))
        if not body.any():
            raise ValueError(
                f"no body in the mean of the samples: values run from {mean.min():g} to {mean.max():g}, none above "
                "-500; samples must be in HU (see custom.core.hu_window.unit_to_hu), or give a body mask"
            )
        return body

    def spread_hu(self) -> float:
        """The single number of a case: root of the mean (unbiased) variance inside the body, HU."""
        return math.sqrt(self.variance()[self.body()].mean().item())

    def convergence(self) -> list[dict[str, float]]:
        """``{"samples": n, "std_hu_body": spread}`` at n = 2, 4, 8, ... and at the present count; empty below 2."""
        rows = list(self._convergence)
        if self.count > 1 and (not rows or rows[-1][0] != self.count):
            rows.append((self.count, self.spread_hu()))
        return [{"samples": count, "std_hu_body": spread} for count, spread in rows]

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of all that a resumed run needs; tensors only, so that it loads with ``weights_only=True``."""
        state = {
            "count": torch.tensor(self.count),
            "hu_window": torch.tensor(self.hu_window, dtype=torch.float64),
            "convergence": torch.tensor(self._convergence, dtype=torch.float64).reshape(-1, 2),
        }
        volumes = {"mean": self._mean, "squares": self._squares, "body": self._body}
        return state | {name: volume.clone() for name, volume in volumes.items() if volume is not None}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continues where `state_dict` was taken.

        Raises:
            ValueError: a state that is incomplete or damaged, or was taken with another body mask or HU window
                (another patient or setting).
        """
        missing = {"count", "hu_window", "convergence"} - set(state)
        count = 0 if missing else int(state["count"])
        missing |= {"mean", "squares"} - set(state) if count else set()
        if missing:
            raise ValueError(f"not a state of SampleStatistics: it lacks {sorted(missing)}; start the sampling anew")
        if tuple(state["hu_window"].tolist()) != self.hu_window:
            raise ValueError(f"the state has HU window {state['hu_window'].tolist()}, this run {list(self.hu_window)}")
        body = state.get("body")
        if self._body is not None and (body is None or not torch.equal(body.cpu(), self._body)):
            raise ValueError("the state was taken with another body mask: it belongs to another patient or run")
        volumes = {name: state[name].to("cpu", copy=True) for name in ("mean", "squares") if count}
        for name, volume in volumes.items():
            if volume.dtype != torch.float64 or volume.ndim != 3 or not torch.isfinite(volume).all():
                raise ValueError(f"the state is damaged: its {name} is no finite float64 volume; start anew")
            check_shape(f"the state's {name}", volume.shape, "its mean", state["mean"].shape)
        self.count, self._mean, self._squares = count, volumes.get("mean"), volumes.get("squares")
        self._body = None if body is None else body.to("cpu", copy=True)
        self._convergence = [(int(n), spread) for n, spread in state["convergence"].tolist()]
