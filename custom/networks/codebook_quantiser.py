"""Vector quantisation with a codebook of moving averages, in memory that does not grow with tokens x codes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.networks.layers.vector_quantizer import EMAQuantizer
from torch import Tensor

__all__ = ["CodebookQuantiser", "codebook_perplexity"]

#: Bytes of the largest table of distances. Larger ones are not faster: they leave the processor's cache.
TABLE_BYTES = 16 * 2**20


class CodebookQuantiser(EMAQuantizer):
    """MONAI's `EMAQuantizer` of 3D latents, mended where a large codebook needs it.

    The nearest code is searched in chunks and statistics are summed by index, so that there is neither a table of all
    distances nor a one-hot matrix (0.5 GB each for 32^3 tokens and 4096 codes). The codebook starts from the latents
    of the first training batch. Codes that nothing uses are replaced by latents of the batch. Everything is float32,
    whatever autocast says, and the same on all processes of a distributed training.

    The codebook is a parameter without gradient, as in MONAI, so that an average of the weights averages it too.

    Args:
        codes: K, number of codes.
        dim: D, numbers of a code.
        decay: of the moving averages, per training step.
        epsilon: Laplace smoothing of the counts.
        restart_share: a code is replaced when its moving count falls below this share of the mean count; 0: never.

    Source: van den Oord et al. 2017 (appendix A.1: moving averages); replacing dead codes: Dhariwal et al. 2020
    (Jukebox), section 3.1.
    """

    ema_cluster_size: Tensor
    ema_w: Tensor
    ready: Tensor

    def __init__(
        self, codes: int, dim: int, decay: float = 0.99, epsilon: float = 1e-5, restart_share: float = 0.2
    ) -> None:
        if codes < 2 or dim < 1:
            raise ValueError(f"a codebook needs at least 2 codes of 1 number, got {codes} of {dim}")
        if not 0 < decay < 1 or not 0 <= restart_share < 1:
            raise ValueError(f"decay must lie in (0, 1) and restart_share in [0, 1), got {decay} and {restart_share}")
        super().__init__(3, codes, dim, commitment_cost=1.0, decay=decay, epsilon=epsilon)
        self.restart_share = restart_share
        self.register_buffer("ready", torch.zeros(()))

    def nearest(self, flat: Tensor) -> Tensor:
        """Index (N,) of the code nearest to each token of (N, D), by Euclidean distance; without gradient."""
        codebook = self.embedding.weight.detach().float()
        half_norms = codebook.square().sum(1) / 2
        rows = min(len(flat), max(1, TABLE_BYTES // (4 * len(codebook))))
        # One table for all chunks: small results between large tables would keep the allocator from reusing them.
        table = flat.new_empty(rows, len(codebook))
        found = torch.empty(len(flat), dtype=torch.int64, device=flat.device)
        for part, target in zip(flat.split(rows), found.split(rows), strict=True):
            # |z - c|^2 / 2 without |z|^2 / 2, which is the same for all codes.
            distances = torch.addmm(half_norms, part, codebook.T, alpha=-1, out=table[: len(part)])
            torch.argmin(distances, 1, out=target)
        return found

    def indices(self, latent: Tensor) -> Tensor:
        """Index (B, X, Y, Z) of the nearest code of latents (B, D, X, Y, Z)."""
        with torch.no_grad(), torch.autocast(latent.device.type, enabled=False):
            return self.nearest(_flatten(latent.float())).view(latent.shape[:1] + latent.shape[2:])

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantise; in training mode also move the codebook.

        Args:
            inputs: continuous latents (B, D, X, Y, Z).

        Returns:
            the codes (B, D, X, Y, Z), through which the gradient passes straight to the latents; the commitment loss
            (mean squared distance of the latents to their codes); the indices (B, X, Y, Z).
        """
        with torch.autocast(inputs.device.type, enabled=False):
            inputs = inputs.float()
            flat = _flatten(inputs.detach())
            if self.training and not bool(self.ready):
                self._start(flat)
            indices = self.indices(inputs)
            codes = self.embed(indices)
            if self.training:
                self._learn(flat, indices.flatten())
            commitment = F.mse_loss(inputs, codes)
            return inputs + (codes - inputs).detach(), commitment, indices

    @torch.no_grad()
    def _start(self, flat: Tensor) -> None:
        """The codebook becomes latents of this batch."""
        codebook = self._candidates(flat)
        tokens = torch.tensor(float(len(flat)), device=flat.device)
        self.distributed_synchronization(tokens, torch.zeros_like(tokens))
        self.embedding.weight.copy_(codebook)
        self.ema_cluster_size.fill_(float(tokens) / len(codebook))
        self.ema_w.copy_(codebook * self.ema_cluster_size[:, None])
        self.ready.fill_(1)

    @torch.no_grad()
    def _learn(self, flat: Tensor, indices: Tensor) -> None:
        codes = self.num_embeddings
        counts = torch.bincount(indices, minlength=codes).float()
        sums = torch.zeros_like(self.ema_w).index_add_(0, indices, flat)
        self.distributed_synchronization(counts, sums)
        self.ema_cluster_size.lerp_(counts, 1 - self.decay)
        self.ema_w.lerp_(sums, 1 - self.decay)
        if self.restart_share:
            mean = self.ema_cluster_size.mean()
            dead = self.ema_cluster_size < self.restart_share * mean
            self.ema_cluster_size[dead] = mean
            self.ema_w[dead] = self._candidates(flat)[dead] * mean
        total = self.ema_cluster_size.sum()
        smoothed = (self.ema_cluster_size + self.epsilon) / (total + codes * self.epsilon) * total
        self.embedding.weight.copy_(self.ema_w / smoothed[:, None])

    def _candidates(self, flat: Tensor) -> Tensor:
        """Latents (K, D) of the batch at random, the same on all processes: those that the first one draws.

        They are displaced a little: all air is alike, and of equal codes only one is ever used.
        """
        if len(flat) >= self.num_embeddings:
            chosen = flat[torch.randperm(len(flat), device=flat.device)[: self.num_embeddings]]
        else:
            chosen = flat[torch.randint(len(flat), (self.num_embeddings,), device=flat.device)]
        chosen = chosen + 0.01 * flat.std(0, correction=0) * torch.randn_like(chosen)
        if self.ddp_sync and torch.distributed.is_initialized():
            torch.distributed.broadcast(chosen, 0)
        return chosen


def _flatten(latent: Tensor) -> Tensor:
    """(B, D, X, Y, Z) to (B X Y Z, D)."""
    return latent.movedim(1, -1).reshape(-1, latent.shape[1])


def codebook_perplexity(counts: Tensor) -> Tensor:
    """exp of the entropy of how often codes are used (K,): from 1 (a single code) to K (all alike)."""
    share = counts / counts.sum().clamp_min(1)
    return torch.special.entr(share).sum().exp()
