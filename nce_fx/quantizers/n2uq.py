"""N2UQ: thresholds are learned, levels are evenly spaced (Liu et al. 2022, "Nonuniform-to-uniform quantization: towards
accurate quantization via generalized straight-through estimation", arXiv 2111.14826).

    y = s * (low + the number of thresholds below x),   n = 2^b - 1 thresholds
    t_i = d_(i-1) + a_i / 2,   d_i = d_0 + a_1 + ... + a_i

Gradient: that of the line through the middles of the steps, on which x in (d_(i-1), d_i] is at i - 1 + (x - d_(i-1)) /
a_i. So each element gives s / a_i to x, -s / a_i to d_0 and to every a_j before its own, -s (x - d_(i-1)) / a_i^2 to
a_i, and nothing outside; its level over s to s. Sums are multiplied by LSQ's 1 / sqrt(N * n): published is Adam, which
needs no factor. The paper's further factor of x is left out, which d_0 and a say already. An unsigned range starts no
lower than zero, as the ReLU that it stands for does. Calibration starts with even thresholds, where the squared error
is least.
"""

import math
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nce_fx.quantizers.base import FLOOR, Integers, as_integers, at_least, working
from nce_fx.quantizers.counting import CLIP, CountingQuantizer
from nce_fx.quantizers.ewgs import scale_gradient
from nce_fx.quantizers.lsq import share
from nce_fx.quantizers.rounding import dot, gradient
from nce_fx.quantizers.saved_tensors import pack_levels, packs_activations, register
from nce_fx.quantizers.transforms import Transformable, reads_numbers

_FEW = 15
"""As many thresholds are compared one by one, which is faster than a search."""
_EXACT = 3
"""So many times a number may be added to itself, and the sum is its product, rounded."""


class N2uq(CountingQuantizer):
    """Activations on even levels, with learned thresholds between them, one set a tensor: (N, any shape)."""

    positive = ("step", "lengths")

    def begin(self, signed: bool) -> None:
        """Make what is learned or kept of the range."""
        step = CLIP / self.grid.reach
        self.step = nn.Parameter(torch.tensor(step))
        self.first = nn.Parameter(torch.tensor((self.grid.low + self.grid.offset) * step))
        self.lengths = nn.Parameter(torch.full((2**self.bits - 1,), step))

    def pieces(self) -> tuple[Tensor, Tensor]:
        """Return d_0, 0-dimensional, and the lengths a, (n,); both with their gradients."""
        start = working(self.first)
        if not (self.signed or (reads_numbers(start) and start.item() >= 0)):
            start = start + (start.clamp(min=0) - start).detach()
        return start, at_least(self.lengths)

    @torch.no_grad()
    def thresholds(self) -> Tensor:
        """Return the thresholds, ascending: (n,)."""
        return _thresholds(*self.pieces())

    def rounded(self, x: Tensor) -> Tensor:
        """Return ``x`` on its levels; with ``ewgs``, how far from its middle each lies in its own piece counts."""
        y = self.quantized(x)
        if not self.ewgs or not torch.is_grad_enabled():
            return y
        with torch.no_grad():
            start, lengths = self.pieces()
            edges = _edges(start, lengths)
            piece = torch.bucketize(x, edges[1:-1])
            along = ((x - edges[piece]) / lengths[piece]).clamp(0, 1)
            # On the line an element is at piece + along, its level is at piece or, past the middle, one above.
            away = along - (along > 0.5).to(along.dtype)
        return scale_gradient(y, y.detach() + away.to(y.dtype), 1.0, self.ewgs)

    def quantized(self, x: Tensor) -> Tensor:
        """Quantize, with the generalized straight-through gradient."""
        low = self.grid.low + self.grid.offset
        return _Stairs.apply(x, *self.pieces(), self.scale(), low, share(x.shape[1:].numel(), self.grid))  # type: ignore[no-any-return]

    @torch.no_grad()
    def integers(self, x: Tensor) -> Integers:
        """Return ``x`` in integers; the offset is 0, or 1/2 for one signed bit."""
        x = working(x)
        q = _count(x, self.thresholds()).to(x.dtype).add_(self.grid.low)
        return as_integers(q, self.scale(), self.grid)

    @torch.no_grad()
    def adopt(self, estimate: float) -> None:
        """Set the step, and thresholds half-way between the levels."""
        self.step.fill_(estimate)
        self.first.fill_((self.grid.low + self.grid.offset) * estimate)
        self.lengths.fill_(estimate)

    def extra_repr(self) -> str:
        """As every activation quantizer, with the step and the outermost thresholds."""
        thresholds = self.thresholds()
        ends = f"{float(thresholds[0]):.4g}..{float(thresholds[-1]):.4g}"
        return f"{super().extra_repr()}, step={float(self.step.detach()):.4g}, thresholds={ends}"


def _thresholds(start: Tensor, lengths: Tensor) -> Tensor:
    return _edges(start, lengths)[:-1] + lengths / 2


def _edges(start: Tensor, lengths: Tensor) -> Tensor:
    """d_0 to d_n."""
    return torch.cat([start.reshape(1), start + lengths.cumsum(0)])


def _count(x: Tensor, thresholds: Tensor) -> Tensor:
    """How many thresholds lie below each element: whole numbers of any dtype."""
    if len(thresholds) > _FEW:
        thresholds = thresholds.to(x.dtype)
        return _counted_in_cells(x, thresholds) if reads_numbers(x) else _halved(x, thresholds)
    if reads_numbers(x):
        return _climbed(x, thresholds.tolist(), torch.ones((), dtype=x.dtype))
    count = torch.zeros_like(x)
    for threshold in thresholds:
        count = count + (x > threshold).to(x.dtype)
    return count


def _climbed(x: Tensor, thresholds: list[float], rise: Tensor) -> Tensor:
    """Return a rise, 0-dimensional, times the thresholds below: from the highest down, one more where x is above.

    A comparison takes PyTorch three times as long.
    """
    *others, highest = thresholds
    height = torch.ops.aten.threshold_backward(rise.expand_as(x), x, highest)
    for threshold in reversed(others):
        torch.ops.aten.threshold_backward.grad_input(height.add_(rise), x, threshold, grad_input=height)
    return height  # type: ignore[no-any-return]


def _halved(x: Tensor, thresholds: Tensor) -> Tensor:
    """Count by halving all 2^b - 1 thresholds b times, without branches: a compiler makes one loop of it."""
    count, half = torch.zeros_like(x, dtype=torch.long), (len(thresholds) + 1) // 2
    while half:
        count = torch.where(x > thresholds[count + half - 1], count + half, count)
        half //= 2
    return count


def _counted_in_cells(x: Tensor, thresholds: Tensor) -> Tensor:
    """Count by a table of even cells with one threshold at most in each: a search takes ten times as long.

    What cell a value is in rises with the value, whatever rounding does. So the thresholds of earlier cells are below
    an element, those of later ones above, and the one of its own cell, if any, is the next.
    """
    cells = 4 * len(thresholds)
    low, high = float(thresholds[0]), float(thresholds[-1])
    finer = cells / max(high - low, FLOOR)

    def cell(values: Tensor) -> Tensor:
        return ((values - low) * finer).clamp_(-1, cells).add_(1).int().clamp_(0, cells + 1)

    inside = torch.bincount(cell(thresholds), minlength=cells + 2)
    if int(inside.max()) > 1:
        return torch.bucketize(x, thresholds)
    before = inside.cumsum(0) - inside
    following = torch.cat([thresholds, thresholds.new_full((1,), math.inf)])[before]
    of = cell(x).reshape(-1)
    above = x.reshape(-1).gt(following.index_select(0, of))
    return before.to(x.dtype).index_select(0, of).add_(above).view_as(x)


def _along(grad: Tensor, x: Tensor, start: float, lengths: list[float], step: float) -> tuple[Tensor, list[float]]:
    """Return the gradient times the slope of each element's piece, and the gradients of d_0 and of the lengths.

    From the last piece to the first, since all that come after a length move with it.
    """
    passed, inside = torch.empty_like(grad), torch.empty_like(grad)
    *lows, high = accumulate([start, *lengths])
    after, learned, into = 0.0, [], passed
    for low, length in zip(reversed(lows), reversed(lengths), strict=True):
        slope = step / length
        torch.ops.aten.hardtanh_backward.grad_input(grad, x, low, high, grad_input=into)
        total, moment = float(into.sum()), float(dot(into, x))
        learned.append(-slope / length * (moment - low * total) - after)
        after += slope * total
        passed = passed.mul_(slope) if into is passed else passed.add_(inside, alpha=slope)
        high, into = low, inside
    return passed, [-after, *reversed(learned)]


def _among(grad: Tensor, x: Tensor, edges: Tensor, lengths: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the same of many pieces, or where no number may be read."""
    if len(slopes) <= _FEW:
        each = [torch.where((x > low) & (x < high), grad, 0.0) for low, high in pairwise(edges)]
        passed = sum(inside * slope for inside, slope in zip(each, slopes, strict=True))
        totals, moments = (torch.stack(sums) for sums in ([i.sum() for i in each], [dot(i, x) for i in each]))
    else:
        piece = torch.bucketize(x, edges).sub_(1)
        inside = (piece >= 0) & (piece < len(slopes))
        piece = torch.where(inside, piece, 0)
        kept = torch.where(inside, grad, 0.0)
        flat, none = piece.reshape(-1), torch.zeros_like(slopes)
        totals = none.index_add(0, flat, kept.reshape(-1).to(slopes.dtype))
        moments = none.index_add(0, flat, (kept * x).reshape(-1).to(slopes.dtype))
        passed = kept * slopes[piece]
    pulls = slopes * totals
    own = slopes / lengths * (moments - edges[:-1] * totals)
    return passed, -pulls.sum(), -(own + pulls.flip(0).cumsum(0).flip(0) - pulls)


class _Stairs(Transformable):
    """Thresholds to even levels. Keeps x, and y, which the layer that reads it keeps anyway.

    Shapes: x any; start and scale 0-dimensional, lengths (n,); y as x.
    """

    @staticmethod
    def forward(x: Tensor, start: Tensor, lengths: Tensor, scale: Tensor, low: float, share: float) -> Tensor:
        """Count thresholds."""
        wide = working(x)
        thresholds = _thresholds(start, lengths)
        if not low and len(thresholds) <= _EXACT and not packs_activations() and reads_numbers(x):
            return _climbed(wide, thresholds.tolist(), scale.to(wide.dtype)).to(x.dtype)
        q = _count(wide, thresholds).to(wide.dtype)
        packed = pack_levels(q, scale, low, x.dtype, 0) if packs_activations() else None
        return register(q.add_(low).mul_(scale).to(x.dtype), packed)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep x and y."""
        x, start, lengths, scale, _, ctx.share = inputs
        ctx.save_for_backward(x, start, lengths, scale, output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Follow the line."""
        x, start, lengths, scale, y = ctx.saved_tensors
        wide = working(x)
        g = grad.to(wide.dtype)
        learned: list[Any]
        if len(lengths) <= _FEW and reads_numbers(x):
            passed, (first, *others) = _along(g, wide, float(start), lengths.tolist(), float(scale))
            learned = [first, torch.tensor(others, dtype=scale.dtype), float(dot(g, working(y))) / float(scale)]
        else:
            passed, *learned = _among(g, wide, _edges(start, lengths), lengths, scale / lengths)
            learned.append(dot(g, working(y)) / scale)
        return passed.to(grad.dtype), *(gradient(each * ctx.share, scale) for each in learned), None, None
