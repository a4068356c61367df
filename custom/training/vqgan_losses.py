"""Losses of the autoencoder that is trained against discriminators (DIFR3CT, section IV-B)."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from custom.networks.discriminators import DiscriminatorOutput
from custom.networks.perceptual import perceptual_network
from custom.networks.vqgan import CodedVolume

__all__ = ["VQGANLoss", "axial_slices", "feature_distance", "hinge_discriminator", "hinge_generator"]


def hinge_generator(logits: Tensor) -> Tensor:
    """-mean(D(fake)): what the autoencoder minimises (Lim and Ye 2017, eq. 5). Unlike MONAI's "hinge", no tanh."""
    return -logits.mean()


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """mean(max(0, 1 - D(real))) / 2 + mean(max(0, 1 + D(fake))) / 2 (Lim and Ye 2017, eq. 4, halved as upstream)."""
    return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2


def feature_distance(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Mean absolute difference of a discriminator's features, averaged over its layers without the logits
    (Wang et al. 2018, eq. 4)."""
    pairs = list(zip(real[:-1], fake[:-1], strict=True))
    return torch.stack([F.l1_loss(f, r.detach()) for r, f in pairs]).mean()


def axial_slices(volumes: Sequence[Tensor], count: int) -> list[Tensor]:
    """The same `count` random axial slices of several volumes.

    Args:
        volumes: (B, 1, X, Y, Z) each.
        count: slices of each volume of the batch.

    Returns:
        (B count, 1, X, Y) each.
    """
    batch, _, *_, depth = volumes[0].shape
    z = torch.randint(depth, (batch, count), device=volumes[0].device)
    rows = torch.arange(batch, device=z.device)[:, None]
    return [volume[:, 0].permute(0, 3, 1, 2)[rows, z].flatten(0, 1)[:, None] for volume in volumes]


class VQGANLoss(nn.Module):
    """Everything that the autoencoder and its discriminators minimise.

    The paper weighs a VQVAE term, two adversarial terms and a perceptual term; its weights are not known.

    Args:
        l1_weight: of the mean absolute error, in the network's range [-1, 1].
        l2_weight: of the mean squared error.
        commitment_weight: of the latents' distance to their codes.
        perceptual_weight: of the distance of random axial slices in `perceptual`.
        adversarial_volume_weight: of the hinge loss on volumes.
        adversarial_slice_weight: of the hinge loss on random axial slices.
        feature_weight: of the distance in the discriminators' features.
        disc_start_step: training step at which the discriminators begin to learn.
        disc_ramp_steps: number of steps from there over which what depends on them (the adversarial and feature
            weights) grows from 0, so that the autoencoder does not follow judges that know nothing yet.
        slices_per_volume: random axial slices of each volume.
        perceptual: "pyramid", "vgg16" or None; see `custom.networks.perceptual`.
        perceptual_weights_file: for "vgg16".

    Raises:
        ValueError: for a negative number, or a perceptual loss that is switched off in one place only.
    """

    def __init__(
        self,
        l1_weight: float = 1.0,
        l2_weight: float = 5.0,
        commitment_weight: float = 0.25,
        perceptual_weight: float = 0.5,
        adversarial_volume_weight: float = 0.02,
        adversarial_slice_weight: float = 0.02,
        feature_weight: float = 0.1,
        disc_start_step: int = 2000,
        disc_ramp_steps: int = 1000,
        slices_per_volume: int = 4,
        perceptual: str | None = "pyramid",
        perceptual_weights_file: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__()
        self.weights = {
            "l1": l1_weight,
            "l2": l2_weight,
            "commitment": commitment_weight,
            "perceptual": perceptual_weight,
            "adversarial_volume": adversarial_volume_weight,
            "adversarial_slices": adversarial_slice_weight,
            "features": feature_weight,
        }
        if min(*self.weights.values(), disc_start_step, disc_ramp_steps) < 0 or slices_per_volume < 1:
            raise ValueError(
                f"weights and steps must not be negative and slices_per_volume at least 1, got {self.weights}, "
                f"disc_start_step {disc_start_step}, disc_ramp_steps {disc_ramp_steps}, slices {slices_per_volume}"
            )
        if (perceptual is None) != (perceptual_weight == 0):
            raise ValueError(
                f"to train without perceptual loss set perceptual_network to null and perceptual_weight to 0, to train "
                f"with it neither; got {perceptual!r} and {perceptual_weight}"
            )
        self.disc_start_step, self.disc_ramp_steps = disc_start_step, disc_ramp_steps
        self.slices_per_volume = slices_per_volume
        self.perceptual = perceptual_network(perceptual, perceptual_weights_file)

    def adversarial(self, step: int) -> bool:
        """Whether the discriminators learn at this step (counted from 1)."""
        against = ("adversarial_volume", "adversarial_slices", "features")
        return step > self.disc_start_step and any(self.weights[name] for name in against)

    def ramp(self, step: int) -> float:
        """Share of the adversarial and feature weights at this step: 0 until the discriminators start, then to 1."""
        if not self.adversarial(step):
            return 0.0
        return min(1.0, (step - self.disc_start_step) / max(1, self.disc_ramp_steps))

    def generator(
        self, coded: CodedVolume, label: Tensor, discriminator: nn.Module | None, step: int
    ) -> dict[str, Tensor]:
        """The autoencoder's loss.

        Args:
            coded: the autoencoder's output.
            label: true volumes (B, 1, X, Y, Z) in [-1, 1].
            discriminator: `VolumeSliceDiscriminator`, its weights without gradient; None: no adversarial terms.
            step: counted from 1.

        Returns:
            "loss", the weighted sum, and each of its terms before it is weighted.
        """
        pred = coded.pred
        terms = {"l1": F.l1_loss(pred, label), "l2": F.mse_loss(pred, label), "commitment": coded.commitment}
        pred_slices, label_slices = axial_slices([pred, label], self.slices_per_volume)
        if self.perceptual is not None:
            self.perceptual.to(pred.device)  # nothing to do but at the first step
            terms["perceptual"] = self.perceptual(pred_slices, label_slices)
        share = self.ramp(step)
        if share and discriminator is not None:
            fake: DiscriminatorOutput = discriminator(pred, pred_slices)
            with torch.no_grad():
                real: DiscriminatorOutput = discriminator(label, label_slices)
            distances = []
            for name, f, r in zip(("adversarial_volume", "adversarial_slices"), fake, real, strict=True):
                if f:
                    terms[name] = hinge_generator(f[-1])
                    distances.append(feature_distance(r, f))
            terms["features"] = torch.stack(distances).sum()
        loss = pred.new_zeros(())
        for name, term in terms.items():
            gated = share if name in ("adversarial_volume", "adversarial_slices", "features") else 1.0
            loss = loss + gated * self.weights[name] * term
        return {"loss": loss, **terms}

    def discriminator(self, pred: Tensor, label: Tensor, discriminator: nn.Module) -> dict[str, Tensor]:
        """The discriminators' loss.

        True volumes and reconstructions go through in one batch: a distributed module wants one forward pass for
        each backward pass.

        Args:
            pred: reconstructions (B, 1, X, Y, Z).
            label: true volumes.
            discriminator: `VolumeSliceDiscriminator`.

        Returns:
            "discriminator", the sum, and "discriminator_volume" and "discriminator_slices" where there is one.
        """
        pred = pred.detach()
        pred_slices, label_slices = axial_slices([pred, label], self.slices_per_volume)
        both: DiscriminatorOutput = discriminator(torch.cat([label, pred]), torch.cat([label_slices, pred_slices]))
        terms = {
            f"discriminator_{name}": hinge_discriminator(*features[-1].chunk(2))
            for name, features in zip(both._fields, both, strict=True)
            if features
        }
        return {"discriminator": torch.stack(list(terms.values())).sum(), **terms}
