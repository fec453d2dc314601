"""Tables in one style: no lines, numbers at the right, no blanks at the end of a line. [light]"""

import re
from io import StringIO
from typing import Any, Optional

from rich.console import Console
from rich.table import Table

FILE_WIDTH = 200
"""Of a table in a file, which has no width of its own: no number is folded."""


def plain_table(*columns: str, texts: int = 1) -> Table:
    """An empty table; the first ``texts`` columns hold text, the others numbers."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < texts else "right")
    return table


def show_table(console: Console, table: Table) -> None:
    show(console, table, max(console.width, FILE_WIDTH))


def show(console: Console, renderable: Any, file_width: Optional[int] = None) -> None:
    """Print what rich fills up with blanks; where that is a file, without those at the end of a line."""
    if console.is_terminal:
        console.print(renderable)
        return
    text = StringIO()
    Console(file=text, width=file_width or console.width, highlight=False).print(renderable)
    console.file.write(re.sub(r" +$", "", text.getvalue(), flags=re.MULTILINE))
