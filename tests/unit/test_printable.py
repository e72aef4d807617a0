"""What another organisation wrote moves no cursor, ends no line and turns no text round on this side's terminals."""

import pytest

from orchestrator.cli import failures, words
from orchestrator.cli.display import Lines
from orchestrator.cli.tables import print_table
from orchestrator.core.printable import printable

EVIL = "no\x1b[2J\rthing\nsiloray: done\u202e\u2028\x9b\ud800"
TAME = r"no\x1b[2J\rthing\nsiloray: done\u202e\u2028\x9b\ud800"


def test_what_can_be_printed_stays() -> None:
    assert printable("größe 5 µm, 東京, 🙂 'quoted' \\ back") == "größe 5 µm, 東京, 🙂 'quoted' \\ back"
    assert printable(EVIL) == TAME


def test_one_line_is_printable() -> None:
    assert words.one_line("a\nb\t c\x1b[31m") == r"a b c\x1b[31m"


def test_every_way_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    failures.say(EVIL)
    Lines().tell(EVIL)
    print_table(["silo", EVIL], [["a", EVIL]], title="runs")
    seen = capsys.readouterr()
    assert seen.err == f"siloray: {TAME}\n"
    assert seen.out.startswith(f"{TAME}\n") and seen.out.count("\\x1b[2J") == 3
    assert not set("\x1b\r\u202e\u2028\x9b") & set(seen.out)
