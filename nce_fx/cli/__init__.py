"""The command line: what can be asked is in one file, what each command does in one of its own, imported when it runs."""

from nce_fx.cli.app import app, main

__all__ = ["app", "main"]
