"""Where the public data sets of the targets lie: ``SILORAY_DATA``, or ``shared/data`` beside the checkout."""

import os
from pathlib import Path
from typing import Any

PLACES = (os.environ.get("SILORAY_DATA"), Path(__file__).parents[3] / "shared" / "data")


def folder(name: str) -> Path:
    """The folder of a data set, whether it is there or not."""
    roots = [Path(place) for place in PLACES if place]
    return next((root / name for root in roots if (root / name).is_dir()), roots[-1] / name)


def needs(path: Path) -> Any:
    """Skips a test whose data are not on this machine."""
    import pytest  # silos import this module too

    return pytest.mark.skipif(
        not path.exists(), reason=f"{path} is not here; SILORAY_DATA names the folder of data sets"
    )
