"""Encoded images of a split, read one at a time, and their decoding to uint8 pixels."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from copy import copy
from functools import cached_property
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image, ImageOps

from orchestrator.core.errors import BadInput
from silos.config import ColumnSplit, DatasetConfig
from silos.files import UNREADABLE, Place, check_names, fingerprint, reason
from silos.splits import Tags, name_keys, share_tags, wants_no_test
from silos.tasks.task import Split

if TYPE_CHECKING:
    from silos.data import TableData

BLOCKS_AT_HAND = 16
"""Blocks of encoded images that are kept after reading; shuffling goes by so many at a time."""
_ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"})


class EncodedImages(Protocol):
    """Images as their files hold them, numbered from 0 within the split."""

    @property
    def blocks(self) -> NDArray[np.int64]:
        """For each image, what it is read together with."""
        ...

    def __len__(self) -> int: ...

    def read(self, i: int) -> bytes:
        """The encoded image; `BadInput` when it is missing."""
        ...

    def place(self, i: int) -> str:
        """File (and row) for a message."""
        ...


class TableImages:
    """Images in a column of a table; the last few blocks stay in memory."""

    def __init__(self, data: "TableData", column: str, rows: NDArray[np.int64]) -> None:
        self._data, self._column, self._rows = data, column, rows
        self._at_hand: OrderedDict[int, pa.ChunkedArray] = OrderedDict()
        self._lock = Lock()
        kind = data.schema.field(column).type
        if not _holds_bytes(kind):
            file = data.files[0].path
            raise BadInput(
                f"{file}: column '{column}' is of type {kind}; images are bytes, or a struct with 'bytes'",
                "column 'image': no encoded images",
            )

    @cached_property
    def blocks(self) -> NDArray[np.int64]:
        return np.searchsorted(np.array(self._data.starts), self._rows, side="right") - 1

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, i: int) -> bytes:
        block = int(self.blocks[i])
        value = self._block(block)[int(self._rows[i]) - self._data.starts[block]].as_py()
        if value is None:
            what = f"{self.place(i)}: no image in column '{self._column}'; remove the row"
            raise BadInput(what, "a row without an image")
        return bytes(value)

    def place(self, i: int) -> str:
        return self._data.place(int(self._rows[i]))

    def _block(self, number: int) -> pa.ChunkedArray:
        with self._lock:
            if number not in self._at_hand:
                if len(self._at_hand) >= BLOCKS_AT_HAND:
                    self._at_hand.popitem(last=False)
                self._at_hand[number] = self._load(number)
            self._at_hand.move_to_end(number)
            return self._at_hand[number]

    def _load(self, number: int) -> pa.ChunkedArray:
        fragment = self._data.blocks[number].fragment
        try:
            column = fragment.to_table(columns=[self._column], schema=self._data.schema)[self._column]
        except (pa.ArrowException, OSError) as error:
            what = f"{fragment.path}: cannot be read: {reason(error)}"
            raise BadInput(what, UNREADABLE) from None
        return pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


class ImageFolder:
    """Image files in one folder per class, ordered by class and name."""

    def __init__(self, config: DatasetConfig, roots: Sequence[Place]) -> None:
        self.config = config
        self._check(roots)
        self.classes: tuple[str, ...] = tuple(map(str, config.classes)) or _class_folders(roots)
        self.files = tuple(
            Place(path, split)
            for root, split in roots
            for name in self.classes
            for path in _images_in(root / name)
        )
        if not self.files:
            looked = ", ".join(self.classes) or "no folders"
            what = f"{roots[0].path}: no image in a folder per class ({looked})"
            raise BadInput(what, "no image in a folder per class")
        check_names(self.files)
        self._roots = tuple(roots)
        self._left_out: tuple[int, ...] = ()

    def without(self, rows: Iterable[int]) -> "ImageFolder":
        """The same, as if these files (numbers) belonged to no split."""
        fewer = copy(self)
        fewer._left_out = tuple(rows)
        fewer.__dict__.pop("_tags", None)
        return fewer

    def place(self, row: int) -> str:
        """File, for people."""
        return str(self.files[row].path)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 that identifies the files and the rules for reading them."""
        return fingerprint(self.files, self.config)

    def labels(self, split: Split, num_classes: int, classes: Sequence[str | int] = ()) -> NDArray[np.int64]:
        """Class numbers of a split: positions in ``classes``, or among the folders' names."""
        names = tuple(map(str, classes)) or self.classes
        unknown = sorted(set(self.class_names(split) if self._left_out else self.classes) - set(names))
        if len(names) != num_classes or unknown:
            what = f"the folder '{unknown[0]}' is no class" if unknown else f"{len(names)} class folders"
            remedy = "list 'classes' in the job's task, or in silo.yaml"
            raise BadInput(
                f"{self._roots[0].path}: {what}, and the job has {num_classes} classes; {remedy}",
                f"its folders are not the job's {num_classes} classes; {remedy}",
            )
        number = {name: index for index, name in enumerate(names)}
        return np.array([number[name] for name in self.class_names(split)], dtype=np.int64)

    def class_names(self, split: Split) -> list[str]:
        """The folder of each file of a split."""
        return [self._class_of(self.files[row].path) for row in self.rows(split)]

    def images(self, split: Split) -> "FolderImages":
        """The encoded images of a split."""
        return FolderImages([self.files[row].path for row in self.rows(split)])

    def rows(self, split: Split) -> NDArray[np.int64]:
        """Numbers of a split's files; `BadInput` when there are none."""
        rows = np.flatnonzero(self._tags == split)
        if not len(rows) and not (split == "test" and wants_no_test(self.config)):
            what, remedy = f"no {split} images", "check 'splits' in silo.yaml"
            among = f"{self._roots[0].path}: {what} among {len(self.files)}"
            raise BadInput(f"{among}; {remedy}", f"{what}; {remedy}")
        return rows

    @cached_property
    def _tags(self) -> Tags:
        tags = self._all_tags()
        tags[list(self._left_out)] = ""
        return tags

    def _all_tags(self) -> Tags:
        if self.files[0].split:
            return np.array([split for _, split in self.files])
        assert not isinstance(self.config.splits, ColumnSplit)
        return share_tags(name_keys(self._name(path) for path, _ in self.files), self.config.splits)

    def _name(self, path: Path) -> str:
        return f"{self._class_of(path)}/{path.name}"

    def _class_of(self, path: Path) -> str:
        root = next(root for root, _ in self._roots if path.is_relative_to(root))
        return path.relative_to(root).parts[0]

    def _check(self, roots: Sequence[Place]) -> None:
        for root, split in roots:
            if not root.is_dir():
                raise BadInput(
                    f"{root}: not a folder; images of one folder per class need a folder as 'path'"
                )
            if not split and isinstance(self.config.splits, ColumnSplit):
                remedy = "use splits.test_share, or path: {train: ..., test: ...}"
                raise BadInput(f"{root}: image folders have no columns to split by; {remedy}")


def _class_folders(roots: Sequence[Place]) -> tuple[str, ...]:
    folders = (child for root, _ in roots for child in root.iterdir())
    return tuple(
        sorted({child.name for child in folders if child.is_dir() and not child.name.startswith(".")})
    )


def _images_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in _ENDINGS)


class FolderImages:
    """Image files."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = tuple(paths)
        self.blocks = np.arange(len(self._paths))

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, i: int) -> bytes:
        try:
            return self._paths[i].read_bytes()
        except OSError as error:
            raise BadInput(f"{self.place(i)}: cannot be read: {error.strerror}", UNREADABLE) from None

    def place(self, i: int) -> str:
        return str(self._paths[i])


def decode(images: EncodedImages, i: int, channels: int, size: tuple[int, int] | None) -> NDArray[np.uint8]:
    """Pixels ``[channels, height, width]`` of an image, resized to ``size`` (height, width) if given."""
    try:
        with Image.open(BytesIO(images.read(i))) as opened:
            return _pixels(opened, channels, size)
    except BadInput:
        raise
    except Exception as error:  # decoders raise many kinds on damaged bytes
        raise BadInput(
            f"{images.place(i)}: not a readable image ({_reason(error)}); repair or remove it",
            "an image that cannot be decoded",
        ) from None


def _pixels(image: Image.Image, channels: int, size: tuple[int, int] | None) -> NDArray[np.uint8]:
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"{image.mode} pixels of more than 8 bits; convert it to 8 bits")
    if image.format != "PNG":
        image = ImageOps.exif_transpose(image)
    image = image.convert("L" if channels == 1 else "RGB")
    if size is not None and (image.height, image.width) != size:
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    pixels = np.array(image)
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _reason(error: Exception) -> str:
    text = str(error).partition("\n")[0]
    return "unknown format" if "BytesIO" in text else text[:120] or type(error).__name__
