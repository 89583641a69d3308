"""Heads: what they share, and which of them turn out to have the same channels, once all ties are known."""

from collections.abc import Callable

from torch.fx import GraphModule, Node

from nce_fx.ids.labels import Ids, Label, bare, core
from nce_fx.ids.space import IdSpace, Tensors
from nce_fx.passes.analysis.channels.interpreter import ChannelInterpreter


class HeadsAlike(ChannelInterpreter):
    """The part of the first run that puts off what can be decided only when all classes are known."""

    def __init__(self, gm: GraphModule, space: IdSpace, tensors: Tensors, alike: frozenset[Node]) -> None:
        super().__init__(gm, space, tensors)
        self.alike = alike
        """Products within heads that a run before this one found to be alike."""
        self.by_heads: list[tuple[Node, tuple[tuple[Label, int], ...]]] = []
        """All products within heads, and the axes that they sum over."""
        self.shared: list[tuple[Node, int, Label, int, Callable[[], None]]] = []
        self.apart: set[tuple[Node, int]] = set()
        """The steps at which a parameter is shared by heads, which stay apart."""

    def settle_shared(self, classes: Ids) -> None:
        """Decide what parameters that heads may share mean, now that all else is known.

        Where the channels of each head are one class anyhow, and heads differ, the heads share the parameter and its
        length stays. Else its entries are tied to the channels they meet (a norm after a pixel shuffle).
        """
        for node, step, label, axis, meet in self.shared:
            numbers = classes[bare(core(label).numpy())]
            first = numbers.take([0], axis)
            one_each = bool((numbers == first).all())
            if one_each and not _one_line(classes, label, axis):
                self.apart.add((node, step))
                continue
            self.node = node
            self._aside(step, meet)
        self.node = None
        self.shared.clear()

    def heads_alike(self, *labels: tuple[Label, int]) -> bool:
        """Say whether a run before this one found the heads of the node at hand alike; note them for the next."""
        self.by_heads.append((self.here, labels))
        return self.here in self.alike

    def found_alike(self, classes: Ids) -> frozenset[Node]:
        """Return the products whose heads turned out to have the same channels, because they share a parameter."""
        return frozenset(node for node, labels in self.by_heads if all(_one_line(classes, *label) for label in labels))


def _one_line(classes: Ids, label: Label, axis: int) -> bool:
    numbers = classes[bare(core(label).numpy())]
    first = numbers[tuple(slice(None) if k == axis % label.dim() else slice(0, 1) for k in range(label.dim()))]
    return bool((numbers == first).all())
