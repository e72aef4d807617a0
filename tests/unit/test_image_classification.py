"""Images become the same batches whether they lie in memory or are streamed."""

import gzip
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from orchestrator.core.errors import BadInput
from orchestrator.core.metrics import values
from orchestrator.task import ImageClassification, Vit
from silos.config import DatasetConfig
from silos.data import open_data
from silos.flat_model import layers
from silos.tasks.build import build
from silos.tasks.image_classification import ImageClassificationTask
from silos.tasks.order import shuffled_blocks
from silos.tasks.task import At
from silos.tasks.vision_models import SmallCnn, vision_transformer

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
FASHION = Path("/work/shared/data/fashion_mnist")
SPEC = {
    "name": "image_classification",
    "dataset": "d",
    "num_classes": 3,
    "channels": 1,
    "model": {"name": "cnn"},
}
AT = At(seed=1, silo="a", version=2, epoch=0)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def pictures(count: int = 23, size: tuple[int, ...] = (16, 18)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *size), dtype=np.uint8)


def written(folder: Path, images: Any, labels: Any = None, num_test: int = 3) -> DatasetConfig:
    count = len(images)
    encoded = [each if isinstance(each, bytes) else png(each) for each in images]
    labels = [i % 3 for i in range(count)] if labels is None else labels
    split = ["train"] * (count - num_test) + ["test"] * num_test
    pq.write_table(
        pa.table({"image": encoded, "label": labels, "split": split}), folder / "d.parquet", row_group_size=4
    )
    return DatasetConfig.model_validate({"path": "d.parquet", "splits": {"column": "split"}})


def made(
    folder: Path, config: DatasetConfig, memory_bytes: int = 1 << 30, workers: int = 0, **spec: Any
) -> Any:
    wanted = ImageClassification.model_validate({**SPEC, **spec})
    return ImageClassificationTask(wanted, open_data(config, folder), workers, (__name__,), memory_bytes)


def epoch(task: Any, at: At = AT, batch_size: int = 8) -> tuple[Tensor, Tensor]:
    batches = list(task.train_batches(at, batch_size))
    return torch.cat([batch[0] for batch in batches]), torch.cat([batch[1] for batch in batches])


def ordered(pixels: Tensor) -> list[list[float]]:
    return sorted(pixels.flatten(1).tolist())


def test_pixels_are_scaled_to_one(tmp_path: Path) -> None:
    images = pictures()
    task = made(tmp_path, written(tmp_path, images))
    test, labels = next(task.test_batches(8))
    torch.testing.assert_close(test, torch.from_numpy(images[-3:]).float()[:, None] / 255)
    assert labels.tolist() == [20 % 3, 21 % 3, 22 % 3] and task.num_examples("train") == 20
    pixels, labels = epoch(task)
    assert ordered(pixels) == ordered(torch.from_numpy(images[:20]).float()[:, None] / 255)
    for picture, label in zip(pixels, labels, strict=True):
        number = next(
            i for i in range(20) if torch.equal(picture[0] * 255, torch.from_numpy(images[i]).float())
        )
        assert label == number % 3


def test_normalised_by_channel(tmp_path: Path) -> None:
    images = pictures(size=(16, 18, 3))
    config = written(tmp_path, images)
    task = made(tmp_path, config, channels=3, mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.7])
    got = next(task.test_batches(8))[0]
    scaled = torch.from_numpy(images[-3:]).permute(0, 3, 1, 2).float() / 255
    wanted = (scaled - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([0.5, 0.6, 0.7]).view(
        3, 1, 1
    )
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("memory_bytes", [0, 23 * 16 * 18, 1 << 30])
def test_memory_changes_nothing_but_the_order(tmp_path: Path, memory_bytes: int) -> None:
    task = made(tmp_path, written(tmp_path, pictures()), memory_bytes, mean=[0.5], std=[0.5])
    whole = made(tmp_path, written(tmp_path, pictures()), mean=[0.5], std=[0.5])
    assert torch.equal(next(task.test_batches(8))[0], next(whole.test_batches(8))[0])
    torch.testing.assert_close(ordered(epoch(task)[0]), ordered(epoch(whole)[0]))


AUGMENT = {
    "train": [{"RandomHorizontalFlip": {"p": 0.5}}, {"RandomCrop": {"size": 14}}],
    "test": [{"CenterCrop": {"size": 14}}],
}


@pytest.mark.parametrize("memory_bytes", [0, 1 << 30])
def test_random_transforms_repeat_and_differ_by_image(tmp_path: Path, memory_bytes: int) -> None:
    same = np.repeat(pictures(1), 23, axis=0)
    task = made(tmp_path, written(tmp_path, same), memory_bytes, transforms=AUGMENT)
    state = torch.get_rng_state()
    first = epoch(task)[0]
    assert torch.equal(torch.get_rng_state(), state)  # the model's dropout has its own draws
    assert torch.equal(epoch(task)[0], first)
    assert not torch.equal(epoch(task, AT._replace(epoch=1))[0], first)
    assert first.shape == (20, 1, 14, 14) and len({tuple(row) for row in first.flatten(1).tolist()}) > 5
    assert task.input_shape == (1, 14, 14) and next(task.test_batches(8))[0].shape == (3, 1, 14, 14)


def test_worker_processes_change_no_bit(tmp_path: Path) -> None:
    config = written(tmp_path, pictures())
    alone, helped = (made(tmp_path, config, 0, workers, transforms=AUGMENT) for workers in (0, 2))
    assert torch.equal(epoch(alone)[0], epoch(helped)[0])
    threads = made(tmp_path, config, workers=3, transforms=AUGMENT)
    assert torch.equal(next(threads.test_batches(8))[0], next(alone.test_batches(8))[0])


def test_blocks_are_mixed_and_every_row_comes_once() -> None:
    blocks = torch.arange(1000) // 50
    rows = torch.cat(shuffled_blocks(blocks, AT, 32, at_once=4))
    assert sorted(rows.tolist()) == list(range(1000))
    for pool in rows.split(200):
        assert len(set(blocks[pool].tolist())) == 4 and pool.tolist() != sorted(pool.tolist())
    assert sorted(torch.cat(shuffled_blocks(torch.arange(9), AT, 2, 4)).tolist()) == list(range(9))


@pytest.mark.parametrize("memory_bytes", [0, 1 << 30])
def test_rows_by_their_numbers(tmp_path: Path, memory_bytes: int) -> None:
    images = pictures()
    task = made(tmp_path, written(tmp_path, images), memory_bytes)
    wanted = [torch.tensor([7, 2]), torch.tensor([19])]
    for rows, (pixels, labels) in zip(wanted, task.train_rows(wanted, 5), strict=True):
        torch.testing.assert_close(pixels, torch.from_numpy(images[rows.numpy()]).float()[:, None] / 255)
        assert labels.tolist() == [int(row) % 3 for row in rows]
    assert list(task.train_rows([], 5)) == []


def test_rows_by_their_numbers_are_transformed_for_each_seed(tmp_path: Path) -> None:
    task = made(tmp_path, written(tmp_path, pictures()), transforms=AUGMENT)
    rows = [torch.arange(20)]
    first, same, other = (next(iter(task.train_rows(rows, seed)))[0] for seed in (1, 1, 2))
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_linear_layers_on_pixels(tmp_path: Path) -> None:
    task = made(tmp_path, written(tmp_path, pictures()), model={"name": "mlp", "hidden": [5]})
    names = {name: tuple(param.shape) for name, param in task.model().named_parameters()}
    assert names == {
        "linear1.weight": (5, 16 * 18),
        "linear1.bias": (5,),
        "head.weight": (3, 5),
        "head.bias": (3,),
    }
    task = made(tmp_path, written(tmp_path, pictures()), model={"name": "logistic"})
    assert [tuple(param.shape) for param in task.model().parameters()] == [(3, 16 * 18), (3,)]


def test_resized_on_demand(tmp_path: Path) -> None:
    sizes = [pictures(1, (height, 20))[0] for height in range(10, 33)]
    config = written(tmp_path, sizes)
    assert made(tmp_path, config, size=[16, 18]).input_shape == (1, 16, 18)
    with pytest.raises(BadInput) as caught:
        made(tmp_path, config)
    assert "row 2" in str(caught.value) and "11x20" in str(caught.value) and "task.size" in str(caught.value)


def test_the_small_cnn_is_niid_benchs() -> None:
    torch.manual_seed(0)
    cnn = SmallCnn(1, (28, 28), 10)
    assert sum(p.numel() for p in cnn.parameters()) == 44426
    names = [name for name, _ in cnn.named_parameters()]
    assert names == [
        f"{layer}.{kind}" for layer in ("conv1", "conv2", "fc1", "fc2", "fc3") for kind in ("weight", "bias")
    ]
    torch.manual_seed(0)
    conv1, conv2, fc1 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5), nn.Linear(256, 120)
    assert all(
        torch.equal(a.weight, b.weight) for a, b in ((cnn.conv1, conv1), (cnn.conv2, conv2), (cnn.fc1, fc1))
    )


def test_the_small_cnn_with_batch_normalisation_begins_with_the_same_weights(tmp_path: Path) -> None:
    """44 more numbers to train, which FedBN's silos keep; a channel comes out with mean 0 and deviation 1."""
    torch.manual_seed(0)
    plain = SmallCnn(1, (28, 28), 10)
    torch.manual_seed(0)
    normalised = SmallCnn(1, (28, 28), 10, "batch")
    ours = dict(normalised.named_parameters())
    assert all(torch.equal(ours.pop(name), param) for name, param in plain.named_parameters())
    assert set(ours) == {f"norm{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")}
    assert sum(param.numel() for param in ours.values()) == 44
    assert layers(normalised, "norm") == ("norm1.*", "norm2.*") and layers(plain, "norm") == ()
    assert layers(normalised, "head") == layers(plain, "head") == ("fc3.*",)
    channels = normalised.norm1(normalised.conv1(torch.rand(9, 1, 28, 28))).transpose(0, 1).flatten(1)
    assert channels.mean(1).abs().max() < 1e-5 and (channels.std(1) - 1).abs().max() < 0.01
    config = written(tmp_path, pictures())
    by_name = made(tmp_path, config, model={"name": "cnn", "norm": "batch"}).model()
    assert isinstance(by_name, SmallCnn) and isinstance(by_name.norm2, nn.BatchNorm2d)


@pytest.mark.parametrize("size", [(4, 4), (8, 8), (15, 40), (16, 16), (32, 32), (33, 50)])
def test_the_small_cnn_fits_every_size(size: tuple[int, int]) -> None:
    assert SmallCnn(3, size, 5)(torch.zeros(2, 3, *size)).shape == (2, 5)


def test_a_grey_torchvision_model_is_the_colour_one(tmp_path: Path) -> None:
    config = written(tmp_path, pictures(size=(32, 32)))
    colour = {"name": "resnet18"}
    torch.manual_seed(0)
    wanted = made(tmp_path, config, channels=3, model=colour).model().eval()
    torch.manual_seed(0)
    grey = made(tmp_path, config, model=colour).model()
    assert (
        grey.training and grey.conv1.in_channels == 1 and not any(p.isnan().any() for p in grey.parameters())
    )
    x = torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(grey.eval()(x), wanted(x.expand(2, 3, 32, 32)), rtol=1e-4, atol=1e-5)


def test_no_batch_of_one_for_batch_normalisation(tmp_path: Path) -> None:
    task = made(tmp_path, written(tmp_path, pictures(size=(32, 32))), model={"name": "resnet18"})
    sizes = [len(batch[1]) for batch in task.train_batches(AT, 19)]
    assert sizes == [19, 2]
    assert [
        len(batch[1]) for batch in made(tmp_path, written(tmp_path, pictures())).train_batches(AT, 19)
    ] == [19, 1]


class Flat(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(16 * 18, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1))


def test_figures_by_hand(tmp_path: Path) -> None:
    task = made(
        tmp_path, written(tmp_path, pictures()), model={"name": f"{__name__}:Flat", "options": {"classes": 3}}
    )
    model = task.model()
    nn.init.zeros_(model.layer.weight)
    with torch.no_grad():
        model.layer.bias.copy_(torch.tensor([0.0, 2.0, 1.0]))
    batch = next(task.test_batches(8))  # labels 2, 0, 1
    figures = values(task.measure(model, batch))
    wanted = np.log(np.exp([0.0, 2.0, 1.0]).sum()) - 1.0
    assert figures == pytest.approx({"loss": wanted, "accuracy": 1 / 3}, rel=1e-6)
    assert task.loss(model, batch).item() == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"model": {"name": "resnet19"}}, "no classification model 'resnet19'; the nearest is 'resnet18'"),
        ({"model": {"name": "resnet18", "options": {"depth": 3}}}, "depth"),
        ({"model": {"name": "alexnet"}}, "alexnet"),
        (
            {"model": {"name": "resnet18", "options": {"weights": "DEFAULT"}}},
            "options.weights: a silo fetches no",
        ),
        (
            {"model": {"name": "resnet18", "options": {"pretrained": True}}},
            "options.pretrained: a silo fetches",
        ),
        ({"model": {"name": f"{__name__}:Flat", "options": {"classes": 4}}}, "(2, 4), expected (2, 3)"),
        ({"transforms": {"train": [{"RandomHorizontalFlop": {}}]}}, "nearest is 'RandomHorizontalFlip'"),
        ({"transforms": {"train": [{"RandomCrop": {"sise": 3}}]}}, "RandomCrop"),
        ({"transforms": {"train": [{"RandomCrop": {"size": 99}}]}}, "transforms"),
        ({"transforms": {"train": [{"CenterCrop": {"size": 12}}]}}, "cnn on test images of 1x16x18"),
        ({"num_classes": 2}, "the label 2"),
        ({"size": [3, 3]}, "too small"),
    ],
)
def test_a_bad_job_costs_one_line(tmp_path: Path, spec: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput) as caught:
        made(tmp_path, written(tmp_path, pictures()), **spec).model()
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("memory_bytes", [0, 1 << 30])
@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_costs_one_line(tmp_path: Path, memory_bytes: int, workers: int) -> None:
    images: list[Any] = list(pictures())
    images[6] = b"broken"
    with pytest.raises(BadInput) as caught:
        epoch(made(tmp_path, written(tmp_path, images), memory_bytes, workers))
    assert "d.parquet, row 7" in str(caught.value) and "\n" not in str(caught.value)


def test_folder_and_table_give_the_same_test(tmp_path: Path) -> None:
    images = pictures(6)
    (tmp_path / "table").mkdir()
    config = written(tmp_path / "table", images, labels=["a", "b", "c"] * 2)
    for split, start in (("train", 0), ("test", 3)):
        for name, image in zip("abc", images[start:], strict=False):
            (tmp_path / "folder" / split / name).mkdir(parents=True)
            (tmp_path / "folder" / split / name / "x.png").write_bytes(png(image))
    folder = DatasetConfig.model_validate({"path": {"train": "train", "test": "test"}})
    first = next(made(tmp_path / "table", config, classes=["a", "b", "c"]).test_batches(3))
    second = next(made(tmp_path / "folder", folder).test_batches(3))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


def test_digits_example_learns() -> None:
    from orchestrator.job import load_job
    from silos.config import load_silo

    job, total = load_job(DIGITS / "job.yaml"), 0
    for name in job.silos:
        path = DIGITS / "silos" / name
        task = build(job.task, load_silo(path / "silo.yaml").datasets["digits"], path)
        total += task.num_examples("train") + task.num_examples("test")
    assert total == 1797
    torch.manual_seed(0)
    model = task.model()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for number in range(8):
        for batch in task.train_batches(At(0, "a", 0, number), 16):
            optimizer.zero_grad()
            loss = task.loss(model, batch)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


def test_fashion_mnist_pixels_are_the_publishers(tmp_path: Path) -> None:
    if not FASHION.exists():
        pytest.skip(f"Fashion-MNIST is not at {FASHION}")
    with gzip.open(FASHION / "FashionMNIST/raw/t10k-images-idx3-ubyte.gz") as file:
        raw = np.frombuffer(file.read(16 + 60 * 784), np.uint8, offset=16).reshape(60, 28, 28)
    task = made(tmp_path, written(tmp_path, raw, num_test=20))
    got = next(task.test_batches(20))[0]
    assert torch.equal(got, torch.from_numpy(raw[40:].copy()).float()[:, None] / 255)


def test_a_vision_transformer_of_any_size() -> None:
    model = vision_transformer(Vit(name="vit", patch=4, depth=2, width=32, heads=2, mlp=64), 3, 1, (8, 8))
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 3) and len(model.encoder.layers) == 2
    with pytest.raises(BadInput, match="8x9 pixels do not fit"):
        vision_transformer(Vit(name="vit"), 3, 1, (8, 9))
    with pytest.raises(ValueError, match="no multiple of 5 heads"):
        Vit(name="vit", heads=5)
