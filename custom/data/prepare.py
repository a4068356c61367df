"""Prepare a folder of CTs for training and simulation."""

import gzip
import io
import json
import logging
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from custom.data.preprocess import prepare_volume

logger = logging.getLogger(__name__)


def write_nifti(path: Path, array: npt.NDArray[np.generic], affine: npt.NDArray[np.floating]) -> None:
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    try:
        with (
            open(temporary, "wb") as raw,
            gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=6, mtime=0) as z,
        ):
            z.write(image.to_bytes())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _one(job: tuple[Path, Path, dict]) -> str:
    path, output, options = job
    case = path.name.removesuffix(".gz").removesuffix(".nii")
    image = nib.load(path)
    prepared = prepare_volume(np.asarray(image.dataobj), image.affine, **options)
    write_nifti(output / "source" / f"{case}.nii.gz", prepared.source, prepared.source_affine)
    write_nifti(output / "ct" / f"{case}.nii.gz", prepared.cube, prepared.cube_affine)
    return case


def prepare(input: str, output: str, split: str, workers: int = 2) -> None:
    out = Path(output)
    files = sorted(Path(input).glob("*.nii.gz"))
    with ProcessPoolExecutor(workers) as pool:
        cases = list(tqdm(pool.map(_one, [(f, out, {}) for f in files]), total=len(files)))
    spec = json.loads(Path(split).read_text())
    prov = {p["name"]: p for p in json.loads((Path(split).parent / "provenance.json").read_text())}
    data: dict = {"name": "fewview-ct", "description": "prepared CTs"}
    for part in ("training", "validation", "test", "stress"):
        data[part] = [
            {
                "case": c,
                "patient": (prov[c].get("patient_id") or c),
                "label": f"ct/{c}.nii.gz",
                "source": f"source/{c}.nii.gz",
            }
            for c in spec[part]
            if c in cases
        ]
    (out / "datalist.json").write_text(json.dumps(data, indent=1))
