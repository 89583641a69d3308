"""The second corpus as entries like those of the first: which libraries, in which order."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from itertools import chain, zip_longest
from typing import Any

import torch
from benchmarks.second import Sample
from benchmarks.vision import Entry, noise

LAWS = ("5", "0", "3", "4", "2", "10", "7", "8")
"""The laws that are asked as they stand; laws 1 and 6 always are."""


MODULES = (
    "transformers", "segmentation_models_pytorch", "diffusers", "monai.networks.nets", "ultralytics.nn.tasks", "effdet",
    "spandrel.architectures", "x_transformers", "vit_pytorch", "kornia", "efficientnet_pytorch", "pretrainedmodels",
    "segment_anything", "rtdl_revisiting_models", "tab_transformer_pytorch", "pytorch_tabnet.tab_network", "demucs",
    "snac", "facenet_pytorch", "pytorchcv.model_provider", "dynamic_network_architectures", "conformer",
    "compressai.models", "super_image", "mlp_mixer_pytorch", "g_mlp_pytorch", "res_mlp_pytorch", "perceiver_pytorch",
    "linformer", "nystrom_attention", "axial_attention", "denoising_diffusion_pytorch", "lpips", "mambapy.mamba",
    "torchsr.models", "torchxrayvision.models",
)  # fmt: skip
"""What the models are built of."""


def load() -> None:
    """Import the libraries that are installed, so that no model is charged for it; say which are missing."""
    offline()
    for name in MODULES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            print(f"left out: {name}: {error}", file=sys.stderr)


def offline() -> None:
    """Let what would ask a hub for weights fail at once."""
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")


def samples() -> Iterator[Sample]:
    """Yield the models of all libraries."""
    offline()
    import benchmarks.second_others as second_others
    import benchmarks.second_text as second_text
    import benchmarks.second_vision as second_vision

    yield from second_text.text()
    yield from second_text.transformers_text()
    yield from second_vision.detection()
    yield from second_others.tables()
    yield from second_others.sound()
    yield from second_others.transformers_for_vision()
    yield from second_vision.diffusion()
    yield from second_vision.segmentation()
    yield from second_others.restoration()
    yield from second_others.geometry()
    yield from second_vision.medicine()
    yield from second_others.classifiers()


def second_models() -> Iterator[Entry]:
    """Yield the models of the second corpus: the first of each library, then the second of each, and so on."""
    by_library: dict[str, list[Sample]] = {}
    for sample in samples():
        by_library.setdefault(sample.library, []).append(sample)
    for sample in filter(None, chain.from_iterable(zip_longest(*by_library.values()))):
        yield Entry(
            "second", f"{sample.library}/{sample.name}", sample.build, _inputs(sample), laws=LAWS, up_to=5_000_000
        )


def _inputs(sample: Sample) -> Any:
    def made() -> tuple[Any, ...]:
        return tuple(value.clone() if isinstance(value, torch.Tensor) else noise(*value) for value in sample.inputs)

    return made
