"""Comparison of reconstruction methods on the same radiographs of the same test patients, with tables and a page."""

from custom.benchmark.classical_methods import fdk_row, tv_row
from custom.benchmark.methods import VIEW_SETS, Method, mean_training_ct, network_row, read_volume, sirt_row

__all__ = [
    "VIEW_SETS",
    "Method",
    "fdk_row",
    "mean_training_ct",
    "network_row",
    "read_volume",
    "sirt_row",
    "tv_row",
]
