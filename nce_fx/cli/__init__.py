"""The command line: one command a file, nothing heavy imported before a command runs."""

from nce_fx.cli.app import app, main

__all__ = ["app", "main"]
