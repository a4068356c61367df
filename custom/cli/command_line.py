"""The console command ``fewview-ct``: one verb a function of the package, options as the function's arguments.

A verb's module is imported only when the verb is called, so that help comes at once. Fire reads the arguments; the
function runs only after all of them were understood, since a job must not run for an hour before it turns out that
an option was mistyped. Errors are one line; `ExitCode` says what the codes mean.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import io
import logging
import os
import re
import sys
import types
import typing
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import fire
from fire import decorators, helptext
from fire.core import FireExit
from fire.parser import DefaultParseValue
from fire.trace import FireTrace

from custom.cli.exit_codes import ExitCode
from custom.core.file_modes import new_mode

__all__ = ["VERBS", "Verb", "main"]

logger = logging.getLogger(__name__)

PROGRAM = "fewview-ct"
BAD_INPUT_ERRORS = (
    ValueError, FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError,
)  # fmt: skip


class Verb(NamedTuple):
    """A word of the command line: which function it calls, and what to say of it in the list."""

    module: str
    function: str
    summary: str
    replaced: Mapping[str, str] = types.MappingProxyType({})  # options that are gone, and what is there instead


VERBS = {
    "prepare": Verb("custom.data.prepare", "prepare", "Turn CTs (DICOM, NIfTI, MetaImage) into a cohort with a split"),
    "simulate": Verb("custom.data.simulate", "simulate", "Compute and store radiographs of a prepared cohort"),
    "phantom": Verb("custom.data.phantom", "write_phantoms", "Make a cohort of procedural thoraces with labels"),
    "shapes": Verb(
        "custom.data.shapes", "register_cohort", "Register a cohort's chests, so that training can mix shapes"
    ),
    "lidc-labels": Verb(
        "custom.segmentation.lidc_labels", "write_lidc_labels", "Write label maps of LIDC-IDRI's nodules"
    ),
    "reconstruct": Verb(
        "custom.cli.reconstruct_command",
        "command",
        "Turn radiographs into a CT, with uncertainty and a report on how far to trust it",
        {
            "--radiographs": "name the radiographs without an option",
            "--checkpoint": "it is --model, which takes a weights file, a folder or a name",
        },
    ),
    "next-view": Verb("custom.cli.next_view_command", "command", "Say which further radiograph would tell most"),
    "plan": Verb(
        "custom.cli.plan_command", "command", "Plan radiotherapy on a reconstruction, and say how wrong it is"
    ),
    "export": Verb("custom.models.model_folder", "export", "Pack a model with its parents into one folder"),
    "calibrate": Verb("custom.trust.calibrate", "calibrate", "Make the thresholds of the trust checks from known CTs"),
    "send": Verb("custom.dicom.network", "send", "Send DICOM files to a PACS, by C-STORE or STOW-RS"),
    "fetch": Verb("custom.dicom.fetch", "fetch", "Fetch the DICOM files of a study or patient by DICOMweb"),
    "evaluate": Verb("custom.evaluation.evaluate", "evaluate", "Compare reconstructions with the true volumes"),
    "benchmark": Verb("custom.benchmark.comparison", "compare", "Compare methods on the same radiographs, on one page"),
    "demo": Verb("custom.cli.demo", "run", "Reconstruct the sample patient from simulated radiographs"),
    "doctor": Verb("custom.cli.doctor", "doctor", "Tell what is installed and what is missing"),
    "version": Verb("custom.cli.doctor", "version", "Print the version"),
}


class UsageError(ValueError):
    """Arguments that do not fit the verb."""


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


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        sys.stdout.write(_overview())
        return 0
    if arguments[0] in ("-V", "--version"):
        arguments[0] = "version"
    debug = "--debug" in arguments
    arguments = [word for word in arguments if word != "--debug"]
    try:
        _set_up_logging(debug)
        name, words = arguments[0], arguments[1:]
        if name not in VERBS:
            raise UsageError(f"unknown command {name!r}; there are {', '.join(VERBS)}")
        function = getattr(importlib.import_module(VERBS[name].module), VERBS[name].function)
        if "--help" in words or "-h" in words:
            sys.stdout.write(_help(name, function))
            return 0
        positional, keywords = _parse(name, function, words)
        result = function(*positional, **keywords)
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
            sys.stderr.write(f"error: {_one_line(error)}\n")
        return ExitCode.BAD_INPUT if isinstance(error, BAD_INPUT_ERRORS) else ExitCode.FAILED
    return result if isinstance(result, ExitCode) else ExitCode.DONE


def _set_up_logging(debug: bool) -> None:
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    logging.getLogger("custom").setLevel(logging.DEBUG if debug else logging.INFO)
    if not debug:
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    text = " ".join(str(error).split())
    if isinstance(error, BAD_INPUT_ERRORS) and text:
        return text
    hint = "" if isinstance(error, ImportError) else " (--debug shows where)"
    return f"{type(error).__name__}: {text}{hint}" if text else f"{type(error).__name__}{hint}"


def _overview() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {name:<{width}}  {verb.summary}" for name, verb in VERBS.items()]
    return "\n".join(
        [
            "A 3D CT volume from one to eight planar radiographs.",
            "",
            f"usage: {PROGRAM} COMMAND [ARGUMENTS] [--debug]",
            "",
            *lines,
            "",
            f"{PROGRAM} COMMAND --help shows the options of a command; --debug shows the traceback of an error.",
            "",
        ]
    )


def _help(name: str, function: Callable[..., Any]) -> str:
    command = f"{PROGRAM} {name}"
    text = helptext.HelpText(function, trace=FireTrace(function, name=command))
    # Fire quotes what holds a space, and annotations that are still text.
    return re.sub(r"Type: '([^'\n]+)'", r"Type: \1", text.replace(f"'{command}'", command)) + "\n"


def _parse(name: str, function: Callable[..., Any], words: list[str]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Lets Fire read the words for the function's signature, without calling the function.

    Raises:
        UsageError: an unknown or missing option, a value of the wrong type.
    """
    taken: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    @functools.wraps(function)
    def record(*positional: Any, **keywords: Any) -> None:
        taken.append((positional, keywords))

    for word in words:
        option = word.split("=")[0]
        if option in VERBS[name].replaced:
            raise UsageError(f"{option} is no longer an option of {name}: {VERBS[name].replaced[option]}")
    hints = typing.get_type_hints(function)
    parameters = inspect.signature(function).parameters
    # Fire would read the case name 0001 as the number 1.
    texts: dict[str, Callable[[str], Any]] = {key: str for key, hint in hints.items() if _wants_text(hint)}
    texts |= {key: _words for key, hint in hints.items() if any(_holds_text(kind) for kind in _options(hint))}
    rest = [key for key, parameter in parameters.items() if parameter.kind is parameter.VAR_POSITIONAL]
    if rest and rest[0] in texts:
        # The words of *files have no name that Fire knows; its default reading goes to each of the others instead.
        others = {key: DefaultParseValue for key in parameters if key not in texts}
        decorators.SetParseFns(**texts, **others)(decorators.SetParseFn(str)(record))
    else:
        decorators.SetParseFns(**texts)(record)
    complaints = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaints):
            fire.Fire(record, command=words, name=f"{PROGRAM} {name}")
    except FireExit as end:
        reason = end.trace.elements[-1].ErrorAsStr() if end.trace.HasError() else "these arguments make no sense"
        raise UsageError(f"{reason}; {PROGRAM} {name} --help shows the options") from end
    positional, keywords = taken[0]
    bound = inspect.signature(function).bind(*positional, **keywords)
    for key, value in bound.arguments.items():
        if key in rest:
            bound.arguments[key] = tuple(_fit(key, item, hints[key]) for item in value)
        elif key in hints:
            bound.arguments[key] = _fit(key, value, hints[key])
    return bound.args, bound.kwargs


def _options(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the hint alone."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _wants_text(hint: Any) -> bool:
    kinds = _options(hint)
    return any(kind in (str, Path) or typing.get_origin(kind) is os.PathLike for kind in kinds) and not any(
        kind in (int, float, bool) or typing.get_origin(kind) not in (None, os.PathLike) for kind in kinds
    )


def _holds_text(hint: Any) -> bool:
    """Whether it is a sequence of text, such as Sequence[str]."""
    origin = typing.get_origin(hint)
    return inspect.isclass(origin) and issubclass(origin, Sequence) and set(typing.get_args(hint)) <= {str, ...}


def _words(text: str) -> list[str]:
    """Words between commas, which Fire would read as numbers, or leave together where one holds a hyphen."""
    return [word.strip() for word in text.strip("[]()").split(",") if word.strip()]


def _fit(name: str, value: Any, hint: Any) -> Any:
    """Checks a value that Fire guessed from a word against the function's type hint.

    Raises:
        UsageError: it is of another type.
    """
    kinds = _options(hint)
    if types.NoneType in kinds and value in (None, "None", "none"):
        return None
    for kind in kinds:
        origin = typing.get_origin(kind)
        if kind is Any or origin is typing.Literal or (isinstance(kind, type) and kind is type(value)):
            return value
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if kind in (str, Path) or origin is os.PathLike:
            return Path(value) if kind is Path else str(value)
        if inspect.isclass(origin) and issubclass(origin, Sequence):
            # One value given alone (--angles_deg 90) is a sequence of one.
            items = list(value) if isinstance(value, list | tuple) else [value]
            members = [member for member in typing.get_args(kind) if member is not ...]
            kept = (
                [_fit(name, item, members[min(i, len(members) - 1)]) for i, item in enumerate(items)]
                if members
                else items
            )
            if origin is tuple and ... not in typing.get_args(kind) and len(kept) != len(members):
                raise UsageError(f"--{name} takes {len(members)} values; got {value!r}")
            return kept if origin is list else tuple(kept)
        if inspect.isclass(origin) and isinstance(value, origin):
            return value
    wanted = " or ".join(getattr(kind, "__name__", str(kind)) for kind in kinds if kind is not types.NoneType)
    raise UsageError(f"--{name} takes {wanted}; got {value!r}")
