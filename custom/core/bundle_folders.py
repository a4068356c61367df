"""Where bundles lie: in a checkout of the repository or inside the installed package, and where their results go."""

from __future__ import annotations

import inspect
import os
from pathlib import Path

from monai.bundle import ConfigWorkflow

__all__ = ["bundle_root", "find_bundle", "parent_file", "published_bundles", "results_folder", "trained_file"]

PACKAGE = Path(__file__).resolve().parents[1]
#: Where a wheel has the bundles (pyproject.toml puts them there).
INSTALLED = PACKAGE / "bundles"


def published_bundles() -> Path:
    """The folder of the bundles that come with this package.

    Raises:
        FileNotFoundError: a package without them.
    """
    for folder in (PACKAGE.parent / "bundles", INSTALLED):
        # In a checkout `bundles` lies beside the package; a folder of that name in site-packages is another's.
        if (folder / "inr_recon" / "configs" / "metadata.json").is_file():
            return folder
    raise FileNotFoundError(
        f"{PACKAGE}: neither bundles beside the package nor inside it: install the wheel, or a checkout with 'pip "
        "install -e .'"
    )


def find_bundle(bundle: str | os.PathLike[str]) -> Path:
    """The folder of a bundle.

    Args:
        bundle: its folder, or a name, which is looked for as `bundles/NAME` in the working directory, then among the
            published ones.

    Raises:
        FileNotFoundError: there is none.
    """
    given = Path(bundle)
    places = [given, Path("bundles") / given, published_bundles() / given] if given.name == str(bundle) else [given]
    for folder in places:
        if (folder / "configs").is_dir():
            return folder
    names = ", ".join(sorted(path.parent.name for path in published_bundles().glob("*/configs")))
    raise FileNotFoundError(f"{bundle}: no such bundle: pass {names}, or a folder that holds configs/")


def bundle_root(name: str) -> str:
    """The folder of the bundle whose config is being run; a config names it as its `bundle_root`.

    MONAI hands a config no path to itself, but its workflow, which evaluates this, knows the folder of the configs.
    Where a config is evaluated without a workflow, it is the published bundle of this name.

    Args:
        name: of the bundle.
    """
    frame = inspect.currentframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, ConfigWorkflow):
            folder = caller.config_root_path
            # Of an overlay or a preset that is named first, too: what holds `configs` is the bundle.
            configs = next((p for p in (folder, *folder.absolute().parents) if p.name == "configs"), None)
            return str(folder if configs is None else configs.parent)
        frame = frame.f_back
    return str(published_bundles() / name)


def results_folder(bundle_root: str, name: str) -> str:
    """Where a run leaves its files: in the bundle, or under the working directory where the bundle is an installed one.

    Args:
        bundle_root: of the bundle.
        name: "models" or "eval".
    """
    if INSTALLED in Path(bundle_root).resolve().parents:
        return str(Path("bundles", Path(bundle_root).name, name))
    return f"{bundle_root}/{name}"


def trained_file(ckpt_dir: str, bundle_root: str, name: str = "model.pt") -> str:
    """Weights: those of a training of one's own in `ckpt_dir`, else those that came with the bundle.

    Args:
        ckpt_dir: where trainings leave weights.
        bundle_root: of the bundle.
        name: of the file.
    """
    own, published = Path(ckpt_dir, name), Path(bundle_root, "models", name)
    return str(published if not own.is_file() and published.is_file() else own)


def parent_file(path: str | None, bundle_root: str) -> str | None:
    """Weights of another bundle: a path as given, else seen from the folder that holds `bundles/`, else in the bundle.

    Args:
        path: such as bundles/vqgan/models/model.pt; None stays None.
        bundle_root: of the bundle that needs it.
    """
    if path is None or Path(path).is_file():
        return path
    root = Path(bundle_root).resolve()
    return next((str(file) for file in (root.parents[1] / path, root / path) if file.is_file()), path)
