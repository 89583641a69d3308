"""Products of data that sum over channels: matrix products, attention."""

from itertools import permutations
from typing import Any

import torch

from nce_fx.ids.labels import FIXED, NEUTRAL, Label, along, broadcast, constant, core, line_of
from nce_fx.ids.rule_interface import RuleInterface
from nce_fx.ids.value import ChannelTensor, activation, channel_tensors
from nce_fx.ops.rules.calls import label_for
from nce_fx.ops.rules.elementwise import meet, meet_constant
from nce_fx.ops.rules.mixing import on_other_axes, sum_over
from nce_fx.ops.rules.weighted import along_tokens, made, read, reads_tokens


def attention(
    query: Any, key: Any, value: Any, attn_mask: Any = None, *args: Any, scale: Any = None, **kwargs: Any
) -> ChannelTensor:
    """Return the channels of ``F.scaled_dot_product_attention``: (..., heads, length, features) like ``query``.

    Features are contracted between query and key; heads are copied whole.
    """
    scores = matmul(query, key.transpose(-2, -1), by_root=scale is None)
    if isinstance(attn_mask, ChannelTensor):
        scores = meet(scores.run, scores, attn_mask)
    elif isinstance(attn_mask, torch.Tensor):
        scores = meet_constant(scores.run, scores, attn_mask)
    return matmul(scores, value)


def matmul(a: Any, b: Any, by_root: bool = False) -> ChannelTensor:
    """Return the channels of ``a @ b``: (..., n, k) x (..., k, m) -> (..., n, m); ``by_root``: over the root of k."""
    run = (a if isinstance(a, ChannelTensor) else b).run
    shape = [*broadcast(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1]]
    if not isinstance(a, ChannelTensor) or not isinstance(b, ChannelTensor):
        return _matmul_constant(run, a, b, shape)
    for value, axis in ((a, a.dim() - 2), (b, b.dim() - 1)):
        if len(value.labels) > 1 and sum([run.varies(label, axis) for label in value.labels]) > 1:
            return _matmul_opaque(run, a, b, shape)
    if a.is_parameter != b.is_parameter and _one_for_each(run, *((b, a) if a.is_parameter else (a, b))):
        axis = next(iter(run.channel_axes((b if a.is_parameter else a).labels[0]))) - len(shape)
        return activation(run, _contract(run, label_for(a, axis), label_for(b, axis), shape, by_root), a.dtype)
    if b.is_parameter and len(b.labels) > 1 and not a.is_parameter:
        if len(run.channel_axes(label_for(b, -1))) > 1:
            return _by_position(run, a, b, shape)
        if reads_tokens(run, a, a.dim() - 1):
            return along_tokens(run, a, a.dim() - 1, made(run, b, b.dim() - 1, None), shape)
        read(run, a, a.dim() - 1, b, b.dim() - 2)
        return activation(run, along(made(run, b, b.dim() - 1, None), len(shape) - 1, shape), a.dtype)
    if a.is_parameter and len(a.labels) > 1 and not b.is_parameter:
        if reads_tokens(run, b, b.dim() - 2):
            return along_tokens(run, b, b.dim() - 2, made(run, a, a.dim() - 2, None), shape)
        read(run, b, b.dim() - 2, a, a.dim() - 1)
        return activation(run, along(made(run, a, a.dim() - 2, None), len(shape) - 2, shape), b.dtype)
    left, right = label_for(a, -1), label_for(b, -2)
    return activation(run, _contract(run, left, right, shape, by_root), a.dtype)


def _one_for_each(run: RuleInterface, data: ChannelTensor, weight: ChannelTensor) -> bool:
    """Whether a weight has a matrix of its own for each channel: (channels, n, k) of data (channels, k, m)."""
    if weight.dim() < 3 or data.dim() < weight.dim() or len(weight.labels) < 3:
        return False
    axes = run.channel_axes(data.labels[0])
    if len(axes) != 1 or axes[0] >= data.dim() - 2:
        return False
    own = axes[0] - data.dim() + weight.dim()
    return own >= 0 and run.varies(label_for(weight, own), own)


def _by_position(run: RuleInterface, a: ChannelTensor, table: ChannelTensor, shape: list[int]) -> ChannelTensor:
    """Queries times a table that is looked up by two positions: the entries are no channels, nor is what they make."""
    run.pin(run.ids(core(label_for(table, -1))), "they are looked up by position")
    label, axis = label_for(a, -1), a.dim() - 1
    if not run.varies(label, axis):
        return activation(run, label.narrow(axis, 0, 1).expand(shape), a.dtype)
    if on_other_axes(run, label, axis):
        if not run.heads_alike((label, axis)):
            run.rigid(label, axis)
            return activation(run, label.narrow(axis, 0, 1).expand(shape), a.dtype)
        run.tie(label, along(line_of(label, axis), axis, list(label.shape)))
    # The table makes channels as an embedding does: einsum wants operands of one length, before anything is read.
    run.contract(line_of(label, axis), made(run, table, table.dim() - 2, None), by_root=False)
    return activation(run, constant(NEUTRAL, shape), a.dtype)


def _matmul_opaque(run: RuleInterface, a: ChannelTensor, b: ChannelTensor, shape: list[int]) -> ChannelTensor:
    for label in (*a.labels, *b.labels):
        run.pin(run.ids(core(label)), "several axes of a parameter are folded into one, and multiplied")
    return activation(run, constant(FIXED, shape), a.dtype)


def _contract(run: RuleInterface, a: Label, b: Label, shape: list[int], by_root: bool) -> Label:
    """Contract the last axis of ``a`` with the axis before the last of ``b``, and return the label of the result.

    Raises:
        RuntimeError: they have different lengths: a view made tokens of copies on one side.
    """
    if a.shape[-1] != b.shape[-2]:
        raise RuntimeError(f"{a.shape[-1]} entries are multiplied by {b.shape[-2]}")
    sides = ((a, a.dim() - 1), (b, b.dim() - 2))
    over_a, over_b = (run.varies(label, axis) for label, axis in sides)
    both = over_a and over_b
    several = [both and on_other_axes(run, label, axis) for label, axis in sides]
    heads = any(several)
    # Keys that all heads share (multi-query attention) tie the heads, position by position.
    alike = heads and (not all(several) or run.heads_alike(*sides))
    if both and (not heads or alike):
        for label, axis in sides if heads else ():
            run.tie(label, along(line_of(label, axis), axis, list(label.shape)))
        run.contract(line_of(a, a.dim() - 1), line_of(b, b.dim() - 2), by_root)
        return constant(NEUTRAL, shape)
    for (label, axis), over in zip(sides, (over_a, over_b), strict=True):
        if over:
            sum_over(run, label, axis, "a product over them")
            if not both and not on_other_axes(run, label, axis):
                run.pin(run.ids(core(label)), "its channels are summed with weights that depend on the data")
    left = a.narrow(a.dim() - 1, 0, 1).expand(*a.shape[:-1], shape[-1])
    right = b.narrow(b.dim() - 2, 0, 1).expand(*b.shape[:-2], shape[-2], b.shape[-1])
    left, right = left.expand(shape), right.expand(shape)
    axes_left, axes_right = run.channel_axes(left), run.channel_axes(right)
    if bool(axes_left) != bool(axes_right):
        label, axes, other = (left, axes_left, b) if axes_left else (right, axes_right, a)
        _as_many(run, label, axes, other)
        # A map of one channel that weighs places: a second channel would be a second row of the product.
        run.pin(run.ids(core(right if axes_left else left)), "its one channel is broadcast over others")
    if not axes_left or not axes_right:
        return left if axes_left or (not axes_right and over_a) else right
    if set(axes_left) <= set(axes_right) or set(axes_right) <= set(axes_left):
        run.tie(left, right)
        return left if len(axes_left) > len(axes_right) else right
    shared = [axis for axis in axes_left if axis in axes_right]
    if shared:
        # Heads of a product of features by features: what a head has inside stays, and heads are copied whole.
        left, right = (_heads(run, label, axes, shared) for label, axes in ((left, axes_left), (right, axes_right)))
        run.tie(left, right)
        return left
    # A value carries channels along one of its axes: the rows', which are what a token or a map has of them.
    run.pin(run.ids(core(right)), "channels along one axis meet channels along another in a product")
    return left


def _as_many(run: RuleInterface, label: Label, axes: tuple[int, ...], other: Label) -> None:
    """Let what heads have inside be alike where they meet, head by head, what has no channels: they stay as many."""
    for axis in axes[:-1]:
        own = axis - label.dim() + other.dim()
        if own >= 0 and not run.is_single(other, own):
            run.tie(label, label.narrow(axis, 0, 1).expand(label.shape))


def _heads(run: RuleInterface, label: Label, axes: tuple[int, ...], shared: list[int]) -> Label:
    shape = label.shape
    for axis in axes:
        if axis not in shared:
            run.rigid(label, axis)
            label = label.narrow(axis, 0, 1).expand(shape)
    return label


def _matmul_constant(run: RuleInterface, a: Any, b: Any, shape: list[int]) -> ChannelTensor:
    value, axis = (a, -1) if isinstance(a, ChannelTensor) else (b, -2)
    label = label_for(value, axis)
    if run.varies(label, axis % label.dim()):
        run.pin(run.ids(core(label)), "its channels are summed with a constant of the graph")
        return activation(run, constant(FIXED, shape), value.dtype)
    sizes = [1 if stride == 0 else size for size, stride in zip(label.shape, label.stride(), strict=True)]
    small = label.as_strided(sizes, label.stride(), label.storage_offset())
    return activation(run, small.expand(shape), value.dtype)


def aten_matmul(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ChannelTensor:
    """Return the channels of what ``matmul`` comes apart into: ``aten.mm(a, b)``, ``aten.bmm(a, b)``."""
    return matmul(args[0], args[1])


def einsum(equation: str, *operands: Any) -> Any:
    """Return the channels of ``einsum("bi,oi->bo", x, matrix)`` as a layer's; of no such form, as it comes apart."""
    values = operands[0] if len(operands) == 1 and isinstance(operands[0], list | tuple) else operands
    found = _layer(equation, values)
    if found is None:
        product = _product(equation, values)
        if product is not None:
            return product
        with torch._C.DisableTorchFunctionSubclass():
            return torch.einsum(equation, *values)
    x, weight, left, right, result = found
    (summed,), (new,) = set(left) & set(right), set(right) - set(left)
    read(x.run, x, left.index(summed), weight, right.index(summed))
    line = made(x.run, weight, right.index(new), None)
    sizes = dict(zip(left, x.shape, strict=True)) | {new: line.numel()}
    return activation(x.run, along(line, result.index(new), [sizes[letter] for letter in result]), x.dtype)


def _product(equation: str, values: Any) -> ChannelTensor | None:
    """Return the channels of an einsum of two values over one letter, as a matrix product; ``None`` of any other.

    PyTorch takes it apart by its sizes: an axis of one entry, which another width may give, goes another way.
    """
    left, _, result = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(values) != 2 or len(terms) != 2 or not f"{''.join(terms)}{result}".isalpha():
        return None
    a, b = terms
    summed = [letter for letter in a if letter in b and letter not in result]
    rows, columns = ([letter for letter in x if letter not in y] for x, y in ((a, b), (b, a)))
    if len(summed) != 1 or any(len(set(term)) != len(term) for term in (a, b, result)):
        return None
    if set(result) != (set(a) | set(b)) - {*summed}:
        return None
    # One letter is the product's own axis; more of them run along with those of both.
    row, column = (own[-1] if len(own) == 1 else "" for own in (rows, columns))
    batch = [letter for letter in result if letter not in (row, column)]
    first = _axes(values[0], a, [*batch, row, *summed])
    second = _axes(values[1], b, [*batch, *summed, column])
    product: Any = matmul(first, second)
    order = [*batch, row, column]
    for place in (k for k in (len(order) - 1, len(order) - 2) if not order[k]):
        product = product.squeeze(place)
    order = [letter for letter in order if letter]
    found: ChannelTensor = product.permute([order.index(letter) for letter in result])
    return found


def _axes(value: Any, letters: str, order: list[str]) -> Any:
    """Return a value with its axes in an order, new ones where it has none of a letter."""
    value = value.permute([letters.index(letter) for letter in order if letter and letter in letters])
    for place, letter in enumerate(order):
        if not letter or letter not in letters:
            value = value.unsqueeze(place)
    return value


def _layer(equation: str, values: Any) -> tuple[ChannelTensor, ChannelTensor, str, str, str] | None:
    """Return activation, weight and their letters where an einsum is one linear layer: it would compare lengths first.

    The weight's rows and columns are one letter that is summed over channels, and one that is new in the result.
    """
    left, _, result = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(values) != 2 or len(terms) != 2 or not result.isalpha():
        return None
    for (x, a), (weight, b) in permutations(zip(values, terms, strict=True)):
        if not all(isinstance(value, ChannelTensor) for value in (x, weight)) or x.is_parameter:
            continue
        summed, new = set(a) & set(b), set(b) - set(a)
        if not weight.is_parameter or len(weight.labels) != 2 or not len(summed) == len(new) == 1:
            continue
        if sorted(result) == sorted((set(a) - summed) | new) and len(set(a)) == len(a):
            axis = a.index(summed.pop())
            if x.run.carries(label_for(x, axis), axis):
                return x, weight, a, b, result
    return None


def add_matmul(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ChannelTensor:
    """Return the channels of ``addmm(bias, a, b)`` and ``baddbmm``: a product, then a sum."""
    product = matmul(args[1], args[2])
    addend = args[0]
    if isinstance(addend, ChannelTensor):
        return meet(product.run, product, addend)
    return meet_constant(product.run, product, addend) if isinstance(addend, torch.Tensor) else product


def dot_vector(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the channels of ``mv(matrix, vector)``: (n, k) x (k,) -> (n,)."""
    values = channel_tensors(args)
    product = matmul(args[0], args[1].unsqueeze(-1))
    return product.squeeze(-1) if values else product
