"""The quantized weights alone, four 2-bit numbers to a byte, in a safetensors file that NumPy can read.

For every layer with a quantized weight, by its name:

    <layer>.packed   uint8: the integers plus ``2**(bits - 1)``, in the order of the weight's axes, ``8 // bits`` to a
                     byte with the first in the lowest bits; zeros fill the last byte. ``bits`` is 1, 2, 4 or 8.
    <layer>.scale    float32, 0-dimensional or shaped to broadcast over the weight
    <layer>.offset   float32, likewise

    weight = (integers + offset) * scale

The file's metadata has one entry, ``nce_fx``, JSON: the version of this layout, for every layer the shape of its weight
and how many bits an integer takes in the file, and the SHA-256 of all of this and of the numbers. docs/deploy.md has a
reader in NumPy.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from torch.fx import GraphModule

from nce_fx.errors import ExportError
from nce_fx.export.export_file import export_file
from nce_fx.passes.transform.quantize import integer_weights

VERSION = 1


def save_packed(gm: GraphModule, path: str | Path) -> Path:
    """Write the quantized weights of a graph, and return the path.

    Raises:
        ExportError: the graph has no quantized weight, or the file cannot be written.
    """
    path = Path(path)
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    layers: dict[str, dict[str, Any]] = {}
    for name, weight in integer_weights(gm).items():
        width = next(size for size in (1, 2, 4, 8) if size >= weight.bits)
        integers = weight.integers.cpu().numpy()
        tensors[f"{name}.packed"] = pack_bits(integers.astype(np.int16) + 2 ** (width - 1), width)
        tensors[f"{name}.scale"] = weight.scale.cpu().numpy().astype(np.float32)
        tensors[f"{name}.offset"] = weight.offset.cpu().numpy().astype(np.float32)
        layers[name] = {"shape": list(integers.shape), "bits": width}
    if not layers:
        raise ExportError("the graph has no quantized weight to pack: quantize it first")
    about: dict[str, Any] = {"version": VERSION, "layers": layers}
    content = safetensors.numpy.save(tensors)
    start = 8 + int.from_bytes(content[:8], "little")
    about["sha256"] = packed_digest(json.loads(content[8:start]), about, content[start:])
    content = safetensors.numpy.save(tensors, metadata={"nce_fx": json.dumps(about, sort_keys=True)})
    with export_file(path) as fresh:
        fresh.write_bytes(content)
    return path


def packed_digest(header: Mapping[str, Any], about: Mapping[str, Any], numbers: bytes) -> str:
    """Return the SHA-256 of what a file says of its tensors, of its layers, and of the bytes of the tensors."""
    return hashlib.sha256(json.dumps([header, about], sort_keys=True).encode() + numbers).hexdigest()


def pack_bits(values: np.ndarray[Any, Any], width: int) -> np.ndarray[Any, Any]:
    """Return numbers from 0 to ``2**width - 1`` as bytes, the first in the lowest bits."""
    each = 8 // width
    flat = values.reshape(-1).astype(np.uint8)
    rows = np.pad(flat, (0, -flat.size % each)).reshape(-1, each)
    packed: np.ndarray[Any, Any] = np.zeros(len(rows), np.uint8)
    for place in range(each):
        packed |= rows[:, place] << (place * width)
    return packed
