"""The table that every reconstruction is judged by: rows of methods, columns of view sets, real test patients."""

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
