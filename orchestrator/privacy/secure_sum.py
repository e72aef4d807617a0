"""The section ``combine: {name: secure_sum}``: a sum that nobody can look into (`docs/secure_sum.md`)."""

from collections.abc import Sequence

from orchestrator.core.messages import SiloId
from orchestrator.privacy.key_exchange import exchange_keys
from orchestrator.privacy.sealing import Flow, Identity, Memory, Rules, SiloHalf, SumHeader
from orchestrator.privacy.secure_driver import open_sum
from orchestrator.privacy.secure_silo import SecureSilo
from orchestrator.privacy.secure_terms import SecureTerms


class SecureSum(SecureTerms, frozen=True):
    """Pairwise and own masks with shared keys (Bonawitz et al. 2017, CCS, "Practical secure aggregation"), with one
    exchange of keys for all sums of a cohort and keys of each sum derived from it: two messages a sum.

    The driver learns the sum and nothing else, as long as no more silos than ``colluders`` work together with it and
    three others are in the sum; silos learn nothing of one another. A silo may be lost at any time while ``enough``
    others are left.
    """

    def set_up(self, silos: Sequence[SiloId], number: int) -> Flow:
        yield from exchange_keys(silos, number)

    def open(self, header: SumHeader) -> Flow:
        return (yield from open_sum(self, header))

    def half(self, identity: Identity, memory: Memory, rules: Rules, run_id: str) -> SiloHalf:
        return SecureSilo(self, identity, memory, rules, run_id)
