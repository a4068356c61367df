"""Keys of a bundle's config that nothing reads: mistyped overrides, which MONAI adds without a word."""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.properties import InferProperties, TrainProperties
from monai.bundle.reference_resolver import ReferenceResolver
from monai.utils import BundlePropertyConfig, ensure_tuple, optional_import

from custom.core.files import read_json_object
from custom.core.user_errors import said_last

__all__ = ["check_keys", "no_unknown_keys"]

SEPARATOR = ReferenceResolver.sep
#: Keys that MONAI itself reads, and those by which a run is started.
READ_BY_MONAI: set[str] = {
    str(item[BundlePropertyConfig.ID]) for table in (TrainProperties, InferProperties) for item in table.values()
} | {
    "imports", "initialize", "run", "finalize", "save_execute_config", "name", "training", "evaluating", "run_name",
}  # fmt: skip


def no_unknown_keys(unused: Sequence[str] = ()) -> None:
    """`check_keys` for the config that is being evaluated; an entry of its `initialize`.

    MONAI hands what a config calls no access to that config, but the parser that evaluates it stands in the stack.
    Under `python -m monai.bundle`, what is wrong stands from here on once more at the end of MONAI's traceback.

    Args:
        unused: keys that are there for other configs over or under this one.

    Raises:
        ValueError: as `check_keys`.
        RuntimeError: called from elsewhere.
    """
    program = getattr(sys.modules["__main__"], "__spec__", None)
    if program is not None and program.name == "monai.bundle.__main__":
        sys.excepthook = said_last
    frame, parser = inspect.currentframe(), None
    known = set(unused)
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, ConfigParser):
            parser = caller
        elif isinstance(caller, ConfigWorkflow):
            # An overlay may leave a key of the bundle's own configs unread.
            for file in caller.config_root_path.rglob("*.json"):
                known.update(read_json_object(file))
        frame = frame.f_back
    if parser is None:
        raise RuntimeError("no_unknown_keys is called by a config")
    check_keys(parser, sorted(known))


def check_keys(parser: ConfigParser, unused: Sequence[str] = (), given: Sequence[str] | None = None) -> None:
    """Refuses a config with a value that nothing reads, or an argument that its class does not take.

    Args:
        parser: with all overrides; its references are absolute (after `parse`).
        unused: keys that may be there all the same.
        given: overrides, as typed; only these are looked at. None: all keys.

    Raises:
        ValueError: naming the key as one types it ("train#trainer#max_epoch"), and the one that may have been meant; or
            a key whose value is the text "null", which MONAI's command line makes of a null that is meant as nothing.
    """
    config: Any = parser.config
    for key, value in _items(config, ""):
        if isinstance(value, str) and value == "null":
            raise ValueError(f"{_typed(key)} is the text 'null'; for nothing write --{_typed(key)} '$None'")
    read = READ_BY_MONAI | set(unused) | set(_references(config))
    looked_at = None if given is None else [ReferenceResolver.normalize_id(key) for key in given]
    for key, arguments in _unknown(config, "", read, parser):
        if looked_at is not None and not any(_is_part(key, one) or _is_part(one, key) for one in looked_at):
            continue
        stem, _, _ = key.rpartition(SEPARATOR)
        known = (
            (name for name, _ in _items(config, ""))
            if arguments is None
            else (f"{stem}{SEPARATOR}{name}" for name in arguments)
        )
        names = [_typed(name) for name in known if name != key]
        close = difflib.get_close_matches(_typed(key), names, 1, 0.75)
        hint = f"; did you mean {close[0]}?" if close else ""
        reason = "nothing in this config reads it" if arguments is None else "what it belongs to takes no such argument"
        raise ValueError(f"unknown key {_typed(key)}: {reason}{hint}")


def _is_part(key: str, of: str) -> bool:
    return key == of or key.startswith(of + SEPARATOR)


def _typed(key: str) -> str:
    return key.replace(SEPARATOR, "#")


def _items(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Keys of everything in a config that can be overridden, and what stands there."""
    if key:
        yield key, node
    if isinstance(node, dict):
        for name, value in node.items():
            if not str(name).startswith("_"):
                yield from _items(value, f"{key}{SEPARATOR}{name}" if key else str(name))


def _references(node: Any) -> Iterator[str]:
    """What the strings of a config refer to."""
    if isinstance(node, dict):
        for value in node.values():
            yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)
    elif isinstance(node, str) and "@" in node:
        yield from ReferenceResolver.match_refs_pattern(ReferenceResolver.normalize_id(node))


def _unknown(node: Any, key: str, read: set[str], parser: ConfigParser) -> Iterator[tuple[str, list[str] | None]]:
    """Keys that nothing reads; with the arguments that there are, where it is one of a class or function."""
    whole = key in read  # then all that is in it is read, too
    if isinstance(node, dict):
        is_component = "_target_" in node
        arguments = _arguments(node["_target_"], parser) if is_component else None
        for name, value in node.items():
            child = f"{key}{SEPARATOR}{name}" if key else str(name)
            if str(name).startswith("_"):
                continue
            if arguments is not None and name not in arguments:
                yield child, arguments
            yield from _unknown(value, child, read | {child} if whole or is_component else read, parser)
    elif isinstance(node, list) and any(isinstance(value, dict | list) for value in node):
        for index, value in enumerate(node):
            child = f"{key}{SEPARATOR}{index}"
            yield from _unknown(value, child, read | {child} if whole else read, parser)
    elif not whole and not any(_does_something(value) for value in (node if isinstance(node, list) else [node])):
        yield key, None


def _does_something(value: Any) -> bool:
    """An expression or a reference: something that a run may begin with."""
    return isinstance(value, str) and value[:1] in ("$", "@", "%")


def _arguments(target: Any, parser: ConfigParser) -> list[str] | None:
    """Arguments of a component's class or function; None: it takes any, or cannot be looked at."""
    if not isinstance(target, str) or _does_something(target):
        return None
    # As MONAI does: a short name is one of its own.
    module, _, name = target.rpartition(".")
    modules = [module] if module else ensure_tuple(parser.locator.get_component_module_name(name) or ())
    found: Any
    found, there = optional_import(modules[0], name=name) if len(modules) == 1 else (None, False)
    try:
        parameters = inspect.signature(found).parameters.values() if there else None
    except (TypeError, ValueError):
        return None
    if parameters is None or any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None  # where it is missing, MONAI says so when it builds it
    return [parameter.name for parameter in parameters]
