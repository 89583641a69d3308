"""Images held in memory: whole batches are cut out, shifted and flipped by one gather each."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from nce_fx.data.loaders import BatchDataset, seed_of


class Images(BatchDataset):
    """Pixels (N, C, H, W) of any dtype, labels (N,), and the mean and deviation of each channel in units of pixels."""

    def __init__(self, pixels: Tensor, labels: Tensor, mean: Sequence[float], deviation: Sequence[float]) -> None:
        self.pixels, self.labels = pixels, labels.long()
        self.mean = torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1)
        self.deviation = torch.tensor(deviation, dtype=torch.float32).view(-1, 1, 1)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the normalised images, float32 (B, C, H, W), and their labels, int64 (B,)."""
        chosen = torch.as_tensor(indices)
        return self.normalised(self.pixels[chosen]), self.labels[chosen]

    def normalised(self, pixels: Tensor) -> Tensor:
        """Return pixels with mean 0 and deviation 1 in each channel over the training split."""
        return (pixels.float() - self.mean) / self.deviation


class ShiftedImages(BatchDataset):
    """Images moved by up to ``shift`` pixels, black where nothing is, and mirrored half of the time if ``flip``.

    What happens to image i is a function of seed, epoch and i.
    """

    def __init__(self, images: Images, shift: int, flip: bool, seed: int, epoch: int) -> None:
        generator = torch.Generator().manual_seed(seed_of(seed, epoch, 1))
        self.images, self.shift = images, shift
        self.offsets = torch.randint(0, 2 * shift + 1, (len(images), 2), generator=generator)
        self.mirrored = torch.rand(len(images), generator=generator) < (0.5 if flip else 0.0)

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the normalised images, float32 (B, C, H, W), and their labels, int64 (B,)."""
        chosen = torch.as_tensor(indices)
        _, channels, height, width = self.images.pixels.shape
        padded = F.pad(self.images.pixels[chosen], (self.shift,) * 4)
        rows = self.offsets[chosen, 0, None] + torch.arange(height)
        columns = self.offsets[chosen, 1, None] + torch.arange(width)
        columns = torch.where(self.mirrored[chosen, None], columns.flip(1), columns)
        places = (rows[:, :, None] * padded.shape[3] + columns[:, None, :]).flatten(1)
        moved = padded.flatten(2).gather(2, places[:, None].expand(-1, channels, -1))
        return self.images.normalised(moved.view(-1, channels, height, width)), self.images.labels[chosen]
