"""Collection of the samples of one case into statistics; an interrupted run goes on."""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from custom.core.files import write_tensors
from custom.core.tensor_files import load_tensors
from custom.metrics import NOISE_GROUP, SampleStatistics
from custom.sampling.posterior_sampler import PosteriorSampler

__all__ = ["collect_samples"]

logger = logging.getLogger(__name__)


def collect_samples(
    sampler: PosteriorSampler,
    image: Tensor,
    views: Tensor,
    count: int,
    seed: int = 0,
    state_path: str | os.PathLike[str] | None = None,
    body: Tensor | None = None,
    on_samples: Callable[[int, Tensor], None] | None = None,
    on_decoded: Callable[[int, Tensor], None] | None = None,
) -> SampleStatistics:
    """Mean and variance of N samples of one case; what a kill leaves is taken up again.

    Args:
        sampler: draws them.
        image: line integrals (K, V, U).
        views: (K, 13).
        count: N.
        seed: of the noise.
        state_path: statistics and number of samples are kept there after every batch; it belongs to one case, seed and
            setting, and is removed by whoever has used the result. None: nothing is kept. With the sampler's
            `recentring` the first batch comes when `NOISE_GROUP` samples are drawn.
        body: mask (X, Y, Z) for the single number; None: of the mean.
        on_samples: called with the index of the first and the samples (B, 1, X, Y, Z) of every batch, to write them.
        on_decoded: the same with what they were before the correction at the end, see `PosteriorSampler.samples`.

    Raises:
        ValueError: as `PosteriorSampler.samples`, or for a state of another case or setting.
    """
    statistics = SampleStatistics(body, sampler.hu_window, NOISE_GROUP)
    label = _fingerprint(sampler, image, views, count, seed)
    path = None if state_path is None else Path(state_path)
    if path is not None and path.is_file():
        try:
            state = load_tensors(path)
        except (ValueError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
            raise ValueError(f"{path}: the samples so far cannot be read: remove it to begin anew ({error})") from error
        if not torch.equal(state.pop("fingerprint"), label):
            raise ValueError(f"{path}: samples of another case, seed or setting: remove it, or write elsewhere")
        statistics.load_state_dict(state)
        if statistics.count > count:
            raise ValueError(f"{path}: holds {statistics.count} samples already, more than the {count} asked for")
        logger.info("%s: %d of %d samples are there already", path, statistics.count, count)
    first = statistics.count
    with tqdm(total=count, initial=first, desc="samples", unit="sample", disable=None) as bar:

        def on_drawn(there: int) -> None:
            bar.update(there - bar.n)

        for start, samples in sampler.samples(image, views, count, seed, first, on_decoded, on_drawn):
            statistics.update(samples)
            if on_samples is not None:
                on_samples(start, samples)
            if path is not None:
                write_tensors(path, {**statistics.state_dict(), "fingerprint": label})
    return statistics


def _fingerprint(sampler: PosteriorSampler, image: Tensor, views: Tensor, count: int, seed: int) -> Tensor:
    """SHA-256, as bytes, of all that the samples depend on."""
    total = hashlib.sha256()
    together = min(count, NOISE_GROUP) if sampler.recentring else 1  # samples that depend on one another
    total.update(repr([sampler.settings, seed, together]).encode())
    networks = [sampler.denoiser, sampler.autoencoder, getattr(sampler.mean, "network", None)]
    tensors = [value for network in networks if network is not None for value in network.state_dict().values()]
    for tensor in (*tensors, image, views):
        total.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return torch.tensor(list(total.digest()), dtype=torch.uint8)
