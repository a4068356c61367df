"""The verbs `fewview-ct train`, `infer` and `evaluate BUNDLE`: a bundle's config with keys overridden, run by MONAI.

The same as `python -m monai.bundle run --config_file ... --key value`, but nothing starts with a key that nothing
reads, and an error is one line.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigWorkflow
from rich.console import Console
from rich.table import Table
from rich.text import Text

from custom.cli.arguments import UsageError
from custom.cli.exit_codes import ExitCode
from custom.core.bundle_folders import find_bundle
from custom.core.config_keys import check_keys
from custom.core.user_errors import user_error

__all__ = ["evaluate", "infer", "infer_help", "train", "train_help"]

#: Options of `python -m monai.bundle run` that are no keys of a config.
MONAI_OPTIONS = set(inspect.signature(ConfigWorkflow).parameters) - {"config_file", "workflow_type", "override"}


def train_help(bundle: str) -> None:
    """Train a bundle, as `python -m monai.bundle run` does with its train.json.

    `--key value` replaces a key of the config, nested ones with `#`: `--train#trainer#max_epochs 3`. A key that nothing
    reads is an error before anything starts. `--with presets/paper,coarse_stage` lays other configs of the bundle over
    it. `fewview-ct train BUNDLE --help` lists the keys.

    Args:
        bundle: a name, such as inr_recon (`fewview-ct bundles` lists them), or the folder of a bundle.
    """
    raise UsageError(f"{bundle}: no bundle")


def infer_help(bundle: str) -> None:
    """Run a bundle's inference, as `python -m monai.bundle run` does with its inference.json.

    `--key value` replaces a key of the config, nested ones with `#`. A key that nothing reads is an error before
    anything starts. `--with presets/paper` lays other configs of the bundle over it. `fewview-ct infer BUNDLE --help`
    lists the keys.

    Args:
        bundle: a name, such as inr_recon (`fewview-ct bundles` lists them), or the folder of a bundle.
    """
    raise UsageError(f"{bundle}: no bundle")


def train(words: Sequence[str]) -> ExitCode:
    """Run a bundle's train.json; the words are the bundle and its options."""
    return _run(words, "train", ["train.json"], [])


def infer(words: Sequence[str]) -> ExitCode:
    """Run a bundle's inference.json; the words are the bundle and its options."""
    return _run(words, "infer", ["inference.json"], [])


def evaluate(words: Sequence[str]) -> ExitCode:
    """Run a bundle's evaluate.json over its train.json, or its inference.json where nothing is trained."""
    return _run(words, "infer", ["train.json", "inference.json"], ["evaluate.json"])


def _run(words: Sequence[str], kind: str, bases: Sequence[str], after: Sequence[str]) -> ExitCode:
    configs = find_bundle(words[0]) / "configs"
    base = next((configs / name for name in bases if (configs / name).is_file()), configs / bases[0])
    given = dict(_options(words[1:]))
    overlays = [_overlay(configs, str(name)) for name in _listed(given.pop("with", ()))]
    files = [base, *overlays, *(configs / name for name in after)]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such config of the bundle {words[0]}")
    own = {key: given.pop(key) for key in MONAI_OPTIONS & set(given)}
    if logging.getLogger("custom").getEffectiveLevel() > logging.INFO:  # --quiet
        own.setdefault("logging_file", False)
        logging.getLogger("monai").setLevel(logging.WARNING)
    # What it says of itself at INFO tells a user nothing, and stands before the help.
    logging.getLogger("monai.bundle.workflows").setLevel(logging.WARNING)
    with _readable_errors(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*GHSA.*")  # these configs came with the package, or were named
        workflow = ConfigWorkflow([str(file) for file in files], workflow_type=None, **own)
        if given.pop("help", False) or given.pop("h", False):
            _print_keys(workflow.parser.config, words[0], files)
            return ExitCode.DONE
        _check_numbers(workflow.parser, given)
        workflow.parser.update(given)
        workflow.parser.parse(True)
        check_keys(workflow.parser, given=list(given))
        workflow.initialize()
        workflow.run()
        workflow.finalize()
    return ExitCode.DONE


def _check_numbers(parser: Any, given: Mapping[str, Any]) -> None:
    """Raises UsageError where a number stands and a word is given for it that is no expression of the config."""
    for key, value in given.items():
        stands = None
        with contextlib.suppress(KeyError, IndexError, ValueError):
            stands = parser[key]
        is_number = isinstance(stands, int | float) and not isinstance(stands, bool)
        if is_number and isinstance(value, str) and not value.startswith(("$", "@", "%")):
            raise UsageError(f"--{key} takes a number, such as {stands}; got {value!r}")


def _options(words: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Keys and values of `--key value`, `--key=value` and `--key`, which is true; values as Python writes them."""
    index = 0
    while index < len(words):
        word = words[index]
        if word == "-h":
            word = "--help"
        if not word.startswith("--") or word == "--":
            raise UsageError(f"{word!r} belongs to no option; keys of the config are written --key value")
        key, equals, value = word[2:].partition("=")
        if not equals:
            follows = index + 1 < len(words) and not words[index + 1].startswith("--")
            value = words[index + 1] if follows else "True"
            index += follows
        yield key, _value(value)
        index += 1


def _value(text: str) -> Any:
    try:
        value = ast.literal_eval({"true": "True", "false": "False", "null": "None"}.get(text, text))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return list(value) if isinstance(value, tuple) else value


def _listed(value: Any) -> list[Any]:
    return [part for part in value.split(",") if part] if isinstance(value, str) else list(value)


def _overlay(configs: Path, name: str) -> Path:
    """A config of the bundle by its name with or without folder and ending, or a file elsewhere."""
    for path in (configs / name, configs / f"{name}.json", configs / "presets" / f"{name}.json", Path(name)):
        if path.is_file():
            return path
    there = sorted(str(path.relative_to(configs))[:-5] for path in configs.rglob("*.json"))
    raise FileNotFoundError(f"{name}: no such config; {configs} has {', '.join(there)}")


@contextlib.contextmanager
def _readable_errors() -> Iterator[None]:
    """Raises what was wrong in the first place: MONAI wraps it once for every component that was being built.

    Without --debug the traceback of the wrapped error is not logged on its way either.
    """
    plain = logging.getLogRecordFactory()

    def without_traceback(*args: Any, **keywords: Any) -> logging.LogRecord:
        record = plain(*args, **keywords)
        record.exc_info = None
        return record

    if logging.getLogger("custom").getEffectiveLevel() > logging.DEBUG:
        logging.setLogRecordFactory(without_traceback)
    try:
        yield
    except Exception as error:
        if (found := user_error(error)) is error:
            raise
        raise found from error
    finally:
        logging.setLogRecordFactory(plain)


def _print_keys(config: Any, bundle: str, files: Sequence[Path]) -> None:
    """The keys that a user sets, with what is said of them."""
    table = Table.grid(padding=(0, 2))
    for key, value in config.items():
        if not key.startswith("_") and not isinstance(value, dict) and key not in ("imports", "initialize", "run"):
            table.add_row(Text(f"--{key}"), Text(str(value)), Text(str(config.get(f"_desc_{key}", ""))))
    console = Console()
    console.print(Text(f"Keys of {bundle} ({', '.join(os.path.relpath(file) for file in files)}), and their values:\n"))
    console.print(table)
