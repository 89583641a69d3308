"""How a model is trained: one frozen value, and the schedules that follow from it.

Everything here is a function of the recipe and the position in training, so that a run can be resumed anywhere.
"""

import hashlib
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, StrictInt

from nce_fx.errors import InputError
from nce_fx.frozen import FrozenDict
from nce_fx.plain_text import number_of
from nce_fx.validated import AsMapping, BelowOne, Count, NotNegative, Positive, Share, Whole, validated

PUBLISHED_TRAINING: Mapping[str, Any] = FrozenDict(
    distill_alpha=0.9, distill_falls=False, learning_rate=0.05, clip_gradient=None
)
"""What ``--recipe published`` trains with that is not the default; `nce_fx.passes.transform.quantize.PUBLISHED` has the
quantizers."""
RETRAINING: Mapping[str, Any] = FrozenDict(learning_rate=0.15, clip_gradient=1.0, distill_alpha=0.5, distill_falls=True)
"""What `nce-fx rewrite` and `nce-fx retrain` train with where nobody says, chosen on held-out images of four networks
(docs/training.md). In Python ``Recipe(**RETRAINING)``."""
LARGEST_ADAMW_RATE = 0.02
"""Of a recipe with AdamW: the default is made for gradient descent, and would destroy what was trained."""


@validated("recipe")
class Recipe(AsMapping):
    """The choices of a training run; two runs of one recipe on one machine give the same weights, bit for bit.

    Stochastic gradient descent with momentum, or AdamW; the learning rate rises linearly, then falls as a cosine to
    zero. Distillation applies where a teacher is given.
    """

    epochs: Whole = 30
    batch_size: Count = 64
    """Samples in one step over all processes together, so that a recipe means the same on one device and on many."""
    accumulate: Count = 1
    """Parts that each batch is computed in, one after the other: the memory is that of a part, and so are BatchNorm's
    statistics."""
    checkpoint_activations: StrictBool = False
    """Keep what stretches of the network are given alone, and compute what else the backward pass needs again when it
    comes to them: less memory, the same gradients, about a forward pass more. Of a graph. See
    `nce_fx.training.forward`."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """What takes the steps: "adamw" is what transformers are trained with, at a learning rate such as 0.001."""
    learning_rate: Positive = 0.05
    momentum: BelowOne = 0.9
    """Of AdamW the first of its two decays, beta1."""
    nesterov: StrictBool = True
    """Nesterov's momentum; AdamW has none."""
    weight_decay: NotNegative = 5e-4
    """Applies to the weights of convolutions and linear layers: not to biases, normalization, clips and steps. AdamW
    takes it apart from the gradient."""
    clip_rate: Positive = 1.0
    """Learning rate of the quantizers' own parameters (clips, steps, scales), as a multiple of the others'."""
    clip_decay: NotNegative = 0.0
    """Weight decay of the quantizers' own parameters; PACT's paper regularises its clip values with it."""
    warmup_epochs: NotNegative = 1.0
    cosine: StrictBool = True
    label_smoothing: BelowOne = 0.0
    distill_alpha: Share = 0.25
    """The part of the loss that is the distance from the teacher, where one is given; the rest is the task's own. 0.9,
    as TAS has it (Dong and Yang, 2019), holds back a student whose teacher has not converged: docs/training.md."""
    distill_falls: StrictBool = False
    """Whether that part falls to zero as a cosine, as the learning rate does: a teacher shows the way, and holds back a
    student that has come as far as itself."""
    distill_temperature: Positive = 4.0
    float_epochs: Whole = 0
    """How many of the epochs, the first ones, train a quantized network in float: its quantizers let everything pass.
    They are then started anew on what the network has become. What was narrowed heals before it is rounded. Each part
    has a warm-up and a fall of the learning rate of its own."""
    bits: tuple[Annotated[StrictInt, Field(ge=1, le=8)], ...] = ()
    """Progressive bits, such as (8, 4, 2): the epochs that are not in float are split evenly, a quantizer never goes
    below its own bits."""
    dampen: NotNegative = 0.0
    """How strongly weights are drawn to their levels in the end; it rises from zero as a cosine over the run. Lambda of
    Nagel et al. 2022, see `nce_fx.training.oscillation`."""
    freeze: NotNegative = 0.0
    """How often a weight may go back to the level it came from before it is frozen, in changes a step: such as 0.01 at
    the end, four times that at the start; 0: never. See `nce_fx.training.oscillation`."""
    average: BelowOne = 0.0
    """Decay of a moving average of the weights over the steps, such as 0.999, which is evaluated and returned; 0: none.
    See `nce_fx.training.extras`."""
    distill_features: NotNegative = 0.0
    """Weight of the distance between the student's and the teacher's maps of attention in the loss, such as 10, where a
    teacher is given. See `nce_fx.training.features`."""
    reestimate: Whole = 0
    """Training batches from which BatchNorm's statistics are taken anew at the end, before the last evaluation."""
    clip_gradient: Positive | None = None
    """The largest global gradient norm, or None for no limit."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Of the sums in the forward pass; weights stay as they are. With fp16 the loss is scaled: a step whose gradients
    overflow is left out, and the scale halves."""
    compile: StrictBool = False
    """Compile the model for full batches. The same seed gives other bits than without."""
    evaluate_every: Whole = 1
    """Epochs between two evaluations on the test split; the last epoch is always evaluated. 0: only the last."""
    seed: StrictInt = 0

    def __post_init__(self) -> None:
        """Refuse what no single field is wrong about."""
        if self.nesterov and not self.momentum:
            raise InputError(f"recipe: nesterov is {self.nesterov}; it must be off where momentum is 0")
        if self.optimizer == "adamw" and self.learning_rate > LARGEST_ADAMW_RATE:
            raise InputError(
                f"recipe: learning_rate is {self.learning_rate} with the optimizer adamw, each of whose steps moves a"
                f" weight by about as much; it must be {LARGEST_ADAMW_RATE} at most: give learning_rate, 0.001 is usual"
            )
        if self.float_epochs and self.float_epochs >= self.epochs:
            raise InputError(
                f"recipe: float_epochs is {self.float_epochs} of {number_of(self.epochs, 'epoch')}; leave at least one"
                " for low precision"
            )
        if self.freeze and self.bits:
            raise InputError("recipe: freeze is given and bits: a level that is held is one of a number of bits")


FLOAT_BITS = 32


def usual_float_epochs(epochs: int) -> int:
    """Return how many of the epochs of a network whose widths were changed are in float where nobody says: a quarter.

    One at least where there are two. On digits a quarter was better than none and than half.
    """
    return max(epochs // 4, int(epochs > 1))


def _part(recipe: Recipe, step: int, steps_per_epoch: int) -> tuple[int, int]:
    """Return the steps done of the part in float, or of the one at low precision, and how many it has."""
    border = recipe.float_epochs * steps_per_epoch
    first, last = (0, border) if step < border else (border, recipe.epochs * steps_per_epoch)
    return step - first, last - first


def _falling(done: int, steps: int) -> float:
    """From 1 to 0 as a cosine."""
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done / max(1, steps))))


def learning_rate_at(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of a step, counted from 0 over the whole run."""
    step, steps = _part(recipe, step, steps_per_epoch)
    warmup = round(recipe.warmup_epochs * steps_per_epoch)
    if recipe.float_epochs:
        # Of a part of few epochs, half at most.
        warmup = min(warmup, steps // 2)
    if step < warmup:
        return recipe.learning_rate * (step + 1) / warmup
    return recipe.learning_rate * (_falling(step - warmup, steps - warmup) if recipe.cosine else 1.0)


def distillation_at(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """Return the part of the loss that is the distance from the teacher at a step, from 0 over the whole run."""
    return recipe.distill_alpha * (_falling(*_part(recipe, step, steps_per_epoch)) if recipe.distill_falls else 1.0)


def calmer(recipe: Recipe) -> str:
    """Say what to change where numbers became infinite: ``"lower the learning rate (0.1), or set clip_gradient"``."""
    limit = ", or set clip_gradient" if recipe.clip_gradient is None else ""
    return f"lower the learning rate ({recipe.learning_rate:.3g}){limit}"


def dampening_at(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """Return the strength of dampening at a step, counted from 0 over the whole run; none while training in float."""
    border = recipe.float_epochs * steps_per_epoch
    done = max(0, step - border) / max(1, recipe.epochs * steps_per_epoch - border)
    return recipe.dampen * 0.5 * (1.0 - math.cos(math.pi * min(1.0, done)))


def bits_at(recipe: Recipe, epoch: int) -> int | None:
    """Return the bits of an epoch's stage: 32 in float, else None where the recipe has no progressive bits."""
    if epoch < recipe.float_epochs:
        return FLOAT_BITS
    if not recipe.bits:
        return None
    epochs = recipe.epochs - recipe.float_epochs
    return recipe.bits[min(len(recipe.bits) - 1, (epoch - recipe.float_epochs) * len(recipe.bits) // max(1, epochs))]


def seed_at(seed: int, *position: int) -> int:
    """Return the seed of a position (epoch, step, process): a hash, so that near positions share nothing."""
    text = "/".join(str(part) for part in (seed, *position))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
