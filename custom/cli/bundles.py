"""The verb `fewview-ct bundles`: which bundles came with the package, and where their configs are."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from custom.core.bundle_folders import find_bundle, published_bundles
from custom.core.files import read_json_object

__all__ = ["bundles"]


def bundles(name: str | None = None) -> None:
    """Tell which bundles there are and where, for commands that name their configs.

    Args:
        name: of one of them: its folder alone, as in `"$(fewview-ct bundles inr_recon)/configs/inference.json"`.

    Raises:
        FileNotFoundError: no such bundle.
    """
    console = Console()
    if name is not None:
        console.print(Text(str(find_bundle(name).resolve())), soft_wrap=True)
        return
    for folder in sorted(path.parents[1] for path in published_bundles().glob("*/configs/metadata.json")):
        title = read_json_object(folder / "configs" / "metadata.json")["name"]
        console.print(Text(f"{folder.name:<16} {title}\n{'':<16} {folder}"), soft_wrap=True)
