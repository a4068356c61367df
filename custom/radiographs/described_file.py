"""One radiograph's file with what `--geometry` and the sidecar beside it say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from custom.geometry import Geometry
from custom.projection.radiograph_stack import read_stack
from custom.radiographs.acquisition_metadata import Origin
from custom.radiographs.given_view import reading_of_view
from custom.radiographs.readings import Reading
from custom.radiographs.sidecar import GeometryFile, GivenView, find_sidecar, load_sidecar

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


def _described(
    path: Path, name: str, sidecar: str, reading: Reading, given: Sequence[tuple[Geometry, int, Origin, Path]]
) -> DescribedFile:
    """A file whose view is the first that is given; a second one is compared with it."""
    views = [GivenView.of(*one) for one in given]
    return DescribedFile(path, name, sidecar, sum(map(reading_of_view, views[1:]), reading), *views[:1])


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
    reading, own = (Reading(), None) if beside is None else load_sidecar(beside)
    named = None if geometry is None else geometry.geometry
    if own is not None and len(own) != 1:
        raise ValueError(f"{beside}: describes {len(own)} views, but stands beside one radiograph")
    sidecar = (beside or path.with_suffix(".json")).name
    given = [] if geometry is None or named is None else [(named, position, Origin.GEOMETRY_FILE, geometry.path)]
    given += [] if beside is None or own is None else [(own, 0, Origin.SIDECAR, beside)]
    return _described(path, name, sidecar, _entry(geometry, str(path), name) + reading, given)


def describe_stack(path: Path, name: str, geometry: GeometryFile | None) -> list[tuple[DescribedFile, Tensor]]:
    """What is said about every view of a NIfTI stack, and its line integrals (V, U).

    Raises:
        FileNotFoundError: nothing says how it was taken.
        ValueError: a damaged stack, or one of another size than its geometry.
    """
    beside = find_sidecar(path)
    sidecar = path.name.removesuffix(".gz").removesuffix(".nii") + ".json"
    common, own = (Reading(), None) if beside is None else load_sidecar(beside)
    named = None if geometry is None else geometry.geometry
    said = f"sidecar {sidecar}" if named is None or geometry is None else f"--geometry {geometry.path.name}"
    stack = read_stack(path, own if named is None else named, said)
    count = len(stack)
    if own is not None and len(own) != count:
        raise ValueError(f"{path}: {count} radiographs, but sidecar {sidecar} describes {len(own)}")
    whole = _entry(geometry, str(path), name)
    entries = [_entry(geometry, f"{path}[{k}]", f"{name}[{k}]") for k in range(count)]
    if named is None and own is None:
        if not (common.values or whole.values or any(entry.values for entry in entries)):
            raise FileNotFoundError(f"{path}: no geometry: {sidecar} beside it (Geometry.save), or --geometry FILE")
        if count > 1 and not all(entry.values for entry in entries):
            raise ValueError(
                f"{path}: {count} radiographs that one entry cannot describe: name each, as {name}[0], or write a "
                f"Geometry with {count} views into {sidecar} beside it"
            )
    found = []
    for k in range(count):
        given = [] if geometry is None or named is None else [(named, k, Origin.GEOMETRY_FILE, geometry.path)]
        given += [] if beside is None or own is None else [(own, k, Origin.SIDECAR, beside)]
        file = _described(path, f"{name}[{k}]", sidecar, entries[k] + whole + common, given)
        found.append((file, stack[k]))
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
