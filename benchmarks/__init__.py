"""The measurements, a folder a subject: `python -m benchmarks list` names them, `python -m benchmarks run NAME` one.

``python -m benchmarks.NAME`` runs the same one: each folder adds its files to this package.
"""

from pathlib import Path

_HERE = Path(__file__).parent
SUBJECTS = ("accuracy", "files", "graphs", "robustness", "steps", "widths")
"""Folders whose files are commands."""

__path__ += [str(_HERE / folder) for folder in (*SUBJECTS, "corpora")]
