"""The data contract: each expectation holds or is refused in a sentence; bad samples are left out and counted."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.at_rest import make_key
from orchestrator.contract import Contract, Facts, broken
from orchestrator.core import events
from orchestrator.core.messages import Join, Joined, Refused
from orchestrator.job import Job
from orchestrator.summary import summarise
from silos.config import DatasetConfig
from silos.configured_site import ConfiguredSite
from silos.data import open_data
from silos.encrypted_copy import encrypted_copy
from silos.files import Place
from silos.quarantine import _key
from silos.silo import Silo
from tests.support.federation import federate, journal
from tests.unit.test_data import png

TABLE = {
    "name": "tabular",
    "dataset": "d",
    "target": "y",
    "features": ["age", "kind"],
    "categories": {"kind": ["m", "f"]},
}
IMAGES = {
    "name": "image_classification",
    "dataset": "d",
    "num_classes": 2,
    "channels": 1,
    "model": {"name": "cnn"},
}
GOOD = [(str(20 + i), "mf"[i % 2], str(i // 2 % 2), "test" if i % 5 == 0 else "train") for i in range(40)]


def job(task: dict[str, Any] = TABLE, contract: dict[str, Any] | None = None, **sections: Any) -> Job:
    given = {"name": "j", "task": task, "silos": ["a"], "rounds": {"total": 1}, "local": {"steps": 1}}
    return Job.model_validate({**given, "contract": contract, **sections})


def write_rows(folder: Path, *bad: tuple[str, str, str]) -> None:
    """Forty good rows, eight of them for the test, and these for training."""
    rows = [*GOOD, *((*each, "train") for each in bad)]
    lines = ["age,kind,y,fold", *map(",".join, rows)]
    (folder / "rows.csv").write_text("\n".join(lines) + "\n")


def site(folder: Path, name: str = "a", path: str = "rows.csv", **given: Any) -> ConfiguredSite:
    policy = given.pop("policy", {})
    described = {"path": path, "splits": {"column": "fold"}, **given}
    document = {"name": name, "datasets": {"d": described}, "policy": policy}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(document))
    return ConfiguredSite(folder / f"{name}.yaml", foreign_driver=True)


def asked(made: ConfiguredSite, wanted: Job) -> Joined | Refused:
    request = Join(run_id="run", epoch=1, job=wanted.model_dump_json(), job_digest=wanted.digest)
    reply = Silo(made).handle(request)
    assert isinstance(reply, Joined | Refused)
    return reply


def refused(made: ConfiguredSite, wanted: Job) -> str:
    reply = asked(made, wanted)
    assert isinstance(reply, Refused) and reply.code == "data", reply
    assert "\n" not in reply.reason and str(made.own_folder) not in reply.reason
    return reply.reason


def listed(made: ConfiguredSite) -> list[dict[str, Any]]:
    lines = (made.own_folder / "quarantine-d.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines[1:]]


BAD = [
    (("x", "m", "0"), {}, "column 'age': a value that is no number"),
    (("inf", "m", "0"), {}, "column 'age': an infinite number"),
    (("-4e38", "m", "0"), {}, "column 'age': an infinite number"),
    (("30", "q", "0"), {}, "column 'kind': a value that is none of those that the job lists"),
    (("30", "m", "7"), {}, "column 'y': a label outside the job's classes 0 to 1"),
    (("30", "m", "yes"), {}, "column 'y': a name"),
    (("500", "m", "0"), {"age": {"max": 120}}, "column 'age': a value above 120"),
    (("-1", "m", "0"), {"age": {"min": 0}}, "column 'age': a value below 0"),
    (("30.5", "m", "0"), {"age": {"type": "integer"}}, "column 'age': a value no whole number"),
]


@pytest.mark.parametrize(("row", "columns", "reason"), BAD)
def test_a_bad_row_is_left_out_listed_and_counted(
    row: tuple[str, str, str], columns: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    write_rows(tmp_path, row)
    made = site(tmp_path)
    wanted = job(contract={"max_quarantined": 0.05, "columns": columns})
    reply = asked(made, wanted)
    assert isinstance(reply, Joined), reply
    assert reply.num_examples == {"train": 32, "test": 8}
    assert reply.quarantined == {"train": 1, "test": 0}
    (found,) = listed(made)
    assert found["reason"] == reason and found["place"].endswith("rows.csv, row 41")
    assert any(value in found["detail"] for value in row)
    few = job(contract={"max_quarantined": 0.01, "columns": columns})
    said = refused(made, few)
    assert said == (
        f"data contract: 1 of 33 train rows are quarantined ({reason}: 1); "
        "the contract allows 0.01 of them (max_quarantined)"
    )
    silent = site(tmp_path, policy={"share_counts": False})
    uniform = {"combine": {"name": "mean", "weights": "uniform"}}
    said = refused(silent, job(contract={"max_quarantined": 0.01, "columns": columns}, **uniform))
    assert "too many train rows are quarantined" in said and "33" not in said and ": 1" not in said


def test_the_list_of_an_encrypted_data_set_repeats_no_value(tmp_path: Path) -> None:
    """It lies in the clear: the place leads to the value, for who has the key. A list of before is made anew."""
    write_rows(tmp_path, ("987", "m", "0"))
    encrypted_copy(tmp_path / "rows.csv", tmp_path / "rows.parquet", make_key(tmp_path / "key"))
    made = site(tmp_path, path="rows.parquet", encryption={"key": {"file": "key"}})
    wanted = job(contract={"max_quarantined": 0.05, "columns": {"age": {"max": 120}}})
    described = made.config.datasets["d"]
    assert wanted.contract is not None
    with_values = _key(
        wanted,
        described.model_copy(update={"encryption": None}),
        _files(described, tmp_path),
        wanted.contract,
    )
    facts = {"rows": {"train": 33, "test": 8}, "quarantined": {"train": 1, "test": 0}}
    row = {"split": "train", "row": 40, "place": "row 41", "reason": "", "detail": "column 'age' holds 987"}
    listing = made.own_folder / "quarantine-d.jsonl"
    listing.parent.mkdir(parents=True)
    listing.write_text(json.dumps({"key": with_values, "found": facts}) + "\n" + json.dumps(row) + "\n")
    reply = asked(made, wanted)
    assert isinstance(reply, Joined) and reply.quarantined["train"] == 1
    (found,) = listed(made)
    assert found["reason"] == "column 'age': a value above 120" and found["place"].endswith("row 41")
    assert "987" not in listing.read_text()


def _files(described: DatasetConfig, folder: Path) -> tuple[Place, ...]:
    return open_data(described, folder).files


def test_without_a_contract_the_first_bad_row_is_refused_as_ever(tmp_path: Path) -> None:
    write_rows(tmp_path, ("x", "m", "0"))
    made = site(tmp_path)
    assert "a value that is no number" in refused(made, job())
    assert not (made.own_folder / "quarantine-d.jsonl").exists()


def test_several_reasons_in_one_row_count_once(tmp_path: Path) -> None:
    write_rows(tmp_path, ("x", "q", "9"))
    reply = asked(site(tmp_path), job(contract={"max_quarantined": 0.05}))
    assert isinstance(reply, Joined) and reply.quarantined["train"] == 1


@pytest.mark.parametrize(
    ("contract", "said"),
    [
        ({"min_rows": 35}, "34 training rows; the contract wants 35 (min_rows)"),
        ({"min_per_class": 18}, "class '0' has too few training rows; the contract wants 18"),
        ({"max_missing": 0.05}, "column 'age' is missing in 0.0588 of the training rows"),
        ({"columns": {"age": {"max_missing": 0.01}}}, "the contract allows 0.01 (max_missing)"),
        ({"columns": {"height": {"min": 0}}}, "no column 'height'"),
        ({"labels": [0, 5]}, "contract.labels: '5' is no class of the task; there are: 0, 1"),
        ({"labels": [0]}, "17 of 34 train rows are quarantined (a label outside the contract's set"),
    ],
)
def test_each_expectation(contract: dict[str, Any], said: str, tmp_path: Path) -> None:
    write_rows(tmp_path, ("", "m", "0"), ("", "f", "1"))
    made = site(tmp_path)
    assert isinstance(
        asked(made, job(contract={"min_rows": 34, "min_per_class": 17, "max_missing": 0.06})), Joined
    )
    assert said in refused(made, job(contract=contract))


def test_a_silos_own_contract_holds_as_well(tmp_path: Path) -> None:
    write_rows(tmp_path, ("130", "m", "0"))
    made = site(tmp_path, contract={"max_quarantined": 0.0, "columns": {"age": {"max": 120}}})
    assert "1 of 33 train rows" in refused(made, job())
    assert "1 of 33 train rows" in refused(made, job(contract={"max_quarantined": 0.5}))
    loose = site(tmp_path, contract={"max_quarantined": 0.5, "columns": {"age": {"max": 120}}})
    assert isinstance(asked(loose, job(contract={"max_quarantined": 0.1})), Joined)
    assert "1 of 33 train rows" in refused(loose, job(contract={"columns": {"age": {"max": 150}}}))
    neither = site(tmp_path, contract={"labels": [0]})
    assert refused(neither, job(contract={"labels": [1]})) == "no contract fits both"


# Images


def write_images(folder: Path, bad: dict[str, bytes]) -> None:
    for i in range(40):
        path = folder / "images" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(i * 5, (8, 8)))
    for name, data in bad.items():
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


BAD_IMAGES = [
    ({"a/torn.png": png(0, (8, 8))[:40]}, {}, "an image that cannot be decoded"),
    ({"a/text.png": b"no image"}, {}, "an image that cannot be decoded"),
    ({"a/big.png": png(0, (9, 8))}, {}, "an image of another size than most"),
    ({"a/rgb.png": png(0, (8, 8), "RGB")}, {"images": {"modes": ["L"]}}, "an image of another mode"),
    ({"a/big.png": png(0, (80, 8))}, {"images": {"max_size": [10, 10]}}, "an image of a size outside"),
    ({"a/small.png": png(0, (8, 2))}, {"images": {"min_size": [4, 4]}}, "an image of a size outside"),
    ({"c/new.png": png(0, (8, 8))}, {}, "a folder that is no class"),
]


@pytest.mark.parametrize(("bad", "contract", "reason"), BAD_IMAGES)
@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_in_a_folder(
    bad: dict[str, bytes], contract: dict[str, Any], reason: str, workers: int, tmp_path: Path
) -> None:
    write_images(tmp_path, bad)
    made = site(tmp_path, path="images", splits={"test_share": 0.3})
    made.config = made.config.model_copy(
        update={"local": made.config.local.model_copy(update={"workers": workers})}
    )
    wanted = job({**IMAGES, "classes": ["a", "b"]}, {"max_quarantined": 0.1, **contract})
    reply = asked(made, wanted)
    assert isinstance(reply, Joined), reply
    assert sum(reply.quarantined.values()) == 1 and sum(reply.num_examples.values()) == 40
    (found,) = listed(made)
    assert found["reason"].startswith(reason) and found["place"].endswith(next(iter(bad)))
    assert isinstance(asked(made, job({**IMAGES, "classes": ["a", "b"]}, {**contract})), Refused)


def test_bad_images_in_parquet(tmp_path: Path) -> None:
    images: list[Any] = [png(i, (8, 8)) for i in range(40)]
    labels: list[Any] = [0, 1] * 20
    images[3], images[4], labels[5], labels[6] = b"torn", None, None, 4
    folds = ["test" if i % 4 == 0 else "train" for i in range(40)]
    pq.write_table(pa.table({"image": images, "label": labels, "fold": folds}), tmp_path / "rows.parquet")
    made = site(tmp_path, path="rows.parquet")
    reply = asked(made, job(IMAGES, {"max_quarantined": 0.2}))
    assert isinstance(reply, Joined), reply
    assert reply.quarantined == {"train": 3, "test": 1} and reply.num_examples == {"train": 27, "test": 9}
    assert {each["row"]: each["reason"] for each in listed(made)} == {
        3: "an image that cannot be decoded",
        4: "a row without an image",
        5: "no label",
        6: "column 'label': a label outside the job's classes 0 to 1",
    }


def test_what_was_looked_at_is_not_looked_at_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(tmp_path, ("x", "m", "0"))
    made, looks = site(tmp_path), []
    from silos import inspection

    real = inspection.inspect
    monkeypatch.setattr(inspection, "inspect", lambda *given: looks.append(1) or real(*given))
    wanted = job(contract={"max_quarantined": 0.1})
    first = asked(made, wanted)
    assert asked(made, wanted).quarantined == first.quarantined and len(looks) == 1
    assert isinstance(asked(made, job(contract={"max_quarantined": 0.2})), Joined) and len(looks) == 2
    assert isinstance(asked(made, wanted), Joined) and len(looks) == 3
    write_rows(tmp_path)
    reply = asked(made, wanted)
    assert isinstance(reply, Joined) and reply.quarantined == {"train": 0, "test": 0} and len(looks) == 4
    made.own_folder.joinpath("quarantine-d.jsonl").write_text("{")
    assert isinstance(asked(made, wanted), Joined) and len(looks) == 5


def test_a_run_goes_on_with_what_is_left_and_says_how_much_was_left_out(tmp_path: Path) -> None:
    """Two silos, one with bad rows: the run is done, with the same bits as without those rows."""
    digests = []
    for name, bad in (("clean", []), ("bad", [("x", "m", "0"), ("40", "q", "1")])):
        folder = tmp_path / name
        folder.mkdir()
        write_rows(folder, *bad)
        sites = {each: site(folder, each) for each in "ab"}
        wanted = job(silos=["a", "b"], contract={"max_quarantined": 0.1}, rounds={"total": 2})
        ended = federate(wanted, {each: lambda made=made: Silo(made) for each, made in sites.items()}, folder)
        assert ended.outcome.status == "done"
        digests.append(ended.digest)
    assert digests[0] == digests[1]
    (joined, _) = [each for each in journal(folder) if isinstance(each, events.SiloJoined)]
    assert joined.quarantined == {"train": 2, "test": 0}
    summary = summarise(journal(folder))
    assert summary["silos"]["a"]["quarantined"] == {"train": 2, "test": 0}
    from orchestrator.cli.show import incidents

    assert "quarantined by the data contract: a: 2 train rows" in incidents(summary)


# The judgement itself


def test_contradictions_are_said_when_the_document_is_read() -> None:
    for contract, said in (
        ({"columns": {"a": {"min": 2, "max": 1}}}, "min: 2 is above max, 1"),
        ({"columns": {"a": {"values": [1], "max": 1}}}, "give 'values', or"),
        ({"columns": {"a": {"min": "nan"}}}, "finite"),
        ({"images": {"min_size": [8, 8], "max_size": [9, 7]}}, "no image is as large as min_size"),
        ({"max_quarantined": 3}, "less than or equal to 1"),
        ({"quarantine": 3}, "Extra inputs"),
    ):
        with pytest.raises(ValueError, match=said):
            Contract.model_validate(contract)
    own = {"name": "ours.tasks:Task", "dataset": "d"}
    with pytest.raises(ValueError, match=r"contract.min_per_class: the task's own class knows its labels"):
        job(own, {"min_per_class": 3})


contracts = st.builds(
    Contract,
    max_quarantined=st.sampled_from([0.0, 0.1, 0.3, 1.0]),
    min_per_class=st.sampled_from([None, 1, 5]),
    min_rows=st.sampled_from([None, 10, 50]),
    max_missing=st.sampled_from([None, 0.0, 0.2]),
)
facts = st.builds(
    lambda rows, bad, label, missing: Facts(
        {"train": rows}, {"train": min(bad, rows)}, {"r": bad}, {"0": label}, {"x": missing}
    ),
    *(st.integers(0, 60), st.integers(0, 20), st.integers(0, 9), st.floats(0, 1)),
)


@given(contracts, contracts, facts)
def test_the_stricter_of_two_allows_what_both_allow(one: Contract, other: Contract, found: Facts) -> None:
    both = one.stricter(other)
    assert (broken(both, found, True, True) is None) == (
        broken(one, found, True, True) is None and broken(other, found, True, True) is None
    )
    assert both == one.stricter(other).stricter(both)
    assert (broken(both, found, False, False) is None) == (broken(both, found, True, True) is None)


def test_numbers_of_rows_by_class_leave_where_the_owner_says_so(tmp_path: Path) -> None:
    write_rows(tmp_path)
    wanted = job(contract={"min_per_class": 1}, combine={"weights": "uniform"})
    for policy, leave in (
        ({}, False),
        ({"share_labels": True}, True),
        ({"share_labels": True, "share_counts": False}, False),
    ):
        reply = asked(site(tmp_path, policy=policy), wanted)
        assert isinstance(reply, Joined), reply
        assert reply.labels.keys() == ({"0", "1"} if leave else set())
        assert not leave or sum(reply.labels.values()) == reply.num_examples["train"]
        wants = {"contract": {"min_per_class": 99}, "combine": {"weights": "uniform"}}
        said = refused(site(tmp_path, policy=policy), job(**wants))
        has = "16 training rows" if leave else "too few training rows"
        assert said == f"data contract: class '0' has {has}; the contract wants 99 (min_per_class)"


def test_a_rule_for_images_is_refused_where_the_task_reads_none() -> None:
    with pytest.raises(ValueError, match=r"contract.images: a 'tabular' task reads no images"):
        job(contract={"images": {"modes": ["L"]}})
