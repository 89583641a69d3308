"""What each option is called in Python: the function or class of `nce_fx` that takes it, and its argument there."""

import re
from collections.abc import Iterable, Mapping

from nce_fx.quantities import QUANTITIES

_EVERYWHERE: Mapping[str, str] = {
    "--input": "trace(example_inputs=)",
    "--weights": "models.loading.load_weights(path=)",
    "--data": "data.load_data(spec=)",
    "--model-args": "models.loading.load_model(model_args=)",
    "--seed": "rewrite(seed=)",
    **{f"--max-{name.replace('_', '-')}": f"Budget({name}=)" for name in QUANTITIES.names()},
    "--hardware": "rewrite(hardware=)",
    "--min-width": "rewrite(min_width=)",
    "--max-width": "rewrite(max_width=)",
    "--round-to": "rewrite(round_to=)",
    "--capacity": "rewrite(capacity=)",
    "--streams": "rewrite(streams=)",
    "--freeze": "rewrite(freeze=)",
    "--only": "rewrite(only=)",
    "--bits": "QuantSpec(weight_bits=, activation_bits=)",
    "--weight-quantizer": "QuantSpec(weight=)",
    "--activation-quantizer": "QuantSpec(activation=)",
    "--first-last-bits": "QuantSpec(first_last_bits=)",
    "--shortcuts": "QuantSpec(shortcuts=)",
    "--override": "QuantSpec(overrides=)",
    "--exact": "QuantSpec(exact=)",
    "--sums": "QuantSpec(sums=)",
    "--ewgs": "QuantSpec(ewgs=)",
    "--loss": "training.train(loss=)",
    "--metric": "training.train(metric=)",
    "--recipe": "training.train(recipe=)",
    "--strict": "data.load_data(strict=)",
    "--compile": "training.Recipe(compile=)",
    "--float-epochs": "training.Recipe(float_epochs=)",
    "--from-scratch": "passes.transform.new_weights.from_scratch",
    "--sensitivity": "rewrite(metric=)",
    "--end-bits": "rewrite(end_bits=)",
    "--retrain": "training.Recipe(epochs=)",
    "--epochs": "training.Recipe(epochs=)",
    "--sweep": "sweep.sweep(ratios=)",
    "--trial": "rewrite(trial=)",
    "--trial-share": "trial.Trial(share=)",
    "--passes": "pipeline.Pipeline(passes=)",
    "--verify-each": "pipeline.Pipeline(between=)",
    "--print-after": "pipeline.Pipeline(between=)",
    "--method": "search.SearchRecipe(method=)",
    "--expand": "search.SearchRecipe(expand=)",
    "--float": "search.SearchRecipe(quantized=)",
    "--workers": "search.search(workers=)",
    "--scheduler": "search.search(scheduler=)",
    "--groups": "analyze_channels",
    "--why": "report.explanation.explain(name=)",
    "--html": "report.page.page",
    "--model": "load(model=)",
    "--pass": "load(passes=)",
    "--onnx": "export_onnx(path=)",
    "--format": "export_onnx(format=)",
    "--fold-bn": "export_onnx(fold_bn=)",
    "--batch": "export_onnx(batch=)",
    "--opset": "export_onnx(opset=)",
    "--pt2": "export.export_pt2(path=)",
    "--packed": "export.save_packed(path=)",
    "--model-explorer": "export.network.model_explorer",
    "--out": "save(directory=)",
    "--force": "save(force=)",
}
_ELSEWHERE: Mapping[str, Mapping[str, str]] = {
    "search": {
        "--seed": "search.SearchRecipe(seed=)",
        "--epochs": "search.SearchRecipe(epochs=)",
        "--recipe": "search.search(recipe=)",
        "--loss": "search.search(loss=)",
        "--hardware": "search.search(hardware=)",
        "--out": "search.search(directory=)",
    },
    "analyze": {"--bits": "analyze_sensitivity(bits=)", "--sensitivity": "analyze_sensitivity(metric=)"},
    "inspect": {"--bits": "analyze_sensitivity(bits=)", "--sensitivity": "analyze_sensitivity(metric=)"},
    "apply": {"--seed": "resize(seed=)"},
    "retrain": {"--seed": "training.Recipe(seed=)"},
}
OWN = frozenset(
    ("--dry-run", "--json", "--open", "--uniform", "--quiet", "--verbose", "--log", "--config", "--print-config",
     "--help")
)  # fmt: skip
"""What is of the command line alone: how it speaks, and what it leaves out."""


def python_name(command: str, option: str) -> str:
    """Return what an option of a command is in Python: ``rewrite(metric=)``; an empty string where it is nothing there.

    Raises:
        KeyError: nobody has said.
    """
    return "" if option in OWN else {**_EVERYWHERE, **_ELSEWHERE.get(command, {})}[option]


def another_name(command: str, spellings: Iterable[str]) -> str:
    """Return the Python name of an option where that is not what one of its spellings says, else an empty string."""
    said = [each.lstrip("-").replace("-", "_") for each in spellings]
    name = python_name(command, next(each for each in spellings if each.startswith("--")))
    theirs = re.findall(r"(\w+)=", name) or [name.rpartition(".")[2]]
    return "" if set(said) & set(theirs) else name
