"""The console command ``fewview-ct``: one verb a function of the package, options as the function's arguments.

A verb's module is imported only when the verb is called, so that help comes at once. The function runs only after all
arguments were understood, since a job must not run for an hour before it turns out that an option was mistyped. Errors
are one line; `ExitCode` says what the codes mean.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import gc
import importlib
import logging
import os
import sys
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from custom import __version__
from custom.cli.arguments import UsageError, add_command, new_app, parsed
from custom.cli.exit_codes import ExitCode
from custom.core.file_modes import new_mode
from custom.core.names import printable
from custom.core.user_errors import BAD_INPUT_ERRORS

__all__ = ["VERBS", "Verb", "command_app", "main"]

logger = logging.getLogger(__name__)

PROGRAM = "fewview-ct"
LEVELS = {"--quiet": logging.WARNING, "--verbose": logging.DEBUG, "--debug": logging.DEBUG}


class Verb(NamedTuple):
    """A word of the command line: which function it calls, and what to say of it in the list."""

    module: str
    function: str
    summary: str
    group: str = "Other"  # heading that it stands under in the list
    replaced: Mapping[str, str] = types.MappingProxyType({})  # options that are gone, and what is there instead
    bundle_function: str = ""  # of custom.cli.bundle_commands, for the same word with a bundle after it


#: Headings of the list of commands.
RECONSTRUCT, DATA, NETWORKS, HERE = "Reconstruct", "Data", "Networks", "This installation"

VERBS = {
    "reconstruct": Verb(
        "custom.cli.reconstruct_command",
        "command",
        "Turn radiographs into a CT, with uncertainty and a report on how far to trust it",
        RECONSTRUCT,
        {
            "--radiographs": "name the radiographs without an option",
            "--checkpoint": "it is --model, which takes a weights file, a folder or a name",
        },
    ),
    "next-view": Verb(
        "custom.cli.next_view_command", "command", "Say which further radiograph would tell most", RECONSTRUCT
    ),
    "drift": Verb(
        "custom.cli.drift_command",
        "command",
        "Say whether patients or devices have changed since calibration",
        RECONSTRUCT,
    ),
    "plan": Verb(
        "custom.cli.plan_command",
        "command",
        "Plan radiotherapy on a reconstruction, and say how wrong it is",
        RECONSTRUCT,
    ),
    "demo": Verb("custom.cli.demo", "run", "Reconstruct the sample patient from simulated radiographs", RECONSTRUCT),
    "app": Verb(
        "custom.app.serve", "serve", "Serve a local web page: radiographs in, questions, CT and report out", RECONSTRUCT
    ),
    "fetch": Verb(
        "custom.dicom.fetch", "fetch", "Fetch the DICOM files of a study or patient by DICOMweb", RECONSTRUCT
    ),
    "send": Verb("custom.dicom.network", "send", "Send DICOM files to a PACS, by C-STORE or STOW-RS", RECONSTRUCT),
    "fetch-cohort": Verb(
        "custom.data.fetch_cohort", "fetch_cohort", "Choose public chest CTs by licence, and fetch them", DATA
    ),
    "prepare": Verb(
        "custom.data.prepare", "prepare", "Turn CTs (DICOM, NIfTI, MetaImage) into a cohort with a split", DATA
    ),
    "simulate": Verb("custom.data.simulate", "simulate", "Compute and store radiographs of a prepared cohort", DATA),
    "phantom": Verb("custom.data.phantom", "write_phantoms", "Make a cohort of procedural thoraces with labels", DATA),
    "shapes": Verb(
        "custom.data.shapes", "register_cohort", "Register a cohort's chests, so that training can mix shapes", DATA
    ),
    "atlas": Verb(
        "custom.sampling.atlas", "write_atlas", "Put a cohort's CTs into the file that samples take detail from", DATA
    ),
    "lidc-labels": Verb(
        "custom.segmentation.lidc_labels", "write_lidc_labels", "Write label maps of LIDC-IDRI's nodules", DATA
    ),
    "train": Verb(
        "custom.cli.bundle_commands",
        "train_help",
        "Train a bundle: fewview-ct train BUNDLE [--key value ...]",
        NETWORKS,
        bundle_function="train",
    ),
    "infer": Verb(
        "custom.cli.bundle_commands",
        "infer_help",
        "Run a bundle's inference: fewview-ct infer BUNDLE [--key value ...]",
        NETWORKS,
        bundle_function="infer",
    ),
    "evaluate": Verb(
        "custom.evaluation.evaluate",
        "evaluate",
        "Compare reconstructions with the true volumes; or evaluate BUNDLE [--key value ...]",
        NETWORKS,
        bundle_function="evaluate",
    ),
    "benchmark": Verb(
        "custom.benchmark.comparison", "compare", "Compare methods on the same radiographs, on one page", NETWORKS
    ),
    "calibrate": Verb(
        "custom.evaluation.calibrate", "calibrate", "Make the thresholds of the trust checks from known CTs", NETWORKS
    ),
    "export": Verb("custom.cli.export_command", "command", "Pack a model with its parents into one folder", NETWORKS),
    "weights": Verb(
        "custom.models.weights", "fetch_weights", "Fetch a model by https or from a folder, by its hash", NETWORKS
    ),
    "bundles": Verb("custom.cli.bundles", "bundles", "Tell which MONAI bundles there are, and where", HERE),
    "completion": Verb(
        "custom.cli.completion", "completion", "Print what makes a shell complete commands and options", HERE
    ),
    "doctor": Verb("custom.cli.doctor", "doctor", "Tell what is installed and what is missing", HERE),
    "version": Verb("custom.cli.doctor", "version", "Print the version", HERE),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and ends the process with its exit code.

    Args:
        arguments: words after the program's name; those of the process when None.
    """
    before = os.umask(0o077)
    try:
        with contextlib.suppress(ValueError):  # said by whoever writes first
            os.umask(0o777 & ~new_mode(0o777))
        code = _run(list(sys.argv[1:] if arguments is None else arguments))
    finally:
        os.umask(before)  # a program that calls this keeps its own
    sys.exit(code)


def command_app(*names: str) -> Any:
    """The commands as an app: those named with their options, which imports them, the others as words in the list."""
    app = new_app(PROGRAM, "A 3D CT volume from one to eight planar radiographs.", f"{PROGRAM} {__version__}")
    groups = list(dict.fromkeys(verb.group for verb in VERBS.values()))
    for name, verb in VERBS.items():
        function: Callable[..., Any] | str = _function(name) if name in names else verb.summary
        add_command(app, name, function, verb.group, groups.index(verb.group))
    return app


def _function(name: str) -> Callable[..., Any]:
    collecting = gc.isenabled()
    gc.disable()  # of the half million objects that imports leave none is garbage: looking costs a tenth of the start
    try:
        return getattr(importlib.import_module(VERBS[name].module), VERBS[name].function)
    finally:
        if collecting:
            gc.enable()


def _run(arguments: list[str]) -> int:
    said = [word for word in arguments if word in LEVELS]
    debug = "--debug" in said
    words = [word for word in arguments if word not in LEVELS]
    try:
        _set_up_logging(said)
        if not words or words[0] in ("-h", "--help", "help"):
            command_app().help_print([])
            return ExitCode.DONE
        name, words = ("version" if words[0] in ("-V", "--version") else words[0]), words[1:]
        if name not in VERBS:
            close = difflib.get_close_matches(name, VERBS, 1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(VERBS)}"
            raise UsageError(f"unknown command {name!r}; {hint}")
        result = _call(name, words)
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone (`| head`); keep Python from complaining again at its own exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.FAILED
    except Exception as error:
        if debug:
            logger.exception("%s failed", PROGRAM)
        else:
            sys.stderr.write(f"error: {printable(_one_line(error))}\n")
        return ExitCode.BAD_INPUT if _is_bad_input(error) else ExitCode.FAILED
    return result if isinstance(result, ExitCode) else ExitCode.DONE


def _call(name: str, words: list[str]) -> Any:
    """Runs a command; returns what its function returns."""
    verb = VERBS[name]
    for word in words:
        if word.split("=")[0] in verb.replaced:
            option = word.split("=")[0]
            raise UsageError(f"{option} is no longer an option of {name}: {verb.replaced[option]}")
    if verb.bundle_function and _names_bundle(name, words):
        return getattr(importlib.import_module("custom.cli.bundle_commands"), verb.bundle_function)(words)
    app = command_app(name)
    if "--help" in words or "-h" in words:
        app.help_print([name])
        return ExitCode.DONE
    bound = parsed(app, name, words)
    return _function(name)(*bound.args, **bound.kwargs)


def _names_bundle(name: str, words: list[str]) -> bool:
    """Whether a bundle and keys of its config follow: `evaluate BUNDLE --key value`, not `evaluate PRED TRUTH`."""
    if not words or words[0].startswith("-"):
        return False
    return name != "evaluate" or ((len(words) == 1 or words[1].startswith("--")) and "--truth" not in " ".join(words))


def _set_up_logging(said: Sequence[str]) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Printable("%(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("custom").setLevel(max((LEVELS[word] for word in said), default=logging.INFO))
    if "--quiet" in said:
        os.environ["TQDM_DISABLE"] = "1"  # read when tqdm is imported, which is later
    if not said or "--quiet" in said:
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")


class _Printable(logging.Formatter):
    """Messages without characters that a terminal obeys: they may quote what a file or a server says."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _is_bad_input(error: BaseException) -> bool:
    unusable_name = isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, errno.ELOOP)
    return unusable_name or isinstance(error, BAD_INPUT_ERRORS)


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    text = " ".join(str(error).split())
    if isinstance(error, BAD_INPUT_ERRORS) and text:
        return text
    hint = "" if isinstance(error, ImportError) else " (--debug shows where)"
    return f"{type(error).__name__}: {text}{hint}" if text else f"{type(error).__name__}{hint}"
