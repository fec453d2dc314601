"""Write the table of faults into docs/reliability.md from the tests in tests/faults/ (`make docs`)."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- faults: generated from tests/faults/ by `make docs` -->", "<!-- end of the faults -->"
sys.path.insert(0, str(ROOT))  # the tests


def table() -> str:
    """One row for each fault, areas together."""
    from tests.faults.table import rows

    lines = ["| | fault | how it is injected | expected result | test |", "|---|---|---|---|---|"]
    area = ""
    for row in rows():
        shown = "" if row.area == area else f"**{row.area}**"
        area = row.area
        lines.append(f"| {shown} | {row.fault} | {row.injected} | {row.outcome} | `{row.test}` |")
    return "\n".join(lines)


def page() -> str:
    """The page with a fresh table; its prose is written by hand."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")
