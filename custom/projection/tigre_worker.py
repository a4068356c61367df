"""Runs `tigre.Ax` in a process of its own: TIGRE ends the process where CUDA is missing or fails.

Called as `python tigre_worker.py INPUT.npz OUTPUT.npy` by custom.projection.tigre_engine; imports nothing of this
package. Exit codes: 0 done, 3 TIGRE is missing or is another package, 4 no GPU, 5 too old; anything else is TIGRE's.
"""

from __future__ import annotations

import sys
from importlib import metadata

MISSING, NO_GPU, TOO_OLD = 3, 4, 5
# Earlier versions have stripes in parallel beam (CERN/TIGRE issue 334, pull request 752).
OLDEST = (3, 1, 3)


def _fail(code: int, message: str) -> None:
    sys.stderr.write(message + "\n")
    sys.exit(code)


def _version() -> tuple[int, ...]:
    for name in ("tigre", "pytigre"):
        try:
            parts = metadata.version(name).split(".")[:3]
        except metadata.PackageNotFoundError:
            continue
        return tuple(int("".join(c for c in part if c.isdigit()) or 0) for part in parts)
    return OLDEST


def main(source: str, target: str) -> None:
    """Project the volumes of INPUT and write the radiographs to OUTPUT."""
    import numpy as np

    try:
        import tigre
        from tigre.utilities import gpu
    except ImportError as error:
        _fail(MISSING, f"TIGRE cannot be imported: {error}")
    if not hasattr(tigre, "Ax"):
        _fail(MISSING, "the package 'tigre' here is another one (genomics, from PyPI)")
    if _version() < OLDEST:
        _fail(TOO_OLD, f"TIGRE {_version()} is older than {OLDEST}")
    if not gpu.getGpuNames():
        _fail(NO_GPU, "TIGRE finds no CUDA GPU")
    with np.load(source, allow_pickle=False) as stored:
        parameters = {key: stored[key] for key in stored.files}
    volumes, angles = parameters.pop("volumes"), parameters.pop("angles")
    mode = str(parameters.pop("mode"))
    geo = tigre.geometry(mode=mode, nVoxel=parameters["nVoxel"])
    geo.mode = mode
    for name, value in parameters.items():
        setattr(geo, name, float(value) if value.ndim == 0 else value)
    images = [tigre.Ax(volume, geo, angles, projection_type="Siddon") for volume in volumes]
    with open(target, "wb") as stream:
        np.save(stream, np.stack(images).astype(np.float32))


if __name__ == "__main__":
    main(*sys.argv[1:])
