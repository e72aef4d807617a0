"""``python -m orchestrator``: the same as the command ``siloray``."""

from orchestrator.cli.main import main

main()
