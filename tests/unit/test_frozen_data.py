"""Data that changed since somebody saw it is refused with what changed; its rows' hashes stay, and tell no row."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from orchestrator.at_rest import Key, make_key
from orchestrator.cli.main import app
from orchestrator.core.messages import Join, Joined, Refused
from orchestrator.job import Job
from silos import manifest as manifests
from silos.config import DatasetConfig
from silos.configured_site import ConfiguredSite
from silos.data import open_data
from silos.encrypted_copy import encrypted_copy
from silos.manifest import difference, manifest_of
from silos.row_hashes import row_hashes
from silos.silo import Silo
from tests.unit.test_data import png

KEY = Key(b"s" * 32)
TABLE = {"name": "tabular", "dataset": "d", "target": "y", "features": ["x"]}
IMAGES = {
    "name": "image_classification",
    "dataset": "d",
    "num_classes": 2,
    "channels": 1,
    "model": {"name": "cnn"},
}
ROWS = {"x": list(range(20)), "y": [0, 1] * 10}


def job(task: dict[str, Any] = TABLE) -> Job:
    return Job.model_validate(
        {"name": "j", "task": task, "silos": ["a"], "rounds": {"total": 1}, "local": {"steps": 1}}
    )


def write_rows(folder: Path, rows: dict[str, Any] = ROWS, name: str = "rows.parquet") -> None:
    path = folder / name
    if path.suffix == ".parquet":
        pq.write_table(pa.table(rows), path, row_group_size=7)
    elif path.suffix == ".arrow":
        pyarrow.feather.write_feather(pa.table(rows), path, compression="uncompressed")
    else:
        lines = [",".join(rows), *(",".join(map(str, row)) for row in zip(*rows.values(), strict=True))]
        path.write_text("\n".join(lines) + "\n")


def write_images(folder: Path) -> None:
    for i in range(20):
        (folder / "images" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        (folder / "images" / "ab"[i % 2] / f"{i}.png").write_bytes(png(i * 9, (8, 8)))


def site(
    folder: Path, path: str = "rows.*", dataset: dict[str, Any] | None = None, **policy: Any
) -> ConfiguredSite:
    described = {"path": path, "splits": {"test_share": 0.3}, **(dataset or {})}
    document = {"name": "a", "datasets": {"d": described}, "policy": policy}
    (folder / "silo.yaml").write_text(yaml.safe_dump(document))
    return ConfiguredSite(folder / "silo.yaml", foreign_driver=True)


def asked(made: ConfiguredSite, wanted: Job) -> Joined | Refused:
    request = Join(run_id="run", epoch=1, job=wanted.model_dump_json(), job_digest=wanted.digest)
    reply = Silo(made).handle(request)
    assert isinstance(reply, Joined | Refused)
    return reply


def cli(folder: Path, *line: str) -> tuple[int, str]:
    ended = CliRunner().invoke(app, [*line, "--silo", str(folder / "silo.yaml")])
    return ended.exit_code, ended.output


def approve(folder: Path, wanted: Job) -> str:
    (folder / "job.yaml").write_text(yaml.safe_dump(wanted.model_dump(mode="json")))
    code, said = cli(folder, "approve", str(folder / "job.yaml"), "--yes")
    assert code == 0, said
    return said


def edit(path: Path, change: Callable[[dict[str, list[Any]]], None]) -> None:
    rows = pq.read_table(path).to_pydict()
    change(rows)
    path.unlink()  # what is mapped stays as it is
    pq.write_table(pa.table(rows), path, row_group_size=7)


def put(name: str, at: int, value: Any) -> Callable[[dict[str, list[Any]]], None]:
    return lambda rows: rows[name].__setitem__(at, value)


def drop(at: int) -> Callable[[dict[str, list[Any]]], None]:
    return lambda rows: [each.pop(at) for each in rows.values()] and None


def add(rows: dict[str, list[Any]]) -> None:
    rows["x"].insert(3, 99)
    rows["y"].insert(3, 1)


def swap(rows: dict[str, list[Any]]) -> None:
    for each in rows.values():
        each[0], each[1] = each[1], each[0]


@pytest.mark.parametrize(
    ("change", "said", "places"),
    [
        (put("x", 5, 77), "1 row changed", [("changed", 6)]),
        (put("y", 5, 0), "1 row changed", [("changed", 6)]),
        (drop(4), "1 row removed", [("removed", 5)]),
        (add, "1 row added", [("added", 4)]),
        (lambda rows: (add(rows), drop(9)(rows), drop(9)(rows)), "1 row removed, 1 changed", None),
        (swap, "rows stand in another order or file", []),
        (lambda rows: rows.update(z=[1] * 20), "20 rows changed; column 'z' is new", None),
        (
            lambda rows: rows.update(x=[float(x) for x in rows["x"]]),
            "column 'x' is of type double, was int64",
            None,
        ),
    ],
)
def test_a_table_that_changed_after_the_approval(
    change: Callable[[dict[str, list[Any]]], None],
    said: str,
    places: list[tuple[str, int]] | None,
    tmp_path: Path,
) -> None:
    write_rows(tmp_path)
    made = site(tmp_path, approval="required")
    approve(tmp_path, job())
    first = asked(made, job())
    assert isinstance(first, Joined) and first.fingerprint == made.manifest("d").digest
    edit(tmp_path / "rows.parquet", change)
    reply = asked(made, job())
    assert isinstance(reply, Refused) and reply.code == "data"
    assert (
        reply.reason.startswith("data set 'd' changed since the job was approved: ") and said in reply.reason
    )
    assert reply.reason.endswith("run 'siloray approve job.yaml' at the silo again")
    assert str(tmp_path) not in reply.reason
    lines = (made.own_folder / "difference-d.jsonl").read_text().splitlines()
    if places is not None:
        found = [json.loads(line) for line in lines]
        assert [(each["what"], each["row"]) for each in found] == places
        assert all(each["file"] == "rows.parquet" for each in found)
    assert "since then: " in approve(tmp_path, job())
    assert isinstance(asked(made, job()), Joined)


def test_without_counts_nothing_is_told_of_how_many(tmp_path: Path) -> None:
    write_rows(tmp_path)
    made = site(tmp_path, approval="required", share_counts=False)
    wanted = job().model_copy(update={"combine": job().combine.model_copy(update={"weights": "uniform"})})
    approve(tmp_path, wanted)
    edit(tmp_path / "rows.parquet", drop(4))
    reply = asked(made, wanted)
    assert isinstance(reply, Refused) and "approved: rows removed; run" in reply.reason


def change_image(folder: Path) -> None:
    (folder / "a" / "0.png").write_bytes(png(200, (8, 8)))


def remove_image(folder: Path) -> None:
    (folder / "a" / "2.png").unlink()


def add_image(folder: Path) -> None:
    (folder / "b" / "new.png").write_bytes(png(3, (8, 8)))


def relabel_image(folder: Path) -> None:
    (folder / "a" / "4.png").rename(folder / "b" / "4.png")


def rename_image(folder: Path) -> None:
    (folder / "a" / "4.png").rename(folder / "a" / "44.png")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (change_image, "1 row changed"),
        (remove_image, "1 row removed"),
        (add_image, "1 row added"),
        (relabel_image, "1 row added, 1 removed"),
        (rename_image, "another order or file"),
    ],
)
def test_a_folder_of_images_that_changed(change: Callable[[Path], None], said: str, tmp_path: Path) -> None:
    write_images(tmp_path)
    made = site(tmp_path, "images", approval="required")
    assert "20 rows in 20 files, classes a, b" in approve(tmp_path, job(IMAGES))
    assert isinstance(asked(made, job(IMAGES)), Joined)
    change(tmp_path / "images")
    reply = asked(made, job(IMAGES))
    assert isinstance(reply, Refused) and said in reply.reason


@pytest.mark.parametrize("folder", ["images/a", "tables"])
def test_a_name_that_is_not_utf_8_costs_one_line(folder: str, tmp_path: Path) -> None:
    """Of an archive made elsewhere: no digest and no message can hold it."""
    write_images(tmp_path)
    (tmp_path / "tables").mkdir()
    write_rows(tmp_path / "tables")
    (old,) = list((tmp_path / folder).iterdir())[:1]
    old.rename(old.with_name(os.fsdecode(b"m\xfcller") + old.suffix))
    made = site(tmp_path, folder.partition("/")[0], freeze="required")
    code, said = cli(tmp_path, "silo", "freeze")
    assert code == 2 and said.count("\n") == 1 and said.endswith("a name that is not UTF-8; rename it\n")
    reply = asked(made, job(IMAGES if "/" in folder else TABLE))
    assert isinstance(reply, Refused) and reply.reason.endswith("a file's name is not UTF-8")


def test_images_in_encrypted_parquet(tmp_path: Path) -> None:
    """A new encryption of the same rows is no change; another image is."""
    rows = {"image": [png(i, (8, 8)) for i in range(20)], "label": [0, 1] * 10}
    key = make_key(tmp_path / "key")
    pq.write_table(pa.table(rows), tmp_path / "plain.pq.parquet")
    encrypted_copy(tmp_path / "plain.pq.parquet", tmp_path / "rows.parquet", key)
    made = site(tmp_path, dataset={"encryption": {"key": {"file": "key"}}}, approval="required")
    approve(tmp_path, job(IMAGES))
    (tmp_path / "rows.parquet").unlink()
    encrypted_copy(tmp_path / "plain.pq.parquet", tmp_path / "rows.parquet", key)
    assert isinstance(asked(made, job(IMAGES)), Joined)
    rows["image"][3] = png(99, (8, 8))
    pq.write_table(pa.table(rows), tmp_path / "other.pq.parquet")
    (tmp_path / "rows.parquet").unlink()
    encrypted_copy(tmp_path / "other.pq.parquet", tmp_path / "rows.parquet", key)
    reply = asked(made, job(IMAGES))
    assert isinstance(reply, Refused) and "1 row changed" in reply.reason


@pytest.mark.parametrize("name", ["rows.csv", "rows.arrow", "rows.parquet"])
def test_freeze_without_approvals(name: str, tmp_path: Path) -> None:
    write_rows(tmp_path, name=name)
    made = site(tmp_path, freeze="required")
    reply = asked(made, job())
    assert isinstance(reply, Refused) and "run 'siloray silo freeze' at the silo" in reply.reason
    assert cli(tmp_path, "silo", "freeze", "--check")[0] == 1
    code, said = cli(tmp_path, "silo", "freeze")
    assert code == 0 and "20 rows in 1 file, 2 columns" in said
    assert cli(tmp_path, "silo", "freeze", "--check")[0] == 0
    assert isinstance(asked(made, job()), Joined)
    (tmp_path / name).unlink()
    write_rows(tmp_path, {"x": [*range(19), 5], "y": [0, 1] * 10}, name)
    code, said = cli(tmp_path, "silo", "freeze", "--check", "d")
    assert code == 1 and "1 row changed" in said
    reply = asked(made, job())
    assert isinstance(reply, Refused) and "since the data was frozen: 1 row changed" in reply.reason
    assert cli(tmp_path, "silo", "freeze", "nothing")[0] == 2


def test_rules_for_reading_are_part_of_it_and_keys_are_not(tmp_path: Path) -> None:
    write_rows(tmp_path)
    site(tmp_path, approval="required")
    approve(tmp_path, job())
    made = site(tmp_path, dataset={"missing": [-9]}, approval="required")
    reply = asked(made, job())
    assert isinstance(reply, Refused) and "'missing' in silo.yaml changed" in reply.reason
    made = site(tmp_path, dataset={"contract": {"max_quarantined": 0.5}}, approval="required")
    assert isinstance(asked(made, job()), Joined)


def test_a_file_that_did_not_change_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(tmp_path, name="rows.1.parquet")
    write_rows(tmp_path, name="rows.2.parquet")
    made, read = site(tmp_path, freeze="required"), []
    real = manifests.row_hashes
    monkeypatch.setattr(manifests, "row_hashes", lambda batch, key: read.append(1) or real(batch, key))
    first = made.manifest("d")
    times = len(read)
    assert made.manifest("d") == first and len(read) == times > 0
    edit(tmp_path / "rows.2.parquet", put("x", 0, 5))
    assert made.manifest("d").digest != first.digest and len(read) == times + times // 2


def test_the_digest_depends_on_the_silos_secret_and_holds_no_row(tmp_path: Path) -> None:
    write_rows(tmp_path)
    data = open_data(DatasetConfig(path="rows.parquet"), tmp_path)
    one, other = manifest_of(data, KEY), manifest_of(data, Key(b"o" * 32))
    assert one.digest != other.digest and not set(one.entries[0].rows()) & set(other.entries[0].rows())
    assert manifest_of(data, KEY).digest == one.digest
    made = site(tmp_path, freeze="required")
    made.manifest("d")
    for path in (made.own_folder / "manifest.key", made.own_folder / "manifests" / "d.jsonl"):
        assert path.stat().st_mode & 0o777 == 0o600


def test_moved_files_and_the_same_rows_in_two_files(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write_rows(tmp_path / folder)
    found = [
        manifest_of(open_data(DatasetConfig(path=f"{each}/*.*"), tmp_path), KEY) for each in ("one", "two")
    ]
    assert found[0].digest == found[1].digest
    write_rows(tmp_path / "two", name="second.parquet")
    more = manifest_of(open_data(DatasetConfig(path="two/*.*"), tmp_path), KEY)
    changed = difference(found[0], more)
    assert (changed.added, changed.removed, changed.changed) == (20, 0, 0)


def test_values_cannot_run_into_one_another() -> None:
    """Neither over columns, nor through nulls, types that are nested, or categories."""

    def hashed(**columns: Any) -> bytes:
        return row_hashes(pa.table({name: [value] for name, value in columns.items()}), b"k")

    rows = [
        hashed(a="ab", b="c"),
        hashed(a="a", b="bc"),
        hashed(a="", b="abc"),
        hashed(a=None, b="abc"),
        hashed(a="-", b="abc"),
        hashed(a="1", b="2345678901x"),
        hashed(a="11234567890", b="x"),
        hashed(a={"x": "ab", "y": None}, b="c"),
        hashed(a={"x": "a", "y": "b"}, b="c"),
        hashed(a=["a", "b"], b="c"),
        hashed(a=[], b="c"),
    ]
    assert len(set(rows)) == len(rows)
    plain, coded = pa.array(["x", None, "y"]), pa.array(["x", None, "y"]).dictionary_encode()
    assert row_hashes(pa.table({"a": plain}), b"k") == row_hashes(pa.table({"a": coded}), b"k")
    sliced = pa.table({"a": list(range(10))}).slice(3, 4)
    assert row_hashes(sliced, b"k") == row_hashes(pa.table({"a": [3, 4, 5, 6]}), b"k")
