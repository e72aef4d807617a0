"""`silo.yaml` is read strictly, and a mistake costs one line."""

from pathlib import Path

import pytest

from orchestrator.core.errors import BadInput
from silos.config import ColumnSplit, ShareSplit, SplitPaths, load_silo

FULL = """
name: cleveland
datasets:
  heart:
    path: [a/*.parquet, b.parquet]
    splits: {column: fold, train: 1, test: 2}
    missing: {chol: [0], age: ['?', -9]}
    missing_rows: mean
    columns: {age: AGE}
  scans: {path: {train: scans/train, test: scans/test}, format: folder, classes: [benign, malign]}
  plain: {path: x.csv, missing: ['?', -9, 1e-5]}
policy: {allow_tasks: [tabular], allow_code: [our.models], min_cohort: 3, metrics_out: [loss],
         share_counts: false}
local: {device: 'cuda:1', batch_size: 64, workers: 2}
num_gpus: 0.5
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "silo.yaml"
    path.write_text(text)
    return path


def test_everything_is_read(tmp_path: Path) -> None:
    config = load_silo(written(tmp_path, FULL))
    heart, scans, plain = (config.datasets[name] for name in ("heart", "scans", "plain"))
    assert heart.path == ("a/*.parquet", "b.parquet")
    assert heart.splits == ColumnSplit(column="fold", train=1, test=2)
    assert heart.codes("chol") == (0,) and heart.codes("thal") == () and heart.codes("age") == ("?", -9)
    assert heart.in_file("age") == "AGE" and heart.in_file("sex") == "sex"
    assert scans.path == SplitPaths(train="scans/train", test="scans/test")
    assert plain.splits == ShareSplit() and plain.codes("anything") == ("?", -9, 1e-5)
    assert config.local.workers == 2 and config.num_gpus == 0.5 and not config.policy.share_counts


def test_little_is_needed(tmp_path: Path) -> None:
    config = load_silo(written(tmp_path, "name: a\ndatasets: {d: {path: d.csv}}"))
    assert config.policy.allow_code == () and config.policy.min_cohort == 1 and config.local.device == "auto"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("datasets: {d: {path: x}}", "name"),
        ("name: a/b\ndatasets: {d: {path: x}}", "name"),
        ("name: global\ndatasets: {d: {path: x}}", "global"),
        ("name: a\ndatasets: {}", "datasets"),
        ("name: a\ndatasets: {d: {paht: x}}", "did you mean 'path'"),
        ("name: a\ndatasets: {d: {path: x, format: xls}}", "format"),
        ("name: a\ndatasets: {d: {path: x, splits: {test_share: 1.5}}}", "test_share"),
        ("name: a\ndatasets: {d: {path: x, splits: {colum: fold}}}", "did you mean 'column'"),
        ("name: a\ndatasets: {d: {path: {train: x}}}", "test"),
        ("name: a\ndatasets: {d: {path: x}}\npolicy: {min_cohorts: 3}", "did you mean 'min_cohort'"),
        (
            "name: a\ndatasets: {d: {path: x}}\npolicy: {opening_hours: [Mon 8-17], timezone: UTC}",
            "20:00-06:00",
        ),
        ("name: a\ndatasets: {d: {path: x}}\npolicy: {opening_hours: [Mon 08:00-17:00]}", "timezone"),
        ("name: a\ndatasets: {d: {path: x}}\npolicy: {timezone: Zurich}", "no time zone 'Zurich'"),
        ("name: a\ndatasets: {d: {path: x}}\npolicy: {approval: maybe}", "approval"),
        (
            "name: a\ndatasets: {d: {path: x}}\npolicy: {require_privacy: [{nam: clip}]}",
            "did you mean 'name'",
        ),
        ("name: a\ndatasets: {d: {path: x}}\npolicy: {max_hours: 0}", "max_hours"),
        ("name: a\ndatasets: {d: {path: x}}\nlocal: {device: gpu}", "device"),
        (
            "name: a\ndatasets: {d: {path: x, missing_rows: mean, budget: {epsilon: 1, delta: 1e-5}}}",
            "means of all rows are in no budget",
        ),
        ("name: a\nname: b\ndatasets: {d: {path: x}}", "stands twice"),
    ],
)
def test_a_mistake_costs_one_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(BadInput) as caught:
        load_silo(written(tmp_path, text))
    line = str(caught.value)
    assert said in line and "\n" not in line and "silo.yaml" in line
