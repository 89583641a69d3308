"""Whether a plan of widths is for a graph: by fingerprint, or, to say what differs, by its channel groups."""

from torch.fx import GraphModule

from nce_fx.errors import PlanError
from nce_fx.passes.analysis.channels import analyze_channels
from nce_fx.plan import WidthPlan, model_fingerprint


def check_plan(plan: WidthPlan, gm: GraphModule) -> None:
    """Return if a plan is for this graph.

    Raises:
        PlanError: it is for another one; the message names the first difference.
    """
    if plan.model and plan.model == model_fingerprint(gm):
        return
    if plan.model and plan.model == model_fingerprint(gm, as_modules_print=True):
        return
    there = analyze_channels(gm).widths
    for group, width in plan.original.items():
        if group not in there:
            raise PlanError(f"the plan is for another model: this one has no channel group {group}")
        if there[group] != width:
            raise PlanError(
                f"the plan is for another model: group {group} is {there[group]} channels wide here,"
                f" {width} in the plan's model"
            )
    unknown = next((group for group in there if group not in plan.original), None)
    if unknown is not None:
        raise PlanError(f"the plan is for another model: it does not know channel group {unknown}")
    if plan.model:
        raise PlanError(
            "the plan is for another model: channel groups and widths agree, but an operation or a shape differs"
            " (another input size, another depth between the layers?)"
        )
