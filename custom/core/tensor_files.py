"""Reading files of tensors, in this one place: what they claim is checked before torch reserves it."""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from custom.core.limits import check_count

__all__ = ["load_tensors", "not_finite"]

#: Bytes of the pickle, which holds names, shapes and numbers; operations in it, of a few bytes each; and values in
#: the lists and dictionaries that they make, where one that is named twice counts twice.
LARGEST_PICKLE, MOST_OPERATIONS, MOST_VALUES = 64 * 2**20, 2**21, 2**20
#: All that a pickle of tensors, numbers and texts calls. torch allows more, such as bytearray(10**10).
_CALLED = (
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    "torch Size",
)
_STORAGE = "Storage"
_ZIP = b"PK\x03\x04"


def load_tensors(path: Path, mmap: bool = False) -> Any:
    """What `write_tensors` wrote, on the CPU, without running code of the file's choice.

    Args:
        path: the file.
        mmap: leave tensors in the file until they are used.

    Raises:
        ValueError: naming the file: no file of torch.save, or one that would take more memory than it has bytes.
        RuntimeError, pickle.UnpicklingError and others of torch: damaged.
    """
    with open(path, "rb") as stream:
        if stream.read(4) != _ZIP:  # torch goes by the beginning, zipfile by the end: they must mean the same archive
            raise ValueError(f"{path}: is not a file of torch.save (of its zip format)")
    try:
        with zipfile.ZipFile(path) as archive:
            if min((member.header_offset for member in archive.infolist()), default=0):
                raise ValueError(f"{path}: there is something before its archive")
            unpacked = sum(member.file_size for member in archive.infolist())
            if unpacked > path.stat().st_size:
                raise ValueError(f"{path}: its members claim {unpacked} bytes, the file has {path.stat().st_size}")
            names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(names) != 1:
                raise ValueError(f"{path}: {len(names)} data.pkl in it, there must be one")
            check_count(path, "bytes of pickle", archive.getinfo(names[0]).file_size, LARGEST_PICKLE)
            pickled = archive.read(names[0])
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path}: is not a file of torch.save ({error})") from error
    for count, (operation, argument, _) in enumerate(pickletools.genops(pickled)):
        if count % 2**16 == 0:
            check_count(path, "operations of its pickle", count, MOST_OPERATIONS)
        if operation.name in ("GLOBAL", "STACK_GLOBAL", "INST") and not (
            argument in _CALLED or (str(argument).startswith("torch ") and str(argument).endswith(_STORAGE))
        ):
            raise ValueError(f"{path}: calls {argument}, which no file of tensors does")
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    spread = 0
    for count, value in enumerate(_values(content)):
        if count % 2**12 == 0:
            check_count(path, "values", count, MOST_VALUES)
        spread += value.numel() * value.element_size() if isinstance(value, torch.Tensor) else 0
    # Some share their memory, such as averaged weights; a step of zero makes gigabytes of one number.
    check_count(path, "bytes of tensors", spread, 8 * path.stat().st_size)
    return content


def not_finite(value: Any, name: str = "") -> str:
    """The name of the first tensor in dictionaries and lists that holds NaN or infinity; "" where none does."""
    if isinstance(value, torch.Tensor):
        return "" if bool(torch.isfinite(value).all()) else name
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    return next((bad for key, entry in entries if (bad := not_finite(entry, f"{name}.{key}".lstrip(".")))), "")


def _values(content: Any) -> Iterator[Any]:
    """All that is in lists and dictionaries, and these themselves."""
    waiting = [iter((content,))]
    while waiting:
        for value in waiting[-1]:
            yield value
            if isinstance(value, dict | list | tuple):
                waiting.append(iter(value.values() if isinstance(value, dict) else value))
                break
        else:
            waiting.pop()
