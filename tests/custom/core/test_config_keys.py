"""Keys that nothing reads, and arguments that a class does not take."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigParser, ConfigWorkflow

from custom.core.config_keys import check_keys, no_unknown_keys

CONFIG: dict[str, Any] = {
    "imports": ["$import os"],
    "learning_rate": 0.1,
    "window": [-1000, 1000],
    "weights": {"1": 0.5},
    "grid": {"_target_": "custom.geometry.VolumeGrid", "shape": [2, 2, 2], "spacing_mm": [1, 1, 1]},
    "_desc_grid": "not read",
    "cells": "$len(@weights) * @grid.shape[0]",
    "train": {
        "loss": {"_target_": "torch.nn.MSELoss", "reduction": "sum"},
        "crop": {"_target_": "CenterSpatialCrop", "roi_size": "@train#side"},
        "side": 3,
        "anything": {"_target_": "builtins.dict", "rate": "@learning_rate", "window": "@window"},
    },
    "run": ["$@train#loss", "$@cells"],
}


def parser_with(overrides: dict[str, Any]) -> ConfigParser:
    parser = ConfigParser(json.loads(json.dumps(CONFIG)))
    parser.update(overrides)
    parser.parse(True)
    return parser


@pytest.mark.parametrize(
    "overrides",
    [
        {}, {"learning_rate": 1}, {"weights#2": 0.5}, {"train#loss#reduction": "mean"}, {"train#loss#reduce": True},
        {"train#anything#more": 1}, {"grid": "$@window"}, {"mine": ["$print(1)"]}, {"window": [0, 1]},
        {"train#crop#roi_size": "$2 * @train#side"},
    ],
)  # fmt: skip
def test_what_is_read_is_let_through(overrides: dict[str, Any]) -> None:
    check_keys(parser_with(overrides))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"learning_rat": 1}, r"unknown key learning_rat: nothing .*; did you mean learning_rate\?"),
        ({"zzz": [1, 2]}, r"unknown key zzz: nothing in this config reads it$"),
        ({"train#sid": 1}, r"unknown key train#sid: nothing .*; did you mean train#side\?"),
        ({"train#loss#reductoin": "sum"}, r"#reductoin: .* no such argument; did you mean train#loss#reduction"),
        ({"train#crop#roi_sizes": 1}, r"train#crop#roi_sizes: .* no such argument; did you mean train#crop#roi_size\?"),
        ({"grid#spacing": 1}, r"unknown key grid#spacing: .*; did you mean grid#spacing_mm"),
    ],
)  # fmt: skip
def test_what_nothing_reads_is_an_error_with_a_suggestion(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_keys(parser_with(overrides))
    check_keys(parser_with(overrides), given=["window"])
    with pytest.raises(ValueError, match=message):
        check_keys(parser_with(overrides), given=list(overrides))


@pytest.mark.parametrize("key", ["learning_rate", "train#side"])
def test_the_text_null_is_refused_with_what_to_write(key: str) -> None:
    with pytest.raises(ValueError, match=rf"^{key} is the text 'null'; for nothing write --{key} '\$None'$"):
        check_keys(parser_with({key: "null"}))
    for nothing in (None, "$None"):
        check_keys(parser_with({key: nothing}))


def run(tmp_path: Path, unused: Sequence[str] = (), **overrides: Any) -> None:
    check = {"_target_": "custom.core.config_keys.no_unknown_keys", "unused": list(unused)}
    (tmp_path / "train.json").write_text(json.dumps({**CONFIG, "initialize": [check]}))
    workflow = ConfigWorkflow(str(tmp_path / "train.json"), workflow_type=None, logging_file=False, **overrides)
    workflow.initialize()


def test_a_config_checks_itself_when_monai_runs_it(tmp_path: Path) -> None:
    run(tmp_path)
    run(tmp_path, ["later"], later=3)
    with pytest.raises(RuntimeError, match="instantiate component") as error:
        run(tmp_path, learning_rat=1)
    assert "did you mean learning_rate?" in str(error.value.__cause__)
    with pytest.raises(RuntimeError, match="called by a config"):
        no_unknown_keys()
