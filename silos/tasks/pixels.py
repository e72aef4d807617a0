"""Batches of pixels: decoded once into memory where they fit, by worker processes where they do not."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from orchestrator.core.errors import BadInput
from orchestrator.core.random import seed_of
from silos.image_files import EncodedImages, decode
from silos.tasks.transforms import Transform, each_seeded


class Finish(NamedTuple):
    """From decoded pixels to the model's input."""

    transform: Transform | None
    mean: Tensor | None
    """``[channels, 1, 1]``, or None for pixels / 255 only."""
    std: Tensor | None

    def __call__(self, pixels: Tensor, seed: int) -> Tensor:
        """uint8 ``[batch, channels, height, width]`` to float32."""
        if self.transform is not None:
            pixels = each_seeded(self.transform, pixels, seed)
        scaled = pixels.float().div_(255) if pixels.dtype == torch.uint8 else pixels.float()
        if self.mean is None or self.std is None:
            return scaled
        return scaled.sub_(self.mean).div_(self.std)


class Shape(NamedTuple):
    """How images are decoded."""

    channels: int
    size: tuple[int, int]
    """Height and width of every image."""
    resize: bool
    """Whether images of another size are resized; otherwise they are refused."""

    def decode(self, images: EncodedImages, i: int) -> Tensor:
        """uint8 ``[channels, height, width]``."""
        pixels = decode(images, i, self.channels, self.size if self.resize else None)
        if pixels.shape[1:] != self.size:
            (height, width), remedy = pixels.shape[1:], "give task.size in the job"
            raise BadInput(
                f"{images.place(i)}: the image has {height}x{width} pixels, the first one "
                f"{self.size[0]}x{self.size[1]}; {remedy}",
                f"images of several sizes; {remedy}",
            )
        return torch.from_numpy(pixels)

    @property
    def num_bytes(self) -> int:
        """Of one decoded image."""
        return self.channels * self.size[0] * self.size[1]


class Pixels(Protocol):
    """The images of a split, as the model's input."""

    def batches(self, rows: Sequence[Tensor], seed: int) -> Iterator[Tensor]:
        """float32 ``[batch, channels, height, width]`` for each tensor of image numbers."""
        ...


class InMemory:
    """Decoded pixels; normalised once and for all where no transform is wanted and ``room`` bytes suffice."""

    def __init__(self, images: EncodedImages, shape: Shape, finish: Finish, workers: int, room: int) -> None:
        self._pixels = _decoded(images, shape, workers)
        self._finish = finish
        self._ready = finish.transform is None and 4 * self._pixels.numel() <= room
        if self._ready:
            self._pixels = finish(self._pixels, 0)

    def batches(self, rows: Sequence[Tensor], seed: int) -> Iterator[Tensor]:
        for number, chosen in enumerate(rows):
            pixels = self._pixels[chosen]
            yield pixels if self._ready else self._finish(pixels, seed_of(seed, number))


def _decoded(images: EncodedImages, shape: Shape, workers: int) -> Tensor:
    """All images, uint8 ``[images, channels, height, width]``."""
    pixels = torch.empty((len(images), shape.channels, *shape.size), dtype=torch.uint8)

    def fill(i: int) -> None:
        pixels[i] = shape.decode(images, i)

    if workers <= 1:
        for i in range(len(images)):
            fill(i)
        return pixels
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(fill, range(len(images))))
    return pixels


class Streamed:
    """Images decoded batch by batch. The batches do not depend on the number of workers."""

    def __init__(self, images: EncodedImages, shape: Shape, finish: Finish, workers: int) -> None:
        self._images, self._shape, self._finish, self._workers = images, shape, finish, workers

    def batches(self, rows: Sequence[Tensor], seed: int) -> Iterator[Tensor]:
        batches = _Batches(self._images, self._shape, self._finish, rows, seed)
        own_draws = torch.Generator()  # else the loader seeds its workers from torch's global stream
        for batch in DataLoader(batches, batch_size=None, num_workers=self._workers, generator=own_draws):
            if isinstance(batch, BadInput):
                raise batch
            yield batch


class _Batches(Dataset[Tensor | BadInput]):
    """The i-th item is the i-th batch, or what is wrong with it: the loader would wrap errors in traces."""

    def __init__(
        self, images: EncodedImages, shape: Shape, finish: Finish, rows: Sequence[Tensor], seed: int
    ) -> None:
        self._images, self._shape, self._finish, self._rows, self._seed = images, shape, finish, rows, seed

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> Tensor | BadInput:
        try:
            pixels = torch.stack([self._shape.decode(self._images, int(i)) for i in self._rows[number]])
            return self._finish(pixels, seed_of(self._seed, number))
        except BadInput as error:
            return error.with_traceback(None)
