"""Makes silos/silo-<i>/ (Parquet and silo.yaml) from scikit-learn's handwritten digits: 8 unequal silos.

    pip install 'siloray[examples]' && python examples/digits/prepare.py

The same as: siloray partition digits --out examples/digits/silos --silos 8 --rule quantity --alpha 2
--min-rows 60
"""

import shutil
from pathlib import Path

from silos.tasks.owners import Scheme
from silos.tasks.partition import write_silos

OUT = Path(__file__).parent / "silos"


def main() -> None:
    """Replace the silos' folders."""
    shutil.rmtree(OUT, ignore_errors=True)
    for path in write_silos(
        "digits", OUT, num_silos=8, scheme=Scheme(name="quantity", alpha=2.0, min_rows=60)
    ):
        print(path)


if __name__ == "__main__":
    main()
