"""The table that every reconstruction is judged by: rows of methods, columns of view sets, real test patients."""

from custom.benchmark.classical_methods import fdk_row, tv_row
from custom.benchmark.methods import METRICS, VIEW_SETS, Method, mean_training_ct, network_row, read_volume, sirt_row
from custom.benchmark.table import benchmark, same_operator_rows, write_tables

__all__ = [
    "METRICS",
    "VIEW_SETS",
    "Method",
    "benchmark",
    "fdk_row",
    "mean_training_ct",
    "network_row",
    "read_volume",
    "same_operator_rows",
    "sirt_row",
    "tv_row",
    "write_tables",
]
