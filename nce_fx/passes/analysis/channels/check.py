"""The second run: the model at new widths, every meeting compared with the first, and what a resize has to change."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves

from nce_fx.ids.labels import FIRST_ID, FIXED, Ids, Label, along, bare, compress, constant, core, line_of, varies
from nce_fx.ids.space import ParameterAxis
from nce_fx.ids.value import ChannelTensor, Weight
from nce_fx.ops.table import followed_arguments
from nce_fx.passes.analysis.channels.edits import PRODUCTS, Edits, Gather, lay_out, product_shares
from nce_fx.passes.analysis.channels.projection import Mismatch, Projections, Relayout, moving_axes
from nce_fx.passes.analysis.channels.replay import Replay
from nce_fx.passes.analysis.channels.tie import Tie


class Check(Replay):
    """The second run: what meets at new widths is held against the first; ``edits`` is what a resize has to do."""

    def __init__(
        self,
        gm: GraphModule,
        tie: Tie,
        old: Mapping[Node, Any],
        classes: Ids,
        counts: Ids,
        modes: Mapping[ParameterAxis, int],
        orders: Mapping[ParameterAxis, tuple[Ids, Ids]],
        proven: Mapping[Node, Any],
    ) -> None:
        super().__init__(gm, tie)
        self.old = old
        self.classes, self.counts = classes, counts
        self._projections = Projections(counts)
        self.match, self.project = self._projections.match, self._projections.project
        self.modes, self.orders, self.proven = modes, orders, proven
        self.cuts = frozenset(int(i) for cut in tie.cuts for i in cut)
        self.edits = Edits()
        self.input: Any = None
        self._layouts: dict[ParameterAxis, tuple[Ids, Ids]] = {}
        self._own: dict[ParameterAxis, torch.Tensor] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._followed: tuple[Any, Any, Gather] | None = None
        """The last line that a parameter followed, old and new, and how: the parameters of a norm follow one."""

    def overwritten(self, value: ChannelTensor) -> None:
        pass

    def _copies(self, label: Label) -> Ids:
        copies: Ids = bare(core(label).numpy()) // self.span
        return copies

    def viewed(self, shape: Sequence[int]) -> None:
        """Refuse a shape that the comparison would refuse before channels are laid out along all tokens to compare."""
        old = self.old.get(self.here)
        if not isinstance(old, ChannelTensor) or len(old.labels) != 1 or len(old.shape) != len(shape):
            return
        (label,) = old.labels
        if len(self.first.views.get(self.here, [])) != 1 or int(core(label).numpy().max(initial=0)) < FIRST_ID:
            return
        for axis, (size, new) in enumerate(zip(old.shape, shape, strict=True)):
            if 1 < size != new and not varies(label, axis):
                raise Mismatch(f"axis {axis} has {new} entries instead of {size}", label)

    def tie(self, a: Label, b: Label) -> None:
        old_a, old_b = self._met("tie").labels
        try:
            moving = moving_axes(old_a, old_b)
            maps_a, maps_b = self.project(old_a, a, moving), self.project(old_b, b, moving)
            for axis, (x, y) in enumerate(zip(maps_a, maps_b, strict=True)):
                if x is not y and x is not None and y is not None and not np.array_equal(x, y):
                    raise Mismatch(f"two inputs meet in another order along axis {axis}", old_a, old_b)
            if a.shape != b.shape:
                raise Mismatch(f"shapes {tuple(a.shape)} and {tuple(b.shape)} meet", old_a, old_b)
            named = (int(core(old).numpy().max(initial=0)) >= FIRST_ID for old in (old_a, old_b))
            if all(named) and not (self._copies(a) == self._copies(b)).all():
                raise Mismatch("a copy meets what it is not the copy of", old_a, old_b)
        except Mismatch:
            self._relayout(old_a, a, old_b)
            self._relayout(old_b, b, old_a)
            raise

    def _relayout(self, old: Label, new: Label, parameter: Label) -> None:
        """Where a parameter that no op produces met an activation in another order, give it that order."""
        for axis in range(old.dim()):
            if not varies(parameter, axis) or not varies(old, axis):
                continue
            line = bare(line_of(parameter, axis))
            owner = int(self.space.owners(line[:1].numpy())[0])
            if owner < 0 or self.space.axes[owner] in self.first.producers:
                continue
            path_axis, start = self.space.axes[owner], self.space.starts[owner]
            if line.numel() != self.space.sizes[owner] or path_axis in self.orders:
                continue
            index, copies = self.match(line_of(old, axis), line_of(new, axis))
            raise Relayout(path_axis, line.numpy()[index] - start, copies)

    def contract(self, a: torch.Tensor, b: torch.Tensor, by_root: bool) -> None:
        meeting = self.first.meetings.get((self.here, self.step))
        self.tie(a, b)
        assert meeting is not None
        old, _ = meeting.labels
        index, _ = self.match(old, a)
        factor = (len(index) / old.numel()) ** 0.5 if by_root else 1.0
        if factor == 1.0 and np.bincount(index).max() == 1:
            return
        if self.here.target not in PRODUCTS or self.here in self.edits.products:
            raise Mismatch("its channels are mixed by a product over them", old)
        for position, argument in reversed(list(enumerate(tree_leaves(self.here.args)))):
            value = self.env.get(argument) if isinstance(argument, Node) else None
            for label in value.labels if isinstance(value, ChannelTensor) else ():
                for axis in range(label.dim()):
                    if any(label.shape[axis] == len(index) and torch.equal(line_of(label, axis), c) for c in (a, b)):
                        shares = factor * product_shares(index, self.here.name)
                        self.edits.products[self.here] = position, axis - label.dim(), shares
                        return
        raise Mismatch("its channels are mixed by a product over them", old)

    def heads_alike(self, *labels: tuple[Label, int]) -> bool:
        return self.node in self.first.alike

    def block(self, label: Label, axis: int) -> None:
        meeting = self._met("block")
        if not self._same_channels(meeting.labels[0], label):
            raise self._astray(self.fact("block", (label,), axis), meeting)

    def uniform(self, label: Label, axis: int) -> None:
        self._equally_often("uniform", label, axis)

    def root(self, label: Label, axis: int, exponent: float) -> None:
        old, copies = self._equally_often("root", label, axis)
        if copies == 1:
            return
        op = None if self.here.op == "call_module" else self.ops.of_call(self.here.target)
        if op is None or not op.root or self.here in self.edits.results:
            raise Mismatch("its channels are mixed by a norm", old)
        self.edits.results[self.here] = float(copies**exponent)

    def _equally_often(self, word: str, label: Label, axis: int) -> tuple[Label, float]:
        """Demand as many copies of each channel along an axis; return the old label, and how many there are."""
        (old,) = self._met(word).labels
        # Of a parameter, other axes carry the channels of its other labels.
        index = self.project(old, label, frozenset(range(old.dim())))[axis]
        counts = np.bincount(index, minlength=old.shape[axis]) if index is not None else np.ones(1)
        if counts.min() != counts.max():
            raise Mismatch("a mean goes over channels that are not copied equally often", old)
        return old, float(counts[0])

    def _share(self, label: Label, axis: int, meet: Callable[[], None]) -> None:
        here = self.here, self.step
        (old,) = self._met("share").labels
        if here not in self.first.apart:
            self._aside(here[1], meet)
            return
        index = self.project(old, label)[axis]
        if index is not None and not np.array_equal(index, np.arange(old.shape[axis])):
            raise Mismatch(f"a parameter of {old.shape[axis]} entries is shared by all heads", old)

    def still(self, label: Label, axis: int) -> None:
        (old,) = self._met("still").labels
        index = self.project(old, label, frozenset(range(old.dim())))[axis]
        if index is not None and not np.array_equal(index, np.arange(old.shape[axis])):
            raise Mismatch(f"a mean leaves {label.shape[axis]} places instead of {old.shape[axis]}", old)

    def rigid(self, label: Label, axis: int) -> None:
        (old,) = self._met("rigid").labels
        if label.shape[axis] != old.shape[axis]:
            raise Mismatch(f"a sum goes over {label.shape[axis]} channels instead of {old.shape[axis]}", old)
        self.project(old, label)

    def pin(self, ids: torch.Tensor, reason: str, at: Node | None = None) -> None:
        pass

    def constant(self, label: Label, axis: int, plain: torch.Tensor) -> torch.Tensor:
        (old,) = self._met("constant").labels
        index = self.project(old, label)[axis]
        own = axis - label.dim()
        if index is None or np.array_equal(index, np.arange(old.shape[axis])):
            return plain
        place = self.place_of(plain)
        if place is None or plain.shape[own] != old.shape[axis] or self.node is None or self.node in self.edits.inputs:
            raise Mismatch("it meets a constant of fixed length", old)
        self.edits.inputs[self.node] = (place, plain.dim() + own, index)
        return plain.index_select(own, torch.from_numpy(index))

    def repeated(self, x: ChannelTensor, plain: torch.Tensor, axis: int) -> torch.Tensor:
        place, like = self.place_of(plain), self.place_of(x)
        if place is None or like is None or not self._is_repeated(plain, axis):
            return super().repeated(x, plain, axis)
        self.edits.repeats.setdefault(self.here, []).append((place, like, axis))
        return plain.narrow(axis, 0, 1).expand([x.shape[axis] if k == axis else -1 for k in range(plain.dim())])

    def _is_repeated(self, plain: torch.Tensor, axis: int) -> bool:
        """Whether one entry is repeated along an axis: ``x.expand(8, -1)`` of ``(1, 4)`` along the first."""
        if not isinstance(plain, ChannelTensor):
            return plain.stride(axis) == 0
        made = next((node for node in self.here.all_input_nodes if self.env.get(node) is plain), None)
        if made is None or self.ops.of_call(made.target) not in (self.ops["expand"], self.ops["Tensor.expand"]):
            return False
        source = self.env[made.all_input_nodes[0]]
        own = axis - plain.dim() + source.dim()
        return bool(own < 0 or source.shape[own] == 1)

    def layout(self, axis: ParameterAxis, line: torch.Tensor) -> tuple[Ids, Ids]:
        """Return (old position, copy) for each new position of an axis whose ids are its own."""
        if axis in self.orders:
            return self.orders[axis]
        if axis not in self._layouts:
            self._layouts[axis] = lay_out(line, self.classes, self.counts, self.modes.get(axis, 0), self.cuts)
        return self._layouts[axis]

    def _gather(self, axis: ParameterAxis | None, gather: Gather) -> None:
        if axis is None:
            return
        known = self.edits.gathers.get(axis)
        if known is None:
            self.edits.gathers[axis] = gather
        elif not known.equals(gather):
            line = self.first.axis_lines[axis]
            raise Mismatch(f"{axis[0]} is used twice and its uses disagree", line)

    def check_merged(self) -> None:
        """Demand that what parameters become gives the weights that are computed from them."""
        for merged in dict.fromkeys(self.merged.values()):
            reason = merged.difference(self.edits.gathers)
            if reason is not None:
                axes = {own for axes in merged.follows.values() for axis in axes for own in axis}
                lines = [self.first.axis_lines[axis] for axis in sorted(axes & self.first.axis_lines.keys())]
                mismatch = Mismatch(reason, *lines)
                mismatch.node = merged.made[0]
                raise mismatch

    def _own_line(self, axis: ParameterAxis) -> torch.Tensor:
        if axis not in self._own:
            line = self.space.line(axis, self.tensors.tensors[axis[0]].shape[axis[1]])
            index, copies = self.layout(axis, line)
            self._gather(axis, Gather(index, copies, None))
            self._own[axis] = self._repeated(line, index, copies)
        return self._own[axis]

    def _repeated(self, line: torch.Tensor, index: Ids, copies: Ids) -> torch.Tensor:
        """Return the line that has these entries of an old one, as these copies."""
        new = torch.from_numpy(bare(line.numpy())[index] + copies * self.span)
        self._projections.know(line, new, index, copies)
        return new

    def produce(self, weight: Weight, axis: int) -> torch.Tensor:
        meeting = self._met("produce")
        own = meeting.axis
        line = line_of(weight.labels[meeting.choice], axis) if own is None else self._own_line(own)
        self._follow_merged(weight, axis, line)
        return line

    def _follow_merged(self, weight: Any, axis: int, line: torch.Tensor) -> None:
        for other in self.followed(weight, axis)[1:]:
            (old,) = self._met("follow").labels
            self._in_order(other, old, Gather(*self.match(old, line), None))

    def consume(
        self, weight: Weight, axis: int, line: torch.Tensor, data: tuple[ChannelTensor, int] | None = None
    ) -> None:
        for _ in self.followed(weight, axis)[1:]:
            self._consume(line, data)
        self._consume(line, data)

    def _consume(self, line: torch.Tensor, data: tuple[ChannelTensor, int] | None) -> None:
        meeting = self._met("consume")
        (old,) = meeting.labels
        index, copies = self.match(old, line)
        if meeting.choice:
            assert meeting.axis is not None
            self._in_order(meeting.axis, old, Gather(index, copies, None))
            if np.bincount(index).max() > 1:
                place = self.place_among(data)
                if place is None or data is None or self.here in self.edits.products:
                    raise Mismatch("it is read by a weight that cannot be divided", old)
                self.edits.products[self.here] = place, data[1], product_shares(index, self.here.name)
            return
        divisor = np.bincount(index, minlength=old.numel())[index]
        self._gather(meeting.axis, Gather(index, copies, divisor if (divisor > 1).any() else None))

    def follow(self, parameter: Any, axis: int, line: torch.Tensor) -> None:
        if not isinstance(parameter, Weight):
            return
        meeting = self._met("follow")
        (old,) = meeting.labels
        if self._followed is None or self._followed[0] is not old or self._followed[1] is not line:
            self._followed = old, line, Gather(*self.match(old, line), None)
        self._in_order(meeting.axis, old, self._followed[2])
        self._follow_merged(parameter, axis, line)

    def _in_order(self, axis: ParameterAxis | None, old: torch.Tensor, gather: Gather) -> None:
        """Gather an axis as the channels come that it follows."""
        index, copies = gather.index, gather.copies
        if axis is not None and axis in self.space.base:
            own = self.layout(axis, self.space.line(axis, old.numel()))
            if not (np.array_equal(own[0], index) and np.array_equal(own[1], copies)):
                if axis in self.first.producers or axis in self.orders:
                    raise Mismatch(f"{axis[0]} is used twice and its uses disagree", old)
                raise Relayout(axis, index, copies)
        self._gather(axis, gather)

    def blocks(self, x: ChannelTensor, label: Label, axis: int, size: int) -> tuple[Label, Ids, Ids]:
        (old,) = self._met("blocks").labels
        line = line_of(label, axis)
        index, copies = self.match(line_of(old, axis), line)
        if size == 1:
            return label, index, copies
        if len(index) % size == 0:
            rows, copy_rows = index.reshape(-1, size), copies.reshape(-1, size)
            whole = (rows == rows[:, :1] + np.arange(size)).all() and (rows[:, 0] % size == 0).all()
            if whole and (copy_rows == copy_rows[:, :1]).all():
                return label, rows[:, 0] // size, copy_rows[:, 0]
        order = np.lexsort((index % size, copies, index // size))
        rows, copy_rows = index[order].reshape(-1, size), copies[order].reshape(-1, size)
        if not ((rows % size == np.arange(size)).all() and (copy_rows == copy_rows[:, :1]).all()):
            raise Mismatch(f"blocks of {size} channels do not arrive whole", old)
        if x is not self.input:
            raise Mismatch(f"blocks of {size} channels arrive in pieces inside a module", old)
        self.edits.inputs[self.here] = (0, axis, order)
        gathered = compress(label.index_select(axis, torch.from_numpy(order)))
        return gathered, rows[:, 0] // size, copy_rows[:, 0]

    def grouped(
        self, weight: Weight, axis: int, size: int, first: torch.Tensor, blocks: tuple[Ids, Ids]
    ) -> torch.Tensor:
        meeting = self._met("produce")
        (old,) = meeting.labels
        index, copies = blocks
        if size > 1:
            index = (blocks[0][:, None] * size + np.arange(size)).reshape(-1)
            copies = np.repeat(blocks[1], size)
        line = self._repeated(old, index, copies)
        if weight.path is not None:
            self._gather(meeting.axis, Gather(index, copies, None))
        else:
            unmoved = np.array_equal(index, np.arange(old.numel())) and not copies.any()
            own = self.layout(meeting.axis, old) if meeting.axis is not None else (index, copies) if unmoved else None
            if own is None or not (np.array_equal(own[0], index) and np.array_equal(own[1], copies)):
                if meeting.axis is None or meeting.axis in self.orders:
                    raise Mismatch("a computed weight cannot follow the order of its groups", old)
                raise Relayout(meeting.axis, index, copies)
        return line

    def grouped_outputs(self, weight: Weight, size: int, first: torch.Tensor, blocks: tuple[Ids, Ids]) -> torch.Tensor:
        (old,) = self._met("grouped_outputs").labels
        index = torch.from_numpy((blocks[0][:, None] * size + np.arange(size)).reshape(-1))
        line: torch.Tensor = old[index] + torch.from_numpy(np.repeat(blocks[1], size)) * self.span
        return line

    def cut(self, labels: tuple[Label, ...], rows: bool = False) -> None:
        pass

    def attribute(self, owner: Any, name: str, value: Any) -> None:
        op = None if self.here.op == "call_module" else self.ops.of_call(self.here.target)
        if op is not None and op.catch == "rule" and any(name in followed_arguments(row) for row in self.ops):
            if value != self.first.attributes.get((self.here, name)):
                raise Mismatch(f"{name} would change: which argument of {self.message()} has it is unknown")
            return
        # A tied weight has one path, and each module that holds it, by the alias, says its sizes.
        path = getattr(owner, "alias", None) or ""
        self.edits.attributes[self.here, path, name] = value

    def shape_of(self, path: str) -> tuple[int, ...]:
        if path not in self._shapes:
            self._shapes[path] = self._new_shape(path)
        return self._shapes[path]

    def _new_shape(self, path: str) -> tuple[int, ...]:
        shape = list(self.tensors.tensors[path].shape)
        canonical = self.tensors.canonical[path]
        for axis, size in enumerate(shape):
            if (canonical, axis) in self.space.base and "in" not in self.first.roles.get((canonical, axis), ()):
                shape[axis] = len(self.layout((canonical, axis), self.space.line((canonical, axis), size))[0])
        return tuple(shape)

    def parameter_labels(self, path: str, shape: tuple[int, ...]) -> tuple[Label, ...]:
        original = self.tensors.tensors[path].shape
        labels = []
        for axis, size in enumerate(original):
            if (path, axis) not in self.space.base:
                labels.append(constant(FIXED, (*shape[:axis], size, *shape[axis + 1 :])))
            elif "in" in self.first.roles.get((path, axis), ()):
                # What reads channels is laid out where it reads them.
                labels.append(along(self.space.line((path, axis), size), axis, shape))
            else:
                labels.append(along(self._own_line((path, axis)), axis, shape))
        return tuple(labels)
