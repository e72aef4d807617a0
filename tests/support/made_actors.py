"""Silos of a test's own making as Ray actors. Without torch they are there in seconds."""

from typing import Any

from silos.actor import SiloActor
from silos.silo import Silo
from tests.support.federation import Makers


def made_actor(makers: Makers) -> type[SiloActor]:
    """For a `RayChannel` whose silos have no documents. Each process makes its silo anew."""

    class MadeActor(SiloActor):
        preload = staticmethod(lambda: None)

        def __init__(self, name: str, *given: Any) -> None:
            self._made: Any = makers[name]()
            super().__init__(name, *given)

        def _opened(self) -> Silo:
            return self._made  # type: ignore[no-any-return]

    return MadeActor
