"""One label per image."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from orchestrator.core.errors import BadJob
from orchestrator.core.metrics import MetricSums, Sums
from orchestrator.core.random import seed_of
from orchestrator.task import Cnn, ImageClassification, Logistic, Mlp, TorchvisionModel, Vit
from silos.data import TableData
from silos.image_files import BLOCKS_AT_HAND, EncodedImages, ImageFolder, decode
from silos.tasks import own
from silos.tasks.layers import mlp
from silos.tasks.order import shuffled_blocks
from silos.tasks.pixels import Finish, InMemory, Pixels, Shape, Streamed
from silos.tasks.task import At, Batch, Split
from silos.tasks.transforms import composed
from silos.tasks.vision_models import SmallCnn, torchvision_model, vision_transformer

MEMORY_BYTES = 1 << 30
"""Decoded images of both splits up to this size are kept in memory."""
_SPLITS: tuple[Split, ...] = ("train", "test")


class ImageClassificationTask:
    """The silo's images, and a model that tells their classes apart.

    Pixels are scaled to [0, 1] and, with ``mean`` and ``std``, normalised; transforms come before, on uint8.
    """

    def __init__(
        self,
        spec: ImageClassification,
        data: TableData | ImageFolder,
        workers: int = 0,
        allow_code: Sequence[str] = (),
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        self._spec, self._data, self._allow_code = spec, data, tuple(allow_code)
        images = {split: data.images(split) for split in _SPLITS}
        self._labels = {
            split: torch.from_numpy(data.labels(split, spec.num_classes, spec.classes)) for split in _SPLITS
        }
        self._blocks = torch.from_numpy(images["train"].blocks)
        self._shape = _shape(spec, images["train"])
        self._pixels = self._read(images, workers, memory_bytes)
        self.input_shape = self._shape_of("train")
        """Channels, height and width of the model's input."""

    def model(self) -> nn.Module:
        """A new model, tried on two empty images of every split's shape."""
        model = self._new_model()
        for split in _SPLITS[: 1 + (self.num_examples("test") > 0)]:
            shape = self._shape_of(split)
            name = f"{self._spec.model.name} on {split} images of {'x'.join(map(str, shape))}"
            own.tried(name, model, torch.zeros(2, *shape), (2, self._spec.num_classes))
        return model

    def num_examples(self, split: Split) -> int:
        return len(self._labels[split])

    def train_batches(self, at: At, batch_size: int) -> Iterator[Batch]:
        """Fully shuffled where images are in memory or in a folder, else some blocks at a time."""
        blocks = (
            torch.arange(len(self._blocks)) if isinstance(self._pixels["train"], InMemory) else self._blocks
        )
        rows = self._without_single(shuffled_blocks(blocks, at, batch_size, BLOCKS_AT_HAND))
        seed = seed_of(at.seed, at.version, at.silo, at.epoch, "transforms")
        return self._batches("train", rows, seed)

    def train_rows(self, rows: Sequence[Tensor], seed: int) -> Iterator[Batch]:
        return self._batches("train", rows, seed)

    def train_groups(self, column: str) -> NDArray[np.int64]:
        if not isinstance(self._data, TableData):
            raise BadJob(
                f"privacy.column: a folder of images has no column '{column}'; give a table of images"
            )
        return self._data.groups(column)

    def test_batches(self, batch_size: int) -> Iterator[Batch]:
        rows = torch.arange(self.num_examples("test")).split(batch_size)
        return self._batches("test", rows if self.num_examples("test") else (), seed_of(0, "test"))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return functional.cross_entropy(own.logits(model(batch[0])), batch[1])

    @torch.no_grad()
    def measure(self, model: nn.Module, batch: Batch) -> MetricSums:
        """``loss`` and ``accuracy``."""
        logits, labels = own.logits(model(batch[0])).float(), batch[1]
        count = float(len(labels))
        loss = functional.cross_entropy(logits, labels, reduction="sum").item()
        right = float((logits.argmax(dim=1) == labels).sum().item())
        return {"loss": Sums("mean", (loss, count)), "accuracy": Sums("mean", (right, count))}

    def _batches(self, split: Split, rows: Sequence[Tensor], seed: int) -> Iterator[Batch]:
        labels = self._labels[split]
        for chosen, pixels in zip(rows, self._pixels[split].batches(rows, seed), strict=True):
            yield pixels, labels[chosen]

    def _without_single(self, rows: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """A last batch of one image gets the epoch's first image as company: batch normalisation cannot train
        on one. The small CNN's is over the pixels as well and needs no company."""
        if isinstance(self._spec.model, Cnn) or len(rows) < 2 or len(rows[-1]) > 1:
            return rows
        return (*rows[:-1], torch.cat([rows[-1], rows[0][:1]]))

    def _read(
        self, images: Mapping[Split, EncodedImages], workers: int, memory_bytes: int
    ) -> dict[Split, Pixels]:
        num_bytes = self._shape.num_bytes * sum(len(each) for each in images.values())
        finish = {"train": self._finish("train"), "test": self._finish("test")}
        if num_bytes > memory_bytes:
            return {
                split: Streamed(each, self._shape, finish[split], workers) for split, each in images.items()
            }
        room = memory_bytes if 4 * num_bytes <= memory_bytes else 0
        return {
            split: InMemory(each, self._shape, finish[split], workers, room) for split, each in images.items()
        }

    def _shape_of(self, split: Split) -> tuple[int, int, int]:
        """Channels, height and width after the transforms."""
        first = next(iter(self._pixels[split].batches([torch.tensor([0])], 0)))
        _, channels, height, width = first.shape
        return channels, height, width

    def _new_model(self) -> nn.Module:
        return image_model(self._spec, self.input_shape, self._allow_code)

    def _finish(self, split: Split) -> Finish:
        entries = self._spec.transforms.train if split == "train" else self._spec.transforms.test
        return Finish(composed(entries), _per_channel(self._spec.mean), _per_channel(self._spec.std))


def image_model(
    spec: ImageClassification, input_shape: Sequence[int], allow_code: Sequence[str]
) -> nn.Module:
    """A new model for images of ``[channels, height, width]``."""
    channels, height, width = input_shape
    match spec.model:
        case Cnn():
            return SmallCnn(channels, (height, width), spec.num_classes, spec.model.norm)
        case Logistic() | Mlp():
            hidden = spec.model.hidden if isinstance(spec.model, Mlp) else ()
            layers = mlp(channels * height * width, hidden, spec.num_classes)
            return nn.Sequential(OrderedDict([("flatten", nn.Flatten()), *layers.named_children()]))
        case Vit():
            return vision_transformer(spec.model, spec.num_classes, channels, (height, width))
        case TorchvisionModel():
            return torchvision_model(spec.model, spec.num_classes, channels)
        case _:
            made: nn.Module = own.make(spec.model.name, allow_code, **spec.model.options)
            return made


def _shape(spec: ImageClassification, images: EncodedImages) -> Shape:
    if spec.size is not None:
        return Shape(spec.channels, spec.size, resize=True)
    _, height, width = decode(images, 0, spec.channels, None).shape
    return Shape(spec.channels, (height, width), resize=False)


def _per_channel(values: tuple[float, ...] | None) -> Tensor | None:
    return None if values is None else torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)
