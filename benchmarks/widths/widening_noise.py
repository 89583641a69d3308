"""What widening buys before retraining: python -m benchmarks.widening_noise [--weights DIR] [--quick]

ResNet-20 (digits) is trained in float. One channel group at a time is widened by 1.25, 1.5 and 2, the function kept,
and the network is then quantized to 2 bits, first and last layer too:

    group    divergence of the output when only what belongs to the group is rounded: its producers' weights, and the
             activations that carry its channels, one tensor at a time (the `kl` metric's own value for the group)
    network  divergence of the output of the whole network rounded at once, as quantizing does

The model of noise says that a group's share falls as ratio ** -p; the p that fits ``group`` best in least squares of
logarithms is found for every group. Results go to benchmarks/results/widening_noise.json as they come.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from benchmarks.sensitivity import NETWORKS, trained
from torch.fx import GraphModule

import nce_fx
from benchmarks import pages
from nce_fx.data import load_data
from nce_fx.passes.transform.quantize import PUBLISHED

RATIOS = (1.25, 1.5, 2.0)
IMAGES = 256
SPEC = nce_fx.QuantSpec(**PUBLISHED, first_last_bits=2)
RESULTS = pages.RESULTS / "widening_noise.json"


def scores(network: GraphModule, images: torch.Tensor) -> torch.Tensor:
    """The logarithms of the probabilities that a network gives."""
    with torch.no_grad():
        return F.log_softmax(network(images), 1)


def divergence(plain: torch.Tensor, network: GraphModule, images: torch.Tensor) -> float:
    """How far a network's output is from the scores of the float network."""
    return float(F.kl_div(scores(network, images), plain, reduction="batchmean", log_target=True))


def whole_network(
    gm: GraphModule, widths: dict[str, int], batches: Any, images: torch.Tensor, plain: torch.Tensor
) -> float:
    """The divergence of the whole network, quantized but not retrained."""
    return divergence(plain, nce_fx.quantize(nce_fx.resize(gm, widths), SPEC, batches).eval(), images)


def exponent(values: list[float]) -> float:
    """The p of ``value(ratio) = value(1) * ratio ** -p`` in least squares of logarithms."""
    logs = np.log(RATIOS)
    falls = np.log(np.maximum(values[1:], 1e-12) / values[0])
    return round(float(-(logs @ falls) / (logs @ logs)), 3)


def main() -> None:
    """Widen every group, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="the folder of benchmarks.sensitivity")
    parser.add_argument("--quick", action="store_true", help="one group, nothing written")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = load_data("digits")
    gm, _ = trained("resnet20", data, NETWORKS["resnet20"][1], options.weights)
    channels = nce_fx.analyze_channels(gm)
    batches = data.batches(IMAGES // 128, 128, seed=2)
    images = torch.cat([inputs for inputs, _ in batches])
    plain = scores(gm, images)
    at_one = nce_fx.analyze_sensitivity(gm, batches, "kl", channels=channels).by_group
    whole = whole_network(gm, {}, batches, images, plain)
    rows: list[dict[str, Any]] = []
    for group in [group for group in channels if group.pinned is None][: 1 if options.quick else None]:
        own, network = [at_one[group.id]], [whole]
        for ratio in RATIOS:
            widths = {group.id: int(group.width * ratio)}
            wider = nce_fx.resize(gm, widths)
            own.append(nce_fx.analyze_sensitivity(wider, batches, "kl").by_group[group.id])
            network.append(whole_network(gm, widths, batches, images, plain))
        row = {"group": group.id, "width": group.width, "ratios": [1.0, *RATIOS]}
        row |= {"kl_group": [round(v, 6) for v in own], "kl_network": [round(v, 6) for v in network]}
        rows.append(row | {"exponent": exponent(own), "exponent_network": exponent(network)})
        print(json.dumps(rows[-1]), flush=True)
        if not options.quick:
            RESULTS.write_text(json.dumps({"images": IMAGES, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
