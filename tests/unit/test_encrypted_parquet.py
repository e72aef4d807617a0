"""Encrypted tables: read as others are, and refused in one line for a wrong key or a changed byte."""

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe
import pytest
from typer.testing import CliRunner

from orchestrator.at_rest import Key, make_key
from orchestrator.cli.main import app
from orchestrator.core.errors import BadInput
from orchestrator.task import ImageClassification
from silos import encrypted_copy
from silos.config import DatasetConfig
from silos.data import TableData, open_data
from silos.parquet_keys import ParquetKeys, Wrapping
from silos.tasks.image_classification import ImageClassificationTask
from silos.tasks.task import At
from tests.unit.test_data import png

SENTINEL = "Mrs-Sentinel-Example"
ROWS = pa.table(
    {
        "patient": [f"{SENTINEL}-{i}" for i in range(60)],
        "age": pa.array([float(i) if i % 7 else None for i in range(60)]),
        "level": pa.array([float("nan"), 1.5, -0.0] * 20),
        "label": [f"label-{SENTINEL}"] * 60,
        "kind": pa.array(["a", "b", None] * 20).dictionary_encode(),
        "fold": ["train", "test", "train"] * 20,
    }
)
IMAGES = pa.table(
    {
        "image": [{"bytes": png(i * 4, (8, 8)), "path": f"{SENTINEL}.png"} for i in range(60)],
        "label": [i % 3 for i in range(60)],
        "fold": ["train", "test", "train"] * 20,
    }
)


@pytest.fixture
def key(tmp_path: Path) -> Key:
    return make_key(tmp_path / "key")


def plain(kind: str, folder: Path, rows: pa.Table = ROWS) -> Path:
    path = folder / f"plain.{kind}"
    if kind == "parquet":
        pq.write_table(rows, path, row_group_size=25)
    elif kind == "csv":
        pyarrow.csv.write_csv(rows, path)
    else:
        pyarrow.feather.write_feather(rows, path, compression="uncompressed")
    return path


def config(path: Path, **given: Any) -> DatasetConfig:
    return DatasetConfig.model_validate({"path": str(path), "splits": {"column": "fold"}, **given})


def opened(path: Path, **source: Any) -> TableData:
    source = source or {"file": str(path.parent / "key")}
    data = open_data(config(path, encryption={"key": source}), path.parent)
    assert isinstance(data, TableData)
    return data


def silo(line: str) -> tuple[int, str]:
    ended = CliRunner().invoke(app, ["silo", *line.split()])
    return ended.exit_code, ended.output


@pytest.mark.parametrize("kind", ["parquet", "arrow", "csv"])
def test_the_command_makes_a_copy_that_reads_the_same(kind: str, tmp_path: Path) -> None:
    source, target = plain(kind, tmp_path), tmp_path / "sealed.parquet"
    code, said = silo(f"key {tmp_path}/key")
    assert code == 0 and (tmp_path / "key").read_text().strip() not in said
    code, said = silo(f"encrypt {source} {target} --key-file {tmp_path}/key")
    assert code == 0 and "60 rows" in said, said
    data = target.read_bytes()
    for clear in (SENTINEL, "patient", "label", "dictionary"):
        assert clear.encode() not in data
    assert target.stat().st_mode & 0o777 == 0o600
    was, now = open_data(config(source), tmp_path), opened(target)
    for split in ("train", "test"):
        before, after = (each.read(["patient", "age", "kind"], split) for each in (was, now))
        np.testing.assert_array_equal(before["age"].numbers(), after["age"].numbers())
        for name in ("patient", "kind"):
            assert before[name].text.equals(after[name].text)
    assert now.place(59).endswith("row 60")


def test_the_command_says_what_silo_yaml_has_to_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path of the shell's folder would be another one in ``silo.yaml``, and a pipe none at all."""
    monkeypatch.chdir(tmp_path)
    plain("csv", tmp_path).rename("rows.csv")
    silo("key k")
    said = silo("encrypt rows.csv one.parquet --key-file k")[1]
    assert f"encryption: {{key: {{file: {tmp_path}/k}}}}; " in said
    reading, writing = os.pipe()
    os.write(writing, (tmp_path / "k").read_bytes())
    os.close(writing)
    code, said = silo(f"encrypt rows.csv two.parquet --key-file /dev/fd/{reading}")
    os.close(reading)
    assert code == 0 and "encryption: {key: ...}; " in said


def test_images_in_encrypted_parquet_are_read_in_memory_and_by_workers(tmp_path: Path, key: Key) -> None:
    source, target = plain("parquet", tmp_path, IMAGES), tmp_path / "sealed.parquet"
    encrypted_copy.encrypted_copy(source, target, key)
    assert SENTINEL.encode() not in target.read_bytes() and b"PNG" not in target.read_bytes()
    spec = ImageClassification.model_validate(
        {
            "name": "image_classification",
            "dataset": "d",
            "num_classes": 3,
            "channels": 1,
            "model": {"name": "cnn"},
        }
    )
    was = ImageClassificationTask(spec, open_data(config(source), tmp_path))
    for workers, memory in ((0, 1 << 30), (2, 0)):
        now = ImageClassificationTask(spec, opened(target), workers, memory_bytes=memory)
        for before, after in zip(was.test_batches(7), now.test_batches(7), strict=True):
            assert all((b == a).all() for b, a in zip(before, after, strict=True))
        assert sum(len(batch[1]) for batch in now.train_batches(At(0, "a", 0, 0), 8)) == 40


def test_what_cannot_be_copied_costs_one_line(tmp_path: Path, key: Key) -> None:
    source = plain("csv", tmp_path)
    for line, said in (
        (f"{tmp_path}/none {tmp_path}/a.parquet", f"{tmp_path}/none: no such file or folder"),
        (f"{source} {source}/a.parquet", "File exists"),
        (f"{source} /proc/a.parquet", "/proc/a.parquet: No such file or directory"),
        (f"{source} {source}", "give a name that ends in .parquet"),
        (f"{source} {plain('parquet', tmp_path)}", "already; remove it, or give another name"),
    ):
        code, told = silo(f"encrypt {line} --key-file {tmp_path}/key")
        assert code == 2 and told.startswith("siloray: ") and told.count("\n") == 1 and said in told, told


def test_a_copy_that_was_never_finished_is_no_part_of_the_data(tmp_path: Path, key: Key) -> None:
    """Whoever was killed while it was compared left it whole, under a hidden name: its rows must not count twice."""
    (tmp_path / "in").mkdir()
    plain("csv", tmp_path / "in")
    line = f"encrypt {tmp_path}/in {tmp_path}/out --key-file {tmp_path}/key"
    assert silo(line)[0] == 0
    (tmp_path / "out" / "plain.parquet").rename(tmp_path / "out" / ".plain.4711.parquet")
    assert silo(line)[0] == 0
    encrypted = config(tmp_path / "out", encryption={"key": {"file": str(tmp_path / "key")}})
    assert len(open_data(encrypted, tmp_path).rows("train")) == 40
    code, told = silo(f"encrypt {tmp_path}/out {tmp_path}/again --key-file {tmp_path}/key")
    assert code == 2 and ".4711" not in told


def test_a_folder_of_tables_is_converted_as_a_whole(tmp_path: Path, key: Key) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    plain("csv", tmp_path / "in")
    plain("parquet", tmp_path / "in" / "deep")
    code, _ = silo(f"encrypt {tmp_path}/in {tmp_path}/out --key-file {tmp_path}/key")
    assert code == 0
    found = {str(each.relative_to(tmp_path / "out")) for each in (tmp_path / "out").rglob("*.*")}
    assert found == {"plain.parquet", "deep/plain.parquet"}


def test_no_changed_byte_gives_wrong_data(tmp_path: Path, key: Key) -> None:
    """Each byte of a small file: either it is noticed, or it is none that the data depend on."""
    source, target = tmp_path / "plain.parquet", tmp_path / "sealed.parquet"
    pq.write_table(pa.table({"a": list(range(40)), "fold": ["train"] * 40}), source)
    encrypted_copy.encrypted_copy(source, target, key)
    data, noticed = target.read_bytes(), 0
    right = opened(target).read(["a"], "train")["a"].numbers()
    for at in range(0, len(data), 3):
        changed = bytearray(data)
        changed[at] ^= 1
        path = tmp_path / f"{at}.parquet"  # of its own: the file before is mapped
        path.write_bytes(changed)
        try:
            np.testing.assert_array_equal(opened(path).read(["a"], "train")["a"].numbers(), right)
        except BadInput as error:
            assert "\n" not in str(error) and str(path) in str(error)
            noticed += 1
        path.unlink()
    assert noticed > 0.97 * len(range(0, len(data), 3))


def test_wrong_keys_and_none_are_said_in_one_line(
    tmp_path: Path, key: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "sealed.parquet"
    encrypted_copy.encrypted_copy(plain("parquet", tmp_path), target, key)
    other = make_key(tmp_path / "other")
    with pytest.raises(BadInput, match=f"{target}: encrypted with another key than {other.id}") as caught:
        opened(target, file="other")
    assert caught.value.public == "a file of the data set cannot be decrypted"
    with pytest.raises(BadInput, match="it is encrypted; say where its key is with 'encryption'"):
        open_data(config(target), tmp_path)
    with pytest.raises(BadInput, match="not encrypted, or its footer is not; 'siloray silo encrypt'"):
        opened(tmp_path / "plain.parquet")
    with pytest.raises(BadInput, match="'encryption' is for Parquet files"):
        opened(plain("csv", tmp_path))
    (tmp_path / "images" / "a").mkdir(parents=True)
    with pytest.raises(BadInput, match="this is a folder of images"):
        open_data(
            DatasetConfig.model_validate({"path": "images", "encryption": {"key": {"env": "K"}}}), tmp_path
        )
    monkeypatch.setenv("K", (tmp_path / "key").read_text())
    assert len(opened(target, env="K").rows("train")) == 40
    code, said = silo(f"encrypt {target} {tmp_path}/again.parquet --key-file {tmp_path}/key")
    assert code == 2 and said.count("\n") == 1 and not (tmp_path / "again.parquet").exists()


def written(path: Path, key: Key, dictionary: bool = True, **how: Any) -> Path:
    """As somebody's else's program may."""
    settings = {"footer_key": key.id, "uniform_encryption": True, "cache_lifetime": timedelta(0), **how}
    factory = pe.CryptoFactory(lambda _: Wrapping(key))
    properties = factory.file_encryption_properties(
        pe.KmsConnectionConfig(), pe.EncryptionConfiguration(**settings)
    )
    with pq.ParquetWriter(
        path, ROWS.schema, encryption_properties=properties, use_dictionary=dictionary, compression="none"
    ) as writer:
        writer.write_table(ROWS)
    return path


def test_counter_mode_and_a_footer_in_the_clear_are_refused(tmp_path: Path, key: Key) -> None:
    right = written(tmp_path / "gcm.parquet", key)
    assert len(opened(right).rows("test")) == 20
    counter = written(tmp_path / "ctr.parquet", key, encryption_algorithm="AES_GCM_CTR_V1")
    with pytest.raises(BadInput, match="not encrypted with AES_GCM_V1: a changed byte would go unnoticed"):
        opened(counter)
    clear = written(
        tmp_path / "footer.parquet",
        key,
        plaintext_footer=True,
        uniform_encryption=False,
        column_keys={key.id: ROWS.column_names},
    )
    with pytest.raises(BadInput, match="not encrypted, or its footer is not"):
        opened(clear)


@pytest.mark.parametrize("dictionary", [True, False])
def test_a_column_in_the_clear_below_an_encrypted_footer_is_refused(
    dictionary: bool, tmp_path: Path, key: Key
) -> None:
    most = [name for name in ROWS.column_names if name != "label"]
    how = {"uniform_encryption": False, "column_keys": {key.id: most}}
    with pytest.raises(BadInput, match="column 'label' is not encrypted") as caught:
        opened(written(tmp_path / "partly.parquet", key, dictionary, **how))
    assert SENTINEL.encode() in (tmp_path / "partly.parquet").read_bytes()
    assert "label" not in caught.value.public
    how["column_keys"] = {key.id: ROWS.column_names}
    assert len(opened(written(tmp_path / "wholly.parquet", key, dictionary, **how)).rows("test")) == 20


def test_counter_mode_really_gives_wrong_data(tmp_path: Path, key: Key) -> None:
    """Why it is refused: somewhere in its pages, a flipped byte is another value and no error."""
    rows = pa.table({"a": np.arange(200, dtype=np.int64)})
    config = pe.EncryptionConfiguration(
        footer_key=key.id, uniform_encryption=True, encryption_algorithm="AES_GCM_CTR_V1"
    )
    factory = pe.CryptoFactory(lambda _: Wrapping(key))
    written = tmp_path / "ctr.parquet"
    properties = factory.file_encryption_properties(pe.KmsConnectionConfig(), config)
    with pq.ParquetWriter(
        written, rows.schema, encryption_properties=properties, use_dictionary=False, compression="none"
    ) as writer:
        writer.write_table(rows)
    data, silent = written.read_bytes(), 0
    for at in range(200, 1600, 50):
        changed = bytearray(data)
        changed[at] ^= 1
        try:
            table = ParquetKeys(key).reading().make_fragment(pa.BufferReader(bytes(changed))).to_table()
        except OSError:
            continue
        silent += not table.equals(rows)
    assert silent > 10


def test_a_copy_that_is_not_equal_does_not_stay(
    tmp_path: Path, key: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that loses a row group."""
    source, target = plain("parquet", tmp_path), tmp_path / "sealed.parquet"
    batches, calls = encrypted_copy._batches, []

    def losing(data: TableData) -> Any:
        calls.append(1)
        return list(batches(data))[len(calls) == 1 :]

    monkeypatch.setattr(encrypted_copy, "_batches", losing)
    with pytest.raises(BadInput, match="not equal to it, and was removed"):
        encrypted_copy.encrypted_copy(source, target, key)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["key", "plain.parquet"]
