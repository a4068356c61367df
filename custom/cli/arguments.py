"""Words of the command line become the arguments of a function, by cyclopts, from its signature and docstring.

Functions stay as Python calls them: no decorator, no annotation for the command line. What is particular to this
program stands here: names keep their underscores, a sequence is one word (`--angles_deg 0,45,90`), a switch is turned
off by `--noNAME`, and what has a default is an option, not a position.
"""

from __future__ import annotations

import functools
import inspect
import os
import types
import typing
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Group, Parameter

__all__ = ["UsageError", "add_command", "new_app", "parsed"]

GLOBAL_OPTIONS = (
    "With every command: `--quiet` says warnings and errors alone, `--verbose` more than usual, `--debug` that and the "
    "traceback of an error."
)


class UsageError(ValueError):
    """Arguments that do not fit the command."""


def new_app(program: str, summary: str, version: str) -> App:
    """An app without commands."""
    parameter = Parameter(name_transform=lambda name: name, negative_iterable=(), negative_none=())
    help_text = f"{summary}\n\n{GLOBAL_OPTIONS}"
    return App(
        name=program, help=help_text, version=version, version_flags=["--version", "-V"], default_parameter=parameter,
        help_format="markdown", usage=f"Usage: {program} COMMAND [ARGUMENTS]",
    )  # fmt: skip


def add_command(app: App, name: str, function: Callable[..., Any] | str, group: str, order: int) -> None:
    """Makes a function a command, or, where it is a text, a name that stands in the list with it."""
    sorted_group = _group(group, order)
    if isinstance(function, str):
        app.command(App(name=name, help=function, group=sorted_group))
    else:
        app.command(_described(function), name=name, group=sorted_group)


@functools.cache
def _group(name: str, order: int) -> Group:
    return Group(name, sort_key=order)


def parsed(app: App, name: str, words: Sequence[str]) -> inspect.BoundArguments:
    """The arguments that the words of a command mean; nothing is run.

    Raises:
        UsageError: an unknown or missing option, a value of another type.
    """
    arguments = app[name].assemble_argument_collection()
    names = {key for argument in arguments for key in argument.names}
    switches = {_plain(key) for argument in arguments if bool in _kinds(argument.hint) for key in argument.names}
    words = _joined([_spelt(word, names) for word in words], switches)
    try:
        _, bound, _ = app.parse_args([name, *words], print_error=False, exit_on_error=False)
    except CycloptsError as error:
        text = " ".join(str(error).split()).removeprefix(f'Command "{name}" parameter ').rstrip(".")
        raise UsageError(f"{text}; {app.name[0]} {name} --help shows the options") from error
    return bound


def _spelt(word: str, names: set[str]) -> str:
    """An option with the hyphens of its name as underscores, where only that is an option."""
    option, equals, value = word.partition("=")
    other = "--" + option[2:].replace("-", "_")
    return other + equals + value if option.startswith("--") and option not in names and other in names else word


def _joined(words: Sequence[str], switches: set[str]) -> list[str]:
    """`--switch False`, which is allowed too, as the one word that it is read from."""
    joined: list[str] = []
    for word in words:
        if word.lower() in ("true", "false") and joined and _plain(joined[-1]) in switches:
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _plain(option: str) -> str:
    return option.replace("-", "_")


def _kinds(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _described(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with the signature that the command line has."""
    hints = typing.get_type_hints(function)
    parameters = list(inspect.signature(function).parameters.values())
    needs_words = any(p.default is p.empty and p.kind is not p.KEYWORD_ONLY for p in parameters)
    changed = []
    for index, parameter in enumerate(parameters):
        annotation = _annotation(parameter, hints.get(parameter.name, str))
        kind = parameter.kind
        if kind is kind.POSITIONAL_OR_KEYWORD:
            first_of_options = index == 0 and not needs_words  # `doctor FILE`
            positional = parameter.default is parameter.empty or first_of_options
            kind = parameter.POSITIONAL_OR_KEYWORD if positional else parameter.KEYWORD_ONLY
        changed.append(parameter.replace(annotation=annotation, kind=kind))

    @functools.wraps(function)
    def command(*args: Any, **keywords: Any) -> Any:
        return function(*args, **keywords)

    del command.__wrapped__  # type: ignore[attr-defined]
    command.__signature__ = inspect.Signature(changed)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in changed}
    return command


def _annotation(parameter: inspect.Parameter, hint: Any) -> Any:
    kinds = _kinds(hint)
    given = [kind for kind in kinds if kind is not types.NoneType]
    kind: Any = given[0]
    if str in given or typing.get_origin(kind) is os.PathLike:
        kind = str
    optional = types.NoneType in kinds
    options: dict[str, Any] = {}
    if _is_sequence(kind):
        options = {"converter": functools.partial(_sequence, kind), "n_tokens": 1}
    elif kind in (int, float):
        options = {"converter": functools.partial(_number, kind)}  # cyclopts would round 1.5 to an int
    elif kind is bool:
        options = {"negative": (f"--no{parameter.name}", f"--no-{parameter.name}")}
    if parameter.default is not parameter.empty:
        options["show_default"] = _written if parameter.default not in (None, "", ()) else False
    return Annotated[kind | None if optional else kind, Parameter(**options)]


def _is_sequence(kind: Any) -> bool:
    origin = typing.get_origin(kind)
    return inspect.isclass(origin) and issubclass(origin, Sequence)


def _sequence(kind: Any, _: Any, tokens: Sequence[Any]) -> Any:
    """The values of one word between commas, as Python writes a tuple or list of them, too."""
    text = tokens[-1].value.strip()
    if text in ("None", "none"):
        return None
    words = [word.strip().strip("'\"") for word in text.strip("[]()").split(",") if word.strip()]
    members = [member for member in typing.get_args(kind) if member is not ...]
    fixed = typing.get_origin(kind) is tuple and ... not in typing.get_args(kind)
    if fixed and len(words) != len(members):
        raise ValueError(f"takes {len(members)} values; got {text!r}")
    return tuple(_value(word, members[index if fixed else 0]) for index, word in enumerate(words))


def _number(kind: type, _: Any, tokens: Sequence[Any]) -> Any:
    word = tokens[-1].value.strip()
    return None if word in ("None", "none") else _value(word, kind)


def _value(word: str, kind: type) -> Any:
    try:
        return kind(word)
    except ValueError:
        raise ValueError(f"takes {kind.__name__}; got {word!r}") from None


def _written(value: Any) -> str:
    """A default as one would type it."""
    if isinstance(value, tuple | list):
        return ",".join(_written(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
