"""Checkpoints: one safetensors file each, written whole or not at all; the newest two are kept.

A file holds every tensor (``model/NAME``, ``momentum/NAME``, ``extra/...``) and, as JSON in its header under
``nce_fx``, everything else: whose run it is, the position, the sums and the history so far, the plan, and the SHA-256
of the tensors and of all of this. Nothing in it is executed when it is read. Random states need no place: see
``determinism``.
"""

import errno
import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from nce_fx.errors import ArtifactError, TrainingError
from nce_fx.files import write_whole
from nce_fx.frozen import Frozen
from nce_fx.plain_text import read_json
from nce_fx.tensor_file import digest

FORMAT = 1
KEPT = 2
_PATTERN = "checkpoint-*.safetensors"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint(Frozen):
    """A training run at one moment, between two steps."""

    steps: int
    """Steps done since the start of the run."""
    tensors: Mapping[str, Tensor]
    state: Mapping[str, Any]
    """JSON values."""


def flat(kinds: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return tensors of several kinds under one name each: ``{"model/conv.weight": ...}``."""
    return {f"{kind}/{name}": tensor for kind, own in kinds.items() for name, tensor in own.items()}


def by_kind(tensors: Mapping[str, Tensor]) -> defaultdict[str, dict[str, Tensor]]:
    """Return what `flat` made one of; none of a kind that is not there."""
    kinds: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        kind, _, rest = name.partition("/")
        kinds[kind][rest] = tensor
    return kinds


def save_checkpoint(directory: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint into a directory, remove those older than the one before it, and return its path.

    Raises:
        TrainingError: the file cannot be written; the ones before it are kept.
    """
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in checkpoint.tensors.items()}
    header = {"format": FORMAT, "steps": checkpoint.steps, "sha256": digest(tensors), **checkpoint.state}
    header["seal"] = _seal(header)
    path = directory / f"checkpoint-{checkpoint.steps:09d}.safetensors"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_whole(path, to_bytes(tensors, metadata={"nce_fx": json.dumps(header)}))
    except OSError as error:
        raise TrainingError(
            f"cannot write {path}: {error.strerror or error}: {last_good(directory)}; {remedy(error)}"
        ) from error
    for old in _newest_first(directory)[KEPT:]:
        old.unlink(missing_ok=True)
    return path


def latest_checkpoint(directory: Path) -> Checkpoint | None:
    """Return the newest checkpoint that is whole, or None where there is none at all.

    A damaged or foreign file is named in a warning and the one before it is taken.

    Raises:
        ArtifactError: there are checkpoints, and none of them can be used.
    """
    problems: list[str] = []
    for path in _newest_first(directory):
        try:
            checkpoint = read_checkpoint(path)
        except ArtifactError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            _log.warning("%s; going on from %s", problem, path)
        return checkpoint
    if problems:
        raise ArtifactError(f"{problems[0]}; there is no other to go on from: remove it to start anew")
    return None


def read_checkpoint(path: Path) -> Checkpoint:
    """Return the checkpoint in a file.

    Raises:
        ArtifactError: the file is truncated, altered, or no checkpoint of nce-fx.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get("nce_fx")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it has no __iter__)
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"checkpoint {path} is truncated or damaged ({error})") from error
    try:
        state = read_json(header or "")
        if state["format"] != FORMAT:
            raise ValueError
        seal = state.pop("seal")
        intact = seal == _seal(state)
        del state["format"]
        steps, sha256 = state.pop("steps"), state.pop("sha256")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ArtifactError(f"{path} is no training checkpoint of this version of nce-fx") from error
    if not intact:
        raise ArtifactError(f"checkpoint {path} is damaged: what it says of the run is not what was saved")
    if digest(tensors) != sha256:
        raise ArtifactError(f"checkpoint {path} is damaged: its tensors are not the ones that were saved")
    return Checkpoint(steps, tensors, state)


def last_good(directory: Path | None) -> str:
    """Return how messages name the newest checkpoint."""
    newest = _newest_first(directory) if directory is not None else []
    return f"the last good checkpoint is {newest[0]}" if newest else "there is no checkpoint"


def remedy(error: OSError) -> str:
    """Return what to do where a file cannot be written: ``make room, then run again`` where a disk is full."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return "make room, then run again" if full else "put that right, then run again"


def _seal(header: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()


def _newest_first(directory: Path) -> list[Path]:
    return sorted(directory.glob(_PATTERN), reverse=True)
