"""Fashion-MNIST of the learning targets: ten parties, all of their images or 512 of each, a stated order of batches.

Public files of ``shared/data/fashion_mnist``: images, which party owns which, and the weights after two rounds.
"""

import gzip
import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from orchestrator.task import ImageClassification
from silos.tasks.image_classification import ImageClassificationTask
from silos.tasks.task import At, Batch
from tests.support.shared_data import folder

SHARED = folder("fashion_mnist")
PARTIES = tuple(f"party-{i}" for i in range(10))
ROWS = 512
SPEC = {
    "name": "image_classification",
    "dataset": "fashion",
    "num_classes": 10,
    "channels": 1,
    "model": {"name": "cnn"},
}
NAMES = [
    f"{layer}.{kind}" for layer in ("conv1", "conv2", "fc1", "fc2", "fc3") for kind in ("weight", "bias")
]


class StatedOrder(ImageClassificationTask):
    """A party's images in the order of the targets, and every weight from ``torch.manual_seed(0)``."""

    def __init__(self, data: Any, seed: int = 0) -> None:
        super().__init__(ImageClassification.model_validate(SPEC), data)
        self._seed = seed

    def train_batches(self, at: At, batch_size: int) -> Iterator[Batch]:
        party = PARTIES.index(at.silo)
        draw = torch.Generator().manual_seed(1000003 * self._seed + 1009 * at.version + party)
        rows = torch.randperm(self.num_examples("train"), generator=draw).split(batch_size)
        return self._batches("train", rows, 0)


def idx(name: str) -> np.ndarray:
    """An array of the publisher's files."""
    data = gzip.decompress((SHARED / "FashionMNIST" / "raw" / f"{name}.gz").read_bytes())
    sizes = struct.unpack(f">{data[3]}i", data[4 : 4 + 4 * data[3]])
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(sizes)


def write_parties(where: Path, partition: str, rows: int | None = ROWS) -> dict[str, Path]:
    """One folder per party: Parquet with encoded images, and a silo.yaml. With ``rows`` each has so many training
    images and all have the same 64 for a test; without, each has all of its own and every tenth of the test set."""
    images, labels = idx("train-images-idx3-ubyte"), idx("train-labels-idx1-ubyte")
    test = idx("t10k-images-idx3-ubyte"), idx("t10k-labels-idx1-ubyte")
    with np.load(SHARED / "partitions" / f"{partition}_10_seed0.npz") as file:
        owner = file["owner"]
    documents = {}
    for number, party in enumerate(PARTIES):
        chosen = np.flatnonzero(owner == number)[:rows]
        tested = slice(64) if rows else slice(number, None, len(PARTIES))
        _write_table(where / party / "train.parquet", images[chosen], labels[chosen])
        _write_table(where / party / "test.parquet", test[0][tested], test[1][tested])
        documents[party] = where / party / "silo.yaml"
        documents[party].write_text(
            f"name: {party}\n"
            "datasets:\n  fashion: {path: {train: train.parquet, test: test.parquet}}\n"
            "policy: {allow_code: [tests.support.fashion]}\n"
        )
    return documents


def anchors(partition: str, number: int) -> np.ndarray:
    """The reference's weights after this many rounds, flat in the order of the model."""
    with np.load(SHARED / "anchors" / f"fmnist_{partition}_seed0.npz") as file:
        return np.concatenate([file[f"small_r{number}.{name}"].reshape(-1) for name in NAMES])


def job(partition: str, total: int = 2) -> dict[str, Any]:
    return {
        "name": f"fashion-{partition}",
        "task": {"name": "tests.support.fashion:StatedOrder", "dataset": "fashion"},
        "silos": list(PARTIES),
        "rounds": {"total": total, "patience_s": 60},
        "local": {
            "epochs": 1,
            "batch_size": 64,
            "optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 1e-5},
        },
        "stop": {"metric": "accuracy"},
        "report": {"silos": False},
    }


def _write_table(file: Path, images: np.ndarray, labels: np.ndarray) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        pa.table({"image": [_png(image) for image in images], "label": labels.astype(np.int64)}), file
    )


def _png(image: np.ndarray) -> bytes:
    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(image).save(data, "png", compress_level=1)
    return data.getvalue()
