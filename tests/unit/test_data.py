"""Tables and image folders are opened, split, identified, and refused in one line."""

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from PIL import Image

from orchestrator.core.errors import BadInput
from silos import files
from silos.config import DatasetConfig
from silos.data import TableData, open_data
from silos.image_files import ImageFolder, decode

ROOT = Path(__file__).parents[2]
ROWS = {
    "age": [63, 37, 41, 56, 57],
    "sex": ["m", "f", "f", "m", None],
    "fold": ["train", "test"] + ["train"] * 3,
}


def opened(folder: Path, **settings: Any) -> Any:
    return open_data(DatasetConfig.model_validate({"path": "*.*", **settings}), folder)


def table(folder: Path, **settings: Any) -> TableData:
    data = opened(folder, **{"splits": {"column": "fold"}, **settings})
    assert isinstance(data, TableData)
    return data


def write(kind: str, folder: Path, rows: dict[str, Any] = ROWS, name: str = "rows") -> Path:
    content, path = pa.table(rows), folder / f"{name}.{kind}"
    if kind == "parquet":
        pq.write_table(content, path, row_group_size=2)
    elif kind == "arrow":
        pyarrow.feather.write_feather(content, path, compression="uncompressed")
    else:
        pyarrow.csv.write_csv(content, path)
    return path


def png(value: int = 0, size: tuple[int, int] = (4, 6), mode: str = "L") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, value).save(file, "PNG")
    return file.getvalue()


def one_line(caught: pytest.ExceptionInfo[BadInput], *said: str) -> None:
    line = str(caught.value)
    assert "\n" not in line
    for each in said:
        assert each in line, line


@pytest.mark.parametrize("kind", ["parquet", "arrow", "csv"])
def test_every_format_gives_the_same_rows(tmp_path: Path, kind: str) -> None:
    write(kind, tmp_path)
    data = table(tmp_path)
    assert data.columns == ("age", "sex", "fold")
    assert data.rows("train").tolist() == [0, 2, 3, 4] and data.rows("test").tolist() == [1]
    columns = data.read(["age", "sex"], "train")
    assert columns["age"].numbers().tolist() == [63, 41, 56, 57]
    assert columns["sex"].levels(["f", "m"]).tolist() == [1, 0, 1, -1]
    assert data.place(4).endswith(f"rows.{kind}, row 5")


def test_several_files_count_on_and_their_types_may_differ(tmp_path: Path) -> None:
    write("parquet", tmp_path, {"x": [1, 2, 3], "fold": ["train"] * 3}, "a")
    write("parquet", tmp_path, {"fold": ["test", "train"], "x": [0.5, None]}, "b")
    data = table(tmp_path)
    assert data.starts == (0, 2, 3) and data.rows("train").tolist() == [0, 1, 2, 4]
    np.testing.assert_array_equal(data.read(["x"], "train")["x"].numbers(), [1, 2, 3, np.nan])
    assert data.place(2).endswith("a.parquet, row 3") and data.place(4).endswith("b.parquet, row 2")


def test_missing_codes_by_column_and_everywhere(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text(
        "age;chol;fold\n-9;0;train\n ? ;180;train\n 50.5 ;-9.0;train\n;1e2;train\n1;1;test\n"
    )
    everywhere = table(tmp_path, missing=["?", -9]).read(["age", "chol"], "train")
    np.testing.assert_array_equal(everywhere["age"].numbers(), [np.nan, np.nan, 50.5, np.nan])
    np.testing.assert_array_equal(everywhere["chol"].numbers(), [0, 180, np.nan, 100])
    by_column = table(tmp_path, missing={"chol": [0], "age": ["?"]}).read(["age", "chol"], "train")
    np.testing.assert_array_equal(by_column["age"].numbers(), [-9, np.nan, 50.5, np.nan])
    np.testing.assert_array_equal(by_column["chol"].numbers(), [np.nan, 180, -9, 100])


def test_a_silo_may_call_its_columns_otherwise(tmp_path: Path) -> None:
    write("parquet", tmp_path, {"ALTER": [1, 2], "fold": ["train", "test"]})
    data = table(tmp_path, columns={"age": "ALTER"})
    assert data.columns == ("age", "fold") and data.read(["age"], "train")["age"].numbers().tolist() == [1]


def test_whole_number_levels_match_however_they_are_stored(tmp_path: Path) -> None:
    rows = {"i": [2, 1], "f": [2.0, 1.0], "t": ["2", "1.0"], "d": pa.array(["2", "1"]).dictionary_encode()}
    write("parquet", tmp_path, {**rows, "b": [True, False], "fold": ["train"] * 2})
    columns = table(tmp_path).read([*rows, "b"], "train")
    assert all(columns[name].levels([1, 2]).tolist() == [1, 0] for name in rows)
    assert columns["i"].levels(["1", "2"]).tolist() == columns["f"].levels(["1", "2"]).tolist() == [1, 0]
    assert columns["b"].levels([0, 1]).tolist() == [1, 0]


def test_share_split_is_fixed_by_row_number(tmp_path: Path) -> None:
    write("parquet", tmp_path, {"x": list(range(1000))})
    short = opened(tmp_path, splits={"test_share": 0.2})
    test = set(short.rows("test").tolist())
    assert 160 < len(test) < 240 and test.isdisjoint(short.rows("train").tolist())
    write("parquet", tmp_path, {"x": list(range(1500))})
    longer = opened(tmp_path, splits={"test_share": 0.2})
    assert {row for row in longer.rows("test").tolist() if row < 1000} == test
    assert set(opened(tmp_path, splits={"test_share": 0.2, "seed": 1}).rows("test").tolist()) != test
    assert len(opened(tmp_path, splits={"test_share": 0}).rows("test")) == 0


def test_split_by_files(tmp_path: Path) -> None:
    write("csv", tmp_path, {"x": [1, 2, 3]}, "train")
    write("csv", tmp_path, {"x": [4]}, "test")
    data = opened(tmp_path, path={"train": "train.csv", "test": "test.csv"})
    assert data.read(["x"], "train")["x"].numbers().tolist() == [1, 2, 3]
    assert data.read(["x"], "test")["x"].numbers().tolist() == [4]


def test_fingerprint_knows_the_content_and_not_the_place(tmp_path: Path) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        write("parquet", tmp_path / name)
    here, there = table(tmp_path / "here").fingerprint, table(tmp_path / "there").fingerprint
    assert here == there and len(here) == 64
    assert table(tmp_path / "there", missing=[-9]).fingerprint != here
    write("parquet", tmp_path / "there", {**ROWS, "age": [63, 37, 41, 56, 58]})
    assert table(tmp_path / "there").fingerprint != here


def test_fingerprint_of_large_data_covers_both_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "HASHED_WHOLE", 10)
    path, config = tmp_path / "big", DatasetConfig(path="big")
    digests = set()
    for changed in (None, 0, -1):
        content = bytearray(3 << 20)
        if changed is not None:
            content[changed] = 1
        path.write_bytes(content)
        digests.add(files.fingerprint([files.Place(path, "")], config))
    assert len(digests) == 3


def test_images_in_a_table_are_read_across_row_groups(tmp_path: Path) -> None:
    rows = {
        "image": [png(i) for i in range(7)],
        "label": list(range(7)),
        "fold": ["train", "test"] * 3 + ["train"],
    }
    write("parquet", tmp_path, rows)
    data = table(tmp_path)
    images = data.images("train")
    assert [int(decode(images, i, 1, None)[0, 0, 0]) for i in range(len(images))] == [0, 2, 4, 6]
    assert data.labels("train", 7).tolist() == [0, 2, 4, 6] and images.blocks.tolist() == [0, 1, 2, 3]
    assert decode(images, 1, 3, (2, 3)).shape == (3, 2, 3)


def test_images_may_be_a_struct_with_bytes(tmp_path: Path) -> None:
    rows = {"image": [{"bytes": png(9), "path": "a"}, {"bytes": None, "path": "b"}], "fold": ["train"] * 2}
    write("parquet", tmp_path, rows)
    images = table(tmp_path).images("train")
    assert int(decode(images, 0, 1, None).max()) == 9
    with pytest.raises(BadInput) as caught:
        decode(images, 1, 1, None)
    one_line(caught, "row 2", "no image")


def folder_of_images(folder: Path, classes: tuple[str, ...] = ("cat", "dog"), count: int = 30) -> None:
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(count):
            (folder / name / f"{i:02}.png").write_bytes(png(i))


def test_a_folder_per_class(tmp_path: Path) -> None:
    folder_of_images(tmp_path)
    data = opened(tmp_path, path=".")
    assert isinstance(data, ImageFolder) and data.classes == ("cat", "dog")
    assert len(data.rows("train")) + len(data.rows("test")) == 60 and set(data.labels("train", 2)) == {0, 1}
    assert data.labels("train", 3, ["bird", "cat", "dog"]).min() == 1
    kept = {data.images("test").place(i) for i in range(len(data.rows("test")))}
    (tmp_path / "cat" / "aa.png").write_bytes(png())
    again = opened(tmp_path, path=".")
    assert kept <= {again.images("test").place(i) for i in range(len(again.rows("test")))}


def test_folders_for_train_and_test(tmp_path: Path) -> None:
    folder_of_images(tmp_path / "train", ("a", "b"), 3)
    folder_of_images(tmp_path / "test", ("b",), 2)
    data = opened(tmp_path, path={"train": "train", "test": "test"})
    assert data.labels("train", 2).tolist() == [0, 0, 0, 1, 1, 1] and data.labels("test", 2).tolist() == [
        1,
        1,
    ]


def test_bad_folders_cost_one_line(tmp_path: Path) -> None:
    folder_of_images(tmp_path / "images", ("a", "b"), 2)
    with pytest.raises(BadInput) as caught:
        opened(tmp_path, path="images").labels("train", 3)
    one_line(caught, "2 class folders", "3 classes")
    with pytest.raises(BadInput) as caught:
        opened(tmp_path, path="images").labels("train", 2, ["a", "c"])
    one_line(caught, "'b' is no class")
    with pytest.raises(BadInput) as caught:
        opened(tmp_path, path="images", splits={"column": "fold"})
    one_line(caught, "no columns")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput) as caught:
        opened(tmp_path, path="empty")
    one_line(caught, "no image")


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"no image at all", "unknown format"), (png()[:-20], ""), (png(5, mode="I;16"), "8 bits")],
)
def test_an_unreadable_image_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    write("parquet", tmp_path, {"image": [png(), content], "label": [0, 1], "fold": ["train"] * 2})
    with pytest.raises(BadInput) as caught:
        decode(table(tmp_path).images("train"), 1, 1, None)
    one_line(caught, "rows.parquet, row 2", reason)


def test_a_path_without_a_match(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        opened(tmp_path, path="data/*.parquet")
    one_line(caught, "data/*.parquet", "no such file")


def test_a_missing_column_names_the_nearest(tmp_path: Path) -> None:
    write("parquet", tmp_path)
    with pytest.raises(BadInput) as caught:
        table(tmp_path).read(["agee"], "train")
    one_line(caught, "rows.parquet", "no column 'agee'", "nearest is 'age'", "columns")


def test_a_second_file_without_the_column(tmp_path: Path) -> None:
    write("csv", tmp_path, {"x": [1], "fold": ["train"]}, "a")
    write("csv", tmp_path, {"y": [1], "fold": ["train"]}, "b")
    with pytest.raises(BadInput) as caught:
        table(tmp_path).read(["x"], "train")
    one_line(caught, "b.csv", "no column 'x'")


def test_no_rows_in_a_split(tmp_path: Path) -> None:
    write("parquet", tmp_path)
    with pytest.raises(BadInput) as caught:
        table(tmp_path, splits={"column": "fold", "train": "Train"}).rows("train")
    one_line(caught, "'Train'", "train, test", "splits")


def test_a_word_among_numbers_is_named_with_its_row(tmp_path: Path) -> None:
    write("csv", tmp_path, {"x": ["1", "2", "n/a"], "fold": ["train", "test", "train"]})
    with pytest.raises(BadInput) as caught:
        table(tmp_path).read(["x"], "train")["x"].numbers()
    one_line(caught, "rows.csv, row 3", "'x'", "'n/a'", "missing")


@pytest.mark.parametrize(
    ("value", "said"), [(7, "0 to 2"), (-1, "0 to 2"), (0.5, "0 to 2"), (np.inf, "infinite")]
)
def test_a_label_out_of_range(tmp_path: Path, value: float, said: str) -> None:
    write("parquet", tmp_path, {"y": [0.0, 2.0, float(value)], "fold": ["train"] * 3})
    with pytest.raises(BadInput) as caught:
        table(tmp_path).read(["y"], "train")["y"].labels(3, ())
    one_line(caught, "row 3", "'y'", said)


def test_labels_by_name_need_the_list(tmp_path: Path) -> None:
    write("parquet", tmp_path, {"y": ["no", "yes"], "fold": ["train"] * 2})
    column = table(tmp_path).read(["y"], "train")["y"]
    assert column.labels(2, ["no", "yes"]).tolist() == [0, 1]
    with pytest.raises(BadInput) as caught:
        column.labels(2, ())
    one_line(caught, "row 1", "'no'", "classes")
    with pytest.raises(BadInput) as caught:
        column.levels(["no", "maybe"])
    one_line(caught, "row 2", "'yes'", "no, maybe")


@pytest.mark.parametrize("name", ["rows.parquet", "rows.arrow"])
def test_a_damaged_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PAR1 this is no table")
    with pytest.raises(BadInput) as caught:
        table(tmp_path)
    one_line(caught, name, "cannot be read")


def test_files_of_several_formats(tmp_path: Path) -> None:
    write("csv", tmp_path)
    write("parquet", tmp_path)
    with pytest.raises(BadInput) as caught:
        table(tmp_path)
    one_line(caught, "several formats")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(BadInput) as caught:
        table(tmp_path, path="notes.txt")
    one_line(caught, "notes.txt", "unknown ending")


def test_pandas_stays_out_until_it_is_wanted(tmp_path: Path) -> None:
    path = write("parquet", tmp_path)
    program = f"""
import sys
from pathlib import Path
from silos.config import DatasetConfig
from silos.data import open_data
config = DatasetConfig.model_validate({{"path": {str(path)!r}, "splits": {{"column": "fold"}}}})
columns = open_data(config, Path(".")).read(["age", "sex"], "train")
assert columns["age"].numbers().sum() == 217 and columns["sex"].levels(["f", "m"]).sum() == 1
assert "pandas" not in sys.modules, "pandas was imported"
assert columns["age"].values.to_pandas().sum() == 217
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
