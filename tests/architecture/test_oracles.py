"""`docs/oracles.md` names a test, or a reason, for every oracle; and the tests that it names exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROWS = [
    [cell.strip() for cell in line.strip("|\n").split("|")]
    for line in (ROOT / "docs" / "oracles.md").read_text(encoding="utf-8").splitlines()
    if re.match(r"\| \d", line)
]


def test_every_oracle_has_a_row() -> None:
    spans = [[int(number) for number in row[0].split("-")] for row in ROWS]
    numbers = [number for span in spans for number in range(span[0], span[-1] + 1)]
    assert numbers == list(range(1, 49))
    assert all("`tests/" in row[2] or "applicable" in row[2] for row in ROWS)


def test_the_tests_that_it_names_exist() -> None:
    for number, _, named in ROWS:
        source = ""
        for file, test in re.findall(r"`(tests/[\w/]+\.py)?(?:::(\w+))?`", named):
            source = (ROOT / file).read_text(encoding="utf-8") if file else source
            assert not test or f"def {test}(" in source, (number, file, test)
