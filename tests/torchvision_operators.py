"""Two operators that torchvision's wheel misses beside a CPU build of torch: import this, then torchvision imports."""

import sys
from importlib.util import find_spec

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

library: torch.library.Library | None = None
"""What holds them; ``None`` where torchvision has its own, which a second definition would abort the program over."""

if find_spec("torchvision") is not None:
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for _name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[_name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for _schema in _SCHEMAS:
            library.define(_schema)
