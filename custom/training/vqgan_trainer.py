"""Trainer of the autoencoder with its discriminators, and its evaluator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.engines import PrepareBatch, SupervisedEvaluator, SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.utils.enums import CommonKeys as Keys
from torch import Tensor, nn

from custom.core.hu_window import hu_to_unit
from custom.metrics import HU_WINDOW
from custom.networks.codebook_quantiser import codebook_perplexity
from custom.networks.vqgan import CodedVolume
from custom.training.adversarial_trainer import DiscriminatedTrainer
from custom.training.collapse_guard import CollapseGuard
from custom.training.vqgan_losses import VQGANLoss

__all__ = ["VQGANEvaluator", "VQGANTrainer", "VolumeBatch"]


class VolumeBatch(PrepareBatch):
    """CT volumes as input and label of the autoencoder, whole or as random patches.

    Args:
        hu_window: CT values that become -1 and 1.
        key: batch entry (B, 1, X, Y, Z) in HU.
        patch: side of random cubes in voxels; None for whole volumes.
        patches_per_volume: how many of them from each volume.
        keywords: of the network's forward.

    Raises:
        ValueError: for numbers below 1; while running, for a patch larger than the volume.
    """

    def __init__(
        self,
        hu_window: Sequence[float] = HU_WINDOW,
        key: str = "source",
        patch: int | None = None,
        patches_per_volume: int = 1,
        keywords: Mapping[str, Any] | None = None,
    ) -> None:
        if (patch is not None and patch < 1) or patches_per_volume < 1:
            raise ValueError(f"patch and patches_per_volume must be at least 1, got {patch} and {patches_per_volume}")
        self.hu_window, self.key, self.patch = tuple(hu_window), key, patch
        self.patches_per_volume, self.keywords = patches_per_volume, dict(keywords or {})

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor, tuple, dict[str, Any]]:
        """Volumes (B, 1, X, Y, Z) in [-1, 1], twice, and the keywords."""
        volume = torch.as_tensor(batchdata[self.key]).to(device, torch.float32, non_blocking=non_blocking)
        image = hu_to_unit(volume.as_subclass(Tensor), self.hu_window)
        if self.patch is not None:
            image = torch.cat([self._cut(image, self.patch) for _ in range(self.patches_per_volume)])
        return image, image, (), self.keywords

    @staticmethod
    def _cut(image: Tensor, side: int) -> Tensor:
        if side > min(image.shape[2:]):
            raise ValueError(f"a patch of {side} voxels does not fit into volumes of {tuple(image.shape[2:])}")
        for axis in (2, 3, 4):
            image = image.narrow(axis, int(torch.randint(image.shape[axis] - side + 1, (1,))), side)
        return image


class VQGANTrainer(DiscriminatedTrainer):
    """A step of the autoencoder, then, once they have started, one of its discriminators.

    `engine.state.output` holds "image", "label", "pred", "loss" and "losses": each term before it is weighted, and
    "codebook_use" and "perplexity" of the batch.

    Args:
        discriminator: `VolumeSliceDiscriminator`.
        disc_optimizer: of its parameters.
        continuous_prob: probability that a volume is decoded from its continuous latents instead of their codes, so
            that the decoder serves both; 0 is the papers' VQGAN.
        guard: looks at every step; None for one with its defaults.
        **kwargs: of MONAI's `SupervisedTrainer`. `network` is a `VQGAN`, `optimizer` is the autoencoder's,
            `loss_function` a `VQGANLoss`.

    Raises:
        ValueError: for a share outside [0, 1], or options that it does not have (`amp`: the networks have their
            `precision`; `accumulation_steps`).
    """

    loss_function: VQGANLoss

    def __init__(
        self,
        discriminator: nn.Module,
        disc_optimizer: torch.optim.Optimizer,
        continuous_prob: float = 0.5,
        guard: CollapseGuard | None = None,
        **kwargs: Any,
    ) -> None:
        if not 0 <= continuous_prob <= 1:
            raise ValueError(f"continuous_prob must lie in [0, 1], got {continuous_prob}")
        super().__init__(discriminator, disc_optimizer, **kwargs)
        self.continuous_prob = continuous_prob
        self.guard = guard or CollapseGuard()

    def _iteration(self, engine: SupervisedTrainer, batchdata: dict[str, Tensor]) -> dict:
        """One training step; MONAI calls it."""
        inputs, targets, args, kwargs, output = self._begin(batchdata)
        quantise = torch.rand(len(inputs)) >= self.continuous_prob
        coded: CodedVolume = self.inferer(inputs, self.network, *args, quantise=quantise, with_codes=True, **kwargs)
        output[Keys.PRED] = coded.pred.detach()
        self.fire_event(IterationEvents.FORWARD_COMPLETED)
        with self._frozen_judge() as judge:
            terms = self.loss_function.generator(coded, targets, judge, self.state.iteration)
        output[Keys.LOSS] = terms.pop("loss")
        output["losses"] = {name: term.detach() for name, term in terms.items()} | _codebook_state(coded, self.network)
        self.fire_event(IterationEvents.LOSS_COMPLETED)
        # One transfer from the device for all numbers.
        loss, *values = torch.stack([output[Keys.LOSS].detach(), *output["losses"].values()]).tolist()
        self.guard.check(self.state.iteration, loss, dict(zip(output["losses"], values, strict=True)))
        self._step(output)
        if self.loss_function.adversarial(self.state.iteration):
            self._judge(output, targets)
        self.fire_event(IterationEvents.MODEL_COMPLETED)
        return output

    def _judge(self, output: dict[str, Any], targets: Tensor) -> None:
        terms = self.loss_function.discriminator(output[Keys.PRED], targets, self.discriminator)
        self._step_discriminator(terms["discriminator"])
        output["losses"] |= {name: term.detach() for name, term in terms.items()}


def _codebook_state(coded: CodedVolume, network: nn.Module) -> dict[str, Tensor]:
    codes: int = getattr(network, "module", network).quantiser.num_embeddings  # type: ignore[union-attr,assignment]
    counts = torch.bincount(coded.indices.flatten(), minlength=codes)
    return {"codebook_use": (counts > 0).float().mean(), "perplexity": codebook_perplexity(counts)}


class VQGANEvaluator(SupervisedEvaluator):
    """Reconstructs from the continuous latents ("pred"), as the diffusion model uses them, and from their codes.

    `engine.state.output` holds besides "pred_quantised", "latent" and "indices". With the network's keyword
    `quantise` of the `prepare_batch`, "pred" comes from the codes too.
    """

    def _iteration(self, engine: SupervisedEvaluator, batchdata: dict[str, Tensor]) -> dict:
        """One batch; MONAI calls it."""
        if batchdata is None:
            raise ValueError("Must provide batch data for current iteration.")
        prepared = self.prepare_batch(batchdata, self.state.device, self.non_blocking, **self.to_kwargs)
        inputs, targets, args, kwargs = prepared if len(prepared) == 4 else (*prepared, (), {})
        output: dict[str, Any] = {Keys.IMAGE: inputs, Keys.LABEL: targets}
        self.state.output = output  # type: ignore[assignment]
        with self.mode(self.network):
            output[Keys.PRED] = self.inferer(inputs, self.network, *args, **kwargs)
            coded = self.inferer(inputs, self.network, *args, quantise=True, with_codes=True)
        output |= {"pred_quantised": coded.pred, "latent": coded.latent, "indices": coded.indices}
        self.fire_event(IterationEvents.FORWARD_COMPLETED)
        self.fire_event(IterationEvents.MODEL_COMPLETED)
        return output
