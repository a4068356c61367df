"""One site of a federated training: NVFLARE's Client API around MONAI's `MonaiAlgo`, which trains a bundle.

NVFLARE runs it (scripts/federated/simulate.py says with what); a real site runs the same script.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import nvflare.client as flare
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems, FlStatistics
from monai.fl.utils.exchange_object import ExchangeObject
from nvflare.app_common.abstract.fl_model import MetaKey

from custom.core.bundle_folders import find_bundle
from custom.core.files import read_json_object, write_tensors
from custom.training.federated import shared_weights


def main(settings_file: Path) -> None:
    """Train when the server asks, and send what may leave the site; a copy of it is kept in the site's folder."""
    settings = read_json_object(settings_file)
    algorithm = MonaiAlgo(
        str(find_bundle(settings["bundle"])),
        local_epochs=settings["epochs"],
        send_weight_diff=False,
        config_train_filename=[f"configs/{name}.json" for name in settings["configs"]],
        config_evaluate_filename=None,
        train_kwargs=settings["overrides"],
    )
    flare.init()
    algorithm.initialize({ExtraItems.CLIENT_NAME: flare.get_site_name()})
    while flare.is_running():
        received = flare.receive()
        if received is None:
            break
        algorithm.train(ExchangeObject(weights=received.params))
        trained = algorithm.get_weights()
        sent = shared_weights(trained.weights)
        steps = int(trained.statistics[FlStatistics.NUM_EXECUTED_ITERATIONS])
        write_tensors(settings_file.parent / f"sent_{received.current_round}.pt", {"weights": sent, "steps": steps})
        flare.send(flare.FLModel(params=sent, meta={MetaKey.NUM_STEPS_CURRENT_ROUND: steps}))
    algorithm.finalize()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", type=Path, required=True)
    main(parser.parse_args().settings)
