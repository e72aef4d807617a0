"""The list of samples that a job does without at this silo, and the judgement by the data contract.

``quarantine-DATASET.jsonl`` in the silo's own folder: what was found in the first line, then a line for each sample,
with its place and what is wrong with it. None of it leaves; how many there are, as the policy says. The list lies there
in the clear, so that it repeats no value of a data set that is encrypted.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from orchestrator.contract import Contract, Facts, broken
from orchestrator.core.errors import BadInput
from orchestrator.job import Job
from silos.audit import write_private
from silos.config import DatasetConfig, Policy
from silos.files import Place, stamp
from silos.inspection import Finding, Inspected


def contract_of(job: Job, config: DatasetConfig) -> Contract | None:
    """The stricter of the job's and the silo's; None where neither expects anything. Raises `BadInput`."""
    given = [each for each in (job.contract, config.contract) if each is not None]
    try:
        return given[0].stricter(given[1]) if len(given) == 2 else given[0] if given else None
    except ValueError as error:
        said = str(error).splitlines()[-1].strip()
        raise BadInput(
            f"the contracts of job and silo exclude one another: {said}", "no contract fits both"
        ) from None


class Quarantine:
    """Of one data set."""

    def __init__(self, folder: Path, dataset: str) -> None:
        """``folder``: the silo's own."""
        self.path = folder / f"quarantine-{dataset}.jsonl"

    def found(
        self,
        job: Job,
        config: DatasetConfig,
        files: Iterable[Place],
        contract: Contract,
        look: Callable[[], Inspected],
    ) -> Inspected:
        """What ``look`` finds; or found before in the same files, for the same task and contract."""
        key = _key(job, config, files, contract)
        known = self._known(key)
        if known is not None:
            return known
        found = look()
        if config.encryption is not None:
            found.findings = [each._replace(detail="") for each in found.findings]
        head = {"key": key, "job": job.name, "job_digest": job.digest, "found": found.as_json()}
        lines = [head, *(each._asdict() for each in found.findings)]
        write_private(self.path, "".join(json.dumps(each) + "\n" for each in lines))
        return found

    def judge(self, contract: Contract, found: Inspected, policy: Policy) -> None:
        """Raises `BadInput` where an expectation does not hold; with what was found as far as the policy lets it
        out."""
        sentence = broken(contract, found.facts, policy.share_counts, policy.share_labels)
        if sentence is not None:
            told = f"data contract: {sentence}"
            raise BadInput(f"{told}; {self.path} has the list" if found.findings else told, told)

    def _known(self, key: str) -> Inspected | None:
        try:
            head, *rest = map(json.loads, self.path.read_text(encoding="utf-8").splitlines())
            if head["key"] != key:
                return None
            return Inspected([Finding(**each) for each in rest], Facts(**head["found"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None


def _key(job: Job, config: DatasetConfig, files: Iterable[Place], contract: Contract) -> str:
    """Of all that the findings depend on; a file counts as the same with the same size and times."""
    about: list[Any] = [job.task.model_dump(mode="json"), contract.model_dump(mode="json")]
    about += [config.model_dump(mode="json", exclude={"encryption", "contract"})]
    about += [[str(path), split, stamp(path)] for path, split in files]
    about += [] if config.encryption is None else ["no values"]  # an older list has them: it is made anew
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
