"""Reading, writing and size of encrypted tables and checkpoints, over those in the clear, in the same process.

    python -m benchmarks.encrypted_parquet [--mb 62] [--repeats 9] [--json FILE]

A table of float64 columns is read as a silo reads it (`silos.data`), images in Parquet image by image; the two kinds
take turns, and what counts is the median of the ratios of neighbours. Times are CPU seconds of the process, threads
included: a core that waits for another costs nobody anything. Wall times are beside them.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.at_rest import Key, make_key
from orchestrator.checkpoints import Checkpoints
from orchestrator.disk import OsFileSystem
from silos.config import DatasetConfig
from silos.data import TableData, open_data
from silos.encrypted_copy import encrypted_copy

COLUMNS = 16
IMAGE_BYTES = 8_000
PARAMETERS = 11_170_000


class Row(NamedTuple):
    what: str
    clear: float
    encrypted: float
    ratio: float
    """Median of neighbours."""
    wall: float
    """The same of wall times."""
    size: float


def measured(
    what: str, clear: Callable[[], Any], encrypted: Callable[[], Any], size: float, repeats: int
) -> Row:
    """Each in turn, after one of each that does not count."""
    clear(), encrypted()
    times = [(_timed(clear), _timed(encrypted)) for _ in range(repeats)]
    cpu = [(one[0], other[0]) for one, other in times]
    return Row(
        what,
        statistics.median(one for one, _ in cpu),
        statistics.median(other for _, other in cpu),
        statistics.median(other / one for one, other in cpu),
        statistics.median(other[1] / one[1] for one, other in times),
        size,
    )


def _timed(work: Callable[[], Any]) -> tuple[float, float]:
    cpu, wall = process_time(), perf_counter()
    work()
    return process_time() - cpu, perf_counter() - wall


def _numbers(mb: int) -> pa.Table:
    rng = np.random.default_rng(0)
    rows = mb * 1_000_000 // (8 * COLUMNS)
    return pa.table({f"x{i}": rng.standard_normal(rows) for i in range(COLUMNS)})


def _images(mb: int) -> pa.Table:
    """Bytes that do not compress, as encoded images do not."""
    rng = np.random.default_rng(0)
    count = mb * 1_000_000 // IMAGE_BYTES
    return pa.table({"image": [rng.bytes(IMAGE_BYTES) for _ in range(count)], "label": np.arange(count) % 10})


def _opened(path: Path, **given: Any) -> TableData:
    config = DatasetConfig.model_validate({"path": str(path), "splits": {"test_share": 0}, **given})
    data = open_data(config, path.parent)
    assert isinstance(data, TableData)
    return data


def _read_numbers(data: Callable[[], TableData]) -> None:
    for column in data().read([f"x{i}" for i in range(COLUMNS)], "train").values():
        column.numbers()


def _read_images(data: Callable[[], TableData]) -> None:
    images = data().images("train")
    for i in range(len(images)):
        images.read(i)


def tables(mb: int, repeats: int, folder: Path) -> list[Row]:
    key = make_key(folder / "key")
    rows = []
    for what, table, read in (
        ("numbers", _numbers(mb), _read_numbers),
        ("images", _images(mb), _read_images),
    ):
        clear, sealed = folder / f"{what}.parquet", folder / f"{what}-sealed.parquet"
        pq.write_table(table, clear, compression="zstd", row_group_size=10_000)
        encrypted_copy(clear, sealed, key)
        size = sealed.stat().st_size / clear.stat().st_size
        plain, secret = (
            lambda clear=clear: _opened(clear),
            lambda sealed=sealed: _opened(sealed, encryption={"key": {"file": str(folder / "key")}}),
        )
        what = f"Parquet, {what}, {clear.stat().st_size / 1e6:.0f} MB, read"
        rows.append(
            measured(what, lambda r=read, p=plain: r(p), lambda r=read, s=secret: r(s), size, repeats)
        )
    return rows


def checkpoints(repeats: int, folder: Path) -> list[Row]:
    state = {"params": np.random.default_rng(0).standard_normal(PARAMETERS, np.float32)}
    kept = []
    for name, key in (("clear", None), ("sealed", Key(b"k" * 32))):
        root = folder / name / "checkpoints"
        root.mkdir(parents=True)
        kept.append(Checkpoints(root, OsFileSystem(), key))
    saves = [lambda each=each: each.save(1, state, {"meta": {}}) for each in kept]
    loads = [lambda each=each: each.load(1, {}) for each in kept]
    what = f"checkpoint, {PARAMETERS / 1e6:.2f} M parameters"
    wrote = measured(f"{what}, write", *saves, 1.0, repeats)
    sizes = [sum(path.stat().st_size for path in each.root.rglob("state*")) for each in kept]
    return [
        wrote._replace(size=sizes[1] / sizes[0]),
        measured(f"{what}, read", *loads, sizes[1] / sizes[0], repeats),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=int, default=62)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [*tables(given.mb, given.repeats, Path(folder)), *checkpoints(given.repeats, Path(folder))]
    print(f"{'':45}{'clear':>9}{'encrypted':>11}{'ratio':>8}{'wall':>8}{'size':>9}")
    for each in rows:
        print(
            f"{each.what:45}{each.clear:8.3f}s{each.encrypted:10.3f}s{each.ratio:8.2f}{each.wall:8.2f}{each.size:9.4f}"
        )
    if given.json:
        given.json.write_text(json.dumps([each._asdict() for each in rows], indent=1))


if __name__ == "__main__":
    main()
