"""Makes silos/<hospital>/<hospital>.parquet from the four original files of UCI Heart Disease.

    python examples/heart_disease/prepare.py --raw FOLDER

FOLDER holds processed.{cleveland,hungarian,switzerland,va}.data as published (see README.md). The columns
slope, ca and thal, which most hospitals did not record, are left out, and so are rows that miss another
value; what remains is kept in the original units. split.csv says which of these rows test.
"""

import argparse
import csv
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

HERE = Path(__file__).parent
HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")
RECORDED = (
    *("age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak"),
    *("slope", "ca", "thal", "num"),
)
NUMERIC = ("age", "sex", "trestbps", "chol", "fbs", "thalach", "exang", "oldpeak")
CATEGORIES = ("cp", "restecg")


def complete_rows(path: Path) -> list[dict[str, float]]:
    """The rows in file order, without the three columns and without missing values."""
    rows = []
    with path.open(newline="") as file:
        for fields in csv.reader(file):
            row = dict(zip(RECORDED, fields, strict=True))
            kept = {name: row[name] for name in (*NUMERIC, *CATEGORIES, "num")}
            if "?" not in kept.values():
                rows.append({name: float(value) for name, value in kept.items()})
    return rows


def folds(hospital: str) -> list[str]:
    """``train`` or ``test`` for each complete row."""
    with (HERE / "split.csv").open(newline="") as file:
        return [row["fold"] for row in csv.DictReader(file) if row["center"] == hospital]


def table(rows: list[dict[str, float]], fold: list[str]) -> pa.Table:
    """Numbers as float64, categories as int64, ``disease`` (0 none, 1 any narrowing), ``fold``."""
    columns = {name: pa.array([row[name] for row in rows]) for name in NUMERIC}
    columns |= {name: pa.array([int(row[name]) for row in rows]) for name in CATEGORIES}
    ordered = {name: columns[name] for name in RECORDED if name in columns}
    disease = pa.array([int(row["num"] != 0) for row in rows])
    if len(fold) != len(rows):
        raise SystemExit(f"split.csv has {len(fold)} rows, the original file {len(rows)} complete ones")
    return pa.table({**ordered, "disease": disease, "fold": pa.array(fold)})


def main() -> None:
    """Read the arguments, write the four files."""
    parser = argparse.ArgumentParser(description="Prepare the four hospitals' files")
    parser.add_argument("--raw", type=Path, required=True, help="folder with the four processed.*.data files")
    raw = parser.parse_args().raw
    for hospital in HOSPITALS:
        rows = complete_rows(raw / f"processed.{hospital}.data")
        pq.write_table(table(rows, folds(hospital)), HERE / "silos" / hospital / f"{hospital}.parquet")
        print(f"{hospital}: {len(rows)} rows")


if __name__ == "__main__":
    main()
