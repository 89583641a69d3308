"""Tensors as the bytes of a safetensors file and back, their digest, and whether they fit a model."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from nce_fx.errors import ArtifactError
from nce_fx.plain_text import read_json


def to_bytes(state: Mapping[str, Tensor]) -> bytes:
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


def from_bytes(content: bytes, path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, under all the names that `to_bytes` was given.

    Raises:
        ArtifactError: the bytes are not a safetensors file.
    """
    try:
        tensors = safetensors.torch.load(content)
        header = read_json(content[8 : 8 + int.from_bytes(content[:8], "little")])
        aliases = read_json(header.get("__metadata__", {}).get("aliases", "{}"))
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
