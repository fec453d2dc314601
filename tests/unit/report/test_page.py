"""The page of the report: its facts, hostile texts that stay texts, and what is seen in a real browser."""

import copy
import json
import re
from pathlib import Path
from typing import Any, Dict, List

from ftdist.plan.goodput import Goodput
from ftdist.report.build import public_files
from ftdist.report.compare import compared, comparison, different_settings, pareto
from ftdist.report.markdown import comparison_as_markdown, plain
from ftdist.report.page_compare import compare_page
from ftdist.report.page_run import run_page
from ftdist.report.summary import gains_of, headline
from ftdist.run.rundir import RunDir
from tests.helpers.browser import look, needs_browser
from tests.unit.report.test_markdown import REPORT

ATTACK = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&\x1b\u202e"
FORGETTING = {
    "curve": [[0, 0.0, 0.0], [2, 0.1, 0.02], [4, 0.25, 0.03]], "warning": f"forgetting outruns gain {ATTACK}",
}  # fmt: skip
GAIN = {
    "documents": 64, "tokens": 5120, "before": {"value": 3.0, "low": 2.9, "high": 3.1},
    "after": {"value": 1.5, "low": 1.4, "high": 1.6}, "change": {"value": -1.5, "low": -1.6, "high": -1.4},
}  # fmt: skip
DATA = {
    "sources": {f"docs {ATTACK}": {"documents": 4635, "tokens": 464664, "trained": 228338, "dropped": 2}},
    "warnings": [ATTACK], "sample": [[f"question {ATTACK}", False], ["the answer", True]],
}  # fmt: skip
DOCUMENTS = {ATTACK: {kind: [{"text": ATTACK * 3, "tokens": 9, "before": 3.0, "after": "nan", "change": -2.0}] * 3
                      for kind in ("gained", "lost")}}  # fmt: skip
WORDS = {"missing": "", "min_times": 5, "sets": {ATTACK: {
    **{kind: [{"word": ATTACK * 3, "times": 9, "tokens": 9, "before": 3.0, "after": "nan", "change": "nan",
               "each": -2.0, "total": -18.0}] * 3 for kind in ("gained", "lost", "gained_each", "lost_each")},
    "rarity": [{"group": "never", "words": 1, "times": 9, "tokens": 9, "before": 3.0, "after": 1.0, "change": -2.0}],
    "roles": [{"role": "tool call", "documents": 9, "tokens": 9, **{part: {"value": "nan", "low": "nan", "high": "nan"}
               for part in ("before", "after", "change")}}], "documents": 9, "all": 9}}}  # fmt: skip
HOST = """<body style="margin:0">{frames}<script>
addEventListener("load", () => {{
  const found = [...document.querySelectorAll("iframe")].map(frame => {{
    const page = frame.contentDocument, all = name => [...page.querySelectorAll(name)];
    const style = frame.contentWindow.getComputedStyle(page.body);
    return {{
      text: page.body.textContent, ink: style.color, paper: style.backgroundColor,
      overflow: page.documentElement.scrollWidth - frame.contentWindow.innerWidth,
      wide: all("body *").filter(e => !e.closest(".wrap") && e.getBoundingClientRect().right > 376)
        .map(e => e.outerHTML),
      charts: all("svg").map(e => [e.querySelector("title").textContent, e.getBoundingClientRect().height]),
      small: Math.min(...all("svg text").map(e => e.getBoundingClientRect().height)),
      outside: all("svg text").filter(e => {{
        const box = e.getBoundingClientRect(), svg = e.closest("svg").getBoundingClientRect();
        return box.left < svg.left - 1 || box.right > svg.right + 1 || box.bottom > svg.bottom + 1;
      }}).map(e => e.textContent),
      lines: all("path.line").map(e => frame.contentWindow.getComputedStyle(e).stroke),
    }};
  }});
  document.body.innerHTML = "<pre id=found></pre>";
  document.getElementById("found").textContent = JSON.stringify(found);
}});
</script></body>"""


def hostile(**changes: Any) -> Dict[str, Any]:
    """Return a report with everything in it, whose texts from outside try to be HTML."""
    report: Dict[str, Any] = copy.deepcopy(REPORT) | {
        "run": ATTACK, "reason": ATTACK, "folder": f"/runs/{ATTACK}", "train": [[1, 2.9], [2, "nan"], [3, 2.7]],
        "heldout": {f"docs {ATTACK}": [[0, 3.0], [2, 2.0], [4, 1.5]]}, "forgetting": FORGETTING,
        "gain": {f"docs {ATTACK}": GAIN}, "general": {ATTACK: GAIN},
        "general_losses": {ATTACK: [[0, 2.0], [9, 2.25]]}, "documents": DOCUMENTS, "words": WORDS,
        "data": DATA,
        "faults": [ATTACK],
        "answers": [dict.fromkeys(("question", "before", "after", "reference"), ATTACK)],
        "settings": [{"key": f"data.{ATTACK}", "value": {"a": ATTACK}, "default": None}],
    }  # fmt: skip
    report["commands"] |= {"repeat": ATTACK, "folder": ATTACK, "packages": {"torch": ATTACK}}
    report["moved"]["map"] = {"layers": [*range(40)], "modules": ["q_proj", ATTACK],
                              "values": [[0.01 * layer, None] for layer in range(40)]}  # fmt: skip
    report["moved"]["tensors"][0]["name"] = report["moved"]["tokens"][0]["text"] = ATTACK
    return report | changes


def test_the_gain_of_several_sets_is_that_of_metrics_jsonl() -> None:
    points = {"a": [[0, 3.0], [2, 2.5], [4, 2.0]], "b": [[0, 2.0], [2, 2.0], [4, 2.0]]}
    report = hostile(heldout=points, gains=[[2, 0.125], [4, 0.25]])
    assert gains_of(report) == ("all held-out sets", {0: 0.0, 2: 0.125, 4: 0.25}) and headline(report)["gain"] == 0.25
    assert "at the last one the gain is 0.25 and the forgetting 0.25" in run_page(report)
    assert gains_of(report | {"gain_of": "b"})[0] == "b"
    assert gains_of(report | {"gains": []}) == ("a", {0: 0.0, 2: 0.5, 4: 1.0}), "a run of an earlier version"
    assert gains_of(report | {"heldout": {"a": [[2, 2.5], [4, 2.0]]}}) == ("", {}), "not measured before the first step"


def tags(page: str) -> List[str]:
    return re.findall(r"<\s*([a-zA-Z]+)", page)


def test_the_page_has_the_facts_of_the_report() -> None:
    page = run_page(hostile(heldout={"docs": [[0, 3.0], [4, 1.5]]}, gain={"docs": GAIN}))
    for fact in (
        "went from 3.0000 to 1.5000 (-50.0 %; 95 % interval of the change: -1.6000 to -1.4000 nats per token)",
        "On texts that the base model wrote, the model at step 4 differs from it by 0.2500 ± 0.0300 nats",
        "moved by 1.23 % of the norm", "+1.5000", "<td class=\"short\">464,664</td>", "<mark>the answer</mark>",
        "lost 10 %", "queue 33.3 %", "<td class=\"short\">1,333,333</td>", "2e+12 (published:", "KL(base ‖ now)",
        "80.0 % (49.0 to 94.3)", "quiz&lt;b&gt;", "0 to 9", "&gt; 256", "ftdist resume x",
        "rank 0 spent 9.0 s (6 %) of the steps in agreement, where",
    ):  # fmt: skip
        assert fact in page, fact


def test_what_was_not_measured_is_said() -> None:
    report = hostile(forgetting=None, gain={}, general={}, documents={}, moved=None, data=None,
                     words={"sets": {}, "min_times": 5, "missing": "nothing was evaluated"})  # fmt: skip
    report |= {"heldout": {}, "train": [], "answers": [], "faults": [], "step": None, "max_steps": None, "tokens": None}
    report["goodput"] = Goodput().as_dict() | {"waiting_s": None}
    page = run_page(report)
    assert (
        " before its first step." in page
        and "Forgetting: not measured." in page
        and "Forgetting was not measured." in page
    )
    assert "Not known: nothing was evaluated." in page
    assert "Not compared: ftdist report RUN_DIR" in page and "Where the time went is not known." in page
    assert 'id="data"' not in page and 'id="answers"' not in page and "<p>None.</p>" in page
    assert headline(report) == {"gain": None, "forgetting": None, "goodput": None, "device_hours": 2.0, "cost": 5.0,
                                "energy_kwh": None}  # fmt: skip


def test_losses_that_are_not_finite_are_said() -> None:
    """They were measured: the model has diverged."""
    page = run_page(hostile(heldout={"docs": [[0, 3.0], [4, "nan"]]}, gain={},
                            forgetting={"curve": [[0, 0.0, 0.0], [4, "nan", "nan"]], "warning": None}))  # fmt: skip
    assert page.count(">not finite<") == 2 and "not measured" not in page
    assert "The held-out loss of docs went from 3.0000 to nan." in page and "nan %" not in page


def test_hostile_texts_are_texts_and_the_page_needs_nothing_else() -> None:
    for page in (run_page(hostile()), compare_page(ATTACK, [hostile(), hostile()], ["a", ATTACK], [ATTACK, "b"])):
        assert not {"script", "img", "link", "iframe", "object"} & {tag.lower() for tag in tags(page)}
        assert not re.search(r"\s(on\w+|style|src)\s*=", re.sub(r">[^<]*<", "><", page))
        assert "\x1b" not in page and "\u202e" not in page and r"\u202e" in page
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
        policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
        assert policy and policy[1].startswith("default-src 'none'; style-src 'sha256-")
        assert not re.search(r"url\(|@import|https?:", page.replace("https://arxiv.org/abs/2502.02737", ""))


def test_what_is_published_has_no_texts_of_the_data(tmp_path: Path) -> None:
    private = [{"text": "a private text", "tokens": 9, "before": 3.0, "after": 1.0, "change": -2.0}]
    words = copy.deepcopy(WORDS)
    words["sets"][ATTACK]["gained"][0]["word"] = "a private text"
    report = hostile(documents={"docs": {"gained": private, "lost": private}}, words=words,
                     data=DATA | {"sample": [["a private text", True]]})  # fmt: skip
    assert run_page(report).count("a private text") == 6
    files = public_files(RunDir(tmp_path), report)
    assert sorted(files) == ["report.html", "report.json"] and "a private text" not in "".join(files.values())


def test_runs_are_compared_with_intervals_and_their_best_trade_offs() -> None:
    runs = [hostile(heldout={"docs": [[0, 3.0], [4, loss]]}, gain={"docs": GAIN}, forgetting=FORGETTING | {
        "curve": [[0, 0.0, 0.0], [4, lost, 0.01]]}, settings=[{"key": "optim.lr", "value": rate, "default": 1e-5}])
        for loss, lost, rate in [(2.0, 0.3, 1e-4), (2.5, 0.1, 1e-5), (2.2, 0.4, 1e-4)]]  # fmt: skip
    rows = compared(runs, ["a", "b", "c"])
    change = "-33.3 % (-53.3 to -46.7 %)"
    assert rows[0] == ["a", "done", "docs", "3.0000", "2.0000", change, "0.3000 ± 0.0100", "1.23 %", "50 %", "2"]
    assert compared([runs[0] | {"heldout": {}, "state": "failed"}], ["x"]) == [
        ["x", "failed", *["–"] * 4, "0.3000 ± 0.0100", "1.23 %", "50 %", "2"]
    ], "a run without held-out data has a row"
    found = comparison(runs, ["a", "b", "c"])
    assert found["best_trade_offs"] == ["b", "a"] and found["settings"] == {"optim.lr": [0.0001, 1e-5, 0.0001]}
    assert found["runs"][1].items() >= {"name": "b", "gain": 0.5, "forgetting": 0.1, "forgetting_error": 0.01}.items()
    text = comparison_as_markdown("sw<e>ep", runs, ["a", "b", "c*"])
    assert "# sw&lt;e&gt;ep: 3 runs\n" in text and "| optim.lr | 0.0001 | 1e\\-05 | 0.0001 |" in text
    assert rf"| a | done | docs | 3.0000 | 2.0000 | {plain(change)} |" in text
    assert "No other run beats these in both gain and forgetting: b, a." in text
    assert different_settings(runs) == [["optim.lr", "0.0001", "1e-05", "0.0001"]]
    page = compare_page("sweep", runs, ["a", "b", "c"], ["a/report.html", "b c.html", "c.html"])
    assert "The best trade-offs: b: gain 0.5, forgetting 0.1; a: gain 1, forgetting 0.3." in page
    assert 'href="b%20c.html"' in page and "1e-05" in page
    assert pareto([None, (1.0, 1.0), (0.5, 1.0), (2.0, 3.0), (3.0, 3.0)]) == [2, 3] and not pareto([None])


def test_the_chart_of_many_runs_says_how_many_it_leaves_out() -> None:
    names = [f"run {number}" for number in range(14)]
    page = compare_page("many", [hostile(heldout={"docs": [[0, 3.0], [4, 2.0]]})] * 14, names, names)
    assert "Held-out loss of docs over steps. 2 more runs are in the table." in page
    assert "in the table" not in compare_page("few", [hostile()] * 12, names[:12], names[:12])


@needs_browser
def test_a_browser_shows_the_pages_on_a_phone_in_light_and_dark_without_a_complaint(tmp_path: Path) -> None:
    (tmp_path / "run.html").write_text(run_page(hostile()), encoding="utf-8")
    runs = [hostile(heldout={"docs": [[0, 3.0], [4, 2.0 + n / 4]]}) for n in range(3)]
    (tmp_path / "all.html").write_text(
        compare_page("x" * 80, runs, ["a", "b", "c" * 60], ["a", "b", "c"]), encoding="utf-8"
    )
    frames = "".join(
        f'<iframe src="{page}.html" style="width:375px;height:800px;border:0;color-scheme:{scheme}"></iframe>'
        for page, scheme in (("run", "light"), ("run", "dark"), ("all", "light"))
    )
    host = tmp_path / "host.html"
    host.write_text(f"<!doctype html>{HOST.format(frames=frames)}", encoding="utf-8")
    found, console = look(host, "--allow-file-access-from-files")  # so that the script may look into the frames
    assert console == []
    light, dark, compared_runs = found
    for page in found:
        assert page["overflow"] <= 0 and page["wide"] == [] and page["outside"] == []
        assert page["charts"] and all(height > 50 for _, height in page["charts"]) and page["small"] > 10
    assert "<script>alert(1)</script>" in light["text"] and len(light["charts"]) == 5
    assert [title for title, _ in compared_runs["charts"]] == ["Gain against forgetting", "Held-out loss of docs"]
    shades = [sum(map(int, re.findall(r"\d+", page[name]))) for page in (light, dark) for name in ("ink", "paper")]
    assert shades[0] < 250 < 700 < shades[1] and shades[3] < 250 < 650 < shades[2], json.dumps(shades)
    assert light["lines"] != dark["lines"] and len(set(light["lines"])) > 1
