"""Tables become tensors and figures as by hand."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from orchestrator.core.errors import BadInput
from orchestrator.core.metrics import pooled, values
from orchestrator.task import Tabular
from silos.config import DatasetConfig, load_silo
from silos.tasks.build import build
from silos.tasks.tabular import TabularTask, input_names, score_histogram
from silos.tasks.task import At

EXAMPLE = Path(__file__).parents[2] / "examples" / "heart_disease"
RAW = Path("/work/shared/data/heart_disease")
AI4I = Path("/work/shared/data/ai4i2020/ai4i2020.csv")
ROWS = {
    "age": [1.0, 2.0, 3.0, 100.0],
    "kind": ["b", "a", "c", "a"],
    "y": [0, 1, 1, 0],
    "fold": ["train", "train", "train", "test"],
}
SPEC = {
    "name": "tabular",
    "dataset": "d",
    "target": "y",
    "features": ["kind", "age"],
    "categories": {"kind": ["a", "b", "c"]},
}


def made(folder: Path, rows: dict[str, Any], silo: dict[str, Any] | None = None, **spec: Any) -> TabularTask:
    pq.write_table(pa.table(rows), folder / "rows.parquet")
    config = DatasetConfig.model_validate(
        {"path": "rows.parquet", "splits": {"column": "fold"}, **(silo or {})}
    )
    task = build(Tabular.model_validate({**SPEC, **spec}), config, folder, allow_code=[__name__])
    assert isinstance(task, TabularTask)
    return task


def all_train(task: TabularTask) -> tuple[torch.Tensor, torch.Tensor]:
    """The training rows, by their first input."""
    inputs, labels = next(iter(task.train_batches(At(0, "a", 0, 0), 1000)))
    order = torch.argsort(inputs[:, 0])
    return inputs[order], labels[order]


def test_numbers_first_then_levels_without_the_first(tmp_path: Path) -> None:
    task = made(tmp_path, ROWS, standardise=False)
    assert task.inputs == ("age", "kind=b", "kind=c")
    inputs, labels = all_train(task)
    assert inputs.tolist() == [[1, 1, 0], [2, 0, 0], [3, 0, 1]] and labels.tolist() == [0, 1, 1]
    assert inputs.dtype == torch.float32 and task.num_examples("test") == 1


def test_standardised_with_the_training_rows_alone(tmp_path: Path) -> None:
    inputs, _ = all_train(task := made(tmp_path, ROWS))
    # ages 1, 2, 3: mean 2, unbiased deviation 1; level b: mean 1/3, deviation sqrt(1/3)
    np.testing.assert_allclose(inputs[:, 0], [-1, 0, 1], atol=1e-6)
    np.testing.assert_allclose(inputs[:, 1], np.array([2, -1, -1]) / 3 / 3**-0.5, rtol=1e-6)
    np.testing.assert_allclose(next(task.test_batches(8))[0][0, 0], 98, rtol=1e-6)


def test_scaled_by_public_numbers_and_by_nothing_of_the_rows(tmp_path: Path) -> None:
    task = made(tmp_path, ROWS, standardise={"age": [2, 4]})
    inputs, _ = all_train(task)
    assert inputs.tolist() == [[-0.25, 1, 0], [0, 0, 0], [0.25, 0, 1]]
    assert next(task.test_batches(8))[0][0, 0] == (100 - 2) / 4


@pytest.mark.parametrize(
    ("scales", "said"),
    [
        ({"kind": [0, 1]}, "'kind' is not a numeric feature"),
        ({"height": [0, 1]}, "'height' is not a numeric feature"),
        ({"age": [0, 0]}, "'age' needs a finite centre, and a finite scale above 0"),
        ({"age": [0, float("inf")]}, "a finite scale"),
        ({"age": [float("nan"), 1]}, "a finite centre"),
    ],
)
def test_public_numbers_that_cannot_be(scales: dict[str, list[float]], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Tabular.model_validate({**SPEC, "standardise": scales})


def test_a_constant_input_stays_small(tmp_path: Path) -> None:
    rows = {**ROWS, "age": [0.1, 0.1, 0.1, 0.4]}
    task = made(tmp_path, rows)
    assert all_train(task)[0][:, 0].abs().max() < 1e-6
    np.testing.assert_allclose(next(task.test_batches(8))[0][0, 0], 0.3, rtol=1e-6)


def test_rows_with_gaps_are_dropped_and_counted(tmp_path: Path) -> None:
    rows = {**ROWS, "age": [1.0, -9.0, 3.0, None]}
    task = made(tmp_path, rows, {"missing": [-9]}, standardise=False)
    assert all_train(task)[0][:, 0].tolist() == [1, 3]
    assert task.num_dropped == {"train": 1, "test": 1} and task.num_examples("test") == 0
    assert list(task.test_batches(4)) == []


def test_rows_by_their_numbers_and_whom_they_are_about(tmp_path: Path) -> None:
    rows = {**ROWS, "age": [1.0, -9.0, 3.0, 4.0], "who": ["eve", "bob", "bob", "eve"]}
    task = made(tmp_path, rows, {"missing": [-9]}, standardise=False)
    batches = list(task.train_rows([torch.tensor([1, 0]), torch.tensor([1])], 0))
    assert [batch[0][:, 0].tolist() for batch in batches] == [[3, 1], [3]]
    assert task.train_groups("who").tolist() == [1, 0]  # without the row that is left out
    rows["who"][2] = None
    with pytest.raises(BadInput, match=r"row 3: column 'who' is empty"):
        made(tmp_path, rows).train_groups("who")


def test_gaps_are_filled_with_the_training_mean(tmp_path: Path) -> None:
    rows = {**ROWS, "age": [1.0, None, 4.0, None], "kind": ["b", "a", None, "a"]}
    task = made(tmp_path, rows, {"missing_rows": "mean"}, standardise=False)
    inputs, _ = all_train(task)
    assert inputs.tolist() == [[1, 1, 0], [2.5, 0, 0], [4, 0.5, 0]]
    assert next(task.test_batches(4))[0][0, 0] == 2.5 and task.num_dropped == {"train": 0, "test": 0}


def test_a_row_without_its_label_is_dropped_in_any_case(tmp_path: Path) -> None:
    task = made(tmp_path, {**ROWS, "y": [0, None, 1, 0]}, {"missing_rows": "mean"})
    assert task.num_examples("train") == 2 and task.num_dropped["train"] == 1


def test_binary_figures_by_hand(tmp_path: Path) -> None:
    task = made(tmp_path, ROWS, standardise=False)
    model = task.model()
    assert isinstance(model, nn.Linear) and model.weight.shape == (1, 3)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 0.0, 0.0]]))
        model.bias.fill_(-1.5)  # logits -0.5, 0.5, 1.5 for labels 0, 1, 1
    batch = all_train(task)
    figures = values(task.measure(model, batch))
    wanted = (np.log1p(np.exp(-0.5)) + np.log1p(np.exp(-0.5)) + np.log1p(np.exp(-1.5))) / 3
    assert figures == pytest.approx({"loss": wanted, "accuracy": 1.0, "auc": 1.0}, rel=1e-6)
    assert task.loss(model, batch).item() == pytest.approx(wanted, rel=1e-6)
    task.loss(model, batch).backward()
    assert model.weight.grad is not None


def test_several_classes_by_name(tmp_path: Path) -> None:
    rows = {**ROWS, "y": ["low", "high", "mid", "low"]}
    task = made(tmp_path, rows, num_classes=3, classes=["low", "mid", "high"])
    batch = next(task.test_batches(4))
    assert batch[1].tolist() == [0] and batch[1].dtype == torch.int64
    model = task.model()
    assert task.measure(model, batch).keys() == {"loss", "accuracy"}
    torch.testing.assert_close(
        task.loss(model, batch), nn.functional.cross_entropy(model(batch[0]), batch[1])
    )


def test_auc_of_the_histogram_is_close_to_the_exact_one() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    draw = torch.Generator().manual_seed(0)
    labels = (torch.rand(4000, generator=draw) < 0.1).float()
    scores = torch.randn(4000, generator=draw) * 2 + 1.5 * labels - 3
    exact = metrics.roc_auc_score(labels.numpy(), scores.numpy())
    assert score_histogram(scores, labels).value == pytest.approx(exact, abs=5e-4)
    parts = [{"auc": score_histogram(scores[rows], labels[rows])} for rows in torch.arange(4000).split(1300)]
    assert values(pooled(parts))["auc"] == score_histogram(scores, labels).value
    assert score_histogram(torch.tensor([float("nan"), 50.0]), torch.tensor([0.0, 1.0])).count == 2


def test_batches_are_keyed_by_the_place_alone(tmp_path: Path) -> None:
    rows = {"age": list(range(40)), "y": [0, 1] * 20, "fold": ["train"] * 39 + ["test"]}
    task = made(tmp_path, rows, features=["age"], categories={})

    def order(at: At) -> list[float]:
        return [value for batch in task.train_batches(at, 8) for value in batch[0][:, 0].tolist()]

    first = order(At(0, "a", 3, 0))
    torch.rand(5)
    assert order(At(0, "a", 3, 0)) == first and len(set(first)) == 39
    for other in (At(1, "a", 3, 0), At(0, "b", 3, 0), At(0, "a", 4, 0), At(0, "a", 3, 1)):
        assert order(other) != first and sorted(order(other)) == sorted(first)


class Net(nn.Module):
    def __init__(self, num_inputs: int, num_outputs: int = 1) -> None:
        super().__init__()
        self.layer = nn.Linear(num_inputs, num_outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


class OwnTask:
    def __init__(self, data: Any, column: str) -> None:
        self.values = data.read([column], "train")[column].numbers()


def test_own_models_and_tasks(tmp_path: Path) -> None:
    model = {"name": f"{__name__}:Net", "options": {"num_inputs": 3}}
    assert isinstance(made(tmp_path, ROWS, model=model).model(), Net)
    from orchestrator.task import OwnTask as Spec

    spec = Spec(name=f"{__name__}:OwnTask", dataset="d", options={"column": "age"})
    config = DatasetConfig.model_validate({"path": "rows.parquet", "splits": {"column": "fold"}})
    own: Any = build(spec, config, tmp_path, allow_code=[__name__])
    assert own.values.tolist() == [1, 2, 3]
    with pytest.raises(BadInput, match="allow_code"):
        build(spec, config, tmp_path)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"name": "nowhere.at_all:Net"}, "allow_code"),
        ({"name": f"{__name__}:Nothing"}, "has no 'Nothing'"),
        ({"name": f"{__name__}:Net"}, "num_inputs"),
        ({"name": f"{__name__}:Net", "options": {"num_inputs": 5}}, "shapes cannot be multiplied"),
        (
            {"name": f"{__name__}:Net", "options": {"num_inputs": 3, "num_outputs": 2}},
            "(2, 2), expected (2, 1)",
        ),
        ({"name": f"{__name__}:pytest"}, "not callable"),
    ],
)
def test_own_models_that_do_not_work_cost_one_line(tmp_path: Path, model: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput) as caught:
        made(tmp_path, ROWS, model=model).model()
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "silo", "said"),
    [
        ({"age": [1.0, 2.0, 3.0, 4.0], "kind": ["a", "z", "a", "a"]}, {}, "row 2: column 'kind' holds 'z'"),
        ({"age": [None, None, None, 4.0]}, {}, "'age' is missing in 3 of 3"),
        ({"age": [None, None, None, 4.0]}, {"missing_rows": "mean"}, "'age' has no value"),
        ({"age": ["1", "x", "2", "3"]}, {}, "row 2: column 'age' holds 'x'"),
        ({"y": [0, 1, 2, 0]}, {}, "row 3: column 'y' holds the label 2"),
    ],
)
def test_bad_rows_cost_one_line(
    tmp_path: Path, rows: dict[str, Any], silo: dict[str, Any], said: str
) -> None:
    with pytest.raises(BadInput) as caught:
        made(tmp_path, {**ROWS, **rows}, silo)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_images_are_no_table(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(b"")
    with pytest.raises(BadInput, match="needs tables"):
        build(Tabular.model_validate(SPEC), DatasetConfig(path="."), tmp_path)


def heart(hospital: str) -> TabularTask:
    from orchestrator.job import load_job

    config = load_silo(EXAMPLE / "silos" / hospital / "silo.yaml")
    task = build(load_job(EXAMPLE / "job.yaml").task, config.datasets["heart"], EXAMPLE / "silos" / hospital)
    assert isinstance(task, TabularTask)
    return task


def published_inputs(hospital: str) -> tuple[np.ndarray, np.ndarray]:
    """FLamby's 13 features and labels in file order, by its own recipe and another route than ours."""
    rows = [row for row in csv.reader((RAW / f"processed.{hospital}.data").open())]
    kept = np.array([r[:10] + r[13:] for r in rows if "?" not in r[:10] + r[13:]], dtype=float)
    numeric = kept[:, [0, 1, 3, 4, 5, 7, 8, 9]]
    dummies = [kept[:, 2] == level for level in (2, 3, 4)] + [kept[:, 6] == level for level in (1, 2)]
    features = np.column_stack([numeric, *dummies]).astype(float)
    folds = [
        row["fold"] for row in csv.DictReader((RAW / "flamby_split.csv").open()) if row["center"] == hospital
    ]
    train = np.array(folds) == "train"
    mean, deviation = features[train].mean(0), features[train].std(0, ddof=1) + 1e-9
    return ((features - mean) / deviation)[~train], (kept[:, 10] != 0)[~train]


@pytest.mark.parametrize(
    ("hospital", "train", "test"),
    [("cleveland", 199, 104), ("hungarian", 172, 89), ("switzerland", 30, 16), ("va", 85, 45)],
)
def test_heart_example_is_flambys_preparation(hospital: str, train: int, test: int) -> None:
    task = heart(hospital)
    assert (task.num_examples("train"), task.num_examples("test")) == (train, test)
    assert len(task.inputs) == 13 and task.num_dropped == {"train": 0, "test": 0}
    if not RAW.exists():
        pytest.skip(f"the original files are not in {RAW}")
    inputs, labels = next(task.test_batches(1000))
    wanted, wanted_labels = published_inputs(hospital)
    np.testing.assert_allclose(inputs.numpy(), wanted, atol=1e-5)
    np.testing.assert_array_equal(labels.numpy(), wanted_labels)


def test_input_names_follow_the_job() -> None:
    assert input_names(Tabular.model_validate(SPEC)) == ("age", "kind=b", "kind=c")


def test_ai4i_is_learnt(tmp_path: Path) -> None:
    if not AI4I.exists():
        pytest.skip(f"AI4I 2020 is not at {AI4I}")
    features = [
        "Air temperature [K]",
        "Process temperature [K]",
        "Rotational speed [rpm]",
        "Torque [Nm]",
        "Tool wear [min]",
    ]
    spec = Tabular.model_validate(
        {
            "name": "tabular",
            "dataset": "d",
            "target": "Machine_failure",
            "features": features,
            "model": {"name": "mlp"},
        }
    )
    task = build(spec, DatasetConfig(path=str(AI4I)), tmp_path)
    torch.manual_seed(0)
    model = task.model()
    assert [name for name, _ in model.named_parameters()][-1] == "head.bias"
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for epoch in range(4):
        for batch in task.train_batches(At(0, "all", 0, epoch), 32):
            optimizer.zero_grad()
            task.loss(model, batch).backward()
            optimizer.step()
    figures = values(pooled(task.measure(model, batch) for batch in task.test_batches(512)))
    assert figures["auc"] > 0.92  # the same rows give logistic regression .90 at best
