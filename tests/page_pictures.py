"""The pictures of the page in docs/pictures: `python -m tests.page_pictures`, where chromium is.

Weights, images and classes are random: the pictures are of the page, not of a result.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from PIL import Image
from torch import nn

import nce_fx
import tests.torchvision_operators  # noqa: F401
from nce_fx.models import MODELS
from nce_fx.report.page import page
from nce_fx.report.view import view_of
from tests.browser import Opened, chromium

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"


def vision_transformer() -> nn.Module:
    """ViT-Ti/16."""
    from torchvision.models import VisionTransformer

    net: nn.Module = VisionTransformer(
        image_size=224, patch_size=16, num_layers=12, num_heads=3, hidden_dim=192, mlp_dim=768
    )
    nn.init.normal_(net.get_parameter("heads.head.weight"), std=0.05)  # Zeros hide how the layers below suffer.
    return net


NETWORKS = {
    "resnet50": ("ResNet-50", MODELS["resnet50"], "layer1.0.conv3"),
    "vit": ("ViT-Ti/16", vision_transformer, "encoder.layers.encoder_layer_1.mlp.0"),
}


def main() -> None:
    """Write a light and a dark picture of every network."""
    for name, (title, build, layer) in NETWORKS.items():
        torch.manual_seed(0)
        images, classes = torch.randn(4, 3, 224, 224), torch.randint(1000, (4,))
        batches = list(zip(images.split(2), classes.split(2), strict=True))
        budget = nce_fx.Budget(macs=0.9, params=0.9)
        result = nce_fx.rewrite(build().eval(), (images[:1],), batches=batches, budget=budget)
        view = view_of(title, result.plan, result.graph_module, original=result.original, report=result.report)
        for scheme in ("light", "dark"):
            shoot(page(view), layer, scheme, PICTURES / f"page-{name}-{scheme}.png")


def shoot(html: str, layer: str, scheme: str, path: Path) -> None:
    """Open a page, select a layer, and write what is seen."""
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        file = Path(folder) / "page.html"
        file.write_text(html)
        opened = Opened(browser, file, color_scheme=scheme)
        opened.page.set_viewport_size({"width": 1480, "height": 1460})
        opened.page.locator("#names button", has=opened.page.get_by_text(layer, exact=True)).first.click()
        opened.page.evaluate("document.activeElement.blur(), window.scrollTo(0, 0)")
        opened.page.screenshot(path=path)
    Image.open(path).convert("RGB").quantize(128, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(
        path, optimize=True
    )


if __name__ == "__main__":
    main()
