"""Tables in a file and on a terminal."""

import io

import pytest
from rich.console import Console

from ftdist.base.tables import plain_table, show_table


@pytest.mark.parametrize("terminal", [False, True])
def test_a_table_in_a_file_has_no_trailing_spaces_and_no_wrapped_cells(terminal: bool) -> None:
    table = plain_table("set", "held in", "where", "rows", texts=3)
    table.add_row("train", "x" * 90, "here", "1,234")
    table.add_row("a longer name", "", "")
    out = io.StringIO()
    show_table(Console(file=out, width=60, force_terminal=terminal, color_system=None), table)
    lines = out.getvalue().splitlines()
    if terminal:
        assert max(map(len, lines)) <= 60
    else:
        assert [line.split() for line in lines] == [
            ["set", "held", "in", "where", "rows"], ["train", "x" * 90, "here", "1,234"], ["a", "longer", "name"],
        ]  # fmt: skip
        assert not any(line.endswith(" ") for line in lines)
