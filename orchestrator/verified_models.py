"""Whether silos of a version had the same model, and it is that of the checkpoint, where there is one."""

from orchestrator.chain import Chain
from orchestrator.checkpoints import Checkpoints
from orchestrator.core.errors import BadInput
from orchestrator.core.events import RunClosed
from orchestrator.core.receipts import Receipt
from orchestrator.disk import OsFileSystem
from orchestrator.job import Job
from orchestrator.model_digests import broadcast_digest, parameters_digest
from orchestrator.store import Recovered, Store
from orchestrator.verdict import Check


class Models:
    """Of one run."""

    def __init__(self) -> None:
        self.check = Check("models")
        self._received: dict[int, dict[str, str]] = {}
        """Digests of the versions that count, by silo."""

    def take(self, where: str, receipt: Receipt) -> None:
        """A silo has signed what it had."""
        had = self._received.setdefault(receipt.version, {})
        silo, digest = next(iter(had.items()), (receipt.silo, receipt.received))
        if receipt.received != digest:
            self.check.wrong.append(
                f"{where}: {receipt.silo} and {silo} had different models of version {receipt.version}"
            )
        had[receipt.silo] = receipt.received

    def rewind(self, version: int) -> None:
        """Later ones are made anew, and may be others then."""
        self._received = {each: had for each, had in self._received.items() if each <= version}

    def finish(self, store: Store, chain: Chain, job: Job | None, closed: RunClosed | None) -> list[str]:
        """Hold them against the checkpoints; what is wrong with the history that these were made after."""
        wrong, checked = list[str](), 0
        for version in Checkpoints(store.root / "checkpoints", OsFileSystem()).versions():
            found = self._checkpoint(store, version)
            if found is None:
                continue
            if found.journal_head and not chain.has(found.journal_head, found.journal_lines):
                lines = f"{found.journal_lines} lines that are not these"
                wrong.append(f"checkpoint v{version:06d} was made after {lines}")
            try:
                checked += self._held(found, job, closed)
            except (KeyError, TypeError, ValueError, AttributeError):  # whole, and of another make
                self.check.wrong.append(f"the checkpoint of version {version} is none of this job")
        self.check.found = (
            f"{len(self._received)} versions signed for, {checked} of them held against checkpoints"
        )
        return wrong

    def _checkpoint(self, store: Store, version: int) -> Recovered | None:
        try:
            found = store.kept(version)
        except BadInput as error:  # encrypted, and no key is given
            self.check.wrong.append(str(error))
            return None
        except (KeyError, TypeError, ValueError, AttributeError):  # its record has other fields
            found = None
        if found is None:
            self.check.wrong.append(f"the checkpoint of version {version} is damaged")
        return found

    def _held(self, found: Recovered, job: Job | None, closed: RunClosed | None) -> bool:
        """Whether there are receipts to hold it against."""
        version, received = found.version, self._received.get(found.version, {})
        last = closed if closed is not None and closed.version == version else None
        if last is not None and parameters_digest(found.state) != last.parameters_digest:
            self.check.wrong.append(
                f"the checkpoint of version {version} is another model than the last line says"
            )
        if not received or job is None:
            return False
        digest = broadcast_digest(job, found.state)
        for silo in sorted(silo for silo, each in received.items() if each != digest):
            self.check.wrong.append(f"{silo} had another model of version {version} than its checkpoint")
        return True
