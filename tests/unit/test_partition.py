"""Cutting a data set into silos: every row once, enough for everyone, the same again with the same seed."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.errors import BadInput
from silos.config import load_silo
from silos.data import TableData, open_data
from silos.image_files import decode
from silos.tasks.owners import Scheme, cut, deal_alike, hold_out, partition_dataset
from silos.tasks.partition import write_silos

LABELS = np.repeat(np.arange(10), 300)
FASHION = Path("/work/shared/data/fashion_mnist")


def counts(owners: np.ndarray, labels: np.ndarray, num_silos: int) -> np.ndarray:
    """Rows of each silo by class."""
    table = np.zeros((num_silos, labels.max() + 1), dtype=int)
    np.add.at(table, (owners, labels), 1)
    return table


def test_shares_by_hand() -> None:
    owners = cut(10, np.array([0.5, 0.2, 0.3]), np.random.default_rng(0))
    assert np.bincount(owners).tolist() == [5, 2, 3] and owners.tolist() != sorted(owners.tolist())
    assert np.bincount(cut(7, np.array([0.0, 1.0, 0.0]), np.random.default_rng(0))).tolist() == [0, 7]


def test_iid_is_even() -> None:
    table = counts(partition_dataset(LABELS, 7, Scheme(), 0), LABELS, 7)
    assert set(table.sum(axis=1)) == {428, 429} and table.min() > 20


def test_a_small_alpha_is_less_even_than_a_large_one() -> None:
    spread = {
        alpha: counts(partition_dataset(LABELS, 5, Scheme(name="dirichlet", alpha=alpha), 0), LABELS, 5).std()
        for alpha in (0.1, 1.0, 100.0)
    }
    assert spread[0.1] > spread[1.0] > spread[100.0]


@pytest.mark.parametrize(("num_silos", "k"), [(10, 2), (5, 2), (7, 3), (3, 10), (10, 1)])
def test_labels_per_silo(num_silos: int, k: int) -> None:
    owners = partition_dataset(LABELS, num_silos, Scheme(name="labels", labels_per_silo=k), 3)
    table = counts(owners, LABELS, num_silos)
    assert ((table > 0).sum(axis=1) == k).all()
    takers = (table > 0).sum(axis=0)
    assert takers.max() - takers.min() <= 1


def test_quantity_keeps_the_classes_and_varies_the_size() -> None:
    table = counts(partition_dataset(LABELS, 6, Scheme(name="quantity", alpha=1.0), 1), LABELS, 6)
    sizes = table.sum(axis=1)
    assert sizes.max() > 3 * sizes.min() and sizes.sum() == 3000
    largest = table[sizes.argmax()] / sizes.max()
    np.testing.assert_allclose(largest, 0.1, atol=0.03)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(["iid", "dirichlet", "quantity"]),
    num_silos=st.integers(1, 12),
    alpha=st.floats(0.2, 10),
    seed=st.integers(0, 100),
    labels=st.lists(st.integers(0, 6), min_size=150, max_size=300),
)
def test_every_silo_has_enough_and_a_seed_repeats(
    name: Any, num_silos: int, alpha: float, seed: int, labels: list[int]
) -> None:
    """Or one line that says what to change, where the draw is too unequal for so many silos."""
    scheme = Scheme(name=name, alpha=alpha, min_rows=3)
    try:
        owners = partition_dataset(labels, num_silos, scheme, seed)
    except BadInput as error:
        assert name != "iid" and alpha < 1 and "use fewer silos, a larger alpha" in str(error)
        return
    sizes = np.bincount(owners, minlength=num_silos)
    assert len(owners) == len(labels) and len(sizes) == num_silos and sizes.min() >= 3
    assert np.array_equal(owners, partition_dataset(labels, num_silos, scheme, seed))


def test_another_seed_cuts_otherwise() -> None:
    first, second = (partition_dataset(LABELS, 4, Scheme(), seed) for seed in (0, 1))
    assert not np.array_equal(first, second)


def test_the_test_set_is_dealt_as_the_training_set() -> None:
    owners = partition_dataset(LABELS, 5, Scheme(name="dirichlet", alpha=0.3), 0)
    test_labels = np.repeat(np.arange(11), 100)
    dealt = deal_alike(test_labels, LABELS, owners, 5, 0)
    train, test = counts(owners, LABELS, 5), counts(dealt, test_labels, 5)
    assert np.abs(test[:, :10] - train / 3).max() <= 1
    assert test[:, 10].tolist() == [20] * 5  # a class that training lacks is shared evenly


def test_hold_out_takes_a_share_of_every_silo() -> None:
    owners = np.array([0] * 50 + [1] * 10 + [2] * 2)
    test = hold_out(owners, 3, 0.2, 0)
    assert [int(test[owners == silo].sum()) for silo in range(3)] == [10, 2, 1]


def test_owner_files(tmp_path: Path) -> None:
    given_owners = np.arange(30) % 3
    np.savez(tmp_path / "o.npz", owner=given_owners.astype(np.uint8))
    np.savetxt(tmp_path / "o.txt", given_owners, fmt="%d")
    for name in ("o.npz", "o.txt"):
        owners = partition_dataset(
            [0] * 30, 3, Scheme(name="file", owner_file=tmp_path / name, min_rows=1), 0
        )
        assert owners.tolist() == given_owners.tolist()


@pytest.mark.parametrize(
    ("num_rows", "num_silos", "scheme", "said"),
    [
        (20, 3, {}, "too few"),
        (300, 2, {"name": "dirichlet", "alpha": 0}, "alpha"),
        (40, 4, {"name": "quantity", "alpha": 0.01}, "fewer than 10 rows"),
        (300, 2, {"name": "labels", "labels_per_silo": 2}, "cannot hold 10 classes"),
        (300, 2, {"name": "file"}, "owner file"),
        (300, 2, {"name": "file", "owner_file": Path("nowhere.npz")}, "nowhere.npz: cannot be read"),
    ],
)
def test_what_cannot_be_cut_costs_one_line(
    num_rows: int, num_silos: int, scheme: dict[str, Any], said: str
) -> None:
    with pytest.raises(BadInput) as caught:
        partition_dataset(np.arange(num_rows) % 10, num_silos, Scheme(**scheme), 0)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"owners": np.zeros(30)}, "no array named 'owner'"),
        ({"owner": np.zeros(29)}, "29 owners for 30 rows"),
        ({"owner": np.arange(30)}, "0 to 29"),
        ({"owner": np.zeros(30)}, "silo 1 owns no row"),
    ],
)
def test_bad_owner_files_cost_one_line(tmp_path: Path, content: dict[str, np.ndarray], said: str) -> None:
    np.savez(tmp_path / "o.npz", **content)
    with pytest.raises(BadInput) as caught:
        partition_dataset([0] * 30, 2, Scheme(name="file", owner_file=tmp_path / "o.npz", min_rows=1), 0)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_written_silos_are_ready(tmp_path: Path) -> None:
    rows = {"x": list(range(200)), "kind": ["b", "a"] * 100}
    pq.write_table(pa.table(rows), tmp_path / "things.parquet")
    paths = write_silos(
        str(tmp_path / "things.parquet"), tmp_path / "out", 12, Scheme(min_rows=5), label="kind"
    )
    assert [path.parent.name for path in paths][:3] == ["silo-00", "silo-01", "silo-02"] and len(paths) == 12
    seen: Counter[float] = Counter()
    for path in paths:
        config = load_silo(path)
        data = open_data(config.datasets["things"], path.parent)
        assert isinstance(data, TableData) and config.name == path.parent.name
        for split in ("train", "test"):
            seen.update(data.read(["x"], split)["x"].numbers().tolist())
    assert seen == Counter(range(200)) and config.policy.allow_tasks == ("tabular",)


def test_digits_come_out_as_they_went_in(tmp_path: Path) -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    paths = write_silos("digits", tmp_path / "out", 2, Scheme())
    found = []
    for path in paths:
        data = open_data(load_silo(path).datasets["digits"], path.parent)
        for split in ("train", "test"):
            images, labels = data.images(split), data.labels(split, 10)
            found += [(int(labels[i]), decode(images, i, 1, None).tobytes()) for i in range(len(labels))]
    digits = datasets.load_digits()
    wanted = np.round(digits.images * 255 / 16).astype(np.uint8)
    assert sorted(found) == sorted(
        (int(t), image.tobytes()) for t, image in zip(digits.target, wanted, strict=True)
    )


def test_what_cannot_be_written_costs_one_line(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    table = tmp_path / "t.parquet"
    pq.write_table(pa.table({"y": [0] * 30, "split": ["a"] * 30, "gap": [None, 1] * 15}), table)
    for source, out, label, said in (
        ("digits", "full", "label", "not empty"),
        ("fashion_mnits", "new", "label", "nearest is 'fashion_mnist'"),
        ("nowhere.parquet", "new", "label", "nowhere.parquet: cannot be read"),
        (str(table), "new", "z", "no column 'z'"),
        (str(table), "new", "y", "column 'split' already"),
        (str(table), "new", "gap", "misses 15 labels"),
    ):
        with pytest.raises(BadInput) as caught:
            write_silos(source, tmp_path / out, 2, Scheme(min_rows=1), label=label)
        assert said in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_fashion_mnist_from_the_publishers_files(tmp_path: Path) -> None:
    if not FASHION.exists():
        pytest.skip(f"Fashion-MNIST is not at {FASHION}")
    before = sorted(FASHION.rglob("*"))
    owner_file = FASHION / "partitions" / "lab2_10_seed0.npz"
    scheme = Scheme(name="file", owner_file=owner_file)
    paths = write_silos("fashion_mnist", tmp_path / "out", 10, scheme, root=FASHION)
    assert sorted(FASHION.rglob("*")) == before  # unpacked elsewhere
    owner = np.load(owner_file)["owner"]
    for number, path in enumerate(paths):
        data = open_data(load_silo(path).datasets["fashion_mnist"], path.parent)
        assert len(data.rows("train")) == int((owner == number).sum())
        assert set(data.labels("test", 10)) == set(data.labels("train", 10))
