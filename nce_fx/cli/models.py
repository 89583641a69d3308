"""`nce-fx models`: the built-in networks."""

from typing import Any

from nce_fx.cli import options


def models(as_json: options.Json = False) -> None:
    """List the built-in models."""
    import json
    from inspect import signature

    import torch

    from nce_fx.models import INPUT_SHAPES, MODELS

    rows: list[dict[str, Any]] = []
    for name, builder in MODELS.items():
        # Without memory or values: counting a VGG's parameters must not take seconds.
        with torch.device("meta"):
            params = sum(parameter.numel() for parameter in builder().parameters())
        args = {key: parameter.default for key, parameter in signature(builder).parameters.items()}
        rows.append({"name": name, "input": [1, *INPUT_SHAPES.get(name, ())], "params": params, "args": args})
    if as_json:
        print(json.dumps({"models": rows}, indent=2))
        return
    for row in rows:
        shape = "x".join(str(size) for size in row["input"])
        shown = " ".join(f"{key}={json.dumps(value)}" for key, value in row["args"].items())
        print(f"{row['name']:14}{shape:14}{row['params']:>12,} parameters   {shown}")
