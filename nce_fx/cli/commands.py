"""What can be asked of `nce-fx`: a dataclass of options for each command, whose docstring is its help.

What each does is in the module that it names, which is imported when it is called.
"""

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Annotated

import typer

from nce_fx.cli import options
from nce_fx.cli.command import argument, command, option
from nce_fx.cli.completing import names_of, one_of


@dataclass(frozen=True, kw_only=True)
class Rewrite(
    options.TrainingOptions,
    options.QuantizerOptions,
    options.WidthOptions,
    options.BudgetOptions,
    options.ModelOptions,
):
    """Rewrite MODEL: wider where few bits hurt, narrower where they do not, at no more than it costs.

    A built-in model without --weights is first trained on --data, for as many epochs as --retrain says.

    Examples:

        nce-fx rewrite resnet50 --dry-run

        nce-fx rewrite nets.py:build --weights net.pt --data imagefolder:images@64 --retrain 30 --out result

        nce-fx rewrite resnet20 --max-macs 0.8x --freeze 'layer1.*' --out narrow
    """

    sensitivity: options.Metric = None
    end_bits: str = option(
        "given",
        "plan: weights of the first and last layers have 2, 4 or 8 bits, chosen with the widths.",
        "given|plan",
        autocompletion=one_of("given", "plan"),
    )
    retrain: int = option(0, "Epochs of retraining; the uniform rival gets as many.", "EPOCHS")
    sweep: str | None = option(
        None, "Plan along a range of budgets, draw the Pareto front, rewrite nothing.", "0.6x..2.0x"
    )
    trial: bool = option(
        True,
        "Before --retrain: try the plan, nearer ones and its own widths on held out training data.",
        name="--trial/--no-trial",
    )
    trial_share: float = option(0.25, "What all trials may cost, of the retraining of one network.")
    verify_each: options.VerifyEach = False
    print_after: options.PrintAfter = None
    out: options.Out = Path("nce-fx-out")
    dry_run: bool = option(False, "Print the plan and write nothing.", name="--dry-run")
    as_json: options.Json = False
    force: options.Force = False


rewrite = command(Rewrite, "nce_fx.cli.rewriting:run")


@dataclass(frozen=True, kw_only=True)
class Search(options.QuantizerOptions, options.BudgetOptions, options.ModelOptions):
    """Find the widths of MODEL by training its quantized network; write plan.json for `nce-fx apply`.

    The same command again goes on where the search was stopped.

    Examples:

        nce-fx search resnet20 --data cifar10:DIR --epochs 200 --out found

        nce-fx search nets.py:build --weights net.pt --data imagefolder:images@64 --method adapt --max-macs 0.5x
    """

    method: str = option(
        "gradient",
        "How widths are found, see `nce-fx list search_methods`.",
        "NAME",
        autocompletion=names_of("search_methods"),
    )
    epochs: int | None = option(None, "Epochs of the search; as many as the method's recipe by default.", "N")
    expand: bool = option(True, "Add wider candidates while it searches; without: TAS.", name="--expand/--no-expand")
    loss: options.Loss = None
    in_float: bool = option(
        False, "Search on the float network; the plan is quantized later.", name="--float/--quantized"
    )
    recipe: str | None = option(
        None,
        "Fields of the method's recipe, see `nce-fx list search_methods`: '{\"max_ratio\": 1.5}'; or "
        '"published": the published quantizers, SAWB and PACT, shortcuts quantized.',
        "JSON|published",
    )
    workers: int = option(1, "Processes, for a method that trains many networks.", "N")
    scheduler: str | None = option(None, "Of a dask scheduler, instead of them.", "ADDRESS")
    out: options.Out = Path("nce-fx-search")
    as_json: options.Json = False
    force: options.Force = False


search = command(Search, "nce_fx.cli.searching:run")


@dataclass(frozen=True, kw_only=True)
class Analyze(options.ModelOptions):
    """Show a model's layers with their cost and sensitivity, or its channel groups, or why one layer is as it is.

    Examples:

        nce-fx analyze resnet20

        nce-fx analyze nets.py:build --input 1x3x48x48 --groups

        nce-fx analyze resnet20 --why layer1.0.conv2
    """

    bits: options.Bits = 2
    sensitivity: options.Metric = None
    groups: bool = option(False, "Every channel group, and why the pinned ones are pinned.", name="--groups")
    why: str | None = option(None, "One layer: its group, and the chain of nodes that ties it.", "NAME")
    as_json: options.Json = False


analyze = command(Analyze, "nce_fx.cli.analyzing:run")


Html = Annotated[
    Path | None,
    typer.Option("--html", metavar="FILE.html", help="Where the page goes: one file that needs no other."),
]
Open = Annotated[bool, typer.Option("--open", help="Open the page in the browser.")]


@dataclass(frozen=True, kw_only=True)
class Inspect(options.NetworkOptions):
    """Write a page that shows a network: graph, channel groups, costs, sensitivity, weights before and after.

    A result folder is shown with its plan, its training and its last table; a model with what the compiler knows of it.

    Examples:

        nce-fx inspect result --open

        nce-fx inspect resnet50 --html resnet50.html
    """

    target: str = argument(
        MISSING, "A folder that `nce-fx rewrite` wrote, or a model as `nce-fx rewrite` takes it.", "DIR|MODEL"
    )
    html: Html = None
    open_page: Open = False
    bits: options.Bits = 2
    sensitivity: options.Metric = None
    model: options.ModelAgain = None
    as_json: options.Json = False


inspect = command(Inspect, "nce_fx.cli.inspecting:run")


_Side = Annotated[
    str,
    typer.Argument(
        metavar="DIR|MODEL", help="A folder that `nce-fx rewrite` wrote, or the model itself.", show_default=False
    ),
]


@dataclass(frozen=True, kw_only=True)
class Diff:
    """Show how two rewrites of one model differ, or a model and its rewrite: channels, bits, costs, accuracy.

    Examples:

        nce-fx diff tight loose

        nce-fx diff resnet8 result --html diff.html
    """

    a: _Side
    b: _Side
    html: Html = None
    open_page: Open = False
    model: options.ModelAgain = None
    as_json: options.Json = False


diff = command(Diff, "nce_fx.cli.diffing:run")


@dataclass(frozen=True, kw_only=True)
class Apply(options.QuantizerOptions, options.ModelOptions):
    """Resize MODEL to a plan and quantize it, or run other passes on it.

    The same model, weights, data and seed give the same weights.

    Examples:

        nce-fx apply resnet20 result/plan.json --weights result/float.safetensors --out replayed

        nce-fx apply resnet20 result/plan.json --passes 'resize,quantize{weight_bits=4}' --verify-each
    """

    plan: Path | None = argument(None, "A plan that `nce-fx rewrite` wrote.", "[PLAN.json]")
    passes: options.Passes = None
    verify_each: options.VerifyEach = False
    print_after: options.PrintAfter = None
    out: options.Out = Path("nce-fx-out")
    as_json: options.Json = False
    force: options.Force = False


apply = command(Apply, "nce_fx.cli.applying:run")


@dataclass(frozen=True, kw_only=True)
class Retrain(options.TrainingOptions):
    """Retrain the network in DIR, distilled from its float network; a run that was stopped goes on.

    Examples:

        nce-fx retrain result

        nce-fx retrain replayed --data cifar10:DIR --epochs 100

        nce-fx retrain result --model nets.py:build
    """

    directory: Path = argument(MISSING, "A folder that `nce-fx rewrite` wrote.", "DIR")
    data: options.Data = None
    epochs: int | None = option(None, "Epochs; those of the training that was stopped by default.", "N")
    seed: int | None = option(None, "Seed; that of the training that was stopped by default.")
    model: options.ModelAgain = None
    own_passes: options.OwnPasses = None
    uniform: bool = option(True, "Train the uniform rival as well.", name="--uniform/--no-uniform")
    force: bool = option(False, "Train again from the weights in DIR, though it is trained.", name="--force")
    as_json: options.Json = False


retrain = command(Retrain, "nce_fx.cli.retraining:run")


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write the network in DIR for use without its code; the file is compared with PyTorch before it is kept.

    Examples:

        nce-fx export result --onnx model.onnx

        nce-fx export result --model nets.py:build --pt2 model.pt2
    """

    directory: Path = argument(MISSING, "A folder that `nce-fx rewrite` wrote.", "DIR")
    onnx: Path | None = option(None, "Write the network as ONNX.", "FILE.onnx", show_default=False)
    format: str | None = option(
        None,
        "integer: packed weights, computed in integers; int2: packed weights, computed in float; "
        "qcdq: int8 containers; qonnx: for FPGA flows. By default integer, int2 for a network that it is not for.",
        "integer|int2|qcdq|qonnx",
        show_default=False,
    )
    fold_bn: bool = option(False, "Fold BatchNorm into the scales of the weights.", name="--fold-bn")
    batch: int | None = option(None, "Samples in a batch; any number by default.", "N")
    opset: int | None = option(None, "Opset of the ONNX file, for an older runtime; the format's own.", "N")
    pt2: Path | None = option(None, "Write a torch.export archive.", "FILE.pt2", show_default=False)
    packed: Path | None = option(
        None, "Write the weights alone, four to a byte.", "FILE.safetensors", show_default=False
    )
    explorer: Path | None = option(
        None,
        "Write the graph for Google's Model Explorer, and FILE.data.json: the sensitivity of its nodes.",
        "FILE.json",
        name="--model-explorer",
        show_default=False,
    )
    model: options.ModelAgain = None
    own_passes: options.OwnPasses = None
    verify_each: options.VerifyEach = False
    print_after: options.PrintAfter = None
    as_json: options.Json = False


export = command(Export, "nce_fx.cli.exporting:run")


@dataclass(frozen=True, kw_only=True)
class Models:
    """List the built-in models.

    Examples:

        nce-fx models

        nce-fx models --json
    """

    as_json: options.Json = False


models = command(Models, "nce_fx.cli.listing:show_models")


@dataclass(frozen=True, kw_only=True)
class Passes:
    """List the passes with their options, as `--passes` takes them; those of installed packages among them.

    Examples:

        nce-fx passes
    """

    as_json: options.Json = False


passes = command(Passes, "nce_fx.cli.listing:show_passes")


@dataclass(frozen=True, kw_only=True)
class List:
    """List what can be named: models, data, quantizers, metrics, losses, formats, passes, quantities, searches.

    Examples:

        nce-fx list

        nce-fx list weight_quantizers
    """

    kind: str | None = argument(None, "Only one kind, such as metrics.", "[KIND]", autocompletion=names_of("kinds"))
    as_json: options.Json = False


known = command(List, "nce_fx.cli.listing:show_known")

EVERY = (rewrite, search, analyze, inspect, diff, apply, retrain, export, models, passes, known)
"""In the order of the help."""
