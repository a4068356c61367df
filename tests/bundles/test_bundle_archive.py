"""The archive of a bundle: whole, hashed, and running where there is MONAI and nothing of this project."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import subprocess
import venv
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from custom.core.checkpoints import load_checkpoint, save_checkpoint
from custom.data.sample import sample_ct
from custom.data.simulate import Acquisition, simulate_case
from custom.evaluation.evaluate import load_hu
from custom.models.bundle_archive import write_bundle_archive
from custom.models.model_files import find_model
from custom.models.model_folder import export
from tests.bundles.test_every_bundle import every_bundle
from tests.bundles.workflow import Bundle


@every_bundle
def test_an_archive_holds_what_the_configs_name(bundle: Bundle, tmp_path: Path) -> None:
    target = export(bundle.name, str(tmp_path / "out.zip"), bundle=True)
    with zipfile.ZipFile(target) as archive:
        content = {name.removeprefix(f"{bundle.name}/"): archive.read(name) for name in archive.namelist()}
        assert all(name.startswith(f"{bundle.name}/") for name in archive.namelist())
    hashes = dict(reversed(line.split("  ")) for line in content.pop("SHA256SUMS").decode().splitlines())
    assert hashes == {name: hashlib.sha256(data).hexdigest() for name, data in content.items()}
    assert {"LICENSE", "docs/README.md", "configs/metadata.json", "configs/inference.json"} <= set(content)
    own = {
        f"models/{path.name}"
        for path in (bundle.root / "models").glob("*")
        if path.name in ("thresholds.json", "model.pt")
    }
    assert own <= set(content) and ("docs/data_license.txt" in content) == ("models/model.pt" in own)
    metadata = json.loads(content["configs/metadata.json"])
    assert "fewview-ct" not in metadata["required_packages_version"]
    for name, data in content.items():
        if name.startswith("configs/") and name.endswith(".json"):
            for target_name in re.findall(r'"_target_": "(custom[\w.]+)"', data.decode()):
                module = target_name.rpartition(".")[0].replace(".", "/")
                assert f"{module}.py" in content or f"{module}/__init__.py" in content, target_name
            assert not re.search(r'"(autoencoder|mean)_checkpoint": "bundles/', data.decode()), "parents are inside"
    assert not any("cli" in name.split("/") for name in content), "only what is needed"


def test_the_same_bundle_gives_the_same_archive(tmp_path: Path) -> None:
    first, second = (write_bundle_archive("vqgan", tmp_path / name) for name in ("a.zip", "b.zip"))
    assert first.read_bytes() == second.read_bytes()
    with pytest.raises(FileExistsError, match="pass --overwrite"):
        write_bundle_archive("vqgan", first)
    with pytest.raises(ValueError, match=r"a \.zip file"):
        write_bundle_archive("vqgan", tmp_path / "folder")
    with pytest.raises(ValueError, match="the bundle's own files"):
        export("vqgan", str(tmp_path / "c.zip"), thresholds="x.json", bundle=True)


def test_an_own_training_goes_into_the_archive_without_what_is_said_of_other_weights(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights, published = tmp_path / "own" / "model.pt", find_model("inr_recon")
    weights.parent.mkdir()
    save_checkpoint(weights, load_checkpoint(published.model).network())
    with caplog.at_level("INFO"):
        target = export("inr_recon", str(tmp_path / "own.zip"), bundle=True, weights=str(weights))
    assert "own.zip: " in caplog.messages[-1] and " MB" in caplog.messages[-1]
    with zipfile.ZipFile(target) as archive:
        content = {name.removeprefix("inr_recon/"): archive.read(name) for name in archive.namelist()}
    assert content["models/model.pt"] == weights.read_bytes()
    assert not {"models/README.md", "models/thresholds.json"} & set(content), "they are of the published weights"
    assert b"came without a card" in content["docs/data_license.txt"] and b"own training" in content["docs/README.md"]
    (weights.parent / "README.md").write_text("Trained on CTs of our own.")
    (tmp_path / "limits.json").write_text("{}")
    given = {"weights": str(weights), "thresholds": str(tmp_path / "limits.json"), "overwrite": True}
    with zipfile.ZipFile(export("inr_recon", str(target), bundle=True, **given)) as archive:
        assert archive.read("inr_recon/docs/data_license.txt") == b"Trained on CTs of our own."
        assert archive.read("inr_recon/models/thresholds.json") == b"{}"
    other = str(tmp_path / "other.zip")
    with pytest.raises(ValueError, match="as --weights"):
        export(str(weights), other, bundle=True)
    with pytest.raises(ValueError, match="goes with --bundle"):
        export("inr_recon", other, weights=str(weights))
    with pytest.raises(FileNotFoundError, match=r"none\.pt: no such file"):
        export("inr_recon", other, bundle=True, weights=str(tmp_path / "none.pt"))
    with pytest.raises(ValueError, match="needs weights of parents"):
        export("ldm_recon", other, bundle=True, weights=str(find_model("ldm_recon").model))
    assert not Path(other).exists()


def needed_distributions(names: list[str]) -> set[str]:
    """Installed distributions that these require, without their extras."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = re.split(r"[^\w.-]", waiting.pop())[0].lower().replace("_", "-")
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if name not in found:
            found.add(name)
            waiting += [requirement for requirement in distribution.requires or [] if "extra ==" not in requirement]
    return found


@pytest.fixture(scope="module")
def monai_alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By bundle: the Python of an environment with MONAI, what the archive's metadata lists, and nothing else."""
    folder = tmp_path_factory.mktemp("alone")
    pythons = {}
    for name in ("inr_recon", "ldm_recon", "seg_guidance"):
        with zipfile.ZipFile(write_bundle_archive(name, folder / f"{name}.zip")) as archive:
            archive.extractall(folder)
        listed = json.loads((folder / name / "configs/metadata.json").read_text())["required_packages_version"]
        environment = folder / f"venv_{name}"
        venv.create(environment, symlinks=True)
        (site,) = environment.glob("lib/python3*/site-packages")
        for distribution in needed_distributions(["monai", "torch", "numpy", *listed]):
            for file in importlib.metadata.files(distribution) or []:
                part = file.parts[0]
                if part != ".." and not (site / part).exists():
                    (site / part).symlink_to(Path(str(importlib.metadata.distribution(distribution).locate_file(part))))
        pythons[name] = environment / "bin/python"
    return pythons


@pytest.mark.integration
@pytest.mark.parametrize("name", ["inr_recon", "ldm_recon", "seg_guidance"])
def test_an_archive_runs_with_monai_alone(name: str, monai_alone: dict[str, Path], tmp_path: Path) -> None:
    python, alone = monai_alone[name], {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    for package in ("custom", "cyclopts", "highdicom", "sklearn"):
        done = subprocess.run(
            [python, "-c", f"import {package}"], cwd=tmp_path, env=alone, capture_output=True, check=False
        )
        assert done.returncode == 1, f"{package} must not be there"
    if name == "seg_guidance":
        options = ["--image", str(sample_ct())]
    else:
        truth, affine = load_hu(sample_ct())
        image, geometry = simulate_case(truth, affine, Acquisition("paper", (0.0, 90.0), "parallel"))
        nib.save(
            nib.Nifti1Image(image.permute(2, 1, 0).numpy(), np.diag([*geometry.pixel_mm[0][::-1], 1, 1])),
            tmp_path / "r.nii.gz",
        )
        geometry.save(tmp_path / "r.json")
        options = ["--image", str(tmp_path / "r.nii.gz"), "--geometry", str(tmp_path / "r.json")]
    command = [python, "-m", "monai.bundle", "run", "--config_file", "configs/inference.json", *options]
    folder = python.parents[2] / name
    done = subprocess.run(command, cwd=folder, env=alone, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    volumes = list((folder / "eval").rglob("*.nii.gz"))
    assert volumes and all(np.ptp(np.asanyarray(nib.load(volume).dataobj)) > 0 for volume in volumes)
