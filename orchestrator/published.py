"""Digests of the models that the driver published, to hold the silos' receipts against."""

import asyncio
from collections.abc import Sequence

from orchestrator.core.messages import Update
from orchestrator.core.vector import Parts, digest_of

SMALL = 1 << 16
"""Elements that are hashed at once: handing them to a thread would cost more."""


class PublishedModels:
    """By version; hashed in a thread while the silos train."""

    def __init__(self) -> None:
        self._digests: dict[int, asyncio.Future[str]] = {}

    def publish(self, version: int, parts: Parts) -> None:
        """These parts are that version. They must stay as they are until `strange` was asked of it."""
        if sum(part.size for part in parts.values()) <= SMALL:
            digest: asyncio.Future[str] = asyncio.get_running_loop().create_future()
            digest.set_result(digest_of(parts))
        else:
            digest = asyncio.ensure_future(asyncio.to_thread(digest_of, parts))
        self._digests[version] = digest

    async def strange(self, newest: int, updates: Sequence[Update]) -> Update | None:
        """The first of these updates that was trained from something else; ``newest``: version of the open round, whose
        memory is free to change afterwards."""
        wanted = {newest, *(update.version for update in updates)} & self._digests.keys()
        digests = {version: await self._digests[version] for version in wanted}
        return next((each for each in updates if each.received != digests.get(each.version)), None)
