"""Which operation of a graph first gives values, or gradients, that are not finite: what a broken step is told with."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from nce_fx.by_mode import idle_in
from nce_fx.errors import where


def first_not_finite(model: nn.Module, inputs: tuple[Any, ...], loss_of: Any) -> str | None:
    """Return in words where a graph breaks on a batch, ``div (truediv) at net.py:12 gives values that are not finite``.

    ``None`` where it does not, or is no graph. It is run once more; its gradients are what they were.
    """
    if not isinstance(model, GraphModule):
        return None
    run = _Watched(model)
    try:
        output = run.run(*inputs, initial_env=dict(idle_in(model, model.training)))
        broken = next((node for node in model.graph.nodes if run.breaks(node)), None)
        if broken is not None:
            return f"{where(broken)} gives values that are not finite"
        kept = {node: value for node, value in run.values.items() if value.requires_grad}
        found = torch.autograd.grad(loss_of(output), list(kept.values()), allow_unused=True)
    except Exception:
        return None  # whoever asks has something to say already
    gradients = dict(zip(kept, found, strict=True))
    lost = {node for node, gradient in gradients.items() if gradient is not None and not _is_finite(gradient)}
    for node in reversed(model.graph.nodes):
        # What reaches a value by its other readers adds up in its gradient, too.
        sources = (source for source in node.all_input_nodes if source in lost)
        if gradients.get(node) is not None and any(lost.isdisjoint(source.users) for source in sources):
            return f"the gradient through {where(node)} is not finite"
    return None


class _Watched(Interpreter):
    """Keeps every tensor of numbers that a graph computes."""

    def __init__(self, gm: GraphModule) -> None:
        super().__init__(gm, garbage_collect_values=False)
        self.values: dict[Node, Tensor] = {}

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor) and result.is_floating_point() and n.op != "output":
            self.values[n] = result
        return result

    def breaks(self, node: Node) -> bool:
        """Whether a value is not finite though all that it is computed from is."""
        if node not in self.values or _is_finite(self.values[node]):
            return False
        return all(_is_finite(self.values[source]) for source in node.all_input_nodes if source in self.values)


def _is_finite(value: Tensor) -> bool:
    return bool(value.isfinite().all())
