"""Checks every bundle as MONAI's model zoo does, and writes docs/reference/bundle-checks.md.

    python scripts/bundle_checks.py [BUNDLE...]

Without names it takes some minutes: networks are run and traced at their own size.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import torch
from monai.bundle import ckpt_export, load, verify_net_in_out

from custom.models.bundle_archive import write_bundle_archive

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs" / "reference" / "bundle-checks.md"
SCHEMA = json.loads((ROOT / "tests" / "data" / "bundle_metadata_schema.json").read_text())
HEADINGS = ["Data", "Training", "Input", "Output", "Performance", "Commands"]
NO_WEIGHTS = "no weights are published"

#: Why a check cannot pass; every entry is a property of the method, not of the software.
REASONS = {
    ("voxel_diffusion", "verify_net_in_out"): "a sampler, built around trained weights",
    ("ldm_recon", "verify_net_in_out"): "a sampler: needs the poses of the radiographs and many steps of its network",
    ("ldm_recon", "TorchScript"): "a loop over noise levels that depends on the poses: no trace holds for others",
    ("voxel_diffusion", "TorchScript"): "a sampler, as ldm_recon",
    (
        "inr_recon",
        "TorchScript",
    ): "its projector is made for the poses, with a gradient of its own, which no trace takes",
    ("naf", "TorchScript"): "it is fitted to each patient, by gradients within its forward",
    ("naf", "weights"): "it is fitted to each patient and has none",
    ("naf", "monai.bundle.load"): "it is fitted to each patient and has no weights",
    ("x2ct", "TorchScript"): NO_WEIGHTS,
    ("x2ct", "weights"): NO_WEIGHTS,
    ("x2ct", "monai.bundle.load"): NO_WEIGHTS,
    ("voxel_diffusion", "weights"): NO_WEIGHTS,
    ("voxel_diffusion", "monai.bundle.load"): NO_WEIGHTS,
}


def configs(bundle: Path, **overrides: Any) -> dict[str, Any]:
    """Arguments of MONAI's commands."""
    return {
        "config_file": str(bundle / "configs" / "inference.json"),
        "meta_file": str(bundle / "configs" / "metadata.json"),
        **overrides,
    }


def check_metadata(bundle: Path) -> None:
    """The zoo's schema, a version that the changelog has."""
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    jsonschema.validate(metadata, SCHEMA)
    assert metadata["version"] in metadata["changelog"]


def check_names(bundle: Path) -> None:
    """Lower case with underscores, and the files that the zoo asks for."""
    assert re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)*", bundle.name)
    for name in ("LICENSE", "configs/metadata.json", "configs/inference.json", "docs/README.md"):
        assert (bundle / name).is_file(), name


def check_readme(bundle: Path) -> None:
    """The sections of the zoo's template."""
    found = re.findall(r"^## (.+)$", (bundle / "docs" / "README.md").read_text(), re.MULTILINE)
    assert [heading for heading in found if heading in HEADINGS] == sorted(
        HEADINGS, key=lambda heading: found.index(heading)
    )


def check_weights(bundle: Path) -> None:
    """models/model.pt of tensors alone, under the zoo's 25 MB for a file."""
    weights = bundle / "models" / "model.pt"
    assert weights.stat().st_size < 25e6
    torch.load(weights, weights_only=True)


def check_network(bundle: Path) -> None:
    """MONAI's own check of input and output by metadata.json."""
    verify_net_in_out(net_id="network_def", device="cpu", **configs(bundle))


def check_torchscript(bundle: Path) -> None:
    """MONAI's export by tracing, run on other input."""
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    image = metadata["network_data_format"]["inputs"]["image"]
    shape = [1, image["num_channels"], *image["spatial_shape"]]
    target = Path("model.ts")
    ckpt_export(
        net_id="network_def", filepath=str(target), ckpt_file=str(bundle / "models" / "model.pt"), key_in_ckpt="model",
        use_trace=True, input_shape=shape, precision="fp32", **configs(bundle),
    )  # fmt: skip
    assert torch.jit.load(target)(torch.rand(shape)).shape[0] == 1


def check_load(bundle: Path) -> None:
    """`monai.bundle.load` from an empty folder."""
    network = load(
        bundle.name, bundle_dir=str(bundle.parent), workflow_type="inference", key_in_ckpt="model", device="cpu"
    )
    assert isinstance(network, torch.nn.Module)


def check_archive(bundle: Path) -> None:
    """`fewview-ct export --bundle`; tests/bundles/test_bundle_archive.py runs them with MONAI alone."""
    with zipfile.ZipFile(write_bundle_archive(bundle, Path("bundle.zip"))) as archive:
        assert archive.testzip() is None


CHECKS: dict[str, Callable[[Path], None]] = {
    "metadata": check_metadata,
    "names and files": check_names,
    "README": check_readme,
    "weights": check_weights,
    "verify_net_in_out": check_network,
    "TorchScript": check_torchscript,
    "monai.bundle.load": check_load,
    "archive": check_archive,
}


def result_of(bundle: Path, name: str) -> str:
    """ "yes", or why not."""
    if (bundle.name, name) in REASONS:
        return f"no: {REASONS[bundle.name, name]}"
    try:
        with tempfile.TemporaryDirectory() as folder:
            before = os.getcwd()
            os.chdir(folder)
            try:
                CHECKS[name](bundle)
            finally:
                os.chdir(before)
    except Exception as error:
        return f"FAILED: {type(error).__name__}: {' '.join(str(error).split())[:120]}"
    return "yes"


def page(rows: dict[str, dict[str, str]]) -> str:
    """The page with its table."""
    lines = [
        "# The bundles and the model zoo's checks",
        "",
        "Written by `python scripts/bundle_checks.py`, in an empty folder for every check, on a CPU.",
        "What was not tried anywhere, such as viewers, clusters and container engines: "
        "[integration tests](integration-tests.md#what-was-not-tried).",
        "",
    ]
    lines += [f"- **{name}**: {(check.__doc__ or '').strip()}" for name, check in CHECKS.items()]
    lines += ["", f"| bundle | {' | '.join(CHECKS)} |", "|---" * (len(CHECKS) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(row.values())} |" for name, row in rows.items()]
    return "\n".join(lines) + "\n"


def main(names: list[str]) -> int:
    """Checks bundles; with all of them the page is written. Returns how many checks failed."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.ERROR)
    bundles = [path for path in sorted((ROOT / "bundles").iterdir()) if not names or path.name in names]
    rows = {}
    for bundle in bundles:
        rows[bundle.name] = {name: result_of(bundle, name) for name in CHECKS}
        print(bundle.name, rows[bundle.name], flush=True)
    if not names:
        TARGET.write_text(page(rows), encoding="utf-8")
    return sum(value.startswith("FAILED") for row in rows.values() for value in row.values())


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 1))
