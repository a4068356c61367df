"""A federated training in NVFLARE's simulator: every site trains on its own patients, the server averages the weights.

    python scripts/federated/simulate.py OUTPUT SITE.json SITE.json... --rounds 20 --epochs 2

SITE.json holds a site's keys of the bundle's train.json, at least data_list_file; the file's name is the site's. What
stands in several files must be the same where it shapes the network. Priors stay at their sites: each fits its own, or
all take that of the checkpoint that start_from names (docs/how-to/cluster.md).

Writes OUTPUT/global_weights.pt (what the server has) and for every site OUTPUT/SITE/model.pt (these weights with the
site's prior, for fewview-ct reconstruct), sent_ROUND.pt (what has left it) and settings.json.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import fire
import torch
from monai.bundle import ConfigParser
from monai.utils import set_determinism
from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.recipe import SimEnv
from nvflare.recipe.utils import set_per_site_config

from custom.core.bundle_folders import find_bundle
from custom.core.files import read_json_object, write_json, write_tensors
from custom.core.tensor_files import load_tensors
from custom.training.federated import join_weights, shared_weights
from custom.training.initial_weights import load_weights

SITE_SCRIPT = Path(__file__).with_name("site.py")


def _first_weights(bundle: str, configs: list[str], overrides: dict[str, Any]) -> dict[str, torch.Tensor]:
    """What the training begins with everywhere: those of start_from, or random ones."""
    parser = ConfigParser()
    parser.read_config([find_bundle(bundle) / "configs" / f"{name}.json" for name in configs])
    for key, value in overrides.items():
        parser[key] = value
    set_determinism(int(parser["seed"]))
    network = parser.get_parsed_content("network_def")
    load_weights(network, parser["start_from"])
    return shared_weights(network.state_dict())


def main(
    output: str,
    *sites: str,
    bundle: str = "inr_recon",
    overlays: str = "coarse_stage",
    rounds: int = 2,
    epochs: int = 1,
) -> None:
    """Train.

    Args:
        output: folder.
        sites: JSON files of overrides; at least two.
        bundle: name or folder.
        overlays: its configs over train.json, by name, separated by commas.
        rounds: of training and averaging.
        epochs: of each site in a round.
    """
    root = Path(output).resolve()
    if " " in str(root):
        raise SystemExit(f"{root}: NVFLARE cannot pass on a path with a space; choose another output")
    given = {Path(site).stem: read_json_object(Path(site)) for site in sites}
    if len(given) < 2 or len(given) < len(sites):
        raise SystemExit(f"give at least two sites with different names, got {', '.join(given) or 'none'}")
    for name, overrides in given.items():
        if not Path(overrides.get("data_list_file", "")).is_file():
            raise SystemExit(f"{name}: data_list_file is {overrides.get('data_list_file')!r}: no such file")
    configs = ["train", *filter(None, overlays.split(","))]
    # The learning rate falls over the whole training. A round begins with the server's weights, not with a checkpoint.
    always = {"epochs": rounds * epochs, "resume": False}
    for name, overrides in given.items():
        folders = {"ckpt_dir": str(root / name / "training"), "output_dir": str(root / name / "training")}
        own = {**overrides, **folders, **always, "data_list_file": os.path.abspath(overrides["data_list_file"])}
        settings = {"bundle": bundle, "configs": configs, "epochs": epochs, "overrides": own}
        write_json(root / name / "settings.json", settings)
    first = root / "first_weights.pt"
    write_tensors(first, _first_weights(bundle, configs, next(iter(given.values()))))

    recipe = FedAvgRecipe(
        name="fewview_ct",
        model=torch.nn.Identity(),  # the server needs no network, only names and numbers
        initial_ckpt=str(first),
        min_clients=len(given),
        num_rounds=rounds,
        train_script=str(SITE_SCRIPT),
    )
    arguments = {name: {"train_args": f"--settings {root / name / 'settings.json'}"} for name in given}
    set_per_site_config(recipe, arguments)
    environment = SimEnv(clients=list(given), workspace_root=str(root / "nvflare"))
    result = Path(str(recipe.execute(environment).get_result()))
    (written,) = result.rglob("FL_global_model.pt")
    weights = load_tensors(written)["model"]
    write_tensors(root / "global_weights.pt", weights)
    for name in given:
        print(join_weights(weights, root / name / "training" / "model.pt", root / name / "model.pt"))


if __name__ == "__main__":
    fire.Fire(main)
