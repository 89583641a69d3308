"""The files that are kept for good: `python -m tests.kept_files tests/data/version_N` writes those of a new version."""

import sys
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

import nce_fx
from nce_fx.export import export_pt2, save_packed
from nce_fx.training.checkpoint import Checkpoint, save_checkpoint


class Net(nn.Module):
    """A user's model. It must stay as it is: the files were made from it."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.fc = nn.Conv2d(4, 6, 3, padding=1), nn.Linear(6, 3)

    def forward(self, x):
        x = torch.relu(self.conv2(torch.relu(self.bn(self.conv(x)))))
        return self.fc(x.mean((2, 3)))


class Shuffled(nn.Module):
    """Another: narrowed, it holds an index that its weights chose."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.fc = nn.Conv2d(1, 4, 3), nn.Conv2d(1, 4, 3), nn.Linear(8, 3)

    def forward(self, x):
        x = torch.relu(torch.cat([self.one(x), self.two(x)], 1))
        x = x.unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2)
        return self.fc(x.mean((2, 3)))


def images():
    return torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(1))


def write(folder: Path) -> None:
    torch.manual_seed(0)
    batches = [(images(), torch.tensor([0, 1, 2, 0]))]
    spec = nce_fx.QuantSpec(first_last_bits=4)
    result = nce_fx.rewrite(Net().eval(), (images()[:1],), batches=batches, spec=spec)
    gm = result.graph_module.eval()
    nce_fx.save(gm, folder / "result", report=result.report, float_model=result.original)
    for name in ("report.html", "graph.txt"):
        (folder / "result" / name).unlink()  # for people; not read
    save_packed(gm, folder / "packed.safetensors")
    export_pt2(gm, folder / "model.pt2")
    tensors = {f"model/{name}": value for name, value in gm.state_dict().items()}
    save_checkpoint(folder, Checkpoint(7, tensors, {"epoch": 1}))
    weights = {name: weight.dequantize().contiguous() for name, weight in nce_fx.integer_weights(gm).items()}
    safetensors.torch.save_file({"outputs": gm(images()).detach(), **weights}, folder / "expected.safetensors")


def write_shuffled(folder: Path) -> None:
    torch.manual_seed(0)
    traced = nce_fx.trace(Shuffled().eval(), (images()[:1],))
    gm = nce_fx.resize(traced, {group.id: 3 for group in nce_fx.analyze_channels(traced) if group.pinned is None})
    nce_fx.save(gm, folder / "shuffled", float_model=traced)
    for name in ("report.html", "graph.txt"):
        (folder / "shuffled" / name).unlink()
    safetensors.torch.save_file({"outputs": gm(images()).detach()}, folder / "shuffled.safetensors")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
    write_shuffled(Path(sys.argv[1]))
