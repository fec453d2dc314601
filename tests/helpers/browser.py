"""A page in a real browser: what a script finds in it after layout, and what the browser complains about."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any, List, Tuple

import pytest

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="needs a browser; after apt install chromium: make test")


def look(page: Path, *options: str) -> Tuple[Any, List[str]]:
    """Show a page, and return the value that its script left as JSON in the element ``found``, and the console.

    Args:
        page: An HTML file. The folder of the browser's profile is made beside it.
        options: More options for the browser.
    """
    command = [
        str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--enable-logging=stderr", f"--user-data-dir={page.parent / 'profile'}", *options, "--dump-dom",
        f"file://{page}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="found">(.*)</pre>', done.stdout, re.DOTALL)
    assert found, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads(unescape(found.group(1))), [line for line in done.stderr.splitlines() if "CONSOLE" in line]
