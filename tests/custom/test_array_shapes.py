"""Shapes in the signatures (jaxtyping) are those of the arrays that pass: tests run again with the shapes checked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("geometry", "projection", "fusion", "schedulers")
CHECKED = ("geometry", "fusion", "projection/test_classical_inversion.py", "projection/test_sirt_solver.py")


def test_arrays_have_the_shapes_that_signatures_say() -> None:
    """Tests of bad input stay out: there a wrong shape is what is tested."""
    packages = ",".join([*(f"custom.{room}" for room in ROOMS), "shape_checker.shapes_only"])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--jaxtyping-packages={packages}"]
    command += ["-k", "not refused and not named", *(str(ROOT / "tests/custom" / name) for name in CHECKED)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:]


def test_a_wrong_shape_is_found() -> None:
    program = (
        "from jaxtyping import install_import_hook\n"
        "with install_import_hook('custom.geometry', 'shape_checker.shapes_only'):\n"
        "    from custom.geometry import is_cone\n"
        "import torch\n"
        "is_cone(torch.zeros(2, 12))\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert run.returncode != 0 and "views: torch.Size([2, 12]) is not Float[Tensor, '*batch 13']" in run.stderr
