"""`pyarrow.dataset` without pandas, which it would import on the way: a second of every silo's start.

pyarrow tries pandas once, goes on without it, and tries again when something (``to_pandas``) needs it.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType


class _Hide(MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError("pandas is not needed here", name=name)


_hide = _Hide()
sys.meta_path.insert(0, _hide)
try:
    import pyarrow.dataset as ds
finally:
    sys.meta_path.remove(_hide)

__all__ = ["ds"]
