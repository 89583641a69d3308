"""The command line: what can be asked is in one file, what a command does in one of its own, imported as it runs."""

from nce_fx.cli.app import app, main

__all__ = ["app", "main"]
