"""The preview as an HTML page, viewed in a real browser."""

import math
import re
from pathlib import Path

import numpy as np
import pytest

from ftdist.data.main import main
from ftdist.data.prepare import prepare
from ftdist.data.preview_page import html_page
from ftdist.data.preview_rows import collect_rows
from tests.helpers.browser import look, needs_browser
from tests.unit.data_tools import chat, data_config, write_jsonl

ANSWER = "<b>bold</b> & 'quoted' é"

# The browser runs this script after layout. It replaces the page with the values that the test compares.
LOOK = """
<script>
addEventListener("load", () => {
  const style = (span, name) => getComputedStyle(span)[name];
  const spans = [...document.querySelectorAll(".tokens span")];
  const found = {
    text: [...document.querySelectorAll(".tokens")].map(e => e.textContent),
    documents: [...document.querySelectorAll(".document")].map(e => e.getBoundingClientRect().top),
    trained: spans.filter(s => s.className === "t").map(s => s.textContent).join(""),
    colors: [...new Set(spans.map(s => s.className + " " + style(s, "color")))].sort(),
    shades: spans.map(s => [s.title, style(s, "backgroundColor")]),
    overflows: document.documentElement.scrollWidth > innerWidth,
  };
  document.body.innerHTML = "<pre id=found></pre>";
  document.getElementById("found").textContent = JSON.stringify(found);
});
</script>
"""


@needs_browser
def test_a_browser_shows_which_tokens_are_trained_and_which_have_a_high_loss(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", [chat("<script>alert(1)</script>?", ANSWER), chat("again", "yes")])
    config = data_config(tmp_path, f"data.sources.mine.path={source}", "name=<mine>")

    def losses(ids: np.ndarray) -> np.ndarray:
        return np.array([math.nan, *(0.0 if token < 256 else 9.0 for token in ids[1:])])

    page, text = tmp_path / "page.html", html_page(config.name, collect_rows(config, prepare(config), 1, losses), 256)
    page.write_text(text.replace("</body>", f"{LOOK}</body>"), encoding="utf-8")
    found, _ = look(page, "--window-size=400,800")
    assert len(found["documents"]) == 2
    assert found["documents"][0] != found["documents"][1]
    assert sorted(found["trained"].split("<|im_end|>")) == sorted(["yes", ANSWER, ""])
    assert any("<script>alert(1)</script>?" in text for text in found["text"])
    trained, context = (color.split(" ", 1) for color in sorted(found["colors"], reverse=True))
    assert (trained[0], context[0]) == ("t", "c")
    assert trained[1] != context[1]
    shades = dict(found["shades"])
    assert shades[""] == shades["0.00 nats"].replace("220, 60, 40", "0, 0, 0") != shades["9.00 nats"]
    assert not found["overflows"]


def test_the_page_is_one_file_without_scripts_or_links(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ftdist.config.frozen import dump_config

    source = write_jsonl(tmp_path / "a.jsonl", [chat("q", "a")])
    (tmp_path / "c.yaml").write_text(dump_config(data_config(tmp_path, f"data.sources.mine.path={source}")))
    out = tmp_path / "out.html"
    assert main(["preview", str(tmp_path / "c.yaml"), "--html", str(out)]) == 0
    assert f"written to {out}" in capsys.readouterr().out
    text = out.read_text()
    assert '<span class="t">a</span>' in text
    assert not re.search(r"<script|<link|https?:|nats", text)
