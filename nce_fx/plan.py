"""A plan of widths: what a rewrite decided, as a value and as JSON that can be read, kept and replayed.

The JSON is checked where it comes in (pydantic) and the same plan is the same bytes wherever it goes out: keys sorted,
floats as their shortest decimal, two spaces of indent, one newline at the end.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from nce_fx.errors import PlanError
from nce_fx.frozen import Frozen
from nce_fx.paths import module_at, parameters_of, used_by
from nce_fx.plain_text import read_json
from nce_fx.validated import first_problem

PLAN_VERSION = 1


class PlanSchema(BaseModel):
    """The JSON form of a plan; ``PlanSchema.model_json_schema()`` is its JSON schema."""

    model_config = ConfigDict(extra="forbid", strict=True)

    version: int
    model: str
    widths: dict[str, NonNegativeInt]
    """None is 0 but where the original is."""
    original: dict[str, NonNegativeInt]
    source: dict[str, Any] = {}


@dataclass(frozen=True)
class WidthPlan(Frozen):
    """The width of every channel group of one model, such as ``plan.widths == {"conv1": 10, "layer1.0.conv1": 3}``."""

    widths: Mapping[str, int]
    original: Mapping[str, int]
    """The widths that the model had."""
    model: str
    """Fingerprint of the model the plan is for, see ``model_fingerprint``; empty where it was not known."""
    version: int = PLAN_VERSION
    source: Mapping[str, Any] = field(default_factory=dict)
    """Where the plan comes from: metric, data, seed, budget, objective, certified bound, gap; JSON values."""

    @property
    def changed(self) -> dict[str, int]:
        """The widths that differ from the original ones."""
        return {group: width for group, width in self.widths.items() if width != self.original[group]}

    @property
    def predicted_noise(self) -> float | None:
        """The noise as a share of that at the original widths; ``None`` where no planner made the plan.

        Near 1 there is little to gain, whatever the accuracy that quantization costs.
        """
        # Where the planner valued capacity too, its objective is not the noise alone.
        before, after = self.source.get("noise_before"), self.source.get("noise", self.source.get("objective"))
        if not isinstance(before, int | float) or not isinstance(after, int | float):
            return None
        return after / before if before else 1.0

    def to_json(self) -> str:
        """Return the plan as JSON, byte for byte the same for equal plans."""
        return json.dumps(asdict(self), sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @staticmethod
    def from_json(text: str) -> "WidthPlan":
        """Return the plan that a JSON text says.

        Raises:
            PlanError: no JSON, a field that is missing, unknown or of the wrong type, or another version.
        """
        try:
            fields = read_json(text)
        except ValueError as error:
            raise PlanError(f"the plan is not JSON: {error}") from error
        version = fields.get("version") if isinstance(fields, dict) else None
        if isinstance(version, int) and version != PLAN_VERSION:
            raise PlanError(f"the plan has version {version}, this program reads version {PLAN_VERSION}: plan again")
        try:
            checked = PlanSchema.model_validate(fields)
        except ValidationError as error:
            raise PlanError(f"the plan is damaged at {first_problem(error, 'the whole')}; plan again") from error
        gone = next(
            (name for name, width in checked.widths.items() if not width and checked.original.get(name) != 0), None
        )
        if gone is not None:
            raise PlanError(f"the plan is damaged at widths.{gone}: it should be greater than 0; plan again")
        if checked.widths.keys() != checked.original.keys():
            odd = sorted(checked.widths.keys() ^ checked.original.keys())[0]
            raise PlanError(f"the plan is damaged: {odd} is not in both widths and original; plan again")
        return WidthPlan(checked.widths, checked.original, checked.model, checked.version, checked.source)


def model_fingerprint(gm: GraphModule, *, as_modules_print: bool = False) -> str:
    """Return the sha256 of a graph's operations, their arguments and shapes, and the shapes of its parameters.

    Names of nodes, values of weights and parameters that are not used do not enter: the same architecture traced again
    has the same fingerprint, with another version of PyTorch too.
    """
    digest = hashlib.sha256()
    for line in _description(gm, as_modules_print):
        digest.update(line.encode())
        digest.update(b"\n")
    return digest.hexdigest()


def _description(gm: GraphModule, as_modules_print: bool) -> list[str]:
    """Say a graph line by line; older plans say modules as they print themselves, which PyTorch changes at times."""
    index = {node: f"%{position}" for position, node in enumerate(gm.graph.nodes)}
    lines = []
    for node in gm.graph.nodes:
        meta = node.meta.get("tensor_meta")
        shape = f"{tuple(meta.shape)} {meta.dtype}" if hasattr(meta, "shape") and hasattr(meta, "dtype") else ""
        args, kwargs = map_arg((node.args, node.kwargs), lambda argument: index[argument])
        # Objects without a repr of their own print their address, which is no part of the architecture.
        arguments = f"{args!r} {kwargs!r}"
        if " at 0x" in arguments:
            arguments = re.sub(r" at 0x[0-9a-f]+", "", arguments)
        lines.append(f"{node.op} {_target(gm, node, as_modules_print)} {arguments} {shape}")
    parameters: dict[int, str] = {}
    uses = used_by(gm)
    for name, value in parameters_of(gm):
        if uses(name):
            parameters.setdefault(id(value), f"{name} {tuple(value.shape)}")
    return [*lines, *parameters.values()]


def _target(gm: GraphModule, node: Node, as_modules_print: bool) -> str:
    """A name that does not depend on where or when the program runs."""
    if node.op == "call_module":
        module = module_at(gm, str(node.target))
        return f"{node.target} {type(module).__name__}({module.extra_repr() if as_modules_print else ''})"
    if isinstance(node.target, str):
        return node.target
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target)
    return f"{getattr(node.target, '__module__', '')}.{getattr(node.target, '__qualname__', str(node.target))}"
