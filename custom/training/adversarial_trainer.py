"""`DiscriminatedTrainer`: the base of trainers of a network against a discriminator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.utils.enums import AdversarialIterationEvents
from monai.utils.enums import CommonKeys as Keys
from torch import Tensor, nn

__all__ = ["DiscriminatedTrainer"]


class DiscriminatedTrainer(SupervisedTrainer):
    """A trainer with a second network, which judges, and its optimizer. Subclasses write `_iteration` from its parts.

    MONAI's `AdversarialTrainer` takes loss functions of the two networks' outputs alone; ours see latents, features and
    the number of the step.

    Args:
        discriminator: the network that judges.
        disc_optimizer: of its parameters.
        **kwargs: of MONAI's `SupervisedTrainer`.

    Raises:
        ValueError: for options that it does not have (`amp`: the networks have their `precision`;
            `accumulation_steps`; `compile`).
    """

    def __init__(self, discriminator: nn.Module, disc_optimizer: torch.optim.Optimizer, **kwargs: Any) -> None:
        if kwargs.get("amp") or kwargs.get("accumulation_steps", 1) != 1 or kwargs.get("compile"):
            raise ValueError(
                f"{type(self).__name__} has neither amp (choose the networks' precision), nor accumulation_steps, nor "
                "compile"
            )
        # Handed over, for handlers are attached in there.
        kwargs["event_names"] = [*(kwargs.get("event_names") or []), AdversarialIterationEvents]
        super().__init__(**kwargs)
        self.discriminator, self.disc_optimizer = discriminator, disc_optimizer

    def _begin(self, batchdata: Any) -> tuple[Tensor, Tensor, Sequence[Any], dict[str, Any], dict[str, Any]]:
        """Inputs, targets, arguments and keywords of the network, and the engine's output, which has the first two."""
        if batchdata is None:
            raise ValueError("Must provide batch data for current iteration.")
        prepared = self.prepare_batch(batchdata, self.state.device, self.non_blocking, **self.to_kwargs)
        inputs, targets, args, kwargs = prepared if len(prepared) == 4 else (*prepared, (), {})
        output: dict[str, Any] = {Keys.IMAGE: inputs, Keys.LABEL: targets}
        self.state.output = output  # type: ignore[assignment]
        self.network.train()
        self.discriminator.train()
        return inputs, targets, args, kwargs, output

    @contextmanager
    def _frozen_judge(self) -> Iterator[nn.Module]:
        """The plain module: a distributed one would wait for gradients of weights that have none here."""
        judge = getattr(self.discriminator, "module", self.discriminator)
        judge.requires_grad_(False)
        yield judge
        judge.requires_grad_(True)

    def _step(self, output: dict[str, Any]) -> None:
        """The network's step, by the loss in the engine's output."""
        self.optimizer.zero_grad(set_to_none=True)
        output[Keys.LOSS].backward()
        self.fire_event(IterationEvents.BACKWARD_COMPLETED)
        self.optimizer.step()
        output[Keys.LOSS] = output[Keys.LOSS].detach()

    def _step_discriminator(self, loss: Tensor) -> None:
        self.disc_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.fire_event(AdversarialIterationEvents.DISCRIMINATOR_BACKWARD_COMPLETED)
        self.disc_optimizer.step()
