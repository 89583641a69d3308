"""Weights as people have them: safetensors, whole or in shards, and PyTorch's own files, bare or inside a checkpoint.

    weights.safetensors   model.safetensors.index.json (and the shards beside it)   weights.pt  .pth  .ckpt  .bin

PyTorch's files are read without running code (``weights_only``). What wraps the names is taken off: an entry such as
``state_dict``, a prefix such as ``module.``.
"""

from __future__ import annotations

import pickle
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nce_fx.errors import ArtifactError, one_line
from nce_fx.plain_text import read_json

_ENTRIES = ("state_dict", "model_state_dict", "model", "net", "weights")
"""Where checkpoints keep the weights."""
_PREFIXES = ("module.", "model.", "_orig_mod.", "net.")
"""What training loops, data parallelism and compilation put before names."""
_PICKLED = (".pt", ".pth", ".ckpt", ".bin")


def read_weights(path: Path, names: Collection[str]) -> tuple[dict[str, Tensor], str]:
    """Return the tensors of a file by the names that a model has, and in words what was taken off; empty for nothing.

    Raises:
        ArtifactError: the file is missing, damaged, or holds no weights that can be read without running code.
    """
    if not path.is_file():
        raise ArtifactError(f"weights {path}: there is no such file")
    said = []
    content: Any = _read_pickled(path) if path.suffix in _PICKLED else _read_safetensors(path)
    entry = next((key for key in _ENTRIES if isinstance(content, Mapping) and _is_state(content.get(key))), None)
    if entry is not None and not _is_state(content):
        content = content[entry]
        said.append(f"the entry {entry!r}")
    if not _is_state(content):
        held = ", ".join(map(str, list(content)[:5])) if isinstance(content, Mapping) else type(content).__name__
        raise ArtifactError(f"weights {path}: holds no state_dict, but {held}: save model.state_dict()")
    state = dict(content)
    while (prefix := _prefix(state, names)) is not None:
        state = {name.removeprefix(prefix): value for name, value in state.items()}
        said.append(f"names without {prefix!r}")
    return state, ", ".join(said)


def _prefix(state: Mapping[str, Tensor], names: Collection[str]) -> str | None:
    """Return what all names begin with, where the model has none of them."""
    if any(name in names for name in state):
        return None
    return next((prefix for prefix in _PREFIXES if state and all(name.startswith(prefix) for name in state)), None)


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(item, Tensor) for item in value.values())


def _read_pickled(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ArtifactError(
            f"weights {path}: holds Python objects beside tensors, which are not loaded: save model.state_dict() alone "
            f"({one_line(error)})"
        ) from error
    except Exception as error:
        raise ArtifactError(f"weights {path}: not a readable file of PyTorch ({one_line(error)})") from error


def _shards(path: Path) -> list[str]:
    """Return the files that an index names: files beside it, wherever it says they are.

    Raises:
        ValueError: it is no index, or it names a file elsewhere.
        OSError: it cannot be read.
    """
    index = read_json(path.read_bytes())
    files = index.get("weight_map") if isinstance(index, Mapping) else None
    if not isinstance(files, Mapping) or not all(isinstance(file, str) for file in files.values()):
        raise ValueError("it has no weight_map of names to files")
    elsewhere = next((file for file in files.values() if Path(file).name != file or "\\" in file), None)
    if elsewhere is not None:
        raise ValueError(f"its weight_map names {elsewhere!r}, which is not a file beside it")
    return sorted(set(files.values()))


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if not path.name.endswith(".index.json"):
            return load_file(path)
        return {name: value for shard in _shards(path) for name, value in load_file(path.parent / shard).items()}
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        hint = "" if path.suffix == ".safetensors" else "; save them with safetensors.torch.save_file"
        raise ArtifactError(f"weights {path}: not a readable safetensors file ({one_line(error)}){hint}") from error
