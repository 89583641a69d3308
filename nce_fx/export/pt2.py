"""A quantized graph as a `torch.export` archive: it runs where PyTorch is, without nce-fx and without the model's code.

An archive is a zip file of JSON and of plain bytes, one record a tensor. PyTorch's own format may also hold pickles
(sample inputs, tensors of odd types) and code (guards, expressions). Here there are none: nothing that would be
unpickled is written, and `load_pt2` refuses an archive that has any. The record ``extra/nce_fx`` is JSON: what the file
says of where it comes from, and the SHA-256 of every other record, for PyTorch's reader does not notice a flipped bit.
"""

import copy
import hashlib
import io
import json
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves

from nce_fx.errors import ArtifactError, ExportError
from nce_fx.export.export import provenance
from nce_fx.export.export_file import check_asked, export_file
from nce_fx.export.levels import mark
from nce_fx.export.program import example, program, reason, share_a_batch, takes_any_batch
from nce_fx.plain_text import read_json
from nce_fx.progress import begin
from nce_fx.tracing.exported import graph_of_program
from nce_fx.tracing.preserved_state import same_values

VERSION = 1
_ABOUT, _SAMPLES, _GRAPH = "extra/nce_fx", "data/sample_inputs/model.pt", "models/model.json"
_RECORDS = re.compile(
    r"data/(weights/(weight_\d+|model_weights_config\.json)|constants/(tensor_\d+|model_constants_config\.json))"
    rf"|{_SAMPLES}|{_GRAPH}|{_ABOUT}|archive_format|archive_version|byteorder|\.data/(version|serialization_id)"
)
_OPERATORS = re.compile(r"torch\.ops\.aten\.\w+\.\w+|_operator\.\w+|torch\.sym_\w+")
_EXPRESSION = re.compile(r"([A-Z]\w*\(|(?!\w*__)\w+(?!\w*\()|[\s()+\-*/,='])*")
"""Arithmetic on named sizes; PyTorch evaluates these as Python."""


@dataclass(frozen=True)
class Pt2Export:
    """What was written."""

    path: Path
    size: int
    """Bytes."""
    batch: int | None
    """Samples in a batch; ``None``: any number."""


def export_pt2(gm: GraphModule, path: str | Path, *, batch: int | None = None) -> Pt2Export:
    """Write a graph as a `torch.export` archive that computes the same in evaluation mode, bit for bit.

    The archive is loaded and run before it takes its name. ``torch.export.load(path).module()`` reads it with PyTorch
    alone, `load_pt2` having checked it first.

    Args:
        gm: any graph of nce-fx; it is not changed.
        path: the file; one of that name is replaced once the new one has been checked.
        batch: samples in a batch. By default any number, or the traced one where the graph fixes it.

    Raises:
        ExportError: a graph that PyTorch cannot export, or an archive that computes something else. Nothing is written
            then.
    """
    path = Path(path)
    check_asked(path, batch)
    gm = copy.deepcopy(gm).cpu().eval()
    begin("trace with torch.export")
    exported, batch = _program(gm, batch)
    exported.example_inputs = None  # they would be pickled
    about = {"version": VERSION, **provenance(gm, mark(gm), batch)}
    content = _with_about(exported, about)
    inputs = example(gm, batch or (3 if takes_any_batch(gm) else None))
    begin("compare with PyTorch")
    with export_file(path) as fresh:
        fresh.write_bytes(content)
        _verify(gm, load_pt2(fresh), inputs)
    return Pt2Export(path, len(content), batch)


def load_pt2(path: str | Path) -> GraphModule:
    """Return the graph of an archive that `export_pt2` wrote, in evaluation mode.

    Raises:
        ArtifactError: the file is missing, damaged, foreign, of a newer version, or holds something that would be run.
    """
    path = Path(path)
    content, records = _records(path)
    _check(path, records)
    with _loading(path):
        # The guards are code.
        module = torch.export.load(io.BytesIO(content)).module(check_guards=False)
    assert isinstance(module, GraphModule)
    return module


def read_program(path: str | Path) -> GraphModule:
    """Return the graph of a program that somebody wrote with ``torch.export.save``, in evaluation mode.

    Sample inputs are pickled in such files: they are left out unread. The graph is as the program was exported, in one
    mode.

    Raises:
        ArtifactError: the file is missing or damaged, or holds something that would be run.
    """
    path = Path(path)
    content, records = _records(path)
    _check_records(path, {name: record for name, record in records.items() if name != _SAMPLES})
    kept = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(kept, "w") as result:
        for entry in archive.infolist():
            pickled = entry.filename.partition("/")[2] == _SAMPLES
            result.writestr(entry, b"" if pickled else archive.read(entry))
    with _loading(path):
        return graph_of_program(torch.export.load(io.BytesIO(kept.getvalue())), path.stem)


@contextmanager
def _loading(path: Path) -> Iterator[None]:
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except Exception as error:
        # PyTorch raises whatever it stumbles over, such as a schema that it does not know yet.
        raise ArtifactError(f"{path} cannot be loaded by PyTorch {torch.__version__}: {reason(error)}") from error


def _program(gm: GraphModule, batch: int | None) -> tuple[Any, int | None]:
    traced = example(gm, batch)
    if batch is None and share_a_batch(traced):
        try:
            return program(gm, example(gm, 2), dynamic="batch"), None
        except Exception:
            batch = tree_leaves(traced)[0].shape[0]  # the graph has the batch as a number
    try:
        return program(gm, traced, dynamic="no"), batch
    except Exception as error:
        raise ExportError(f"the graph cannot be exported: {reason(error)}") from error


def _with_about(exported: Any, about: dict[str, Any]) -> bytes:
    """Return the archive, with a record on where it comes from and what its other records are."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):
        torch.export.save(exported, buffer)
    with zipfile.ZipFile(buffer, "a") as archive:
        names = archive.namelist()
        folder = names[0].partition("/")[0]
        about["sha256"] = {name.partition("/")[2]: hashlib.sha256(archive.read(name)).hexdigest() for name in names}
        # A fixed date: the same network is the same bytes.
        archive.writestr(zipfile.ZipInfo(f"{folder}/{_ABOUT}"), json.dumps(about, sort_keys=True))
    return buffer.getvalue()


def _records(path: Path) -> tuple[bytes, dict[str, bytes]]:
    """Return the bytes of an archive, and its records by their names inside its folder."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            # Reading checks the sums of the zip format.
            records = [(entry.filename.partition("/")[2], archive.read(entry)) for entry in archive.infolist()]
    except Exception as error:
        # zipfile raises errors of struct, zlib, unicode and its own, by what is wrong.
        raise ArtifactError(f"{path} is damaged, it is not a torch.export archive: export it again") from error
    if len(dict(records)) < len(records):
        raise ArtifactError(f"{path} holds two records of one name: export it again")
    return content, dict(records)


def _check(path: Path, records: dict[str, bytes]) -> None:
    """Return if an archive is ours, whole, and holds nothing that would be run.

    Raises:
        ArtifactError: says what is wrong.
    """
    try:
        about = read_json(records[_ABOUT])
        version, sums = about["version"], dict(about["sha256"])
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path} is not an archive that nce-fx wrote: use `nce-fx export DIR --pt2`") from error
    if isinstance(version, int) and version > VERSION:
        raise ArtifactError(f"{path} has version {version}, this nce-fx reads up to {VERSION}: install a newer nce-fx")
    found = {name: hashlib.sha256(content).hexdigest() for name, content in records.items() if name != _ABOUT}
    if found != sums:
        wrong = sorted(name for name in found.keys() | sums.keys() if found.get(name) != sums.get(name))[0]
        raise ArtifactError(f"{path} is damaged: {wrong} is not what was written; export it again")
    _check_records(path, records)


def _check_records(path: Path, records: dict[str, bytes]) -> None:
    strange = next((name for name in records if not _RECORDS.fullmatch(name)), None)
    if strange is not None or records.get(_SAMPLES):
        raise ArtifactError(f"{path} holds {strange or _SAMPLES}, which could run code: it is not loaded")
    for name in records:
        if name.endswith(".json"):
            _check_json(path, name, records[name])


def _check_json(path: Path, name: str, content: bytes) -> None:
    try:
        entries = list(_entries(read_json(content)))
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is damaged: {name} is not JSON; export it again") from error
    for key, value in entries:
        pickled = key == "use_pickle" and value is not False
        code = key == "expr_str" and not (isinstance(value, str) and _EXPRESSION.fullmatch(value))
        operator = key == "target" and name == _GRAPH and not (isinstance(value, str) and _OPERATORS.fullmatch(value))
        if pickled or code or operator:
            raise ArtifactError(f"{path} holds {key} {value!r} in {name}, which could run code: it is not loaded")


def _entries(value: Any) -> Any:
    """Yield every key and value of nested JSON."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield key, item
            yield from _entries(item)
    elif isinstance(value, list):
        for item in value:
            yield from _entries(item)


def _verify(gm: GraphModule, loaded: GraphModule, inputs: tuple[Any, ...]) -> None:
    with torch.no_grad():
        mine, theirs = (
            [value for value in tree_leaves(module(*inputs)) if isinstance(value, Tensor)] for module in (gm, loaded)
        )
    if len(mine) != len(theirs) or not all(same_values(a, b) for a, b in zip(mine, theirs, strict=False)):
        raise ExportError("the exported archive computes something else than the graph: please report this")
