"""What leaves a site of a federated training, and what comes back together there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from custom.core.checkpoints import load_checkpoint, save_checkpoint
from custom.training.federated import join_weights, shared_weights
from tests.custom.networks.test_coarse_to_fine import small


def test_the_prior_stays_and_everything_else_is_sent() -> None:
    network = small()
    sent = shared_weights(network.state_dict())
    assert set(network.state_dict()) - set(sent) == {f"prior.{name}" for name, _ in network.prior.named_buffers()}
    assert {name for name, _ in network.named_parameters()} <= set(sent)
    with pytest.raises(ValueError, match="count: only floating-point weights"):
        shared_weights({"count": torch.tensor(3)})


def test_global_weights_meet_the_sites_own_prior(tmp_path: Path) -> None:
    site = save_checkpoint(tmp_path / "site.pt", small(), {"preset": "default"})
    given = {name: value + 1 for name, value in shared_weights(small().state_dict()).items()}
    joined = load_checkpoint(join_weights(given, site, tmp_path / "model.pt"))
    assert joined.meta["preset"] == "default" and joined.meta["federated"] is True
    for name, value in joined.state.items():
        expected = small().state_dict()[name]
        torch.testing.assert_close(value, expected if name.startswith("prior.") else expected + 1)
    missing = dict(list(given.items())[1:])
    other = {**given, next(iter(given)): torch.zeros(1)}
    for wrong in (missing, other, {**given, "prior.mean": torch.zeros(1)}):
        with pytest.raises(ValueError, match="are not those of this network"):
            join_weights(wrong, site, tmp_path / "other.pt")
    assert not (tmp_path / "other.pt").exists()
