"""A real X-ray projection of a person whose CT is known: how like a simulated one it is, what a network makes of it.

The picture is a CT scanner's frontal localizer: a slit scan, fan along x, parallel along z (`slit_scan_views`). Its
values are turned into line integrals by one monotone curve, fitted to the projection of the CT in the same geometry;
then a published network reconstructs the CT from the real picture, from the simulated one in its place, and from an
ideal frontal radiograph.

    fewview-ct prepare DATA data/prepared
    python scripts/real_radiograph.py DATA/radiographs/acrin_nsclc_042_scout.dcm data/prepared acrin_nsclc_042 \
        outputs/real_radiograph --model bundles/inr_recon/models/ten_patients.pt \
        --others "['nlst_100252','qin_LSC0003']"
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fire
import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from localizer import Localizer, agreement, fit_curve, read_localizer, through_points
from matplotlib.figure import Figure
from torch import Tensor

from custom.core.attenuation import hu_to_attenuation
from custom.core.files import write_bytes, write_json
from custom.data.datalist import read_datalist
from custom.geometry import Geometry, slit_scan_views, views_from_angles
from custom.metrics import evaluate_volume
from custom.models import save_volume
from custom.models.model_folder import Model, load_model
from custom.projection import Projector, simulate_fine
from custom.projection.simulation import grid_of_ct
from custom.report.figures import DIFFERENCE_COLOURS, HU_DISPLAY, plane

logger = logging.getLogger(__name__)

Array = npt.NDArray[np.floating[Any]]

#: Value and line integral, as published with the picture of acrin_nsclc_042 in the notice of its data set, which does
#: not say how they were found or at which energy.
PUBLISHED_CURVE = ((-216.0, 1.0), (-117.0, 2.0), (-32.0, 3.0), (96.0, 4.2), (245.0, 6.0))
METRICS = ("psnr_range", "ssim", "mae_hu_body")
#: Angle of the source: in front of the patient or behind. The tags of a localizer without private elements do not say.
TUBE = {"front": 90.0, "back": 270.0}
_STRIP = 8


class Case:
    """A prepared CT, its cube, and a scanner around it. Coordinates are those of the cube's isocentre frame.

    Args:
        prepared: folder of `fewview-ct prepare`.
        name: of the case.
        model: whose grid and pixels count.
        localizer: whose distances count.
        axis_mm: x and y of the scanner's axis; None: 0, 0 of the CT's own frame.
    """

    def __init__(
        self, prepared: Path, name: str, model: Model, localizer: Localizer, axis_mm: Sequence[float] | None = None
    ) -> None:
        self.name = name
        source, cube = nib.load(prepared / f"source/{name}.nii.gz"), nib.load(prepared / f"ct/{name}.nii.gz")
        self.source_hu = np.asarray(source.dataobj, dtype=np.float32)  # type: ignore[attr-defined]
        self.truth_hu = np.asarray(cube.dataobj, dtype=np.float32)  # type: ignore[attr-defined]
        self.affine = source.affine  # type: ignore[attr-defined]
        if self.truth_hu.shape != model.grid.shape:
            raise ValueError(f"{name}: cube {self.truth_hu.shape}, but the model's grid is {model.grid.shape}")
        middle = np.append((np.array(self.truth_hu.shape) - 1) / 2, 1)
        self.isocenter = tuple(float(c) for c in (cube.affine @ middle)[:3])  # type: ignore[attr-defined]
        self.axis_mm = tuple(axis_mm or (-self.isocenter[0], -self.isocenter[1]))
        self.grid = grid_of_ct(self.source_hu.shape, self.affine, self.isocenter)
        self.attenuation = hu_to_attenuation(torch.from_numpy(self.source_hu), model.energy_kev)[None, None]
        self.scanner = localizer.source_to_isocenter_mm, localizer.source_to_detector_mm
        self.rows, self.columns = model.detector_shape or (self.truth_hu.shape[2], self.truth_hu.shape[0] * 3 // 2)
        self.pixel_mm = model.pixel_at_isocenter_mm

    def project(self, rows: int, columns: int, pixel_mm: Sequence[float], **options: Any) -> Tensor:
        """The slit scan of the CT, (rows, columns) line integrals, every row from a source position of its own."""
        views = slit_scan_views(rows, list(pixel_mm), *self.scanner, **{"axis_mm": self.axis_mm, **options})
        return Projector(self.grid, (1, columns), views.float())(self.attenuation)[0, :, 0]

    def simulated(self) -> Tensor:
        """The slit scan with the network's pixels, from finer ones, as in the setting `fine`."""
        fine = self.project(2 * self.rows, 2 * self.columns, (self.pixel_mm / 2,) * 2)
        return F.avg_pool2d(fine[None], 2)[0]

    def strips(self, picture: Tensor, rows_per_view: int) -> tuple[Tensor, Tensor]:
        """A picture with the network's pixels as radiographs (K, rows_per_view, U) and views (K, 13)."""
        views = slit_scan_views(
            len(picture), self.pixel_mm, *self.scanner, axis_mm=self.axis_mm, rows_per_view=rows_per_view
        )
        return picture.reshape(len(views), rows_per_view, -1), views.float()

    def parallel(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        """A picture as one parallel radiograph: right along z, no fan along x."""
        views = views_from_angles([TUBE["front"]], "parallel", *self.scanner, self.pixel_mm)
        views[:, 3:5] += torch.tensor(self.axis_mm, dtype=views.dtype)
        return picture[None], views.float()

    def ideal(self) -> tuple[Tensor, Tensor]:
        """A frontal parallel radiograph of the CT, in the setting `fine`."""
        geometry = Geometry.from_angles([TUBE["front"]], "parallel", isocenter_mm=self.isocenter)
        return simulate_fine(self.source_hu, self.affine, geometry), geometry.tensor()


@contextmanager
def every_row_its_view(model: Model, case: Case, picture: Tensor) -> Iterator[None]:
    """Within it, wherever the network projects, every row of the picture has a source position of its own.

    The network's convolutions need a picture, which one view has to stand for; its prior and its data consistency need
    none, and take the rows as they are: 10 mm strips, averaged to one row, and single rows.
    """
    network = model.network
    own = type(network)
    if not (hasattr(own, "_rough") and hasattr(own, "make_consistent")):
        raise ValueError(f"{model.name}: a {own.__name__} has no prior and no data consistency to give the rows to")
    prior_rows = max(1, round(network.prior.grid.spacing_mm[2] / case.pixel_mm))
    (rough, rough_views), (rows, row_views) = (
        (i[None], v[None]) for i, v in (case.strips(picture, n) for n in (prior_rows, 1))
    )

    def from_strips(image: Tensor, views: Tensor, view_mask: Tensor | None, priors: Any = None) -> Any:
        return own._rough(network, rough, rough_views, None, priors)

    def from_rows(pred: Tensor, image: Tensor, views: Tensor, view_mask: Any, context: Any, *options: Any) -> Tensor:
        return own.make_consistent(network, pred, rows, row_views, None, context, *options)

    network._rough, network.make_consistent = from_strips, from_rows
    try:
        yield
    finally:
        del network._rough, network.make_consistent


def reconstructions(model: Model, case: Case, picture: Tensor) -> dict[str, Callable[[], Tensor]]:
    """By name of the geometry that the network is told: the volume (X, Y, Z) HU that it makes of a slit scan."""

    def row_by_row() -> Tensor:
        with every_row_its_view(model, case, picture):
            return model.mean(*case.parallel(picture))

    return {
        "every row its own view": row_by_row,
        "one parallel view": lambda: model.mean(*case.parallel(picture)),
        "one cone view": lambda: model.mean(*case.strips(picture, len(picture))),
        f"{len(picture) // _STRIP} cone views of {_STRIP} rows": lambda: model.mean(*case.strips(picture, _STRIP)),
    }


def averaged(localizer: Localizer, picture: Array, case: Case) -> Tensor:
    """A localizer's picture on the network's pixels around the scanner's axis and the cube's middle: means of areas."""
    # Where the cube's middle and the axis are in the picture, from its middle downwards and towards the patient's left.
    wanted = localizer.middle_mm[1] - case.isocenter[2], -localizer.middle_mm[0]
    shape, weights = (case.rows, case.columns), []
    for axis in (0, 1):
        fine, coarse = localizer.pixel_mm[axis], case.pixel_mm
        old = (np.arange(picture.shape[axis] + 1) - picture.shape[axis] / 2) * fine
        new = (np.arange(shape[axis] + 1) - shape[axis] / 2) * coarse + wanted[axis]
        overlap = np.minimum(new[1:, None], old[None, 1:]) - np.maximum(new[:-1, None], old[None, :-1])
        overlap = overlap.clip(min=0)
        if not np.allclose(overlap.sum(1), coarse, rtol=1e-3):
            raise ValueError("the localizer does not cover the detector of the network around the cube")
        weights.append(overlap / coarse)
    return torch.from_numpy(weights[0] @ picture @ weights[1].T).float()


def find_tube(localizer: Localizer, case: Case) -> tuple[Array, tuple[slice, slice], dict[str, Any]]:
    """The CT's projection in the picture's place and pixels, from the side of the patient that the picture shows.

    Returns:
        Line integrals (rows, columns), the part of them that the CT covers, and the correlations with the stored values
        by side, and by height of the scanner's axis above what the tags say.
    """
    (rows, columns), (left, height) = localizer.values.shape, localizer.middle_mm
    half, center = case.grid.half_extent_mm, case.grid.center_mm
    down = (np.arange(rows) - (rows - 1) / 2) * localizer.pixel_mm[0]
    along_z = (height - case.isocenter[2] - center[2] - down).astype(float)
    along_u = (np.arange(columns) - (columns - 1) / 2) * localizer.pixel_mm[1] + left
    margin = 5.0
    seen = tuple(
        slice(int(inside[0]), int(inside[-1]) + 1)
        for inside in (np.flatnonzero(np.abs(x) < h - margin) for x, h in ((along_z, half[2]), (along_u, half[0])))
    )

    def projected(side: str, higher_mm: float = 0.0) -> Array:
        sign = 1 if side == "front" else -1  # from behind, u runs towards the patient's right
        axis = case.axis_mm[0], case.axis_mm[1] + higher_mm
        picture = case.project(
            rows,
            columns,
            localizer.pixel_mm,
            angle_deg=TUBE[side],
            axis_mm=axis,
            middle_mm=(sign * left, height - case.isocenter[2]),
        )
        return picture.numpy()[:, ::sign].astype(np.float64)

    def likeness(picture: Array) -> float:
        return float(np.corrcoef(picture[seen].ravel(), localizer.values[seen].ravel())[0, 1])

    by_side = {side: projected(side) for side in TUBE}
    sides = {side: likeness(picture) for side, picture in by_side.items()}
    best = max(sides, key=lambda side: sides[side])
    if best != "front":
        raise ValueError(f"the picture fits a tube behind the patient ({sides}), which is not built here")
    heights = {mm: likeness(projected(best, mm)) for mm in (-20.0, -10.0, -5.0, 5.0, 10.0, 20.0)}
    return by_side[best], seen, {"correlation_by_side": sides, "correlation_by_axis_higher_mm": heights}  # type: ignore[return-value]


def thirds(rows: int) -> dict[str, slice]:
    cuts = [round(rows * part / 3) for part in range(4)]
    return {name: slice(*cuts[k : k + 2]) for k, name in enumerate(("upper", "middle", "lower"))}


def mean_of_others(prepared: Path, case: str) -> Array:
    """The mean cube of the cohort's other training CTs."""
    names = [entry["label"] for entry in read_datalist(prepared / "datalist.json")["training"] if entry["case"] != case]
    cubes = (np.asarray(nib.load(prepared / name).dataobj, dtype=np.float32) for name in names)  # type: ignore[attr-defined]
    return np.asarray(sum(cube.clip(-1000, 1000) for cube in cubes) / len(names))


def draw(path: Path, pictures: Sequence[Array], aspect: float, volumes: Sequence[Array]) -> None:
    """Radiographs and their difference above, coronal and sagittal slices of three volumes below; a JPEG."""
    real, simulated = pictures
    figure = Figure(figsize=(10, 10.9), facecolor="#0d0f12", layout="constrained")
    axes = figure.subplots(3, 3, height_ratios=(1.0, 1.0, 1.0))
    shown = [(real, "real localizer"), (simulated, "simulated from the CT"), (real - simulated, "real - simulated")]
    for k, (picture, name) in enumerate(shown):
        limits, colours = ((0, 6.5), "gray") if k < 2 else ((-1.5, 1.5), DIFFERENCE_COLOURS)
        drawn = axes[0, k].imshow(picture, vmin=limits[0], vmax=limits[1], cmap=colours, aspect=aspect)
        axes[0, k].set_title(name, color="#e8eaed", fontsize=10)
        bar = figure.colorbar(drawn, ax=axes[0, k], orientation="horizontal", shrink=0.7, pad=0.02, aspect=30)
        bar.ax.tick_params(colors="#9aa0a6", labelsize=8)
        bar.set_label("line integral", color="#9aa0a6", fontsize=8)
    for row, name in enumerate(("coronal", "sagittal"), 1):
        for k, (volume, title) in enumerate(
            zip(volumes, ("CT", "from the real picture", "from the simulated"), strict=True)
        ):
            axes[row, k].imshow(plane(volume, name), vmin=HU_DISPLAY[0], vmax=HU_DISPLAY[1], cmap="gray")
            axes[row, k].set_title(f"{title}, {name}", color="#e8eaed", fontsize=10)
    for one in axes.flat:
        one.set_axis_off()
    content = io.BytesIO()
    options = {"quality": 85, "optimize": True}
    figure.savefig(content, format="jpeg", dpi=110, facecolor=figure.get_facecolor(), pil_kwargs=options)
    write_bytes(path, content.getvalue())


def table(rows: Sequence[dict[str, Any]], first: Sequence[str]) -> str:
    lines = [" | ".join([*first, *METRICS]), " | ".join("---" for _ in [*first, *METRICS])]
    for row in rows:
        found = f"{row['psnr_range']:.2f}", f"{row['ssim']:.3f}", f"{row['mae_hu_body']:.0f}"
        lines.append(" | ".join([*(str(row[name]) for name in first), *found]))
    return "\n".join(f"| {line} |" for line in lines)


def main(
    localizer_file: str,
    prepared: str,
    case: str,
    output: str,
    model: str = "inr_recon",
    others: Sequence[str] = (),
    published_curve: Sequence[Sequence[float]] = PUBLISHED_CURVE,
    picture: str | None = None,
) -> None:
    """Compare a localizer with the projection of its CT and reconstruct from both.

    Args:
        localizer_file: DICOM of the frontal localizer.
        prepared: folder of `fewview-ct prepare`.
        case: the CT of the same session, in the CT's own coordinates; no CT that the model was trained on.
        output: folder for result.json, result.md and the volumes.
        model: as `fewview-ct reconstruct` takes it; a volume network with a prior and data consistency.
        others: other cases, whose slit scans are simulated too, to choose the geometry by more than one patient.
        published_curve: pairs of value and line integral, to compare the fitted curve with.
        picture: JPEG to draw.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    folder, cohort = Path(output), Path(prepared)
    folder.mkdir(parents=True, exist_ok=True)
    localizer, network = read_localizer(localizer_file), load_model(model)
    patient = Case(cohort, case, network, localizer)
    found: dict[str, Any] = {}

    simulated, seen, found["tube"] = find_tube(localizer, patient)
    values = localizer.values
    found["correlation_of_stored_values"] = float(np.corrcoef(values[seen].ravel(), simulated[seen].ravel())[0, 1])
    air = float(np.median(values[seen][simulated[seen] < 0.02]))
    found["value_of_air"] = air
    curves = {"fitted": fit_curve(values[seen], simulated[seen]), "published": through_points(published_curve, air)}
    found["fitted_curve"] = [(v, float(np.interp(v, *curves["fitted"]))) for v, _ in published_curve]
    pictures = {name: np.interp(values, *curve) for name, curve in curves.items()}
    for name, one in pictures.items():
        found[f"agreement_{name}"] = agreement(one[seen], simulated[seen], localizer.pixel_mm)
    found["agreement_by_height"] = {
        name: agreement(pictures["fitted"][seen][part], simulated[seen][part], localizer.pixel_mm)
        for name, part in thirds(simulated[seen].shape[0]).items()
    }
    coarse = {name: averaged(localizer, one, patient) for name, one in pictures.items()}
    exact = patient.simulated()
    found["agreement_on_the_networks_pixels"] = {
        name: agreement(one.numpy(), exact.numpy(), (patient.pixel_mm,) * 2) for name, one in coarse.items()
    }
    logger.info("%s", found)

    rows: list[dict[str, Any]] = []
    volumes: dict[tuple[str, str], Array] = {}

    def measure(name: str, told: str, volume: Array | Tensor, of: Case = patient, keep: bool = True) -> None:
        hu = volume.numpy() if isinstance(volume, Tensor) else volume
        rows.append(
            {"case": of.name, "radiograph": name, "geometry": told, **evaluate_volume(hu, of.truth_hu, names=METRICS)}
        )
        if keep:
            volumes[name, told] = hu
        logger.info("%s", rows[-1])

    measure("none: mean of the other training CTs", "", mean_of_others(cohort, case))
    sources = {"real, fitted curve": coarse["fitted"], "real, published curve": coarse["published"], "simulated": exact}
    for name, image in sources.items():
        for told, run in reconstructions(network, patient, image).items():
            measure(name, told, run())
    measure("ideal frontal", "one parallel view", network.mean(*patient.ideal()))
    for other in others:
        someone = Case(cohort, other, network, localizer, patient.axis_mm)
        for told, run in reconstructions(network, someone, someone.simulated()).items():
            measure("simulated", told, run(), someone, keep=False)
        measure("ideal frontal", "one parallel view", network.mean(*someone.ideal()), someone, keep=False)

    write_json(folder / "result.json", {**found, "rows": rows})
    (folder / "result.md").write_text(table(rows, ("case", "radiograph", "geometry")) + "\n")
    told = "every row its own view"
    chosen = [volumes[name, told] for name in ("real, fitted curve", "simulated")]
    for name, volume in zip(("real", "simulated"), chosen, strict=True):
        save_volume(folder / f"from_{name}.nii.gz", torch.from_numpy(volume), network.grid, patient.isocenter)
    if picture:
        first, last = seen[0].start, seen[0].stop
        aspect = localizer.pixel_mm[0] / localizer.pixel_mm[1]
        draw(
            Path(picture), [pictures["fitted"][first:last], simulated[first:last]], aspect, [patient.truth_hu, *chosen]
        )
    print((folder / "result.md").read_text())


if __name__ == "__main__":
    fire.Fire(main)
