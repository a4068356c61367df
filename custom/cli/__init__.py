"""The console command `fewview-ct`: its verbs, how their options are read, and the exit codes."""

from custom.cli.command_line import VERBS, Verb, main
from custom.cli.exit_codes import ExitCode

__all__ = [
    "VERBS",
    "ExitCode",
    "Verb",
    "main",
]
