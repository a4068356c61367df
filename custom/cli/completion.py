"""The verb `fewview-ct completion`: the script by which a shell completes commands and their options."""

from __future__ import annotations

from typing import Literal

from rich.console import Console

__all__ = ["completion"]


def completion(shell: Literal["bash", "zsh", "fish"] = "bash") -> None:
    """Print the script that completes commands and options.

    For bash: `fewview-ct completion bash > ~/.local/share/bash-completion/completions/fewview-ct`; for zsh write it to
    a folder of `fpath` as `_fewview-ct`; for fish to `~/.config/fish/completions/fewview-ct.fish`.

    Args:
        shell: bash, zsh or fish.
    """
    from custom.cli.command_line import VERBS, command_app

    script = command_app(*VERBS).generate_completion(prog_name="fewview-ct", shell=shell)
    Console(soft_wrap=True).out(script, highlight=False)
