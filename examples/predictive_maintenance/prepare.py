"""Makes silos/grade-{l,m,h}/*.parquet from the original file of AI4I 2020.

    python examples/predictive_maintenance/prepare.py --raw ai4i2020.csv

One file per product grade, rows in their original order; every fifth row of the original file is for testing. The
five failure modes (TWF, HDF, PWF, OSF, RNF) are kept for the curious; they are labels too, and no features.
"""

import argparse
import csv
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

HERE = Path(__file__).parent
GRADES = ("L", "M", "H")
MEASURED = {
    "air_temperature": "Air temperature [K]",
    "process_temperature": "Process temperature [K]",
    "rotational_speed": "Rotational speed [rpm]",
    "torque": "Torque [Nm]",
    "tool_wear": "Tool wear [min]",
}
FAILURES = ("TWF", "HDF", "PWF", "OSF", "RNF")


def read(path: Path) -> list[dict[str, str]]:
    """The rows; copies of the file write the label's name with a space or an underscore."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = [
            {key.replace(" failure", "_failure"): value for key, value in row.items()}
            for row in csv.DictReader(file)
        ]
    return [{**row, "fold": "train" if number % 5 else "test"} for number, row in enumerate(rows)]


def table(rows: list[dict[str, str]]) -> pa.Table:
    """Measurements as float32, ``machine_failure`` and the failure modes as 0 or 1, ``fold``."""
    columns = {
        name: pa.array([float(row[original]) for row in rows], pa.float32())
        for name, original in MEASURED.items()
    }
    failed = pa.array([int(row["Machine_failure"]) for row in rows], pa.int8())
    modes = {name.lower(): pa.array([int(row[name]) for row in rows], pa.int8()) for name in FAILURES}
    folds = pa.array([row["fold"] for row in rows])
    return pa.table({**columns, "machine_failure": failed, **modes, "fold": folds})


def main() -> None:
    """Read the arguments, write the three files."""
    parser = argparse.ArgumentParser(description="Prepare the three plants' files")
    parser.add_argument("--raw", type=Path, required=True, help="ai4i2020.csv as published")
    rows = read(parser.parse_args().raw)
    for grade in GRADES:
        own = [row for row in rows if row["Type"] == grade]
        silo = f"grade-{grade.lower()}"
        pq.write_table(table(own), HERE / "silos" / silo / f"{silo}.parquet", compression="zstd")
        print(f"grade {grade}: {len(own)} rows")


if __name__ == "__main__":
    main()
