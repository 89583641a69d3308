"""Why no plan can meet a budget, in words: the least that is possible, and what holds it up."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from nce_fx.errors import BudgetError
from nce_fx.passes.analysis.cost_model import CostModel
from nce_fx.passes.planning.choices import Choices, Rules, legal_choices


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
    helping, least = [], {}
    for option, lifted in freed.items():
        costs = narrowest(model, legal_choices(model.channels, lifted), tuple(missed))
        least[option] = costs
        if all(costs[name] <= limits[name] for name in missed):
            helping.append(option)
    if helping:
        return f"It fights with {' and with '.join(helping)}: lift either, or raise the budget"
    if freed:
        everything = replace(rules, min_width=0.0, freeze=(), only=(), round_to=1)
        costs = narrowest(model, legal_choices(model.channels, everything), tuple(missed))
        if all(costs[name] <= limits[name] for name in missed):
            return f"It fights with {', '.join(freed)} together: lift them, or raise the budget"
    pinned = sum(group.pinned is not None for group in model.channels)
    return f"Even one step a group is too much ({pinned} of {len(model.channels.groups)} groups are pinned): raise it"
