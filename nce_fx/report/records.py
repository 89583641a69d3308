"""The records of a rewrite, validated by pydantic: what `report.json` holds and what `--json` prints."""

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch.fx import GraphModule

from nce_fx.passes.analysis.channels.graph import ChannelGroup
from nce_fx.passes.analysis.cost import CostReport
from nce_fx.passes.planning.budget import count
from nce_fx.plain_text import number_of
from nce_fx.quantities import QUANTITIES


class Record(BaseModel):
    """Base of all records: frozen, no unknown fields, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Costed(Record):
    """A record that has what a network costs for one example beside its own fields, by the names of quantities.

    Folders of other versions, and networks with quantities of the user's own, may have fewer or more of them.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, int | float] = Field(init=False)

    @property
    def cost(self) -> dict[str, int | float]:
        """The costs by quantity: ``{"macs": 49436, "params": 1224, ...}``, in the order of the table of quantities."""
        # What was read from a file comes in the order of the alphabet.
        known = [name for name in QUANTITIES if name in self.__pydantic_extra__]
        return {name: self.__pydantic_extra__[name] for name in dict.fromkeys((*known, *self.__pydantic_extra__))}

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Return one quantity."""


class CostRecord(Costed):
    """What one network costs for one example."""

    @classmethod
    def of(cls, gm: GraphModule, like: CostReport | None = None) -> "CostRecord":
        """Return what a network costs as it is, at the bits of its own quantizers, in the quantities of a report."""
        return cls(**count(gm, like).by_quantity)


class GroupRecord(Record):
    """One channel group: its layers, its width before and after, and how much quantization noise in it hurts."""

    id: str
    producers: tuple[str, ...]
    before: int
    after: int
    step: int
    pinned: str | None
    sensitivity: float | None

    @classmethod
    def of(cls, group: ChannelGroup, after: int, sensitivity: float | None = None) -> "GroupRecord":
        """Return what a report says of a group, such as of one that goes from 64 channels to ``after=80``."""
        own = {name: getattr(group, name) for name in ("id", "producers", "step", "pinned")}
        return cls(**own, before=group.width, after=after, sensitivity=sensitivity)


class LayerRecord(Record):
    """How much quantizing one layer's weights and output hurts, in units of the metric."""

    name: str
    weight: float
    activation: float


class TrialRow(Record):
    """One candidate of a trial."""

    candidate: str
    """``own widths``, or how far widths move: ``0.67x to 1.5x``."""
    loss: float
    """On the part of the training split that was held out, after the trial."""
    float_epochs: int | None = None
    """Of the trial, the first ones."""
    retrain_float_epochs: int | None = None
    """Of the retraining that it stands for."""


class TrialRecord(Record):
    """Plans and the widths as they are, trained briefly to decide between them."""

    rows: tuple[TrialRow, ...]
    chosen: str
    float_epochs: int | None = None
    """Of the retraining, with which it was chosen."""
    epochs: int
    """Of each candidate."""
    share: float
    """What all of them may cost, of the retraining."""
    held_out: int
    """Samples of the training split that the losses are of."""


class RewriteReport(Record):
    """What the compiler found and decided."""

    traced: str
    metric: str
    bits: int
    budget: dict[str, Any]
    """Each constraint as it was asked for: a ratio of the original, or a number."""
    original: CostRecord
    """The widths as they were, quantized the same way: what the plan is held against."""
    rewritten: CostRecord
    float_weight_bytes: int
    groups: tuple[GroupRecord, ...]
    layers: tuple[LayerRecord, ...]
    end_bits: dict[str, int] = {}
    """Layer -> bits of its weight, of first and last layers whose bits were planned."""
    trial: TrialRecord | None = None
    untried: str = ""
    """Why the plan was not tried beside the widths as they are."""

    @property
    def widened(self) -> int:
        """How many groups the plan made wider."""
        return sum(group.after > group.before for group in self.groups)

    @property
    def narrowed(self) -> int:
        """How many groups the plan made narrower."""
        return sum(group.after < group.before for group in self.groups)


class ResultRow(Costed):
    """One network of the last table, with what it costs."""

    network: str
    accuracy: float | None
    """On the test data, in [0, 1]; ``None`` where the metric is another, whose value is ``score``."""
    epochs: int
    seconds: float
    score: float | None = None


class Comparison(Record):
    """Networks trained with one recipe on one data set."""

    data: str
    epochs: int
    seed: int
    recipe: dict[str, Any]
    rows: tuple[ResultRow, ...]
    metric: str = "accuracy"
    """What the networks are measured by."""
    is_share: bool = True
    """Whether it is in [0, 1], and shown in percent."""

    @property
    def trained(self) -> str:
        """How long each was trained, in words: ``30 epochs each, the first 15 in float unless its row says other``."""
        first = self.recipe.get("float_epochs", 0)
        return f"{number_of(self.epochs, 'epoch')} each" + (
            f", the first {first} in float unless its row says other" if first else ""
        )

    def row(self, network: str) -> ResultRow | None:
        """Return the row of a network by its name, or ``None`` where it was not trained."""
        return next((row for row in self.rows if row.network == network), None)


class Retraining(Record):
    """How a result is to be retrained, written before it starts, so that `nce-fx retrain` can go on with it."""

    data: str
    recipe: dict[str, Any]
    float_epochs: int
    """Of the original network, before it was rewritten; those at the new widths are in the recipe."""
    uniform: bool = True
    """Whether the uniform rival is trained too."""
    from_scratch: bool = False
    """Whether training starts from new random weights, not from the float network's."""
    loss: str | None = None
    """What is minimised, by name; cross entropy for ``None``."""
    metric: str | None = None


class ModelReference(Record):
    """How the command line names a model, so that a folder can say what it was made from."""

    reference: str
    args: dict[str, Any]


class Manifest(Record):
    """`report.json`: how to rebuild the network of a result folder, what was done, and what came of it."""

    format: Literal["nce-fx"]
    version: int
    nce_fx: str
    model: ModelReference | None
    inputs: list[Any]
    """The signature of the inputs, see `nce_fx.signature`."""
    training: bool
    quantization: dict[str, Any] | None
    folded: Literal["float", "quantized"] | None = None
    """Whether BatchNorm was folded, and into which graph."""
    files: dict[str, str]
    """SHA-256 of every other file that the network is rebuilt from."""
    rewrite: RewriteReport | None
    retraining: Retraining | None
    comparison: Comparison | None
    """What came of retraining; ``None`` where there was none, or where it has not finished."""
    digest: str = ""

    def to_json(self) -> str:
        """Return the text of `report.json`, its digest filled in."""
        content = self.model_dump(mode="json")
        return json.dumps({**content, "digest": manifest_digest(content)}, indent=2, sort_keys=True) + "\n"


def manifest_digest(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a manifest as it was read or will be written: of everything but the digest itself.

    Of the content, not of the `Manifest`: that of a later version has fields which older files do not have.
    """
    rest = {name: value for name, value in content.items() if name != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def folder_of(network: str) -> str:
    """Return the name of a network's folder: ``NCE 2-bit`` is ``nce-2-bit``."""
    return "-".join(network.lower().replace(",", "").split())
