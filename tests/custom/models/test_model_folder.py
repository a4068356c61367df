"""Models by name, as a bundle, as an exported folder and as a weights file."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from custom.core.checkpoints import save_checkpoint
from custom.core.files import sha256_file
from custom.core.hu_window import unit_to_hu
from custom.geometry import VolumeGrid
from custom.models import SEGMENTER, find_model, load_model, reconstruct_volume, save_volume
from custom.models.model_files import FOLDERS_VARIABLE
from custom.models.model_folder import export
from custom.networks import X2CT, FeatureUNet, LatentDenoiser
from custom.networks.voxel_identity import VoxelIdentity
from custom.sampling import load_sampler
from tests.custom.benchmark.tiny_benchmark import GRID, tiny_network
from tests.custom.networks.tiny_diffusion import UNET, autoencoder, denoiser, radiographs

ROOT = Path(__file__).resolve().parents[3]
SETTINGS: dict[str, Any] = {"steps": 3, "solver": {"order": 1}, "consistency_final": 2}


def bundle(root: Path, name: str, config: dict[str, Any]) -> Path:
    folder = root / "bundles" / name
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    (folder / "configs/inference.json").write_text(json.dumps({"model_file": "$@x", **config}))
    return folder


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Bundles of a deterministic network and of a denoiser with both parents, without anything learnt."""
    inr = bundle(tmp_path, "inr_recon", {})
    save_checkpoint(inr / "models/model.pt", tiny_network(), {"detector_shape": [16, 24]})
    (inr / "models/README.md").write_text("# Card\n")
    (inr / "LICENSE").write_text("Apache-2.0\n")
    (inr / "models/thresholds.json").write_text("{}")
    vqgan = bundle(tmp_path, "vqgan", {})
    save_checkpoint(vqgan / "models/model.pt", autoencoder())
    parents = {f"{role}_checkpoint": f"bundles/{name}/models/model.pt" for role, name in PARENTS.items()}
    ldm = bundle(tmp_path, "ldm_recon", {**parents, **SETTINGS})
    hashes = {role: sha256_file(tmp_path / parents[f"{role}_checkpoint"]) for role in PARENTS}
    meta = {"parents": hashes, "pixel_at_isocenter_mm": 20.0}
    save_checkpoint(ldm / "models/model.pt", denoiser(known_channels=3), meta)
    return tmp_path


PARENTS = {"autoencoder": "vqgan", "mean": "inr_recon"}


def test_a_network_gives_its_one_volume(repository: Path) -> None:
    folder = repository / "bundles/inr_recon"
    image, views = (x[0] for x in radiographs())
    model = load_model(folder, "cpu", "fp32")
    assert (model.name, model.can_sample, model.grid, model.detector_shape) == ("inr_recon", False, GRID, (16, 24))
    assert model.sha256 == sha256_file(folder / "models/model.pt") and model.pixel_at_isocenter_mm == 20.0
    assert (model.card, model.thresholds) == ("# Card\n", folder / "models/thresholds.json")
    assert torch.equal(model.mean(image, views), reconstruct_volume(tiny_network(), image, views))
    with pytest.raises(ValueError, match=r"draws no samples: take --model ldm_recon or --model voxel_diffusion"):
        next(model.samples(image, views, 2))


def test_a_denoiser_draws_samples_with_the_settings_of_its_bundle(repository: Path) -> None:
    paths = {name: repository / f"bundles/{name}/models/model.pt" for name in ("ldm_recon", "vqgan", "inr_recon")}
    model = load_model(repository / "bundles/ldm_recon", "cpu", "fp32")
    image, views = (x[0] for x in radiographs())
    expected = load_sampler(paths["ldm_recon"], paths["vqgan"], paths["inr_recon"], "cpu", "fp32", **SETTINGS)
    drawn = list(model.samples(image, views, 3, seed=5))
    assert len(drawn) == 3
    for sample, (_, other) in zip(drawn, expected.samples(image, views, 3, 5), strict=True):
        assert torch.equal(sample, other[0, 0])
    assert torch.equal(next(model.samples(image, views, 1, seed=5)), drawn[0])
    assert not torch.equal(drawn[0], drawn[1])
    assert model.parents == {role: sha256_file(paths[name]) for role, name in PARENTS.items()}
    mean = unit_to_hu(tiny_network()(image[None], views[None])[0, 0], (-1000, 1000))
    assert torch.equal(model.mean(image, views), mean)
    faster = load_model(repository / "bundles/ldm_recon", "cpu", steps=1, consistency_final=0)
    assert faster.network.steps == 1 and faster.network.final_consistency is None


@pytest.mark.parametrize("name", ["inr_recon", "ldm_recon"])
def test_an_exported_folder_is_the_bundle_wherever_it_lies(
    repository: Path, name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = export(str(repository / "bundles" / name), str(tmp_path_factory.mktemp("models") / name))
    image, views = (x[0] for x in radiographs())
    model = load_model(repository / "bundles" / name, "cpu", "fp32")
    first = model.mean(image, views), list(model.samples(image, views, 2)) if model.can_sample else []
    shutil.rmtree(repository / "bundles")
    content = json.loads((folder / "model.json").read_text())
    files = {path.name for path in folder.iterdir()}
    assert set(content["files"]) == files - {"model.json"}
    assert files >= ({"autoencoder.pt", "mean.pt"} if model.can_sample else {"README.md", "LICENSE", "thresholds.json"})
    for form in (folder, folder / "model.pt", str(folder)):
        again = load_model(form, "cpu", "fp32")
        assert (again.name, again.sha256, again.parents) == (name, model.sha256, model.parents)
        assert torch.equal(again.mean(image, views), first[0])
        assert again.thresholds == (None if model.can_sample else folder / "thresholds.json")
        for sample, expected in zip(again.samples(image, views, 2) if model.can_sample else [], first[1], strict=True):
            assert torch.equal(sample, expected)


def test_names_are_found_in_folders_of_the_environment_and_in_the_working_directory(
    repository: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = tmp_path_factory.mktemp("shelf")
    export(str(repository / "bundles/ldm_recon"), str(shelf / "ldm_recon"))
    monkeypatch.chdir(repository)
    assert find_model("ldm_recon").model.resolve() == (repository / "bundles/ldm_recon/models/model.pt").resolve()
    monkeypatch.setenv(FOLDERS_VARIABLE, f"{shelf / 'none'}:{shelf}")
    assert find_model("ldm_recon").model == shelf / "ldm_recon/model.pt"
    with monkeypatch.context() as application:  # a package without bundles, such as that of a Deploy application
        application.setattr("custom.core.bundle_folders.PACKAGE", tmp_path_factory.mktemp("package") / "custom")
        application.setattr("custom.core.bundle_folders.INSTALLED", shelf)
        assert find_model("ldm_recon").model == shelf / "ldm_recon/model.pt"
        application.chdir(shelf.parent)
        with pytest.raises(FileNotFoundError, match="x2ct has no published weights here"):
            find_model("x2ct")
    monkeypatch.delenv(FOLDERS_VARIABLE)
    monkeypatch.chdir(shelf)
    assert find_model("ldm_recon").model == Path("ldm_recon/model.pt")


def test_the_published_model_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_model("inr_recon").model == ROOT / "bundles/inr_recon/models/model.pt"
    found = find_model("ldm_recon")
    assert found.atlas == ROOT / "bundles/ldm_recon/models/atlas.nii.gz"
    assert found.autoencoder == ROOT / "bundles/vqgan/models/model.pt" and found.sampler["steps"] == 10


def test_a_denoiser_without_a_mean_network_needs_none(tmp_path: Path) -> None:
    """As train.json of ldm_recon leaves it: the parent is there, and nothing."""
    hashes = {"autoencoder": sha256_file(save_checkpoint(tmp_path / "vq.pt", autoencoder())), "mean": None}
    save_checkpoint(tmp_path / "model.pt", denoiser(), {"parents": hashes, "pixel_at_isocenter_mm": 20.0})
    out = tmp_path / "out"
    export(str(tmp_path / "model.pt"), str(out), autoencoder_checkpoint=str(tmp_path / "vq.pt"))
    assert sorted(path.name for path in out.glob("*.pt")) == ["autoencoder.pt", "model.pt"]
    model = load_model(out, "cpu", "fp32")
    image, views = (x[0] for x in radiographs())
    assert next(model.samples(image, views, 1)).shape == GRID.shape
    assert model.parents == {"autoencoder": hashes["autoencoder"]}


def test_a_denoiser_on_voxels_only_draws_samples(tmp_path: Path) -> None:
    options: dict[str, Any] = {"encoder": FeatureUNet(4, (4, 6), 3), "unet": UNET, "precision": "fp32"}
    network = LatentDenoiser(
        grid=VolumeGrid.cube(8, 320), latent_channels=VoxelIdentity.embedding_dim, space_to_depth=2, **options
    )
    path = save_checkpoint(tmp_path / "mine.pt", network.eval())
    model = load_model(path, "cpu", steps=1)
    assert (model.name, model.parents, model.grid.shape) == ("mine", {}, (8, 8, 8))
    image, views = (x[0] for x in radiographs())
    assert next(model.samples(image, views, 1)).shape == (8, 8, 8)
    with pytest.raises(ValueError, match="mine only draws samples: pass --samples"):
        model.mean(image, views)
    folder = export(str(path), str(tmp_path / "out"), mean_checkpoint=str(path))
    assert sorted(p.name for p in folder.iterdir()) == ["model.json", "model.pt"], "parents without use stay away"


# --- what is wrong is said ---


def damage(folder: Path, kind: str) -> None:
    description = folder / "model.json"
    content = json.loads(description.read_text())
    if kind == "changed":
        with open(folder / "mean.pt", "ab") as file:
            file.write(b"x")
    elif kind == "missing":
        (folder / "autoencoder.pt").unlink()
    elif kind == "outside":
        content["files"]["../x"] = "0"
    elif kind == "format":
        content["format"] = "other"
    elif kind == "code":
        content["sampler"] = {"solver": "$__import__('os').system('touch ran')"}
    elif kind == "option":
        content["sampler"] = {"batch": 1}
    elif kind == "weights":
        del content["files"]["model.pt"]
    description.write_text("{" if kind == "json" else json.dumps(content))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("changed", r"mean\.pt: SHA-256 .{12}, but model\.json says .{12}: the file was changed or damaged"),
        ("missing", r"autoencoder\.pt: missing, but model\.json lists it"),
        ("outside", r"names '\.\./x', which is not a file of its folder"),
        ("format", "format 'other', expected"),
        ("code", "settings of sampling must be plain values"),
        ("option", "settings of sampling must be among"),
        ("weights", r"lists no model\.pt"),
        ("json", "is not a JSON file"),
    ],
)
def test_a_damaged_folder_is_refused(repository: Path, tmp_path: Path, kind: str, message: str) -> None:
    folder = export(str(repository / "bundles/ldm_recon"), str(tmp_path / "out"))
    damage(folder, kind)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_model(folder, "cpu")


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        ("voxel", FileNotFoundError, "voxel: no such model: pass inr_recon, ldm_recon, x2ct, voxel_diffusion"),
        (".", ValueError, r"holds neither model\.json nor configs/inference\.json"),
        ("bundles/vqgan", ValueError, "a VQGAN does not turn radiographs into a CT"),
        ("bundles/empty", FileNotFoundError, "has no weights: it is fitted to each case"),
        ("bundles/untrained", FileNotFoundError, "train it .*untrained/configs/train.json"),
        (
            "bundles/orphan",
            FileNotFoundError,
            r"gone/model\.pt: missing; orphan needs it as its autoencoder_checkpoint",
        ),
        (
            "alone.pt",
            ValueError,
            r"needs the weights of its autoencoder and mean.*fewview-ct export .*alone\.pt OUTPUT",
        ),
        ("text.pt", ValueError, "not a checkpoint of fewview-ct, or damaged"),
    ],
)
def test_what_is_no_model_is_said(
    repository: Path, monkeypatch: pytest.MonkeyPatch, model: str, error: type[Exception], message: str
) -> None:
    monkeypatch.chdir(repository)
    bundle(repository, "empty", {})
    (bundle(repository, "untrained", {}) / "configs/train.json").write_text("{}")
    orphan = bundle(repository, "orphan", {"autoencoder_checkpoint": "gone/model.pt"})
    shutil.copy(repository / "bundles/ldm_recon/models/model.pt", orphan / "models")
    shutil.copy(repository / "bundles/ldm_recon/models/model.pt", repository / "alone.pt")
    (repository / "text.pt").write_text("no weights")
    with pytest.raises(error, match=message):
        load_model(model, "cpu")


def test_a_name_that_is_not_here_says_where_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=rf"x2ct has no published .* set {FOLDERS_VARIABLE} .* or train it"):
        load_model("x2ct")


def test_unknown_settings_are_refused(repository: Path) -> None:
    for name, options, message in (
        ("ldm_recon", {"step": 3}, "no options of the sampler: step"),
        ("inr_recon", {"steps": 3}, "draws no samples and has no options such as steps"),
        ("inr_recon", {"precision": "fp8"}, "precision must be one of"),
        ("inr_recon", {"device": "quantum"}, "device 'quantum' cannot be used"),
    ):
        with pytest.raises(ValueError, match=message):
            load_model(repository / "bundles" / name, **{"device": "cpu", **options})


def test_nothing_is_exported_that_cannot_be_loaded(repository: Path, tmp_path: Path) -> None:
    other = save_checkpoint(tmp_path / "other.pt", autoencoder(seed=1))
    output = tmp_path / "out"
    with pytest.raises(ValueError, match=r"was trained on latents of the autoencoder"):
        export(str(repository / "bundles/ldm_recon"), str(output), autoencoder_checkpoint=str(other))
    with pytest.raises(FileNotFoundError, match=r"none\.json: no such file for the thresholds"):
        export(str(repository / "bundles/ldm_recon"), str(output), thresholds=str(tmp_path / "none.json"))
    with pytest.raises(ValueError, match=r"seg_guidance/models/model\.pt: a SegmentationUNet does not turn"):
        export(SEGMENTER, str(output))
    assert not output.exists() and not list(tmp_path.glob(".out*"))
    export(str(repository / "bundles/inr_recon"), str(output))
    with pytest.raises(FileExistsError, match="out: exists: choose another output, or pass --overwrite"):
        export(str(repository / "bundles/ldm_recon"), str(output))
    export(str(repository / "bundles/ldm_recon"), str(output), overwrite=True)
    assert json.loads((output / "model.json").read_text())["name"] == "ldm_recon"


def test_a_network_for_two_views_is_a_model_too(tmp_path: Path) -> None:
    network = X2CT(
        VolumeGrid.cube(32, 320), dense_layers=[1, 1, 1, 1], decoder_channels=[2, 2, 2, 2, 2], stem_channels=4, growth=2
    )  # fmt: skip
    model = load_model(save_checkpoint(tmp_path / "model.pt", network), "cpu", "fp32")
    assert (model.can_sample, model.grid.shape, model.energy_kev) == (False, (32, 32, 32), 70.0)


def test_weights_beside_the_card_of_others_are_refused(repository: Path, tmp_path: Path) -> None:
    card = repository / "bundles/inr_recon/models/README.md"
    bare = tmp_path / "bare" / "weights.pt"
    bare.parent.mkdir()
    shutil.copyfile(card.with_name("model.pt"), bare)
    for folder, weights in ((card.parent, card.with_name("model.pt")), (bare.parent, bare)):
        (folder / "README.md").write_text(f"| file | SHA-256 `{sha256_file(weights)}`, and another `{'0' * 64}` |")
        assert find_model(weights).model == weights
        (folder / "README.md").write_text(f"| file | SHA-256 `{'0' * 64}` |")
        with pytest.raises(
            ValueError, match=rf"{weights.name}: SHA-256 .* the card beside it .* describes 000000000000"
        ):
            find_model(weights)


def test_a_model_of_the_working_directory_is_said(
    repository: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(repository)
    find_model("inr_recon")
    assert "inr_recon: taken from" in caplog.text and "which is not the published model" in caplog.text
    caplog.clear()
    monkeypatch.chdir(ROOT)
    find_model("inr_recon")
    assert not caplog.text


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_is_no_volume(value: float, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(repository / "bundles/inr_recon", "cpu", "fp32")
    monkeypatch.setattr(model.network, "forward", lambda image, views: torch.full((1, 1, *GRID.shape), value))
    image, views = (x[0] for x in radiographs())
    with pytest.raises(ValueError, match=r"the model inr_recon gave \d+ of \d+ values that are NaN or infinite"):
        model.mean(image, views)
    with pytest.raises(ValueError, match=r"values that are NaN or infinite"):
        save_volume(repository / "x.nii.gz", torch.full(GRID.shape, value), GRID)
