"""One archive of a bundle that runs where MONAI is and this package is not: configs, weights, the code they name."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import json
import os
import re
import sys
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from custom.core.bundle_folders import PACKAGE, find_bundle
from custom.core.checkpoints import load_checkpoint
from custom.core.files import atomic_file, read_json_object
from custom.models.model_files import ATLAS, AUTOENCODER, CARD, MEAN, THRESHOLDS, WEIGHTS, ModelFiles, find_model

__all__ = ["write_bundle_archive"]

HASHES = "SHA256SUMS"
#: Where an archive has the weights of a bundle's parents, by the key of its configs.
PARENTS = {
    "autoencoder_checkpoint": f"models/{AUTOENCODER}", "mean_checkpoint": f"models/{MEAN}", "atlas": f"models/{ATLAS}"
}  # fmt: skip
HOW = f"""
## This archive
`{HASHES}` has the SHA-256 of every file (`sha256sum -c {HASHES}`), `custom/` the code that the configs name,
`models/README.md` the card, `docs/data_license.txt` what the training data asks for. Install MONAI and what
`configs/metadata.json` lists as `required_packages_version`, then, in this folder:

```bash
python -m monai.bundle run --config_file configs/inference.json --image RADIOGRAPHS --geometry GEOMETRY
```
"""


UNKNOWN_DATA = "These weights came without a card: what they were trained on, and what its licences ask, is not said.\n"
OWN_WEIGHTS = "\nIts weights are of an own training: what this page measured is of others.\n"


def write_bundle_archive(
    bundle: str,
    output: str | os.PathLike[str],
    overwrite: bool = False,
    weights: str | os.PathLike[str] | None = None,
    thresholds: str | os.PathLike[str] | None = None,
) -> Path:
    """Write a bundle as one zip file that needs MONAI and the packages its metadata lists, and nothing of this project.

    Args:
        bundle: name or folder.
        output: the zip file.
        overwrite: replace a file that is there.
        weights: model.pt of an own training, in place of the bundle's weights, card and thresholds; a card (README.md)
            beside it goes along.
        thresholds: made by `fewview-ct calibrate` with these weights.

    Raises:
        FileNotFoundError: no such bundle, weights or thresholds, or a parent's weights are not there.
        FileExistsError: the output exists.
        ValueError: the output is no .zip file, weights are not those that their card describes, or own weights are of
            no checkpoint or need parents.
    """
    folder, target = find_bundle(bundle).resolve(), Path(output)
    if target.suffix != ".zip":
        raise ValueError(f"{target}: the archive of a bundle is a .zip file")
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target}: exists: choose another output, or pass --overwrite")
    content = dict(_content(folder, weights, thresholds))
    hashes = {name: hashlib.sha256(content[name]).hexdigest() for name in sorted(content)}
    content[HASHES] = "".join(f"{digest}  {name}\n" for name, digest in hashes.items()).encode()
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(target) as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(content):
            # Without times, so that the same bundle gives the same archive.
            archive.writestr(zipfile.ZipInfo(f"{folder.name}/{name}"), content[name], zipfile.ZIP_DEFLATED)
    return target


def _model(
    folder: Path, weights: str | os.PathLike[str] | None, thresholds: str | os.PathLike[str] | None
) -> ModelFiles:
    """The bundle's own model, or that of an own training."""
    if weights is None:
        return find_model(folder)
    for path in (weights, thresholds):
        if path is not None and not Path(path).is_file():
            raise FileNotFoundError(f"{path}: no such file")
    if any(load_checkpoint(weights).meta.get("parents", {}).values()):
        raise ValueError(
            f"{weights}: needs weights of parents, which may not be those of {folder.name}: pack it without --bundle"
        )
    own, card = find_model(weights), Path(weights).parent / CARD
    limits = None if thresholds is None else Path(thresholds)
    return replace(own, model=Path(weights), thresholds=limits, card=card if card.is_file() else None)


def _content(
    folder: Path, given: str | os.PathLike[str] | None, thresholds: str | os.PathLike[str] | None
) -> Iterator[tuple[str, bytes]]:
    """Names in the archive, below the folder of the bundle, and what the files hold."""
    configs = {path.relative_to(folder).as_posix(): path for path in sorted((folder / "configs").rglob("*.json"))}
    modules = _needed_modules(re.findall(r"\bcustom(?:\.\w+)+", "".join(path.read_text() for path in configs.values())))
    for name, path in configs.items():
        config = read_json_object(path)
        if path.name == "metadata.json":
            config["required_packages_version"] = _packages(modules.values(), config["required_packages_version"])
        config |= {key: value for key, value in PARENTS.items() if config.get(key) is not None}
        yield name, (json.dumps(config, indent=4, ensure_ascii=False) + "\n").encode()
    yield "configs/logging.conf", (folder / "configs" / "logging.conf").read_bytes()
    yield "LICENSE", (folder / "LICENSE").read_bytes()
    page = (folder / "docs" / "README.md").read_text(encoding="utf-8") + HOW
    yield "docs/README.md", (page if given is None else page + OWN_WEIGHTS).encode()
    if given is not None or (folder / "models" / WEIGHTS).is_file():
        found = _model(folder, given, thresholds)
        weights = {WEIGHTS: found.model, AUTOENCODER: found.autoencoder, MEAN: found.mean, ATLAS: found.atlas}
        weights |= {THRESHOLDS: found.thresholds, CARD: found.card}
        for name, file in weights.items():
            if file is not None:
                yield f"models/{name}", file.read_bytes()
        cards = dict.fromkeys(path.parent / CARD for path in (found.model, found.autoencoder) if path is not None)
        licences = [card.read_text(encoding="utf-8") for card in cards if card.is_file()]
        yield "docs/data_license.txt", ("\n".join(licences) or UNKNOWN_DATA).encode()
    for name, source in modules.items():
        is_package = source.name == "__init__.py"
        yield name.replace(".", "/") + ("/__init__.py" if is_package else ".py"), source.read_bytes()


def _source(module: str) -> Path | None:
    path = PACKAGE.parent / module.replace(".", "/")
    return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()), None)


def _needed_modules(names: Iterable[str]) -> dict[str, Path]:
    """Modules of this package that these names lead to, by what they import, with their files."""
    needed: dict[str, Path] = {}
    waiting = list(names)
    while waiting:
        parts = waiting.pop().split(".")
        for length in range(1, len(parts) + 1):
            module = ".".join(parts[:length])
            source = _source(module)
            if source is not None and module not in needed:
                needed[module] = source
                waiting += [name for name, _ in _imports(source) if name.split(".")[0] == "custom"]
    return dict(sorted(needed.items()))


def _imports(source: Path) -> Iterator[tuple[str, bool]]:
    """What a file imports, and whether it does so when it is imported itself."""
    tree = ast.parse(source.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node in tree.body) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from ((f"{node.module}.{alias.name}", node in tree.body) for alias in node.names)


def _packages(sources: Iterable[Path], listed: dict[str, Any]) -> dict[str, str]:
    """Distributions that the code needs beside MONAI and its own needs, with the versions that are here."""
    found = {name: str(version) for name, version in listed.items() if name != "fewview-ct"}
    distributions = importlib.metadata.packages_distributions()
    for source in sources:
        for name, at_once in _imports(source):
            top = name.split(".")[0]
            if at_once and top not in sys.stdlib_module_names and top not in ("custom", "torch", "monai", "numpy"):
                for distribution in distributions.get(top, ()):
                    found.setdefault(distribution, importlib.metadata.version(distribution))
    return dict(sorted(found.items()))
