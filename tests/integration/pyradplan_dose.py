"""Doses at the isocentre by pyRadPlan, for its own environment: python pyradplan_dose.py IN.npz OUT.json.

IN holds, for each of N volumes on one grid, `hu_0` ... (X, Y, Z) RAS+ with air outside of `external_0` ..., and
`spacing_mm`, `first_mm` (centre of the first voxel), `isocenter_mm`, `gantry_deg`, `width_mm` (square fields), all
RAS+ mm; and for another beam than the machine "Generic", `m_per_mm`, `betas_per_mm` (N,), `radii_mm` (R,) and `kernels`
(N, R) of Bortfeld's decomposition. OUT: for each volume the dose of all fields, in pyRadPlan's own unit.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import SimpleITK as sitk
from pyRadPlan import PhotonPlan, calc_dose_forward, generate_stf
from pyRadPlan.cst import StructureSet, create_voi
from pyRadPlan.ct import create_ct
from pyRadPlan.dose.engines import PhotonPencilBeamSVDEngine
from pyRadPlan.machines import PhotonLINAC, PhotonSVDKernel


def image_of(values: np.ndarray, spacing: np.ndarray, first: np.ndarray) -> sitk.Image:
    """A volume (X, Y, Z) of RAS+ as an image in LPS."""
    found = sitk.GetImageFromArray(np.ascontiguousarray(values[::-1, ::-1].transpose(2, 1, 0)))
    last = first + (np.array(values.shape) - 1) * spacing
    found.SetSpacing([float(s) for s in spacing])
    found.SetOrigin((-float(last[0]), -float(last[1]), float(first[2])))
    return found


def dose_at(hu: np.ndarray, external: np.ndarray, given: dict[str, np.ndarray]) -> float:
    spacing, first = given["spacing_mm"], given["first_mm"]
    x, y, z = (float(v) for v in given["isocenter_mm"])
    gantry = [float(v) for v in given["gantry_deg"]]
    ct = create_ct(cube_hu=image_of(hu.astype(np.float64), spacing, first))
    mask = image_of(external.astype(np.uint8), spacing, first)
    target = np.zeros_like(external)
    voxel = np.round((given["isocenter_mm"] - first) / spacing).astype(int)
    target[tuple(slice(v - 1, v + 2) for v in voxel)] = True
    vois = [
        create_voi(voi_type="TARGET", name="T", ct_image=ct, mask=image_of(target.astype(np.uint8), spacing, first)),
        create_voi(voi_type="EXTERNAL", name="External", ct_image=ct, mask=mask),
    ]
    cst = StructureSet(vois=vois, ct_image=ct)
    plan = PhotonPlan(radiation_mode="photons", machine="Generic")
    plan.prop_stf = {
        "generator": "photonOpenFields", "gantry_angles": gantry, "couch_angles": [0.0] * len(gantry),
        "bixel_width": float(given["width_mm"]), "iso_center": [-x, -y, z],
    }  # fmt: skip
    resolution = dict(zip("xyz", map(float, spacing), strict=True))
    plan.prop_dose_calc = {"geometric_lateral_cutoff": 150.0, "dose_grid": {"resolution": resolution}}
    dose = calc_dose_forward(ct, cst, generate_stf(ct, cst, plan), plan, np.ones(len(gantry)))["physical_dose"]
    index = dose.TransformPhysicalPointToContinuousIndex((-x, -y, z))
    return float(sitk.GetArrayFromImage(dose)[_neighbours(index)] @ _weights(index))


def use_kernels(given: dict[str, np.ndarray]) -> None:
    """Every machine that is loaded from now on has these kernels, at any distance from source to surface."""
    load = PhotonPencilBeamSVDEngine.load_machine

    def with_kernels(mode: str, name: str) -> PhotonLINAC:
        machine = load(mode, name)
        ((energy, own),) = machine.pb_kernels.items()
        kernel = PhotonSVDKernel(
            energy=energy, m=float(given["m_per_mm"]), penumbra=own.penumbra, kernel_betas=given["betas_per_mm"],
            kernel_ssds=np.array([500.0, 1500.0]), kernel_pos=given["radii_mm"],
            kernel_data=np.stack([given["kernels"]] * 2), primary_fluence=own.primary_fluence,
        )  # fmt: skip
        machine.pb_kernels = {energy: kernel}
        return machine

    PhotonPencilBeamSVDEngine.load_machine = staticmethod(with_kernels)


def _neighbours(index: tuple[float, ...]) -> tuple[np.ndarray, ...]:
    base = np.floor(index).astype(int)
    corners = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)]) + base
    return corners[:, 2], corners[:, 1], corners[:, 0]


def _weights(index: tuple[float, ...]) -> np.ndarray:
    part = np.array(index) - np.floor(index)
    return np.array(
        [np.prod([p if c else 1 - p for p, c in zip(part, (i, j, k), strict=True)])
         for i in (0, 1) for j in (0, 1) for k in (0, 1)]
    )  # fmt: skip


if __name__ == "__main__":
    with np.load(sys.argv[1]) as content:
        given = {name: content[name] for name in content.files}
    if "kernels" in given:
        use_kernels(given)
    count = sum(name.startswith("hu_") for name in given)
    doses = [dose_at(given[f"hu_{k}"], given[f"external_{k}"], given) for k in range(count)]
    with open(sys.argv[2], "w", encoding="utf-8") as stream:
        json.dump(doses, stream)
