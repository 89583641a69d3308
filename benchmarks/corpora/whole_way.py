"""The whole pipeline on one model of a corpus: resized, quantized, trained for two steps, saved, loaded, exported."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.fuzz_pipeline import equal, exported, two_steps
from torch import nn

import nce_fx
from tests.drawing import wider
from tests.zoo.model import randomize

FORMS = ("int2", "integer", "qonnx")


def whole_way(build: Callable[[], nn.Module], inputs: tuple[Any, ...]) -> Iterator[dict[str, Any]]:
    """Take a model through all steps, in float32; yield after each how far it came.

    What stands at the end under ``pipeline`` is, for each format, what refused it, or an empty string.
    """
    found: dict[str, Any] = {}
    yield {"status": "timeout", "pipeline": found}
    try:
        gm = nce_fx.trace(randomize(build()).eval(), inputs)
        channels = nce_fx.analyze_channels(gm)
        gm = nce_fx.quantize(nce_fx.resize(gm, wider(channels, 0)), batches=[(inputs, None)])
        gm = two_steps(gm, *inputs)
        with tempfile.TemporaryDirectory() as folder:
            nce_fx.save(gm, Path(folder) / "result")
            equal(gm, nce_fx.load(Path(folder) / "result", randomize(build(), 1).eval()), *inputs)
            for form in FORMS:
                found[form] = exported(gm, Path(folder) / f"{form}.onnx", form)
                yield {"status": "timeout", "pipeline": found}
        yield {"status": "ok"}
    except Exception as error:
        yield {"status": "failed", "pipeline": f"{type(error).__name__}: {str(error)[:400]}"}
