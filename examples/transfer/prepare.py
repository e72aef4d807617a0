"""Makes silos/ (Parquet and silo.yaml): two small clinics whose images, of silo-6 and silo-7 of the digits example, are
labelled even (0) or odd (1). Each keeps 20 images for training; the others test.

    python examples/transfer/prepare.py
"""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

HERE = Path(__file__).parent
FROM = {"clinic-a": "silo-6", "clinic-b": "silo-7"}
NUM_TRAIN = 20


def main() -> None:
    """Replace the silos' folders."""
    shutil.rmtree(HERE / "silos", ignore_errors=True)
    for name, silo in FROM.items():
        folder = HERE / "silos" / name
        folder.mkdir(parents=True)
        images = pq.read_table(HERE.parent / "digits" / "silos" / silo / "data.parquet")
        split = pa.array(["train" if row < NUM_TRAIN else "test" for row in range(len(images))])
        table = pa.table(
            {"image": images["image"], "label": pc.bit_wise_and(images["label"], 1), "split": split}
        )
        pq.write_table(table, folder / "data.parquet")
        dataset = {"path": "data.parquet", "splits": {"column": "split"}}
        document = {"name": name, "datasets": {"digits": dataset}}
        (folder / "silo.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
        print(folder)


if __name__ == "__main__":
    main()
