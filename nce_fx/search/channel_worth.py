"""What channels are worth to a network as it is, at its few bits: how far the loss moves when one of them goes.

Without channel c, all that its readers make of it is missing. To first order the loss of a batch then changes by the
sum over the readers' weights w of c of  w dL/dw.  A channel is worth the mean square of that over batches, a group the
sum over its channels: what the loss would come to if a share of them went, as far as gradients can tell.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule

from nce_fx.batches import read
from nce_fx.by_mode import evaluating
from nce_fx.devices import device_of, to_device
from nce_fx.passes.analysis.channels import analysis_of
from nce_fx.passes.transform.quantize import RemoveQuantizers
from nce_fx.processes import call
from nce_fx.tasks import Task


def worth_of_groups(network: GraphModule, batches: Sequence[Any], task: Task) -> dict[str, float]:
    """Return what each channel group is worth, in squares of the loss; the mean where no weights read its channels.

    Args:
        network: quantized or not; it is run as in evaluation, its gradients stay as they are.
        batches: in any form that `nce_fx.batches` reads.
        task: whose loss.
    """
    analysis = analysis_of(RemoveQuantizers()(network).graph_module)
    tie, classes = analysis.structure.tie, analysis.structure.classes
    parameters = {path: value for path, value in network.named_parameters() if value.requires_grad}
    readers = [
        (path, axis, classes[line.numpy()])
        for (path, axis), line in tie.axis_lines.items()
        if axis >= 0 and path in parameters and "in" in tie.roles.get((path, axis), ())
    ]
    paths = list(dict.fromkeys(path for path, _, _ in readers))
    total = np.zeros(int(classes.max(initial=0)) + 1)
    for batch in batches:
        inputs, target = to_device(read(batch, network), device_of(network))
        with evaluating(network), torch.enable_grad():
            loss = task.loss(call(network, inputs), target)
            slopes = torch.autograd.grad(loss, [parameters[path] for path in paths], allow_unused=True)
        gradients = dict(zip(paths, slopes, strict=True))
        moved = np.zeros_like(total)
        for path, axis, numbers in readers:
            gradient = gradients[path]
            if gradient is not None:
                product = (gradient * parameters[path].detach()).double().movedim(axis, 0)
                np.add.at(moved, numbers, product.reshape(len(product), -1).sum(1).cpu().numpy())
        total += moved**2 / len(batches)
    read_by = {number for _, _, numbers in readers for number in numbers.tolist()}
    found: dict[str, float] = {}
    unknown = []
    for known, group in zip(analysis.channels.groups, analysis.structure.groups, strict=True):
        own = np.concatenate([part.classes for part in group.parts])
        found[known.id] = float(total[own].sum())
        if read_by.isdisjoint(own.tolist()):
            unknown.append(known.id)
    mean = sum(found.values()) / max(1, len(found) - len(unknown))
    return found | dict.fromkeys(unknown, mean)
