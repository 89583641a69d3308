"""Data by name, and the law of its loaders: what they give is a function of seed and epoch."""

import gzip
import hashlib
import pickle
import random
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import WeightedRandomSampler

from nce_fx.data import SOURCES, load_data
from nce_fx.data.image_folder import DEVIATION, MEAN, centre_crop, random_crop
from nce_fx.data.images import Images, ShiftedImages
from nce_fx.errors import InputError


def all_of(loader: Any) -> list[torch.Tensor]:
    return [torch.cat(part) for part in zip(*loader, strict=True)]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def vision() -> Any:
    try:
        import torchvision.datasets
    except Exception as error:
        pytest.skip(f"torchvision cannot be imported: {error}")
    return torchvision.datasets


# Digits, and the laws of every loader.


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


def test_digits_are_split_1200_to_597_the_same_share_of_each(digits):
    (train, train_labels), (test, test_labels) = all_of(digits.loader("train")), all_of(digits.loader("test"))
    assert train.shape == (1200, 1, 8, 8)
    assert test.shape == (597, 1, 8, 8)
    assert train.dtype == torch.float32
    assert (digits.input_shape, digits.classes) == ((1, 8, 8), 10)
    difference = torch.bincount(train_labels) / 1200 - torch.bincount(test_labels) / 597
    assert difference.abs().max() < 1 / 597


def test_no_digit_is_in_both_splits_and_none_is_lost(digits):
    from sklearn.datasets import load_digits

    def rows(images: torch.Tensor) -> list[tuple[int, ...]]:
        return sorted(map(tuple, (images.flatten(1) * digits.train.deviation.item() + mean).round().int().tolist()))

    mean = digits.train.mean.item()
    (train, _), (test, _) = all_of(digits.loader("train")), all_of(digits.loader("test"))
    assert rows(torch.cat([train, test])) == sorted(map(tuple, load_digits().data.astype(int).tolist()))


def test_digits_are_normalised_on_the_training_split(digits):
    images, _ = all_of(digits.loader("train"))
    assert abs(images.mean()) < 1e-5
    assert abs(images.std() - 1) < 1e-5


def test_the_split_does_not_follow_the_seed(digits):
    other = load_data("digits", seed=7)
    assert same(all_of(digits.loader("test")), all_of(other.loader("test")))
    assert not same(all_of(digits.loader("train")), all_of(other.loader("train")))


def test_order_is_a_function_of_seed_and_epoch(digits):
    orders = {
        (seed, epoch): all_of(digits.loader("train", seed=seed, epoch=epoch))[1].tolist()
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    torch.manual_seed(123)
    for (seed, epoch), order in orders.items():
        assert all_of(digits.loader("train", seed=seed, epoch=epoch))[1].tolist() == order
    assert len(set(map(tuple, orders.values()))) == 4


def test_batches_of_another_size_are_of_the_same_order(digits):
    assert same(all_of(digits.loader("train", 7)), all_of(digits.loader("train", 100)))
    assert [len(y) for _, y in digits.loader("test", 100)] == [100, 100, 100, 100, 100, 97]
    assert len(digits.loader("test", 100)) == 6


def test_unshuffled_is_in_the_order_of_the_data(digits):
    images, labels = all_of(digits.loader("train", shuffle=False))
    assert torch.equal(labels, digits.train.labels)
    assert torch.equal(images[5], digits.train[5][0])
    assert same(all_of(digits.loader("test")), all_of(digits.loader("test", epoch=3)))


def test_loading_leaves_the_global_generators_alone(digits):
    before: Any = torch.get_rng_state(), random.getstate(), np.random.get_state(legacy=False)["state"]["key"].copy()
    list(load_data("digits", augment=True).loader("train", epoch=2))
    digits.batches(2)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert (before[2] == np.random.get_state(legacy=False)["state"]["key"]).all()


def test_batches_are_plain_samples_of_the_training_split(digits):
    batches = load_data("digits", augment=True).batches(3, 50, seed=1)
    assert [tuple(x.shape) for x, _ in batches] == [(50, 1, 8, 8)] * 3
    rows = {tuple(row) for row in digits.train.pixels.flatten(1).int().tolist()}
    pixels = batches[0][0] * digits.train.deviation + digits.train.mean
    assert {tuple(row) for row in pixels.flatten(1).round().int().tolist()} <= rows
    again, other = digits.batches(3, 50, seed=1), digits.batches(3, 50, seed=2)
    assert same(batches[2], again[2])
    assert not same(batches[2], other[2])


def test_batches_end_where_the_split_ends(digits):
    assert [len(y) for _, y in digits.batches(100, 500)] == [500, 500, 200]


def test_workers_give_what_one_process_gives(digits):
    moved = load_data("digits", augment=True)
    assert same(all_of(moved.loader("train", epoch=1)), all_of(replace(moved, workers=2).loader("train", epoch=1)))


def test_digits_move_only_when_asked(digits):
    plain, moved = all_of(digits.loader("train")), all_of(load_data("digits", augment=True).loader("train"))
    assert torch.equal(plain[1], moved[1])
    assert not torch.equal(plain[0], moved[0])
    assert same(all_of(digits.loader("test")), all_of(load_data("digits", augment=True).loader("test")))


def test_wrong_splits_and_sizes(digits):
    with pytest.raises(InputError, match="no split 'val'; there are 'train' and 'test'"):
        digits.loader("val")
    with pytest.raises(InputError, match="batch size 0 is below 1"):
        digits.loader("train", 0)
    with pytest.raises(InputError, match="both must be 1 or more"):
        digits.batches(0)


# Augmentation of images in memory.


def test_shifts_and_mirrors_are_those_of_pixel_by_pixel_code():
    pixels = torch.randint(1, 255, (40, 3, 6, 6), dtype=torch.uint8)
    view = ShiftedImages(Images(pixels, torch.arange(40), [0.0] * 3, [1.0] * 3), 2, True, seed=3, epoch=1)
    images, labels = view.__getitems__(list(range(40)))
    assert torch.equal(labels, torch.arange(40))
    for index in range(40):
        down, right = (view.offsets[index] - 2).tolist()
        for y in range(6):
            for x in range(6):
                column = 5 - x if view.mirrored[index] else x
                source_y, source_x = y + down, column + right
                inside = 0 <= source_y < 6 and 0 <= source_x < 6
                expected = pixels[index, :, source_y, source_x].float() if inside else torch.zeros(3)
                assert torch.equal(images[index, :, y, x], expected)


def test_every_shift_and_both_mirrors_come_up():
    view = ShiftedImages(Images(torch.zeros(600, 1, 4, 4), torch.zeros(600), [0.0], [1.0]), 2, True, 0, 0)
    assert set(view.offsets.flatten().tolist()) == {0, 1, 2, 3, 4}
    assert 200 < view.mirrored.sum() < 400


def test_augmentation_of_an_image_does_not_depend_on_its_batch():
    images = Images(torch.rand(20, 1, 8, 8), torch.arange(20), [0.0], [1.0])
    view = ShiftedImages(images, 2, True, 0, 4)
    batch, _ = view.__getitems__([3, 11, 5])
    assert torch.equal(batch[1], view[11][0])
    again = ShiftedImages(images, 2, True, 0, 4)
    assert torch.equal(again[11][0], view[11][0])
    other = ShiftedImages(images, 2, True, 0, 5).__getitems__(range(20))[0]
    assert not torch.equal(other, view.__getitems__(range(20))[0])


# A user's own data.

OWN = """
import random
import numpy, torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, WeightedRandomSampler, random_split

x, y = torch.arange(60.).view(20, 3), torch.arange(20) % 4

class Noisy(Dataset):
    def __len__(self): return 20
    def __getitem__(self, i):
        draws = torch.rand(1).item() + random.random() + numpy.random.rand()
        return x[i] + draws, int(y[i])

class Pairs:
    def __init__(self, pairs): self.pairs = pairs
    def __len__(self): return len(self.pairs)
    def __iter__(self): return iter(self.pairs)

def tensors(): return TensorDataset(x, y), TensorDataset(x[:5], y[:5])
def noisy(): return Noisy(), Noisy()
def parts(): return random_split(TensorDataset(x, y), [15, 5])
def loaders(): return DataLoader(TensorDataset(x, y), 7, shuffle=True), DataLoader(TensorDataset(x[:5], y[:5]), 3)
def weighted():
    train = TensorDataset(x, y)
    return DataLoader(train, 5, sampler=WeightedRandomSampler([1.0] * 20, 20)), DataLoader(train, 3)
def iterables(): return Pairs([(x[:8], y[:8]), (x[8:], y[8:])]), Pairs([(x, y)])
def collated():
    double = lambda samples: (2 * torch.stack([a for a, _ in samples]), torch.stack([b for _, b in samples]))
    return DataLoader(TensorDataset(x, y), 7, collate_fn=double), DataLoader(TensorDataset(x, y), 7)
def ready():
    from nce_fx.data import load_data
    return load_data('digits', seed=5)

def broken(): raise RuntimeError('disk is full\\nreally')
def alone(): return TensorDataset(x, y)
def nothing(): return TensorDataset(x[:0], y[:0]), TensorDataset(x, y)
def endless(): return (a for a in []), TensorDataset(x, y)
def numbers(): return 3, 4
def strings(): return [('a', 1)], [('b', 1)]
def floats(): return TensorDataset(x, x[:, 0]), TensorDataset(x, y)
def unlabelled(): return TensorDataset(x), TensorDataset(x)
def raising():
    class Raising(Dataset):
        def __len__(self): return 3
        def __getitem__(self, i): raise OSError('cannot read')
    return Raising(), Raising()
class Words: pass
"""


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return path


@pytest.mark.parametrize("name", ["tensors", "noisy", "parts", "loaders", "weighted", "iterables", "collated"])
def test_own_data_has_shape_classes_and_batches(own, name):
    data = load_data(f"{own}:{name}", batch_size=4)
    assert (data.input_shape, data.classes) == ((3,), 4)
    for split in ("train", "test"):
        images, labels = all_of(data.loader(split))
        assert images.shape[1:] == (3,)
        assert labels.dtype == torch.int64
    assert len(data.batches(2)) == 2


def test_own_loaders_follow_the_recipe(own):
    data = load_data(f"{own}:loaders", batch_size=4)
    assert [len(y) for _, y in data.loader("train")] == [4, 4, 4, 4, 4]
    assert same(all_of(data.loader("train", epoch=1)), all_of(data.loader("train", epoch=1)))
    assert not same(all_of(data.loader("train", epoch=1)), all_of(data.loader("train", epoch=2)))


def test_own_samplers_and_iterables_are_read_as_they_come(own):
    assert [len(y) for _, y in load_data(f"{own}:iterables").loader("train", 4)] == [8, 12]
    assert isinstance(load_data(f"{own}:weighted").train.sampler, WeightedRandomSampler)  # type: ignore[union-attr]


def test_own_collate_function_is_used(own):
    data = load_data(f"{own}:collated")
    assert torch.equal(all_of(data.loader("train", shuffle=False))[0], 2 * torch.arange(60.0).view(20, 3))
    assert torch.equal(all_of(data.loader("test", shuffle=False))[0], torch.arange(60.0).view(20, 3))


def test_random_numbers_of_own_data_are_a_function_of_seed_and_epoch(own):
    data = load_data(f"{own}:noisy")
    first, second = (all_of(data.loader("train", 6, epoch=epoch)) for epoch in (0, 1))
    torch.manual_seed(99)
    random.seed(99)
    assert same(all_of(data.loader("train", 6, epoch=1)), second)
    assert same(all_of(data.loader("train", 5, epoch=1)), second)
    assert not torch.equal(first[0].sort(0)[0], second[0].sort(0)[0])
    assert same(all_of(replace(data, workers=2).loader("train", 6, epoch=1)), second)


def test_own_callable_may_give_data(own):
    assert load_data(f"{own}:ready").seed == 5


def test_data_from_a_module(own, monkeypatch):
    monkeypatch.chdir(own.parent)
    assert load_data("own:tensors").classes == 4


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digit", r"no data 'digit': there are digits, fashion-mnist:DIR, cifar10:DIR, .*; did you mean 'digits'\?"),
        ("cifar10", "say where its folder is: cifar10:DIR"),
        ("imagefolder", "say where its folder is: imagefolder:DIR"),
        ("cifar10:/no/such/folder", "there is no folder /no/such/folder"),
        ("imagefolder:/no/such/folder", "there is no folder /no/such/folder"),
        ("imagefolder:FILE", "is a file, not a folder"),
        ("no_such_package.data:f", "no module named 'no_such_package'"),
        ("FILE:tensor", r"has no 'tensor'; did you mean 'tensors'\?"),
        ("FILE:broken", "the callable raised RuntimeError: disk is full .at FILE:\\d+.$"),
        ("FILE:alone", r"a value of type TensorDataset, not a pair \(train, test\)"),
        ("FILE:nothing", "the train split is empty"),
        ("FILE:endless", "the train split, a value of type generator, has no length"),
        ("FILE:numbers", "the train split, a value of type int, has no length"),
        ("FILE:strings", "the train split's input is a value of type str, not a tensor"),
        ("FILE:raising", "the first sample of the train split cannot be batched: OSError: cannot read"),
        ("FILE:Words", r"a value of type Words, not a pair"),
    ],
)
def test_data_that_cannot_be_had_is_one_line(own, spec, message):
    with pytest.raises(InputError, match=message.replace("FILE", str(own))) as caught:
        load_data(spec.replace("FILE", str(own)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["floats", "unlabelled"])
def test_targets_that_are_no_classes_have_no_number_of_them(own, name):
    assert load_data(f"{own}:{name}").classes is None


@pytest.mark.parametrize("spec", [spec for spec in SOURCES if ":" in spec])
def test_every_listed_source_is_known(spec):
    """What the placeholders stand for is not there, and that is what is said."""
    with pytest.raises(InputError, match=r"there is no folder DIR|no module named 'package'|there is no file path"):
        load_data(spec)


def test_missing_packages_are_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    for spec, package in (("cifar10", "torchvision"), ("imagefolder", "pillow"), ("digits", "scikit-learn")):
        with pytest.raises(InputError, match=f"needs {package}: pip install 'nce-fx"):
            load_data(spec if spec == "digits" else f"{spec}:{tmp_path}")


# CIFAR-10 in its own format, tiny.


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """Seven images in CIFAR-10's own files."""
    return cifar_folder(tmp_path, monkeypatch, (3, 2, 2))


def cifar_folder(where: Path, monkeypatch: pytest.MonkeyPatch, counts: tuple[int, int, int]) -> Path:
    """Write files of noise as CIFAR-10 has them, and have torchvision's check sums be those of these files."""
    datasets = vision()
    folder = where / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)

    def write(name: str, content: Any) -> list[str]:
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    def images(count: int) -> dict[str, Any]:
        return {
            "data": generator.integers(0, 256, (count, 3072), np.uint8),
            "labels": [index % 10 for index in range(count)],
        }

    monkeypatch.setattr(
        datasets.CIFAR10,
        "train_list",
        [write(f"data_batch_{part + 1}", images(count)) for part, count in enumerate(counts[:2])],
    )
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [write("test_batch", images(counts[2]))])
    names = {"label_names": [f"class {i}" for i in range(10)]}
    meta = dict(zip(("filename", "md5"), write("batches.meta", names), strict=True), key="label_names")
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    return folder


def test_cifar10_from_its_folder_or_the_one_above(cifar):
    for folder in (cifar, cifar.parent):
        data = load_data(f"cifar10:{folder}")
        assert (data.input_shape, data.classes) == ((3, 32, 32), 10)
        assert all_of(data.loader("train"))[0].shape == (5, 3, 32, 32)
        assert all_of(data.loader("test"))[1].tolist() == [0, 1]


def test_cifar10_is_normalised_as_torchvision_does_it(cifar):
    import torchvision.transforms as T

    data = load_data(f"cifar10:{cifar}")
    usual = T.Compose([T.ToTensor(), T.Normalize((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))])
    theirs = vision().CIFAR10(str(cifar.parent), train=True, transform=usual)
    expected = torch.stack([image for image, _ in theirs])
    images, _ = all_of(replace(data, augment=False).loader("train", shuffle=False))
    assert torch.allclose(images, expected, atol=1e-6)


def test_cifar10_is_trained_on_with_crops_and_tested_without(cifar):
    data = load_data(f"cifar10:{cifar}")
    first, second = (all_of(data.loader("train", epoch=epoch, shuffle=False)) for epoch in (0, 1))
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], second[0])
    assert same(all_of(data.loader("test")), all_of(data.loader("test", epoch=1)))


def test_a_damaged_cifar10_is_one_line(cifar):
    (cifar / "test_batch").write_bytes(b"cut off")
    with pytest.raises(InputError, match=r"holds no intact cifar-10-batches-py: unpack") as caught:
        load_data(f"cifar10:{cifar}")
    assert "\n" not in str(caught.value)


# ImageNet-style folders, tiny.


@pytest.fixture
def pictures(tmp_path):
    """Two classes; six images to train, four to validate, of odd sizes and modes."""
    from PIL import Image

    generator = np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 2)):
        for name in ("cat", "dog"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 256, (20 + 5 * index, 31, 3), np.uint8)
                image = Image.fromarray(pixels)
                (image if index else image.convert("L")).save(folder / f"{index}.png")
    return tmp_path


def test_image_folder(pictures):
    data = replace(load_data(f"imagefolder:{pictures}", size=16), workers=0)
    assert (data.input_shape, data.classes) == ((3, 16, 16), 2)
    assert all_of(data.loader("train"))[0].shape == (6, 3, 16, 16)
    assert all_of(data.loader("test"))[1].tolist() == [0, 0, 1, 1]
    first, second = (all_of(data.loader("train", epoch=epoch, shuffle=False)) for epoch in (0, 1))
    assert not torch.equal(first[0], second[0])
    assert same(all_of(data.loader("train", epoch=1, shuffle=False)), second)
    assert same(all_of(replace(data, workers=2).loader("train", 2, epoch=1, shuffle=False)), second)
    assert same(data.batches(1, 6)[0], data.batches(1, 6)[0])


@pytest.mark.parametrize(("width", "height"), [(31, 20), (20, 31), (64, 64), (200, 7), (7, 200)])
def test_image_folders_are_cropped_as_torchvision_does_it(width, height):
    vision()
    from PIL import Image
    from torchvision import transforms

    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    end = [transforms.ToTensor(), transforms.Normalize(MEAN, DEVIATION)]
    plain = transforms.Compose([transforms.Resize(16 * 256 // 224), transforms.CenterCrop(16), *end])
    moved = transforms.Compose([transforms.RandomResizedCrop(16), transforms.RandomHorizontalFlip(), *end])
    image = Image.fromarray(pixels)
    assert torch.equal(centre_crop(image, 16), plain(image))
    for seed in range(20):
        torch.manual_seed(seed)
        theirs = moved(image)
        torch.manual_seed(seed)
        assert torch.equal(random_crop(image, 16), theirs)


def test_image_folder_of_another_size(pictures):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # A size that was chosen is not warned of, nor one that shrinks the images.
        assert load_data(f"imagefolder:{pictures}@16").input_shape == (3, 16, 16)
        assert load_data(f"imagefolder:{pictures}@64").input_shape == (3, 64, 64)
        assert load_data(f"imagefolder:{pictures}", size=16).input_shape == (3, 16, 16)
    with pytest.warns(UserWarning, match=r"31x20, and are enlarged to 224x224: imagefolder:.*@20 chooses"):
        assert load_data(f"imagefolder:{pictures}").input_shape == (3, 224, 224)
    (pictures / "train" / "cat" / "0.png").write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="31x20"):
        load_data(f"imagefolder:{pictures}")


def damage(pictures: Any, *names: str) -> None:
    for name in names:
        path = pictures / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("workers", [0, 2])
def test_corrupt_images_are_left_out_and_counted(pictures, workers):
    damage(pictures, "train/cat/1.png", "train/dog/2.png")
    (pictures / "val/dog/0.png").write_bytes(b"")
    data = replace(load_data(f"imagefolder:{pictures}", size=16), workers=workers)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert len(all_of(data.loader("train", 3, shuffle=False))[1]) == 4
        assert all_of(data.loader("test", 4))[1].tolist() == [0, 0, 1]
        assert len(all_of(data.loader("train", 3, epoch=1))[1]) == 4
    pictures_of: Any = data.train
    assert pictures_of.dataset.damaged.tolist() == [0, 1, 0, 0, 0, 1]  # all processes count together
    if not workers:  # the warnings of other processes go to standard error
        said = [str(w.message) for w in caught]
        assert len(said) == 3  # each once, not once an epoch
        assert "cat/1.png left out; 1 so far" in said[0]
        assert "dog/2.png left out; 2 so far" in said[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_strict_stops_at_a_corrupt_image(pictures, workers):
    damage(pictures, "train/cat/1.png")
    data = replace(load_data(f"imagefolder:{pictures}", size=16, strict=True), workers=workers)
    with pytest.raises(InputError, match=r"^corrupt image .*cat/1\.png .*: repair or remove it$") as caught:
        list(data.loader("train"))
    assert "\n" not in str(caught.value)


def test_a_batch_of_nothing_but_corrupt_images_stops(pictures):
    damage(pictures, *(f"val/{name}/{index}.png" for name in ("cat", "dog") for index in range(2)))
    data = replace(load_data(f"imagefolder:{pictures}", size=16), workers=0)
    with pytest.warns(UserWarning, match="corrupt image"), pytest.raises(InputError, match="all 4 images of a batch"):
        list(data.loader("test", 4))


def test_folders_that_are_not_image_folders(pictures):
    (pictures / "train" / "bird").mkdir()
    with pytest.raises(InputError, match=r"imagefolder: .*train: .*bird"):
        load_data(f"imagefolder:{pictures}")
    (pictures / "train" / "bird").rmdir()
    (pictures / "val" / "cat").rename(pictures / "val" / "cow")
    with pytest.raises(InputError, match="differ in their classes: cat is in only one"):
        load_data(f"imagefolder:{pictures}")
    (pictures / "val").rename(pictures / "validation")
    with pytest.raises(InputError, match="has no folder val/"):
        load_data(f"imagefolder:{pictures}")


# Fashion-MNIST, from generated files.


def idx(values: np.ndarray[Any, Any]) -> bytes:
    head = bytes((0, 0, 8, values.ndim)) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    return head + values.astype(np.uint8).tobytes()


def fashion_folder(
    folder: Path, packed: bool = True, images: tuple[int, int] = (40, 20)
) -> dict[str, np.ndarray[Any, Any]]:
    generator = np.random.default_rng(0)
    parts = {}
    for split, count in zip(("train", "t10k"), images, strict=True):
        parts[f"{split}-images-idx3-ubyte"] = generator.integers(0, 256, (count, 28, 28))
        parts[f"{split}-labels-idx1-ubyte"] = generator.integers(0, 10, count)
    for name, values in parts.items():
        content = idx(values)
        (folder / (name + ".gz" * packed)).write_bytes(gzip.compress(content) if packed else content)
    return parts


@pytest.mark.parametrize("packed", [True, False])
def test_fashion_mnist_is_what_the_files_say(tmp_path, packed):
    parts = fashion_folder(tmp_path, packed)
    data = load_data(f"fashion-mnist:{tmp_path}", augment=False)
    assert (data.name, data.input_shape, data.classes) == ("fashion-mnist", (1, 28, 28), 10)
    for split, name in (("train", "train"), ("test", "t10k")):
        images, labels = all_of(data.loader(split, shuffle=False))
        pixels = (images[:, 0] * 90.021 + 72.940).round().numpy()
        np.testing.assert_array_equal(pixels, parts[f"{name}-images-idx3-ubyte"])
        np.testing.assert_array_equal(labels.numpy(), parts[f"{name}-labels-idx1-ubyte"])


def test_fashion_mnist_is_moved_and_mirrored_for_training_alone(tmp_path):
    fashion_folder(tmp_path)
    data, plain = load_data(f"fashion-mnist:{tmp_path}"), load_data(f"fashion-mnist:{tmp_path}", augment=False)
    seen, still = (all_of(each.loader("train", seed=0, epoch=1))[0] for each in (data, plain))
    assert not torch.equal(seen, still)
    moved = 0
    for image, original in zip(seen, still, strict=True):
        black = -72.940 / 90.021
        around = torch.nn.functional.pad(original, (2,) * 4, value=black)
        places = [around[:, r : r + 28, c : c + 28] for r in range(5) for c in range(5)]
        assert any(torch.allclose(image, each) for place in places for each in (place, place.flip(2)))
        moved += not torch.allclose(image, original)
    assert moved > 30
    assert torch.equal(all_of(data.loader("test"))[0], all_of(plain.loader("test"))[0])


def test_fashion_mnist_that_is_not_there_says_how_to_get_it(tmp_path, monkeypatch):
    module = sys.modules["nce_fx.data.fashion_mnist"]
    monkeypatch.setattr(module, "DEBIAN", tmp_path / "none")
    with pytest.raises(InputError, match="apt-get install dataset-fashion-mnist"):
        load_data("fashion-mnist")
    with pytest.raises(InputError, match=r"neither train-images-idx3-ubyte nor train-images-idx3-ubyte\.gz: on Debian"):
        load_data(f"fashion-mnist:{tmp_path}")
    monkeypatch.setattr(module, "DEBIAN", tmp_path)
    fashion_folder(tmp_path)
    assert len(load_data("fashion-mnist").train) == 40


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: content[:-1], lambda content: content + b"x", lambda content: content[:7], lambda content: b"",
        lambda content: b"\0\0\x0d" + content[3:], lambda content: content[:3] + b"\2" + content[4:],
        lambda content: content[:4] + b"\xff" * 4 + content[8:], lambda content: b"PK" + content[2:],
    ],
)  # fmt: skip
def test_fashion_mnist_refuses_a_damaged_file_by_name(tmp_path, name, packed, spoil):
    fashion_folder(tmp_path, packed)
    path = tmp_path / (name + ".gz" * packed)
    content = path.read_bytes()
    path.write_bytes(gzip.compress(spoil(gzip.decompress(content))) if packed else spoil(content))
    with pytest.raises(InputError, match=f"{name}.* is no intact IDX file") as raised:
        load_data(f"fashion-mnist:{tmp_path}")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "spoil", [lambda c: c[:-9], lambda c: c[:40], lambda c: b"", lambda c: b"\x1f\x8b" + b"\0" * 60]
)
def test_fashion_mnist_refuses_a_damaged_archive_by_name(tmp_path, spoil):
    fashion_folder(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte\.gz (cannot be read|is no intact)"):
        load_data(f"fashion-mnist:{tmp_path}")


def test_fashion_mnist_refuses_splits_and_labels_that_do_not_fit(tmp_path):
    parts = fashion_folder(tmp_path, packed=False)
    labels = tmp_path / "t10k-labels-idx1-ubyte"
    labels.write_bytes(idx(parts[labels.name][:-1]))
    with pytest.raises(InputError, match="20 images and 19 labels in t10k"):
        load_data(f"fashion-mnist:{tmp_path}")
    labels.write_bytes(idx(np.full(20, 10)))
    with pytest.raises(InputError, match="a label 10 in t10k"):
        load_data(f"fashion-mnist:{tmp_path}")
    labels.write_bytes(idx(parts[labels.name]))
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(np.zeros((20, 32, 32))))
    with pytest.raises(InputError, match="differ in size: 28x28 and 32x32"):
        load_data(f"fashion-mnist:{tmp_path}")


def test_fashion_mnist_of_debian_is_whole_where_it_is_installed():
    from nce_fx.data.fashion_mnist import DEBIAN

    if not DEBIAN.is_dir():
        pytest.skip("Debian's package dataset-fashion-mnist is not installed")
    data: Any = load_data("fashion-mnist")
    assert (len(data.train), len(data.test)) == (60000, 10000)
    assert torch.bincount(data.train.labels).tolist() == [6000] * 10
    pixels = data.train.pixels.double()
    assert float(pixels.mean()) == pytest.approx(72.940, abs=1e-2)
    assert float(pixels.std()) == pytest.approx(90.021, abs=1e-2)
