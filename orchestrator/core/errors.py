"""What can go wrong, in the words of the person who must act on it."""

WITHHELD = "something is wrong there; its own record says what"


class BadInput(ValueError):
    """A person's mistake: one line with the place and the remedy. The command line exits with 2.

    ``public``: what another organisation may read of it, without a value, a row's content or a local path. Not
    given: only that something is wrong.
    """

    def __init__(self, text: str, public: str = WITHHELD) -> None:
        super().__init__(text)
        self.public = public


class BadJob(BadInput):
    """A mistake of the job's own. Nothing of a silo's data is in the line, so that all of it may be read anywhere."""

    def __init__(self, text: str) -> None:
        super().__init__(text, text)


class SiloLost(Exception):
    """A silo did not answer: its process ended, its node is away, or it stopped making progress."""

    def __init__(self, silo: str, why: str) -> None:
        super().__init__(f"{silo}: {why}")
        self.silo = silo
        self.why = why

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        """It comes from another machine, too."""
        return type(self), (self.silo, self.why)


class CannotGoOn(Exception):
    """The run waits for something that did not come. The command line exits with 4; the run resumes."""
