"""`pyarrow.dataset` without pandas, which it would import on the way: a second of every silo's start.

pyarrow tries pandas once, goes on without it, and tries again when something (``to_pandas``) needs it. What hides
pandas stays on ``sys.meta_path``: another thread's import that walks the list while something is taken out of it
skips a finder, and does not find a module that is there. It hides from the thread that imports this module only.
"""

import sys
import threading
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType


class _Hide(MetaPathFinder):
    from_thread: int | None = None

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if name == "pandas" and threading.get_ident() == self.from_thread:
            raise ModuleNotFoundError("pandas is not needed here", name=name)


_hide = _Hide()
_hide.from_thread = threading.get_ident()
sys.meta_path.insert(0, _hide)
try:
    import pyarrow.dataset as ds
finally:
    _hide.from_thread = None

__all__ = ["ds"]
