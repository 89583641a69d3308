"""The first run: which channels meet, which are pinned, who makes them and who reads them."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule, Node

from nce_fx.errors import ChannelError, where
from nce_fx.ids.labels import (
    FIRST_ID,
    FIXED,
    Ids,
    Label,
    Layout,
    along,
    bare,
    core,
    line_of,
    named_axes,
    placed,
    told_apart,
    varies,
)
from nce_fx.ids.rule_interface import Statement
from nce_fx.ids.space import IdSpace, ParameterAxis, Pin
from nce_fx.ids.value import ChannelTensor, Weight
from nce_fx.ops.tensors import tensors_of
from nce_fx.passes.analysis.channels.computed import Computed, computed, grows_with_parameter
from nce_fx.passes.analysis.channels.heads import HeadsAlike
from nce_fx.passes.analysis.channels.merged import merged_weights


class Tie(HeadsAlike):
    """The first run: records which ids meet, which are pinned, and who consumes what."""

    def __init__(self, gm: GraphModule, alike: frozenset[Node] = frozenset()) -> None:
        super().__init__(gm, IdSpace(), tensors_of(gm), alike)
        self.merged = merged_weights(gm, self.ops, self.tensors)
        self.pairs: list[tuple[Ids, Ids]] = []
        self.pins: list[Pin] = []
        self.meetings: dict[tuple[Node, int], Statement] = {}
        self.consumers: list[tuple[str, Ids]] = []
        self.products: list[tuple[str, Ids]] = []
        """Products of data that are summed over channels: the node's name, and their ids."""
        self.producers: dict[ParameterAxis, tuple[str, Node]] = {}
        self.axis_lines: dict[ParameterAxis, torch.Tensor] = {}
        """For each parameter axis that carries channels: the ids it met (its own where it made them)."""
        self._recorded: tuple[Any, Any] = None, None
        """The last line that a parameter met, as it is and without places: the parameters of a norm meet one."""
        self.roles: dict[ParameterAxis, set[str]] = {}
        self.views: dict[Node | None, list[Layout]] = {}
        """For each node: what each of its views did."""
        self.computed: dict[str, Computed] = {}
        """For each parameter whose channels meet what the graph computes from it: the weight that is computed."""
        self.cuts: list[Ids] = []
        self.pieces: dict[tuple[int, int, int], Ids] = {}
        """The ids of every piece that was cut out of an axis, by the first, the last and their number."""
        self.edges: list[tuple[int, int, str]] = []
        self.seen: dict[Node, Any] = {}
        self.attributes: dict[tuple[Node, str], Any] = {}
        self.unknown_nodes: set[Node] = set()
        """What could not be run on channels: all that reaches it is pinned."""
        self.answers: dict[tuple[Node, int], Statement] = {}
        self.taken: dict[Node, tuple[int, int]] = {}
        """How many meetings and questions each node had."""

    def run_node(self, n: Node) -> Any:
        """Run a node and keep what it returned."""
        try:
            result = super().run_node(n)
        except ChannelError:
            raise
        except Exception as error:
            if n.op not in ("call_function", "call_method", "call_module"):
                raise
            self.unknown_nodes.add(n)
            result = self.unknown(n, *self.arguments(n), error)
        self.seen[n] = result
        self.taken[n] = self.step, self.asked
        return result

    def overwritten(self, value: ChannelTensor) -> None:
        if value.path is None:
            before = ChannelTensor(self, value.shape, value.labels, value.dtype)
            for node, seen in self.seen.items():
                self.seen[node] = torch.fx.node.map_aggregate(seen, lambda item: before if item is value else item)

    def ids(self, label: torch.Tensor) -> torch.Tensor:
        ids: torch.Tensor = bare(label)
        return ids

    def _remember(self, word: str, *labels: Label, axis: ParameterAxis | None = None, choice: int = 0) -> None:
        self.meetings[self.here, self.step] = Statement(self.fact(word), labels, axis, choice)
        self.step += 1

    def _join(self, a: torch.Tensor, b: torch.Tensor) -> None:
        a, b = told_apart(core(a), core(b))
        if a.shape != b.shape:
            a, b = torch.broadcast_tensors(a, b)  # type: ignore[no-untyped-call]
        x, y = bare(a.reshape(-1).numpy()), bare(b.reshape(-1).numpy())
        differ = x != y
        if not differ.any():
            return
        x, y = x[differ], y[differ]
        for left, right in ((x, y), (y, x)):
            fixed = right == FIXED
            if fixed.any():
                self.pin(
                    torch.from_numpy(left[fixed & (left >= FIRST_ID)]),
                    "it is joined elementwise with something of fixed length "
                    "(the model's input, padding, or what an op without a rule returns)",
                )
        own = (x >= FIRST_ID) & (y >= FIRST_ID)
        self.pairs.append((x[own], y[own]))
        if own.any():
            self.edges.append((int(x[own][0]), int(y[own][0]), self.here.name))

    def tie(self, a: Label, b: Label) -> None:
        self._remember("tie", a, b)
        self._join(a, b)

    def contract(self, a: torch.Tensor, b: torch.Tensor, by_root: bool) -> None:
        self.products.append((self.here.name, bare(a.numpy())))
        self.tie(a, b)

    def block(self, label: Label, axis: int) -> None:
        self._block("block", label, axis)

    def _block(self, word: str, label: Label, axis: int) -> None:
        self._remember(word, label)
        small = core(label)
        if small.shape[axis] > 1:
            self._join(small, small.narrow(axis, 0, 1).expand_as(small))

    def _share(self, label: Label, axis: int, meet: Callable[[], None]) -> None:
        self.shared.append((self.here, self.step, label, axis, meet))
        self._remember("share", label)

    def uniform(self, label: Label, axis: int) -> None:
        self._block("uniform", label, axis)

    def root(self, label: Label, axis: int, exponent: float) -> None:
        self._block("root", label, axis)

    def still(self, label: Label, axis: int) -> None:
        self._remember("still", label)

    def rigid(self, label: Label, axis: int) -> None:
        self._block("rigid", label, axis)

    def pin(self, ids: torch.Tensor, reason: str, at: Node | None = None) -> None:
        at = at or self.node
        numbers = np.unique(bare(ids.reshape(-1).numpy()))
        numbers = numbers[numbers >= FIRST_ID]
        if len(numbers):
            self.pins.append(Pin(numbers, at.name if at else "", f"{reason}, at {where(at)}" if at else reason))

    def _resolve(self, weight: Weight, axis: int) -> ParameterAxis | None:
        """Return the parameter axis that an axis of a weight is, whole and in order; None for a computed mixture."""
        if weight.path is not None:
            return weight.path, axis
        for label in weight.labels:
            if varies(label, axis):
                line = bare(line_of(label, axis))
                owner = int(self.space.owners(line[:1].numpy())[0])
                if owner < 0:
                    return None
                start, size = self.space.starts[owner], self.space.sizes[owner]
                if size == line.numel() and bool((line == torch.arange(start, start + size)).all()):
                    return self.space.axes[owner]
                return None
        return None

    def _line(self, weight: Weight, axis: int) -> torch.Tensor:
        if weight.path is not None:
            return self.space.line((weight.path, axis), weight.shape[axis])
        line: torch.Tensor = bare(line_of(weight.labels[self._choice(weight, axis)], axis))
        return line

    def _produces(self, axis: ParameterAxis, alias: str | None) -> None:
        self.producers.setdefault(axis, (alias or axis[0], self.here))

    def _produces_in_part(self, line: torch.Tensor, axis: int) -> None:
        """Pieces of an axis make channels (query, key and value of one projection): the whole axis is a producer."""
        owners = [owner for owner in np.unique(self.space.owners(line.numpy())).tolist() if owner >= 0]
        for owner in owners:
            self._produces(self.space.axes[owner], None)
        if not owners and self.here.op == "call_module":
            self._produces_unfollowed(axis, line.numel())

    def _produces_unfollowed(self, axis: int, channels: int) -> None:
        """A module makes its weight of parameters in which its channels are lost, as an orthogonal one does."""
        prefix = f"{self.here.target}."
        for path, tensor in self.tensors.tensors.items():
            mine = path.startswith(prefix) and isinstance(tensor, torch.nn.Parameter)
            if mine and tensor.dim() > 1 and tensor.shape[axis] == channels:
                self._produces((path, axis), None)
                self.pin(self.space.line((path, axis), channels), "its weight is computed from it as a whole")

    def _choice(self, weight: Weight, axis: int) -> int:
        if weight.path is not None:
            return 0
        return next((k for k, label in enumerate(weight.labels) if varies(label, axis)), 0)

    def produce(self, weight: Weight, axis: int) -> torch.Tensor:
        line = self._line(weight, axis)
        resolved = self._resolve(weight, axis)
        if resolved is not None:
            self._produces(resolved, weight.alias)
            self.axis_lines[resolved] = line
            self.roles.setdefault(resolved, set()).add("out")
        else:
            self._produces_in_part(line, axis)
        self._remember("produce", line, axis=resolved, choice=self._choice(weight, axis))
        self._follow_merged(weight, axis, line)
        return line

    def _follow_merged(self, weight: Any, axis: int, line: torch.Tensor) -> None:
        for other in self.followed(weight, axis)[1:]:
            self._remember("follow", line, axis=other)
            self._follows(other, line)

    def consume(
        self, weight: Weight, axis: int, line: torch.Tensor, data: tuple[ChannelTensor, int] | None = None
    ) -> None:
        merged = self.followed(weight, axis)
        for each in merged:
            self._remember("consume", line, axis=each)
            self._record(each, line, "in")
            self.consumers.append((each[0], bare(line.numpy())))
        if merged:
            return
        resolved = self._resolve(weight, axis)
        reason = "it is read by a weight that the graph computes"
        shared = False
        if resolved is not None and weight.exact and not self._grows(weight, axis, resolved):
            reason = f"it is read by a part of {resolved[0]} that is cut out by numbers"
            resolved = resolved if self._can_keep(weight, resolved) else None
        elif resolved is not None and weight.exact:
            shared = "out" in self.roles.get(resolved, ()) and self.place_among(data) is not None
        elif resolved is not None and not self._can_keep(weight, resolved):
            shared = isinstance(weight, ChannelTensor) and weight.elementwise and self.place_among(data) is not None
            resolved = resolved if shared else None
        self._remember("consume", line, axis=resolved, choice=int(shared))
        if resolved is None:
            self.pin(line, reason)
            return
        if shared:
            self._follows(resolved, line)
        else:
            self._record(resolved, line, "in")
        self.consumers.append((resolved[0], bare(line.numpy())))

    def _grows(self, weight: Weight, axis: int, read: ParameterAxis) -> bool:
        """Whether a weight that was moved or cut out of a parameter is longer where the parameter is."""
        node = None if weight.path is not None else self._node_of(weight)
        return node is None or grows_with_parameter(node, axis, read, self.tensors, self.env)

    def _node_of(self, weight: Weight) -> Node | None:
        return next((n for n in self.here.all_input_nodes if self.env.get(n) is weight), None)

    def _can_keep(self, weight: Weight, read: ParameterAxis) -> bool:
        """Whether a computed weight can be kept in the place of the parameter it is computed from, axis for axis."""
        node = self._node_of(weight)
        while node is not None and self.ops.of_call(node.target) is self.ops["t"] and len(node.users) == 1:
            # Turned after it was computed: what it is turned from has the parameter's own axes.
            node = node.all_input_nodes[0]
            weight = self.env[node]
        known = self.tensors.tensors.get(read[0])
        moving = [axis for axis in (0, 1) if any(varies(label, axis) for label in weight.labels)]
        in_place = known is not None and known.shape == weight.shape
        if node is None or not in_place or any(self._resolve(weight, axis) != (read[0], axis) for axis in moving):
            return False
        found = computed(self.module, node, read, self.tensors)
        if found is not None:
            self.computed[read[0]] = found
        return found is not None

    def _record(self, axis: ParameterAxis, line: torch.Tensor, role: str) -> None:
        if line is not self._recorded[0]:
            self._recorded = line, bare(line) if placed(line) else line
        line = self._recorded[1]
        known = self.axis_lines.get(axis)
        if known is not None and known.numel() == line.numel():
            self._join(known, line)
        else:
            self.axis_lines[axis] = line
        self.roles.setdefault(axis, set()).add(role)

    def follow(self, parameter: Any, axis: int, line: torch.Tensor) -> None:
        if not isinstance(parameter, Weight):
            return
        resolved = self._resolve(parameter, axis)
        self._remember("follow", line, axis=resolved)
        if resolved is not None:
            self._follows(resolved, line)
        else:
            self._join(self._line(parameter, axis), line)
        self._follow_merged(parameter, axis, line)

    def _follows(self, axis: ParameterAxis, line: torch.Tensor) -> None:
        self._record(axis, line, "follow")
        if axis in self.space.base:
            self._join(self.space.line(axis, line.numel()), line)

    def constant(self, label: Label, axis: int, plain: torch.Tensor) -> torch.Tensor:
        self._remember("constant", label)
        if self.place_of(plain) is None:
            self.pin(self.ids(core(label)), "it meets a constant of fixed length")
        return plain

    def blocks(self, x: ChannelTensor, label: Label, axis: int, size: int) -> tuple[Label, Ids, Ids]:
        self._remember("blocks", label)
        line = line_of(label, axis)
        rows = line.reshape(-1, size)
        if size > 1:
            self._join(rows, rows[:, :1].expand_as(rows))
        count = rows.shape[0]
        return label, np.arange(count), np.zeros(count, dtype=np.int64)

    def grouped(
        self, weight: Weight, axis: int, size: int, first: torch.Tensor, blocks: tuple[Ids, Ids]
    ) -> torch.Tensor:
        line = self.produce(weight, axis)
        rows = line.reshape(-1, size)
        self._join(rows, first.reshape(-1, 1).expand_as(rows))
        return line

    def grouped_outputs(self, weight: Weight, size: int, first: torch.Tensor, blocks: tuple[Ids, Ids]) -> torch.Tensor:
        axis = (weight.path or self.message(), -1)
        line = self.space.line(axis, first.numel() * size)
        self._produces(axis, weight.alias)
        self.axis_lines[axis] = line
        self._remember("grouped_outputs", line, axis=axis)
        rows = line.reshape(-1, size)
        self._join(rows, first.reshape(-1, 1).expand_as(rows))
        return line

    def cut(self, labels: tuple[Label, ...], rows: bool = False) -> None:
        for label in labels:
            small = core(label)
            if not rows:
                if small.numel() == 1:
                    # What cuts it out goes on to cut one, and copies would die.
                    single = self.ids(small).reshape(-1)
                    if int(self.space.widths(self.space.owners(single.numpy()))[0]) > 1:
                        self.pin(single, "it is the one channel of several that is cut out")
                ids = np.unique(bare(small.numpy()))
                ids = ids[ids >= FIRST_ID]
                if len(ids):
                    self.pieces[int(ids[0]), int(ids[-1]), len(ids)] = ids
            moving = [axis for axis in range(small.dim()) if small.shape[axis] > 1]
            if moving and (not rows or len(moving) > 1):
                self.cuts.append(bare(small.select(moving[-1], 0).reshape(-1).numpy()))

    def number(self, values: tuple[Any, ...], label: Label) -> None:
        self.answers[self.here, self.asked] = Statement(self.fact("number", (label,)), (label,), answer=values)
        self.asked += 1

    def decide(self, word: str, labels: Sequence[Label], question: Callable[[], Any], axis: int | None = None) -> Any:
        answer = question()
        if self.node is not None:
            self.answers[self.node, self.asked] = Statement(self.fact(word, labels, axis), tuple(labels), answer=answer)
            self.asked += 1
        return answer

    def laid_out(self, label: Label, moving: frozenset[int]) -> Layout:
        self.views.setdefault(self.node, []).append(Layout(moving, named_axes(label), label.dim()))
        return Layout(moving)

    def original(self, value: Any) -> Any:
        self._remember("original", value)
        return value

    def attribute(self, owner: Any, name: str, value: Any) -> None:
        self.attributes[self.here, name] = value

    def parameter_labels(self, path: str, shape: tuple[int, ...]) -> tuple[Label, ...]:
        return tuple(along(self.space.line((path, axis), size), axis, shape) for axis, size in enumerate(shape))
