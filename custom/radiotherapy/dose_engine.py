"""Dose of a plan on a CT: an interface, and PyDoseRT's pencil beam engine behind it.

PyDoseRT (Nyholm T et al., Photon pencil kernel parameterisation based on beam quality index, Radiother Oncol 78, 2006)
counts (z, y, x) with y towards posterior and x towards the patient's left; the isocentre is given from the centre of
its first voxel. It turns slices about the isocentre and loses what leaves them, so the volume gets a rim of air.
"""

from __future__ import annotations

import contextlib
import functools
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from custom.core.optional_packages import required
from custom.geometry import VolumeGrid
from custom.radiotherapy.planning_numbers import NUMBERS
from custom.radiotherapy.treatment_plan import Field, Plan

__all__ = ["DoseEngine", "PencilBeamEngine", "fluence_map", "kept_threads"]

FloatArray = npt.NDArray[np.float32]

#: Pixels of 1 mm of PyDoseRT's fluence map.
_FLUENCE_PIXELS = 400
#: Gy a monitor unit in water at 10 cm depth, 10 x 10 cm, source to axis 100 cm, isocentre at that depth.
GY_PER_MU, REFERENCE_DEPTH_MM = 0.01, 100.0
_REFERENCE = Field("reference", 0.0, (-50.0, 50.0, -50.0, 50.0), 1.0)
#: Half the sides of the reference phantom, and its depth behind the isocentre.
_PHANTOM_HALF_MM, _PHANTOM_BEHIND_MM = 110.0, 60.0
#: Around the volume; and what is no air.
AIR_DENSITY, _SOLID = 0.001, 0.05


class DoseEngine(Protocol):
    """What computes a dose."""

    name: str

    def dose(self, density: FloatArray, grid: VolumeGrid, plan: Plan) -> FloatArray:
        """Dose of one fraction.

        Args:
            density: (X, Y, Z) relative density, RAS+; outside of it there is air.
            grid: of it, in the CT's frame.
            plan: whose fields' monitor units are delivered.

        Returns:
            (X, Y, Z) Gy.
        """


@contextlib.contextmanager
def kept_threads() -> Iterator[None]:
    """Torch's number of threads is afterwards what it was: a library inside sets that of the whole process."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fluence_map(field: Field) -> Tensor:
    """Fluence at the isocentre plane: 1 where jaws and leaves are open, its edges blurred by the penumbra.

    The blur is that of a Gaussian source, which the jaws cut to half at their edges. PyDoseRT's own map ignores the
    field's size.

    Returns:
        (400, 400) float32, pixels of 1 mm; rows along +Yg, columns along +Xg.
    """
    sigma = NUMBERS.beam.penumbra_fwhm_mm / (2 * math.sqrt(2 * math.log(2)))
    along = torch.arange(_FLUENCE_PIXELS, dtype=torch.float64) - (_FLUENCE_PIXELS - 1) / 2
    yg, xg = torch.meshgrid(along, along, indexing="ij")
    c = math.radians(field.collimator_deg)
    xb, yb = xg * math.cos(c) + yg * math.sin(c), yg * math.cos(c) - xg * math.sin(c)

    def between(position: Tensor, low: float, high: float) -> Tensor:
        scale = sigma * math.sqrt(2)
        return (torch.erf((position - low) / scale) - torch.erf((position - high) / scale)) / 2

    x1, x2, y1, y2 = field.jaws_mm
    if field.leaves is None:
        return (between(xb, x1, x2) * between(yb, y1, y2)).float()
    leaves, fluence = field.leaves, torch.zeros_like(xb)
    moving, (low, high), across, (first, last) = (xb, (x1, x2), yb, (y1, y2))
    if leaves.along == "Y":
        moving, (low, high), across, (first, last) = (yb, (y1, y2), xb, (x1, x2))
    # What jaws and leaves leave open is blurred as one aperture, so that edges on which both lie count once.
    bands = zip(leaves.boundaries_mm, leaves.boundaries_mm[1:], leaves.low_mm, leaves.high_mm, strict=False)
    for lower, upper, left, right in bands:
        band, gap = (max(lower, first), min(upper, last)), (max(left, low), min(right, high))
        if band[0] < band[1] and gap[0] < gap[1]:
            fluence += between(across, *band) * between(moving, *gap)
    return fluence.float()


class PencilBeamEngine:
    """PyDoseRT's `PencilDepthEngine`: every pencil has its own radiological depth; no lateral transport in lung.

    The beam is none that was measured: beam quality is TPR20,10 alone, without head scatter, electron contamination or
    a profile, and a monitor unit is 1 cGy at 10 cm depth in water (10 x 10 cm, source to axis 100 cm).

    Args:
        device: torch device that computes.

    Raises:
        ModuleNotFoundError: pydosert is missing, naming the extra.
    """

    def __init__(self, device: str | torch.device = "cpu") -> None:
        required("pydosert", "radiotherapy", "doses need")
        from importlib.metadata import version

        self.name = f"PyDoseRT {version('pydosert')} PencilDepthEngine"
        self.device = torch.device(device)

    def dose(self, density: FloatArray, grid: VolumeGrid, plan: Plan) -> FloatArray:
        """See `DoseEngine`."""
        per_mu = GY_PER_MU / _reference_dose(plan.tpr_20_10, grid.spacing_mm, self.device)
        dose = _raw_dose(density, grid, plan.isocenter_mm, plan.fields, plan.tpr_20_10, self.device)
        return dose * np.float32(per_mu)


@functools.lru_cache(maxsize=8)
def _reference_dose(tpr_20_10: float, spacing_mm: tuple[float, float, float], device: torch.device) -> float:
    """What the engine gives for a monitor unit at the reference point, for voxels of this size."""
    sx, sy, sz = spacing_mm
    across = [2 * math.ceil(_PHANTOM_HALF_MM / s) + 1 for s in (sx, sz)]
    in_front = math.floor(REFERENCE_DEPTH_MM / sy)
    shape = (across[0], in_front + math.ceil(_PHANTOM_BEHIND_MM / sy), across[1])
    # The surface, at y = 0 and anterior, is the border of the last voxel.
    grid = VolumeGrid(shape, spacing_mm, (0.0, -shape[1] * sy / 2, 0.0))
    isocenter = (0.0, -REFERENCE_DEPTH_MM, 0.0)
    dose = _raw_dose(np.ones(shape, np.float32), grid, isocenter, [_REFERENCE], tpr_20_10, device)
    y = grid.axis_mm(1).double().numpy()
    return float(np.interp(-REFERENCE_DEPTH_MM, y, dose[shape[0] // 2, :, shape[2] // 2]))


def _raw_dose(
    density: FloatArray,
    grid: VolumeGrid,
    isocenter_mm: Sequence[float],
    fields: Sequence[Field],
    tpr_20_10: float,
    device: torch.device,
) -> FloatArray:
    """Dose (X, Y, Z) in the engine's own unit."""
    from pydosert import MachineConfig
    from pydosert.data import Beam, BeamSequence
    from pydosert.data.loaders import crop_from_cylinder, pad_to_cylinder
    from pydosert.engine.pencil_depth_engine import PencilDepthEngine

    spacing = tuple(grid.spacing_mm[::-1])
    volume = torch.from_numpy(np.ascontiguousarray(density[::-1, ::-1].transpose(2, 1, 0), dtype=np.float32)).to(device)
    last = [float(grid.axis_mm(axis)[-1]) for axis in (0, 1)]
    place = (
        isocenter_mm[2] - float(grid.axis_mm(2)[0]), last[1] - isocenter_mm[1], last[0] - isocenter_mm[0],
    )  # fmt: skip
    _, rows, columns = torch.nonzero(volume > _SOLID, as_tuple=True)
    if len(rows) == 0:
        return np.zeros(density.shape, np.float32)
    radius = float(torch.hypot(rows * spacing[1] - place[1], columns * spacing[2] - place[2]).max())
    padded, place, padding = pad_to_cylinder(volume, spacing, place, radius, fill_value=AIR_DENSITY)
    beams = []
    for one in fields:
        beam = Beam.create(one.gantry_deg, 60, 0.0, iso_center=place, device=device, requires_grad=False)
        beams.append(replace(beam, mu=torch.tensor(float(one.monitor_units), device=device)))
    sequence = BeamSequence.from_beams(beams)
    machine = MachineConfig(tpr_20_10=tpr_20_10, number_of_leaf_pairs=60, mean_photon_energy_MeV=1.0)
    reach = math.ceil(NUMBERS.beam.kernel_reach_mm / min(spacing[0], spacing[2]))
    with kept_threads(), torch.inference_mode(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "In CPU autocast")  # said for float32, once a field
        engine = PencilDepthEngine(
            machine_config=machine,
            kernel_size=2 * reach + 1,
            dose_grid_spacing=spacing,
            dose_grid_shape=tuple(padded.shape),
            beam_template=sequence,
            device=device,
            dtype=torch.float32,
            beam_chunk_size=1,
        )
        maps = torch.stack([fluence_map(one) for one in fields]).to(device)
        dose = engine.compute_dose(sequence, density_image=padded[None], fluence_maps=maps)[0]
    found = crop_from_cylinder(dose, padding).cpu().numpy().transpose(2, 1, 0)[::-1, ::-1]
    return np.ascontiguousarray(found, dtype=np.float32)
