"""Which widths every group may take, legal within ratios, rounding and patterns; and why no plan of them would do."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property

import numpy as np

from nce_fx.errors import BudgetError
from nce_fx.nearest import nearest_pattern
from nce_fx.passes.analysis.channels.graph import ChannelGraph, ChannelGroup
from nce_fx.passes.analysis.cost_model import CostModel
from nce_fx.passes.analysis.polynomial import Floats, Integers


@dataclass(frozen=True)
class Rules:
    """What the user allows: ratios of the original width, a multiple for the hardware, which groups may change, and two
    shares, see `nce_fx.passes.planning.plan_widths`."""

    min_width: float = 0.25
    max_width: float = 2.0
    round_to: int = 1
    freeze: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    capacity: float = 0.0
    streams: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.min_width <= 1 <= self.max_width:
            raise BudgetError(
                f"min_width={self.min_width} and max_width={self.max_width} must hold the original width between them:"
                " 0 <= min_width <= 1 <= max_width"
            )
        if self.round_to < 1:
            raise BudgetError(f"round_to={self.round_to} is no multiple: give 1 or more")
        if not 0 <= self.capacity <= 1:
            raise BudgetError(
                f"capacity={self.capacity} is no share: give 0 (noise alone) to 1 (the widths as they are)"
            )
        if not 0 <= self.streams <= 1:
            raise BudgetError(f"streams={self.streams} is no share: give 0 (streams are narrowed like the rest) to 1")


@dataclass(frozen=True)
class Choices:
    """The widths that each changeable group may take, in rising order."""

    channels: ChannelGraph
    groups: tuple[ChannelGroup, ...]
    """Groups with more than one choice."""
    widths: tuple[Integers, ...]
    """For each of them, its choices."""
    original: Integers
    """For each of them, the index of the original width."""
    _parts: dict[tuple[int, int], tuple[int, ...]] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def base(self) -> Floats:
        """Part widths of the original model."""
        return np.array([part.width for part in self.channels.parts], np.float64)

    @cached_property
    def fixed(self) -> Floats:
        """For each group, the channels that stay as they are."""
        parts = self.channels.parts
        free = [sum(parts[i].width for i in g.parts if parts[i].free and parts[i].on_axis) for g in self.groups]
        return np.array([group.width - own for group, own in zip(self.groups, free, strict=True)], np.float64)

    @cached_property
    def ratios(self) -> tuple[Floats, ...]:
        """For each group, its choices as ratios of the free channels: what the noise model and the relaxation see."""
        free = [group.width - fixed for group, fixed in zip(self.groups, self.fixed, strict=True)]
        return tuple((w - f) / size for w, f, size in zip(self.widths, self.fixed, free, strict=True))

    @cached_property
    def _mixed(self) -> tuple[int, ...]:
        """Indices of the groups of several parts."""
        return tuple(index for index, group in enumerate(self.groups) if len(group.parts) != 1)

    @cached_property
    def _whole(self) -> tuple[Integers, Integers, Floats]:
        """Groups of a single part: their indices, their parts, and a table (choices x groups) of the part's widths."""
        single = [index for index in range(len(self.groups)) if index not in self._mixed]
        longest = max((len(self.widths[index]) for index in single), default=0)
        table = np.zeros((longest, len(single)))
        for column, index in enumerate(single):
            table[: len(self.widths[index]), column] = self.widths[index]
        parts = np.array([self.groups[index].parts[0] for index in single], np.int64)
        return np.array(single, np.int64), parts, table

    def part_widths(self, picks: Integers) -> Floats:
        """Return part widths (plans x parts) when every group takes the choice of that index (plans x groups)."""
        result = np.tile(self.base, (len(picks), 1))
        single, parts, table = self._whole
        result[:, parts] = table[picks[:, single], np.arange(len(single))]
        for index in self._mixed:
            chosen, where = np.unique(picks[:, index], return_inverse=True)
            shared = np.array([self.parts_of(index, pick) for pick in chosen.tolist()], np.float64)
            result[:, list(self.groups[index].parts)] = shared[where]
        return result

    def parts_of(self, index: int, pick: int) -> tuple[int, ...]:
        """Return the widths of one group's parts at one of its choices."""
        key = (index, pick)
        if key not in self._parts:
            group = self.groups[index]
            shared = self.channels.part_widths({group.id: int(self.widths[index][pick])})
            self._parts[key] = tuple(shared[part] for part in group.parts)
        return self._parts[key]

    def named(self, picks: Integers) -> dict[str, int]:
        """Return the width of every group of the model, by id."""
        chosen = {g.id: int(w[p]) for g, w, p in zip(self.groups, self.widths, picks.tolist(), strict=True)}
        return {group.id: chosen.get(group.id, group.width) for group in self.channels}


def legal_choices(channels: ChannelGraph, rules: Rules, least: Mapping[str, int] | None = None) -> Choices:
    """Return the choices of every group that has more than one; ``least`` is the least width of some of them.

    Raises:
        BudgetError: a pattern that matches no group.
    """
    frozen, wanted = _matching(channels, rules.freeze, "freeze"), _matching(channels, rules.only, "only")
    groups, widths, original = [], [], []
    for group in channels:
        if group.pinned is not None or group.id in frozen or (rules.only and group.id not in wanted):
            continue
        options = widths_of(group, rules)
        options = options[options >= (least or {}).get(group.id, 0)]
        if len(options) > 1:
            groups.append(group)
            widths.append(options)
            original.append(int(np.searchsorted(options, group.width)))
    return Choices(channels, tuple(groups), tuple(widths), np.array(original, np.int64))


def widths_of(group: ChannelGroup, rules: Rules) -> Integers:
    """Return the widths a group may take, the original one among them."""
    least = max(group.min_width, math.ceil(rules.min_width * group.width - 1e-9))
    first = least + (group.width - least) % group.step
    options = np.arange(first, int(rules.max_width * group.width + 1e-9) + 1, group.step, dtype=np.int64)
    options = options[options % rules.round_to == 0]
    return np.union1d(options, [group.width]).astype(np.int64)


def _matching(channels: ChannelGraph, patterns: Iterable[str], option: str) -> set[str]:
    found: set[str] = set()
    for pattern in patterns:
        hits = {
            group.id for group in channels if any(fnmatchcase(name, pattern) for name in (group.id, *group.producers))
        }
        if not hits:
            known = ", ".join(group.id for group in channels.groups[:5])
            hint = nearest_pattern(pattern, [name for group in channels for name in (group.id, *group.producers)])
            raise BudgetError(f"{option}={pattern!r} matches no channel group: ids are like {known}{hint}")
        found |= hits
    return found


def sensitivity_of(choices: Choices, by_group: Mapping[str, float]) -> Floats:
    """Return each group's sensitivity, lifted to a thousandth of the mean where it is less.

    A group whose noise seems to cost nothing would give all its channels away on the strength of a measurement that is
    never that sharp; and the noise model has no meaning for a negative one.
    """
    values = np.array([by_group.get(group.id, 0.0) for group in choices.groups], np.float64)
    if not np.isfinite(values).all():
        bad = choices.groups[int(np.flatnonzero(~np.isfinite(values))[0])].id
        raise BudgetError(f"the sensitivity of group {bad} is not a finite number: check its weights and the batches")
    values = np.maximum(values, 0.0)
    mean = float(values.mean()) if len(values) else 0.0
    return np.maximum(values, 1e-3 * mean) if mean > 0 else np.ones_like(values)


def narrowest(model: CostModel, choices: Choices, names: tuple[str, ...]) -> dict[str, float]:
    """Return what the model costs when every group takes its least width."""
    widths = choices.part_widths(np.zeros((1, len(choices.groups)), np.int64))
    totals = model.totals_of_many(widths, names)[0]
    return dict(zip(names, totals.tolist(), strict=True))


def check_feasible(
    model: CostModel, choices: Choices, rules: Rules, limits: Mapping[str, float], original: Mapping[str, float]
) -> None:
    """Return if the narrowest plan is within every limit.

    Raises:
        BudgetError: it is not. The message has the least possible for each limit that is missed, and which of the
            user's own options stand against it.
    """
    names = tuple(limits)
    if not names:
        return
    least = narrowest(model, choices, names)
    missed = [name for name in names if least[name] > limits[name]]
    if not missed:
        return
    sentences = [
        f"{name} <= {limits[name]:,.0f} ({limits[name] / max(original[name], 1):.3g}x) cannot be met:"
        f" the least possible is {least[name]:,.0f} ({least[name] / max(original[name], 1):.3g}x)"
        for name in missed
    ]
    raise BudgetError("; ".join(sentences) + ". " + _who_fights(model, rules, limits, missed))


def _who_fights(model: CostModel, rules: Rules, limits: Mapping[str, float], missed: list[str]) -> str:
    """Lift each of the user's options in turn and see whether the budget could then be met."""
    without = {
        f"min_width={rules.min_width:g}": replace(rules, min_width=0.0),
        "freeze": replace(rules, freeze=()),
        "only": replace(rules, only=()),
        f"round_to={rules.round_to}": replace(rules, round_to=1),
    }
    freed = {option: lifted for option, lifted in without.items() if lifted != rules}

    def is_met(lifted: Rules) -> bool:
        least = narrowest(model, legal_choices(model.channels, lifted), tuple(missed))
        return all(least[name] <= limits[name] for name in missed)

    helping = [option for option, lifted in freed.items() if is_met(lifted)]
    if helping:
        return f"It fights with {' and with '.join(helping)}: lift either, or raise the budget"
    if freed and is_met(replace(rules, min_width=0.0, freeze=(), only=(), round_to=1)):
        return f"It fights with {', '.join(freed)} together: lift them, or raise the budget"
    pinned = sum(group.pinned is not None for group in model.channels)
    return f"Even one step a group is too much ({pinned} of {len(model.channels.groups)} groups are pinned): raise it"
