"""Tensors as the bytes of a safetensors file and back, their digest, and whether they fit a model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from nce_fx.errors import ArtifactError
from nce_fx.quantizers import Quantizer


def pack(state: Mapping[str, Tensor]) -> bytes:
    """Return tensors as the bytes of a safetensors file; names that share one tensor are stored once."""
    first: dict[tuple[Any, ...], str] = {}
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if tensor.numel() and key in first:
            aliases[name] = first[key]
            continue
        first[key] = name
        tensors[name] = tensor.detach().cpu().contiguous().clone()
    # One entry only: safetensors writes several in any order, and the same tensors must be the same bytes.
    return safetensors.torch.save(tensors, metadata={"aliases": json.dumps(aliases, sort_keys=True)})


def unpack(content: bytes, path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, under all the names that `pack` was given.

    Raises:
        ArtifactError: the bytes are not a safetensors file.
    """
    try:
        tensors = safetensors.torch.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        aliases = json.loads(header.get("__metadata__", {}).get("aliases", "{}"))
        return tensors | {name: tensors[other] for name, other in aliases.items()}
    except (SafetensorError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ArtifactError(f"{path} is damaged, it is not a safetensors file: write it again") from error


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of named tensors: of names, types, shapes and values."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def fit_problem(model: nn.Module, state: Mapping[str, Tensor]) -> str | None:
    """Return in words why tensors do not fit a model's parameters and buffers, or ``None`` where they do."""
    own = model.state_dict()
    absent = {
        f"{path}.{name}".removeprefix(".")
        for path, module in model.named_modules()
        if isinstance(module, Quantizer)
        for name in module.absent
    }
    missing = [name for name in own if name not in state and name not in absent]
    extra = [name for name in state if name not in own]
    other = [name for name in own if name in state and own[name].shape != state[name].shape]
    problems = []
    if other:
        shapes = f"{tuple(state[other[0]].shape)}, the model has {tuple(own[other[0]].shape)}"
        problems.append(f"{_some(other)}: the file has {shapes}")
    if missing:
        problems.append(f"missing {_some(missing)}")
    if extra:
        problems.append(f"not in the model {_some(extra)}")
    return "; ".join(problems) or None


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
