"""`DescribedFile`: one radiograph's file with what `--geometry` and the sidecar beside it say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from custom.projection.radiograph_stack import read_stack
from custom.radiographs.acquisition_metadata import SAID, Origin
from custom.radiographs.given_view import reading_of_view
from custom.radiographs.readings import Reading
from custom.radiographs.sidecar import DescriptionFile, GivenView, load_sidecar

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
        """Whether a geometry file or an answer says something of a view that the sidecar gives whole."""
        if self.view is None or self.view.origin is Origin.GEOMETRY_FILE:
            return False
        keys = {one.key for one in reading_of_view(self.view).values}
        return any(one.origin in SAID and one.key in keys for one in self.reading.values)


def _described(
    path: Path, name: str, files: Sequence[DescriptionFile], views: Sequence[GivenView], *names: str
) -> DescribedFile:
    """A radiograph whose view is the first that is given; a second one is compared with it."""
    beside = next((file.path for file in files if file.origin is Origin.SIDECAR), _expected_sidecar(path))
    reading = sum((file.reading(*names) for file in files), Reading())
    return DescribedFile(path, name, beside.name, sum(map(reading_of_view, views[1:]), reading), *views[:1])


def _expected_sidecar(path: Path) -> Path:
    return path.with_name(f"{path.name.removesuffix('.nii.gz') if path.name.endswith('.nii.gz') else path.stem}.json")


def describe(path: Path, name: str, named: DescriptionFile | None, position: int) -> DescribedFile:
    """What is said about one DICOM file or picture.

    Args:
        path: the file.
        name: what it is called in messages.
        named: the file of `--geometry`.
        position: of the radiograph among all, for a geometry file with views.

    Raises:
        ValueError: for a sidecar that is none.
    """
    beside = load_sidecar(path)
    if beside is not None and beside.geometry is not None and len(beside.geometry) != 1:
        raise ValueError(f"{beside.path}: describes {len(beside.geometry)} views, but stands beside one radiograph")
    files = [file for file in (named, beside) if file is not None]
    views = [view for file in files for view in file.views(position if file is named else 0)]
    return _described(path, name, files, views, str(path), name)


def describe_stack(path: Path, name: str, named: DescriptionFile | None) -> list[tuple[DescribedFile, Tensor]]:
    """What is said about every view of a NIfTI stack, and its line integrals (V, U).

    Raises:
        FileNotFoundError: nothing says how it was taken.
        ValueError: a damaged stack, or one of another size than its geometry.
    """
    sidecar = _expected_sidecar(path).name
    files = [file for file in (named, load_sidecar(path)) if file is not None]
    geometries = [(file.geometry, view.provenance) for file in files for view in file.views(0) if file.geometry]
    stack = read_stack(path, *(geometries[0] if geometries else (None,)))
    if bool((stack.amin(dim=(1, 2)) == stack.amax(dim=(1, 2))).any()):
        raise ValueError(f"{path}: all pixels of a radiograph have the same value, there is nothing to see")
    count = len(stack)
    for geometry, provenance in geometries:
        if len(geometry) != count:
            raise ValueError(f"{path}: {count} radiographs, but {provenance} describes {len(geometry)} views")
    keys = [(f"{path}[{k}]", f"{name}[{k}]", str(path), name) for k in range(count)]
    said = [any(file.reading(*names).values for file in files) for names in keys]
    each = [any(file.entries.keys() & set(names[:2]) for file in files) for names in keys]
    if not geometries and not any(said):
        raise FileNotFoundError(f"{path}: no geometry: {sidecar} beside it (Geometry.save), or --geometry FILE")
    if not geometries and count > 1 and not all(each):
        raise ValueError(
            f"{path}: {count} radiographs that one entry cannot describe: name each, as {name}[0], or write a "
            f"Geometry with {count} views into {sidecar} beside it"
        )
    views = [[view for file in files for view in file.views(k)] for k in range(count)]
    return [(_described(path, f"{name}[{k}]", files, views[k], *keys[k]), stack[k]) for k in range(count)]


def check_count(named: DescriptionFile | None, kinds: Sequence[str]) -> None:
    """Refuse a geometry file with another number of views than there are radiographs.

    Raises:
        ValueError: naming the file.
    """
    views = 0 if named is None or named.geometry is None else len(named.geometry)
    if named is None or not views:
        return
    if "NIfTI" not in kinds and len(kinds) != views:
        raise ValueError(f"{named.path}: describes {views} views, there are {len(kinds)} radiographs")
    if "NIfTI" in kinds and len(kinds) > 1:
        raise ValueError(f"--geometry {named.path.name} describes one stack; give the NIfTI file alone")


def check_entries(named: DescriptionFile | None, names: Sequence[str]) -> None:
    """Refuse a geometry file that describes what is not there.

    Args:
        named: the file of `--geometry`.
        names: that entries may use: paths, names, names with the index of a view.

    Raises:
        ValueError: naming the file and the entry.
    """
    unused = sorted(set(named.entries) - set(names)) if named is not None else []
    if named is not None and unused:
        raise ValueError(f"{named.path}: describes {unused[0]!r}, which is not among the radiographs")
