"""`silos.lean_arrow`, in a process that has imported nothing yet."""

import subprocess
import sys
from pathlib import Path

WITHOUT_REMOVALS = """
import sys

class Finders(list):
    "Another thread that walks this list would skip a finder when one before it goes."
    def remove(self, finder): raise AssertionError("removed")
    pop = __delitem__ = __setitem__ = remove

sys.meta_path = Finders(sys.meta_path)
from silos.lean_arrow import ds
assert ds.dataset and "pandas" not in sys.modules
import pandas, pyarrow
assert pyarrow.table({"x": [1]}).to_pandas().x.sum() == 1
"""


def test_pandas_is_not_imported_and_no_other_import_is_misled() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", WITHOUT_REMOVALS], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
