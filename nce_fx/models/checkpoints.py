"""Weights as people have them: safetensors, whole or in shards, and PyTorch's own files, bare or inside a checkpoint.

    weights.safetensors   model.safetensors.index.json (and the shards beside it)   weights.pt  .pth  .ckpt  .bin

PyTorch's files are read without running code (``weights_only``). What wraps the names is taken off: an entry such as
``state_dict``, a prefix such as ``module.``.
"""

import pickle
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nce_fx.errors import ArtifactError, one_line
from nce_fx.nearest import nearest_path
from nce_fx.plain_text import read_json

_ENTRIES = ("state_dict", "model_state_dict", "model", "net", "weights")
"""Where checkpoints keep the weights."""
_DEEPEST = 3
"""So many entries inside each other are looked into."""
_PICKLED = (".pt", ".pth", ".ckpt", ".bin")


def read_weights(path: Path, names: Collection[str]) -> tuple[dict[str, Tensor], str]:
    """Return the tensors of a file by the names that a model has, and in words what was taken off; empty for nothing.

    Raises:
        ArtifactError: the file is missing, damaged, or holds no weights that can be read without running code.
    """
    if not path.is_file():
        raise ArtifactError(f"weights {path}: there is no such file{nearest_path(path)}")
    said = []
    content: Any = _read_pickled(path) if path.suffix in _PICKLED else _read_safetensors(path)
    entry, found = _state_in(content)
    if found is None:
        held = ", ".join(map(str, list(content)[:5])) if isinstance(content, Mapping) else type(content).__name__
        raise ArtifactError(f"weights {path}: holds no state_dict, but {held or 'nothing'}: save model.state_dict()")
    if entry:
        said.append(f"the entry {entry!r}")
    state = dict(found)
    prefix = _prefix(state, names)
    if prefix:
        left_out = [name for name in state if not name.startswith(prefix)]
        state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        said.append(f"names without {prefix!r}" + (f", {len(left_out)} others left out" if left_out else ""))
    return state, ", ".join(said)


def _state_in(content: Any, place: str = "", depth: int = 0) -> tuple[str, Mapping[str, Tensor] | None]:
    """Return where weights are in a checkpoint, and them: itself, an entry that is called so, or the only one."""
    if isinstance(content, Mapping) and content and all(isinstance(item, Tensor) for item in content.values()):
        return place, content
    if not isinstance(content, Mapping) or depth == _DEEPEST:
        return place, None
    inside = {
        key: found
        for key, value in content.items()
        if isinstance(key, str) and (found := _state_in(value, f"{place}.{key}".lstrip("."), depth + 1))[1] is not None
    }
    named = next((inside[key] for key in _ENTRIES if key in inside), None)
    return named or (next(iter(inside.values())) if len(inside) == 1 else (place, None))


def _prefix(state: Mapping[str, Tensor], names: Collection[str]) -> str:
    """Return what stands before the model's names in a file, ``"module."``; empty where that is nothing, or unclear.

    Every name of the model is there with it, but for counters; what has another beginning is no part of the model.
    """
    if any(name in names for name in state):
        return ""
    needed = [name for name in names if not name.endswith("num_batches_tracked")]
    if not needed:
        return ""
    first = needed[0]
    found = {name.removesuffix(first) for name in state if name.endswith(f".{first}")}
    fitting = [prefix for prefix in found if all(f"{prefix}{name}" in state for name in needed)]
    if len(fitting) == 1:
        return fitting[0]
    # Something else is missing or too much: what all names begin with is taken off, and the rest is said.
    return next((prefix for prefix in found if all(name.startswith(prefix) for name in state)), "")


def _read_pickled(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ArtifactError(
            f"weights {path}: holds Python objects beside tensors, which are not loaded: save model.state_dict() alone"
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
        read: dict[str, Tensor] = {}
        for shard in map(path.parent.joinpath, _shards(path)):
            read |= _read_pickled(shard) if shard.suffix in _PICKLED else load_file(shard)
        return read
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        hint = "" if path.suffix == ".safetensors" else "; save them with safetensors.torch.save_file"
        raise ArtifactError(f"weights {path}: not a readable safetensors file ({one_line(error)}){hint}") from error
