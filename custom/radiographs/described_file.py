"""One radiograph's file with what `--geometry` and the sidecar beside it say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from custom.projection.radiograph_stack import read_stack
from custom.radiographs.acquisition_metadata import Origin
from custom.radiographs.given_view import reading_of_view
from custom.radiographs.readings import Reading
from custom.radiographs.sidecar import (
    GeometryFile,
    GivenView,
    describe_view,
    find_sidecar,
    load_sidecar,
    load_stack_sidecar,
)

__all__ = ["DescribedFile", "check_count", "check_entries", "describe", "describe_stack"]


@dataclass(frozen=True, eq=False)
class DescribedFile:
    """A radiograph before it is read.

    Args:
        path: the file.
        name: what it is called in messages, with the view's index for stacks.
        sidecar: name of the file that the reader of a message should write into.
        reading: of geometry file and sidecar.
        view: that one of them gives whole.
    """

    path: Path
    name: str
    sidecar: str
    reading: Reading
    view: GivenView | None = None

    @property
    def is_overruled(self) -> bool:
        """Whether the geometry file says something of a view that the sidecar gives whole."""
        if self.view is None or self.view.origin is Origin.GEOMETRY_FILE:
            return False
        keys = {one.key for one in reading_of_view(self.view).values}
        return any(one.origin is Origin.GEOMETRY_FILE and one.key in keys for one in self.reading.values)


def _entry(geometry: GeometryFile | None, *keys: str) -> Reading:
    """What a geometry file with entries says of a file, by the first of these names."""
    entries = {} if geometry is None else geometry.entries
    return next((entries[key] for key in keys if key in entries), Reading())


def describe(path: Path, name: str, geometry: GeometryFile | None, position: int) -> DescribedFile:
    """What is said about one DICOM file or picture.

    Args:
        path: the file.
        name: what it is called in messages.
        geometry: of `--geometry`.
        position: of the file among all, for a geometry file with views.

    Raises:
        ValueError: for a sidecar that is none.
    """
    beside = find_sidecar(path)
    sidecar = (beside or path.with_name(f"{path.stem}.json")).name
    reading, view = _entry(geometry, str(path), name), None
    if geometry is not None and geometry.geometry is not None:
        view = describe_view(geometry.geometry, position, Origin.GEOMETRY_FILE, geometry.path)
    if beside is not None:
        described = load_sidecar(beside)
        reading += described.reading
        if view is None:
            view = described.view
        elif described.view is not None:
            reading += reading_of_view(described.view)
    return DescribedFile(path, name, sidecar, reading, view)


def describe_stack(path: Path, name: str, geometry: GeometryFile | None) -> list[tuple[DescribedFile, Tensor]]:
    """What is said about every view of a NIfTI stack, and its line integrals (V, U).

    Raises:
        FileNotFoundError: nothing says how it was taken.
        ValueError: a damaged stack, or one of another size than its geometry.
    """
    beside = find_sidecar(path)
    stem = path.name.removesuffix(".gz").removesuffix(".nii")
    common, own = Reading(), None
    if beside is not None:
        common, own = load_stack_sidecar(beside)
    named = geometry.geometry if geometry is not None else None
    first, where = (named, geometry) if named is not None else (own, None)
    said = f"--geometry {where.path.name}" if where is not None else f"sidecar {beside.name if beside else ''}"
    stack = read_stack(path, first, said)
    count = len(stack)
    if named is not None and own is not None and len(own) != count:
        raise ValueError(f"{path}: {count} radiographs, but sidecar {beside.name if beside else ''} has {len(own)}")
    whole = _entry(geometry, str(path), name)
    entries = [_entry(geometry, f"{path}[{k}]", f"{name}[{k}]") for k in range(count)]
    if first is None:
        if not (common.values or whole.values or any(entry.values for entry in entries)):
            raise FileNotFoundError(f"{path}: no geometry: {stem}.json beside it (Geometry.save), or --geometry FILE")
        if count > 1 and not all(entry.values for entry in entries):
            raise ValueError(
                f"{path}: {count} radiographs that one entry cannot describe: name each, as {name}[0], or write a "
                f"Geometry with {count} views into {stem}.json beside it"
            )
    found = []
    for k in range(count):
        view = None
        reading = entries[k] + whole + common
        if named is not None and geometry is not None:
            view = describe_view(named, k, Origin.GEOMETRY_FILE, geometry.path)
        if own is not None and beside is not None:
            beside_view = describe_view(own, k, Origin.SIDECAR, beside)
            view, reading = (beside_view, reading) if view is None else (view, reading + reading_of_view(beside_view))
        found.append((DescribedFile(path, f"{name}[{k}]", f"{stem}.json", reading, view), stack[k]))
    return found


def check_count(geometry: GeometryFile | None, kinds: Sequence[str]) -> None:
    """Refuse a geometry file with another number of views than there are radiographs.

    Raises:
        ValueError: naming the file.
    """
    if geometry is None or geometry.geometry is None:
        return
    if "NIfTI" not in kinds and len(kinds) != len(geometry.geometry):
        raise ValueError(
            f"{geometry.path}: describes {len(geometry.geometry)} views, there are {len(kinds)} radiographs"
        )
    if "NIfTI" in kinds and len(kinds) > 1:
        raise ValueError(f"--geometry {geometry.path.name} describes one stack; give the NIfTI file alone")


def check_entries(geometry: GeometryFile | None, names: Sequence[str]) -> None:
    """Refuse a geometry file that describes what is not there.

    Args:
        geometry: of `--geometry`.
        names: that entries may use: paths, names, names with the index of a view.

    Raises:
        ValueError: naming the file and the entry.
    """
    unused = sorted(set(geometry.entries) - set(names)) if geometry is not None else []
    if geometry is not None and unused:
        raise ValueError(f"{geometry.path}: describes {unused[0]!r}, which is not among the radiographs")
