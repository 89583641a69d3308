"""What every test shares: one thread, and the two operators that torchvision's wheel misses on a CPU build of torch."""

import torch

torch.set_num_threads(1)

_library = torch.library.Library("torchvision", "FRAGMENT")
for _schema in (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
):
    if not hasattr(torch.ops.torchvision, _schema.split("(")[0]):
        _library.define(_schema)
