"""Write a data set as silos: for each a folder with Parquet and a ``silo.yaml`` that is ready to use."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from numpy.typing import NDArray

from orchestrator.core.errors import BadInput
from silos.tasks.owners import Scheme, deal_alike, hold_out, partition_dataset
from silos.tasks.sources import Source, load_source

ROW_GROUP = 1000
"""Rows of a Parquet row group: what is read at once when images do not fit in memory."""


def write_silos(
    source: str,
    out: Path,
    num_silos: int,
    scheme: Scheme,
    seed: int = 0,
    root: Path | None = None,
    label: str = "label",
    test_share: float = 0.2,
) -> list[Path]:
    """Cut ``source`` (see `load_source`) and write ``out/silo-<i>/{data.parquet,silo.yaml}``.

    The publisher's test set is dealt so that each class is shared as in training; without one,
    ``test_share`` of each silo's rows test. Returns the ``silo.yaml`` paths;
    `BadInput` when ``out`` holds something already.
    """
    if out.exists() and any(out.iterdir()):
        raise BadInput(f"{out}: not empty; name a new folder, or empty this one")
    data = load_source(source, root, label)
    tables = _silo_tables(data, num_silos, scheme, seed, test_share)
    width = len(str(num_silos - 1))
    return [_write(out / f"silo-{i:0{width}}", data, table) for i, table in enumerate(tables)]


def _silo_tables(
    data: Source, num_silos: int, scheme: Scheme, seed: int, test_share: float
) -> list[pa.Table]:
    """Each silo's rows, with ``split``."""
    labels = data.labels(data.train)
    owners = partition_dataset(labels, num_silos, scheme, seed)
    if data.test is None:
        test = hold_out(owners, num_silos, test_share, seed)
        return [_with_split(data.train, owners == silo, test) for silo in range(num_silos)]
    test_owners = deal_alike(data.labels(data.test), labels, owners, num_silos, seed)
    table = pa.concat_tables([data.train, data.test])
    everyone = np.concatenate([owners, test_owners])
    test = np.arange(len(everyone)) >= len(owners)
    return [_with_split(table, everyone == silo, test) for silo in range(num_silos)]


def _with_split(table: pa.Table, mine: NDArray[np.bool_], test: NDArray[np.bool_]) -> pa.Table:
    if "split" in table.column_names:
        raise BadInput("the data set has a column 'split' already; rename or drop it")
    chosen = table.filter(pa.array(mine))
    return chosen.append_column("split", pa.array(np.where(test[mine], "test", "train")))


def _write(folder: Path, data: Source, table: pa.Table) -> Path:
    folder.mkdir(parents=True)
    pq.write_table(table, folder / "data.parquet", row_group_size=ROW_GROUP, compression="zstd")
    path = folder / "silo.yaml"
    path.write_text(yaml.safe_dump(_document(folder.name, data), sort_keys=False), encoding="utf-8")
    return path


def _document(name: str, data: Source) -> dict[str, object]:
    dataset: dict[str, object] = {"path": "data.parquet", "splits": {"column": "split"}}
    if data.task == "image_classification" and data.label != "label":
        dataset["columns"] = {"label": data.label}
    return {"name": name, "datasets": {data.name: dataset}, "policy": {"allow_tasks": [data.task]}}
