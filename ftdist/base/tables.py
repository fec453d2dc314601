"""Tables in one style: no borders, numbers aligned to the right, no spaces at the end of a line."""

import re
from io import StringIO
from typing import Any, Optional

from rich.console import Console
from rich.table import Table

FILE_WIDTH = 200
"""Width in characters of a table that is written to a file. It is wide enough that no number is wrapped."""


def plain_table(*columns: str, texts: int = 1) -> Table:
    """Return an empty table.

    Args:
        columns: Headers of the columns.
        texts: Number of columns that hold text. They come first; the other columns hold numbers.
    """
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < texts else "right")
    return table


def show_table(console: Console, table: Table) -> None:
    """Print a table. In a file it is at least ``FILE_WIDTH`` characters wide."""
    show(console, table, max(console.width, FILE_WIDTH))


def show(console: Console, renderable: Any, file_width: Optional[int] = None) -> None:
    """Print a renderable that ``rich`` pads with spaces. In a file, the spaces at the end of each line are removed.

    Args:
        console: Where to print.
        renderable: What to print.
        file_width: Width in characters if the console writes to a file. By default the width of the console.
    """
    if console.is_terminal:
        console.print(renderable)
        return
    text = StringIO()
    Console(file=text, width=file_width or console.width, highlight=False).print(renderable)
    console.file.write(re.sub(r" +$", "", text.getvalue(), flags=re.MULTILINE))
