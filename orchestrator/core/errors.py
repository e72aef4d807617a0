"""What can go wrong, in the words of the person who must act on it."""


class BadInput(ValueError):
    """A person's mistake: one line with the place and the remedy. The command line exits with 2."""


class SiloLost(Exception):
    """A silo did not answer: its process ended, its node is away, or it stopped making progress."""

    def __init__(self, silo: str, why: str) -> None:
        super().__init__(f"{silo}: {why}")
        self.silo = silo
        self.why = why


class CannotGoOn(Exception):
    """The run waits for something that did not come. The command line exits with 4; the run resumes."""
