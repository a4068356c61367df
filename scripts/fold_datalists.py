"""Datalists of a cohort that lack one part of the training patients each, for networks that have not seen it.

    python scripts/fold_datalists.py data/prepared/datalist_fine.json --folds 3

writes datalist_fine_without_fold0.json and so on beside it. Train inr_recon on each: these are the mean_checkpoints of
ldm_recon's latents.json, in this order.
"""

from __future__ import annotations

import fire

from custom.data.datalist import write_fold_datalists


def main(data_list_file: str, folds: int = 3) -> None:
    """Write the datalists and print their names.

    Args:
        data_list_file: datalist of the cohort.
        folds: number of parts.
    """
    for path in write_fold_datalists(data_list_file, folds):
        print(path)


if __name__ == "__main__":
    fire.Fire(main)
