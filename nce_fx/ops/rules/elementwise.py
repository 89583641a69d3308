"""Elementwise ops tie the channels of their operands, with broadcasting."""

from functools import partial, reduce
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_leaves

from nce_fx.ids.labels import FIRST_ID, FIXED, NEUTRAL, Label, broadcast, constant, core
from nce_fx.ids.rule_interface import RuleInterface
from nce_fx.ids.value import ChannelLayer, ChannelTensor, activation, channel_tensors

UNTAGGED = frozenset(
    {"hardswish", "log_sigmoid", "log_sigmoid_forward", "floor_divide", "masked_fill", "where", "_prelu_kernel"}
)
"""Elementwise ops that PyTorch does not tag as such in every overload."""


def pointwise(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ChannelTensor:
    """Return the channels of ``x * y + z`` and the like: operands tied, with broadcasting; the finest label is kept."""
    operands = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)]
    labelled = channel_tensors(operands)
    run = labelled[0].run
    numbers = tuple(a for a in (*args, *kwargs.values()) if isinstance(a, int | float))
    dtype = torch.bool if func._schema.returns and _is_comparison(func) else _type(operands, numbers)
    if numbers:
        run.number(numbers, labelled[0].labels[0])
    own = all(value.elementwise for value in labelled)
    if len(operands) == 1:
        return ChannelTensor(run, labelled[0].shape, labelled[0].labels, dtype, elementwise=own)
    result = labelled[0]
    for operand in labelled[1:]:
        result = meet(run, result, operand)
    for plain in operands:
        if not isinstance(plain, ChannelTensor):
            result = meet_constant(run, result, plain)
    return ChannelTensor(run, result.shape, result.labels, dtype, elementwise=own)


def _type(operands: list[torch.Tensor], numbers: tuple[float, ...]) -> torch.dtype:
    """Return the type of a result: of ``torch.where(x > 0, x, y)`` that of x, though the condition comes first."""
    values = [operand.dtype for operand in operands if operand.dim()] or [operand.dtype for operand in operands]
    dtype = reduce(torch.promote_types, values)
    if not dtype.is_complex and any(operand.is_complex() for operand in operands):
        return dtype.to_complex()
    whole = not dtype.is_floating_point and not dtype.is_complex
    return torch.get_default_dtype() if whole and any(isinstance(n, float) for n in numbers) else dtype


def activation_layer(layer: Any, input: ChannelTensor) -> ChannelTensor:
    """Return the channels of a layer that works on each element, ``nn.GELU`` or a quantizer: those that it reads.

    What reads a quantized weight cannot be divided among copies any more.
    """
    input.run.computes()
    return ChannelTensor(input.run, input.shape, input.labels, input.dtype)


def passing_layer(layer: ChannelLayer, input: ChannelTensor) -> ChannelTensor:
    """Return the channels of a layer that does nothing in evaluation mode, ``nn.Dropout``: those that it reads."""
    return input


def by_mode(module: Any, evaluated: Any, trained: Any, *effects: Any) -> Any:
    """Return the channels of one of two values, as ``F.dropout(x, training=self.training)`` chooses by the mode.

    They are tied where they can be, else both are fixed; what is an output is fixed there.
    """
    both = isinstance(evaluated, ChannelTensor) and isinstance(trained, ChannelTensor)
    if both and evaluated.shape == trained.shape:
        evaluated.run.computes()
        return meet(evaluated.run, evaluated, trained)
    values = [value for value in tree_leaves((evaluated, trained)) if isinstance(value, ChannelTensor)]
    node = values[0].run.node if values else None
    if evaluated is trained or node is None or all(user.op == "output" for user in node.users):
        return evaluated
    for value in values:
        for label in value.labels:
            value.run.pin(value.run.ids(core(label)), "evaluation and training go on with values of different form")
    return evaluated


def _is_comparison(func: Any) -> bool:
    return func._schema.name.removeprefix("aten::") in {"eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or"}


def meet(run: RuleInterface, a: ChannelTensor, b: ChannelTensor) -> ChannelTensor:
    """Let two values meet elementwise, as in ``x + y``, and return what carries the channels of the result."""
    shape = broadcast(a.shape, b.shape)
    one_channel(run, a, shape)
    one_channel(run, b, shape)
    labels_a = [label.expand(shape) for label in a.labels]
    labels_b = [label.expand(shape) for label in b.labels]
    if len(labels_a) > 1 or len(labels_b) > 1:
        labels = _meet_parameters(run, labels_a, labels_b, _sizes(a if len(labels_a) == 1 else b, shape))
    else:
        labels = (_meet_activations(run, labels_a[0], labels_b[0], _sizes(a, shape), _sizes(b, shape)),)
    return ChannelTensor(run, labels[0].shape, labels, a.dtype)


def _sizes(value: torch.Tensor, shape: torch.Size) -> tuple[int, ...]:
    return (1,) * (len(shape) - value.dim()) + tuple(value.shape)


def one_channel(run: RuleInterface, value: ChannelTensor, shape: tuple[int, ...] | torch.Size) -> None:
    """Pin one channel whose map is broadcast, a gate ``(N, 1, H, W)`` over ``(N, C, H, W)``: a second would not fit."""
    offset = len(shape) - value.dim()
    if any(size == 1 and shape[offset + axis] != 1 for axis, size in enumerate(value.shape)):
        for label in value.labels:
            ids = run.ids(core(label)).reshape(-1)
            # Not as the first run answered: there another size may have been 1, and this was not asked.
            if run._channel_axes(label):
                owners = run.space.owners(ids.numpy())
                ids = ids[torch.from_numpy(run.space.widths(owners) == 1)]
            run.pin(ids, "its one channel is broadcast over others")


def _meet_activations(
    run: RuleInterface, a: Label, b: Label, sizes_a: tuple[int, ...], sizes_b: tuple[int, ...]
) -> Label:
    axes_a, axes_b = run.channel_axes(a), run.channel_axes(b)
    if not axes_a and not axes_b:
        if sizes_a == sizes_b and _real(run, a) and _real(run, b):
            run.tie(a, b)
        return b if bool((run.ids(core(a)) == NEUTRAL).all()) else a
    if not axes_a or not axes_b:
        fine, coarse, axes, sizes = (a, b, axes_a, sizes_b) if axes_a else (b, a, axes_b, sizes_a)
        if bool((run.ids(core(coarse)) == FIXED).any()) and any(sizes[axis] > 1 for axis in axes):
            run.tie(fine, coarse)
        return fine
    if _one_within_the_other(run, a, b, axes_a, axes_b):
        fine, coarse, axes = (a, b, axes_b) if len(axes_a) >= len(axes_b) else (b, a, axes_a)
        if len(axes) == 1 and _made_by_no_layer(run, coarse):
            run.share(fine, axes[0], partial(run.tie, fine, coarse))
        else:
            run.tie(a, b)
        return fine
    # A value carries channels along one of its axes: those of which there are more.
    more = run.decide("more channels", (a, b), lambda: int(core(b).numel() > core(a).numel()))
    kept, other = (b, a) if more else (a, b)
    run.pin(run.ids(core(other)), "channels along one axis meet channels along another")
    return kept


def _one_within_the_other(
    run: RuleInterface, a: Label, b: Label, axes_a: tuple[int, ...], axes_b: tuple[int, ...]
) -> bool:
    """Whether the channels of one value run along axes of the other's, rows and columns of ``pixel_shuffle`` aside."""
    if set(axes_a) <= set(axes_b) or set(axes_b) <= set(axes_a):
        return True
    left = {axis for axis in axes_a if not run.alternates(a, axis)}
    right = {axis for axis in axes_b if not run.alternates(b, axis)}
    return left <= right or right <= left


def _made_by_no_layer(run: RuleInterface, label: Label) -> bool:
    """Whether all that a label names are entries of parameters and buffers that no layer makes channels by.

    Angles of rotary embeddings and the scale of a norm written out are such: heads may share them.
    """

    def question() -> bool:
        owners = np.unique(run.space.owners(run.ids(core(label)).numpy()))
        return bool((owners >= 0).all()) and not any(run.space.axes[k] in run.producers for k in owners)

    return bool(run.decide("made_by_no_layer", (label,), question))


def _real(run: RuleInterface, label: Label) -> bool:
    """Whether a label names channels at all."""
    return bool((run.ids(core(label)) >= FIRST_ID).all())


def _meet_parameters(run: RuleInterface, a: list[Label], b: list[Label], sizes: tuple[int, ...]) -> tuple[Label, ...]:
    """Where a value made of parameters is involved, labels meet axis by axis; ``sizes`` are those of the other value.

    Along an axis that the other value has without channels (positions, a table of biases), none come from parameters.
    """
    if len(a) == 1 or len(b) == 1:
        activation, parameter = (a[0], b) if len(a) == 1 else (b[0], a)
        axes = run.channel_axes(activation)
        if not axes:
            new = run.decide("single axes", (activation,), lambda: [k for k, size in enumerate(sizes) if size == 1])
            return tuple(label for label in parameter if any(run.varies(label, axis) for axis in new)) or (activation,)
        for axis in axes:
            for label in parameter:
                if run.varies(label, axis):
                    run.share(activation, axis, partial(run.tie, activation, label))
        return (activation,)
    kept = list(a)
    for label in b:
        partner = None
        for axis in range(label.dim()):
            if run.varies(label, axis):
                partner = next((other for other in a if run.varies(other, axis)), None)
        if partner is None:
            kept.append(label)
        else:
            # Of these labels alone: the lengths of other axes follow other labels of the same values.
            run.tie(*torch.broadcast_tensors(core(partner), core(label)))  # type: ignore[no-untyped-call]
    return tuple(kept)


def weight_norm(v: ChannelTensor, g: ChannelTensor, dim: int = 0) -> ChannelTensor:
    """Return the channels of ``_weight_norm(v, g, 0)``: rows made unit long and scaled, g following the rows of v.

    Over any other axis the norm mixes what it goes over. Where nothing else reads v and g, they are made anew for any
    weight, which then has its channels as a parameter does.
    """
    if v.path in v.run.tensors.normed:
        return v
    if dim == 0 and v.is_parameter:
        return meet(v.run, v, g)
    with torch._C.DisableTorchFunctionSubclass():
        mixed: Any = torch._weight_norm(v, g, dim)
    return mixed  # type: ignore[no-any-return]


def meet_constant(run: RuleInterface, value: ChannelTensor, plain: torch.Tensor) -> ChannelTensor:
    """Return a value that met a plain tensor, ``x * mask``, which follows the channels that it runs along."""
    offset = value.dim() - plain.dim()
    for label in value.labels:
        for axis in run.channel_axes(label):
            if axis >= offset and run.decide("is_longer", (label,), partial(_is_longer, plain, axis - offset), axis):
                plain = _following(run, label, axis, plain)
    shape = broadcast(value.shape, plain.shape)
    one_channel(run, value, shape)
    labels = tuple(label.expand(shape) for label in value.labels)
    return ChannelTensor(run, shape, labels, value.dtype)


def _is_longer(plain: torch.Tensor, axis: int) -> bool:
    return plain.shape[axis] > 1


def _following(run: RuleInterface, label: Label, axis: int, plain: torch.Tensor) -> torch.Tensor:
    found = [plain]

    def meet() -> None:
        found[0] = run.constant(label, axis, plain)

    run.share(label, axis, meet)
    return found[0]


def neutral(run: RuleInterface, shape: tuple[int, ...], dtype: torch.dtype) -> ChannelTensor:
    """Return a value that carries no channel, such as ``torch.zeros_like(x)``: its shape follows another tensor."""
    return activation(run, constant(NEUTRAL, shape), dtype)
