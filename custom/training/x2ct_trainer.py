"""Trainer and loss of X2CT, with and without a discriminator (Ying et al., CVPR 2019)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.utils.enums import CommonKeys as Keys
from torch import Tensor, nn

from custom.training.adversarial_trainer import DiscriminatedTrainer

__all__ = ["X2CTLoss", "X2CTTrainer", "projection_distance"]


def projection_distance(pred: Tensor, label: Tensor) -> Tensor:
    """Mean absolute difference of the means along x, y and z, averaged over the three.

    Args:
        pred, label: (B, 1, X, Y, Z).
    """
    return torch.stack([F.l1_loss(pred.mean(axis), label.mean(axis)) for axis in (2, 3, 4)]).mean()


class X2CTLoss(nn.Module):
    """What the generator and its discriminator minimise; volumes count from 0 to 1, as published.

    X2CT-CNN is the mean squared error alone; X2CT-GAN has 10, 10 and 0.1.

    Args:
        reconstruction_weight: of the mean squared error.
        projection_weight: of `projection_distance`.
        adversarial_weight: of the least-squares adversarial loss (Mao et al. 2017); 0: no discriminator is trained.

    Raises:
        ValueError: for a negative weight.
    """

    def __init__(
        self, reconstruction_weight: float = 10.0, projection_weight: float = 0.0, adversarial_weight: float = 0.0
    ) -> None:
        super().__init__()
        self.weights = {
            "reconstruction": reconstruction_weight,
            "projection": projection_weight,
            "adversarial": adversarial_weight,
        }
        if min(self.weights.values()) < 0:
            raise ValueError(f"weights must not be negative, got {self.weights}")

    @property
    def adversarial(self) -> bool:
        """Whether there is a discriminator to be trained."""
        return self.weights["adversarial"] > 0

    def generator(self, pred: Tensor, label: Tensor, logits: Tensor | None = None) -> dict[str, Tensor]:
        """The generator's loss.

        Args:
            pred: reconstructions (B, 1, X, Y, Z) in [0, 1].
            label: true volumes.
            logits: what the discriminator says of the reconstructions; None: no adversarial term.

        Returns:
            "loss", the weighted sum, and each of its terms before it is weighted.
        """
        terms = {"reconstruction": F.mse_loss(pred, label), "projection": projection_distance(pred, label)}
        if logits is not None:
            terms["adversarial"] = (logits - 1).square().mean()
        loss = torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()
        return {"loss": loss, **terms}

    @staticmethod
    def discriminator(real: Tensor, fake: Tensor) -> Tensor:
        """The discriminator's loss, from its logits for true volumes and for reconstructions."""
        return ((real - 1).square().mean() + fake.square().mean()) / 2


class X2CTTrainer(DiscriminatedTrainer):
    """A step of the generator, then, in an adversarial training, one of the discriminator.

    `engine.state.output` holds "image", "label", "pred", "loss" and "losses": each term before it is weighted.

    Args:
        discriminator: `X2CTDiscriminator`; never called where the loss has no adversarial weight.
        disc_optimizer: of its parameters.
        **kwargs: of MONAI's `SupervisedTrainer`. `network` is an `X2CT`, `loss_function` an `X2CTLoss`.

    Raises:
        ValueError: for options that it does not have (`amp`: the networks have their `precision`;
            `accumulation_steps`; `compile`).
    """

    loss_function: X2CTLoss

    def _iteration(self, engine: SupervisedTrainer, batchdata: dict[str, Tensor]) -> dict:
        """One training step; MONAI calls it."""
        inputs, targets, args, kwargs, output = self._begin(batchdata)
        pred = (self.inferer(inputs, self.network, *args, **kwargs) + 1) / 2
        label = (targets + 1) / 2
        output[Keys.PRED] = (pred * 2 - 1).detach()
        self.fire_event(IterationEvents.FORWARD_COMPLETED)
        logits, expanded = None, None
        if self.loss_function.adversarial:
            network: Any = getattr(self.network, "module", self.network)
            expanded = network.expanded(inputs, *args, **kwargs)
            with self._frozen_judge() as judge:
                logits = judge(pred, expanded)
        terms = self.loss_function.generator(pred, label, logits)
        output[Keys.LOSS] = terms.pop("loss")
        output["losses"] = {name: term.detach() for name, term in terms.items()}
        self.fire_event(IterationEvents.LOSS_COMPLETED)
        self._step(output)
        if expanded is not None:
            self._judge(output, pred.detach(), label, expanded)
        self.fire_event(IterationEvents.MODEL_COMPLETED)
        return output

    def _judge(self, output: dict[str, Any], pred: Tensor, label: Tensor, expanded: Tensor) -> None:
        """In one batch: a distributed module wants one forward pass for each backward pass."""
        real, fake = self.discriminator(torch.cat([label, pred]), torch.cat([expanded] * 2)).chunk(2)
        loss = self.loss_function.discriminator(real, fake)
        self._step_discriminator(loss)
        output["losses"]["discriminator"] = loss.detach()
