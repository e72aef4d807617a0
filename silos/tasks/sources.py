"""Data sets to cut into silos: torchvision's, scikit-learn's digits, or any Parquet file with labels."""

import shutil
import tempfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from orchestrator.core.errors import BadInput
from silos.files import nearest

TORCHVISION = {
    "mnist": "MNIST",
    "fashion_mnist": "FashionMNIST",
    "kmnist": "KMNIST",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
}
"""Names here, and torchvision's."""
SOURCES = (*TORCHVISION, "digits")


@dataclass(frozen=True, slots=True)
class Source:
    """A data set before it is cut."""

    name: str
    train: pa.Table
    test: pa.Table | None
    """None where the publisher made no test set: each silo then holds rows out."""
    label: str
    task: Literal["image_classification", "tabular"]

    def labels(self, table: pa.Table) -> NDArray[np.int64]:
        """Class numbers of the rows, by the alphabet of their labels."""
        text = table[self.label].to_numpy(zero_copy_only=False)
        return np.unique(text, return_inverse=True)[1].astype(np.int64)


def load_source(source: str, root: Path | None = None, label: str = "label") -> Source:
    """A data set by name, or the path of a Parquet file whose column ``label`` holds classes.

    ``root`` holds torchvision's files already, or is where they are downloaded to (default:
    ``~/.cache/siloray``). `BadInput` for an unknown name, or when the download fails.
    """
    if source in TORCHVISION:
        return _torchvision(source, root or Path("~/.cache/siloray").expanduser())
    if source == "digits":
        return _digits()
    if Path(source).suffix == ".parquet":
        return _parquet(Path(source), label)
    raise BadInput(f"'{source}': no such data set{nearest(source, SOURCES)}; or give a .parquet file")


def image_table(images: NDArray[np.uint8], labels: Any) -> pa.Table:
    """Images ``[rows, height, width]`` or with 3 colours last, as PNG bytes in ``image``, and ``label``."""
    encoded = pa.array([_png(image) for image in images], pa.binary())
    return pa.table({"image": encoded, "label": pa.array(np.asarray(labels, dtype=np.int64))})


def _png(image: NDArray[np.uint8]) -> bytes:
    file = BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def _digits() -> Source:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise BadInput(
            "digits: needs scikit-learn; install it with: pip install 'siloray[examples]'"
        ) from None
    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    return Source("digits", image_table(images, digits.target), None, "label", "image_classification")


def _parquet(path: Path, label: str) -> Source:
    try:
        table = pq.read_table(path, memory_map=True)
    except (OSError, pa.ArrowException) as error:
        raise BadInput(f"{path}: cannot be read: {str(error).partition(chr(10))[0]}") from None
    if label not in table.column_names:
        raise BadInput(f"{path}: no column '{label}'{nearest(label, table.column_names)}")
    if table[label].null_count:
        raise BadInput(f"{path}: column '{label}' misses {table[label].null_count} labels; remove those rows")
    task: Literal["image_classification", "tabular"] = (
        "image_classification" if "image" in table.column_names else "tabular"
    )
    return Source(path.stem, table, None, label, task)


def _torchvision(name: str, root: Path) -> Source:
    from torchvision import datasets

    kind = getattr(datasets, TORCHVISION[name])
    with tempfile.TemporaryDirectory() as scratch:
        train, test = _loaded(kind, root, Path(scratch))
        tables = [image_table(np.asarray(each.data), each.targets) for each in (train, test)]
    return Source(name, tables[0], tables[1], "label", "image_classification")


def _loaded(kind: Any, root: Path, scratch: Path) -> tuple[Any, Any]:
    """Train and test set: as they lie, unpacked elsewhere when only archives lie there, or downloaded."""
    try:
        try:
            return kind(root, train=True), kind(root, train=False)
        except RuntimeError:
            place = scratch if _copy_archives(kind, root, scratch) else root
            return kind(place, train=True, download=True), kind(place, train=False, download=True)
    except Exception as error:  # torchvision and urllib raise many kinds
        reason = str(error).strip().partition("\n")[0][:200]
        raise BadInput(
            f"{kind.__name__}: not in {root}, and the download failed ({reason}); put the publisher's files "
            "there and name the folder with --root"
        ) from None


def _copy_archives(kind: Any, root: Path, scratch: Path) -> bool:
    """Copy the publisher's archives, because torchvision unpacks beside them and ``root`` may be others'."""
    raw = root / kind.__name__ / "raw"
    archives = [*raw.glob("*.gz"), *([root / kind.filename] if hasattr(kind, "filename") else [])]
    found = [path for path in archives if path.is_file()]
    for path in found:
        target = scratch / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return bool(found)
