"""Makes silos/silo-<i>/ (Parquet and silo.yaml) from scikit-learn's handwritten digits: 8 unequal silos.

    pip install 'siloray[examples]' && python examples/digits/prepare.py

The same as: siloray partition digits --out examples/digits/silos --silos 8 --rule quantity --alpha 2
--min-rows 60; and for fedmd.yaml, where the last silo's images are public: a copy of them at every other silo, and
networks of their own at four.
"""

import shutil
from pathlib import Path

import yaml

from silos.tasks.owners import Scheme
from silos.tasks.partition import write_silos

OUT = Path(__file__).parent / "silos"
NETWORKS = {
    "silo-1": {"name": "networks:Perceptron"},
    "silo-2": {"name": "networks:Deep"},
    "silo-4": {"name": "networks:Perceptron", "options": {"width": 128}},
    "silo-5": {"name": "networks:Deep", "options": {"channels": 16}},
}


def main() -> None:
    """Replace the silos' folders."""
    shutil.rmtree(OUT, ignore_errors=True)
    for path in write_silos(
        "digits", OUT, num_silos=8, scheme=Scheme(name="quantity", alpha=2.0, min_rows=60)
    ):
        if path.parent.name != "silo-7":
            share_public(path)
        print(path)


def share_public(path: Path) -> None:
    """Give a silo the public images, and the network that it is to have where silos may differ."""
    shutil.copy(OUT / "silo-7" / "data.parquet", path.parent / "public.parquet")
    silo = yaml.safe_load(path.read_text(encoding="utf-8"))
    silo["datasets"]["digits-public"] = {"path": "public.parquet", "splits": {"column": "split"}}
    network = NETWORKS.get(silo["name"])
    if network is not None:
        silo["policy"]["allow_code"] = ["networks"]
        silo["local"] = {"model": network}
    path.write_text(yaml.safe_dump(silo, sort_keys=False), encoding="utf-8")


if __name__ == "__main__":
    main()
