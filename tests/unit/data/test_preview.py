"""The programs ``prepare`` and ``preview``: their output and their errors."""

import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ftdist.base.json_files import write_json
from ftdist.config.frozen import dump_config
from ftdist.data.main import main
from ftdist.data.prepare import prepare
from ftdist.run.prepared import read_meta
from ftdist.run.sample import SHOWN_FIRST, SHOWN_LAST, plain_tokens, print_sample, print_table, print_tokens
from tests.unit.data_tools import chat, data_config, write_jsonl


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    source = write_jsonl(tmp_path / "a.jsonl", [chat(f"question {n}", f"answer é {n}") for n in range(30)])
    return write_config(tmp_path, f"data.sources.mine.path={source}")


def write_config(folder: Path, *overrides: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(dump_config(data_config(folder, *overrides)), encoding="utf-8")
    return path


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ftdist.data.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, **options)


@pytest.mark.thorough
def test_prepare_prints_statistics_and_nothing_on_standard_error(config_file: Path) -> None:
    first = run("prepare", str(config_file))
    assert (first.returncode, first.stderr) == (0, "")
    assert "prepared in" in first.stdout
    assert "mine" in first.stdout
    assert "<|im_end|>" in first.stdout
    again = run("prepare", "-", input=config_file.read_text())
    assert (again.returncode, again.stderr) == (0, "")
    assert "(found)" in again.stdout


def test_an_error_is_one_message_and_an_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", str(write_config(tmp_path, f"data.sources.mine.path={tmp_path / 'no.jsonl'}"))]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: data.sources.mine.path={tmp_path}/no.jsonl does not exist\n  expected: ")
    assert "Traceback" not in error
    assert main(["prepare", str(tmp_path / "none.yaml")]) == 2
    assert "error: cannot read" in capsys.readouterr().err


def test_an_error_of_the_operating_system_is_one_message(
    config_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(config: Any) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ftdist.data.prepare.prepare", full)
    assert main(["prepare", str(config_file)]) == 1
    assert capsys.readouterr().err == "error: No space left on device\n"


def test_preview_marks_trained_tokens_and_rows(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["preview", str(config_file), "-n", "2"]) == 0
    out = capsys.readouterr().out
    assert "[[answer é " in out
    assert "<|im_end|>]]" in out
    assert out.count("— document 1:") == 2
    assert "of 256 tokens" in out
    assert "no stop token" not in out
    assert not (config_file.parent / "cache" / "data").exists(), "a preview leaves nothing in the cache"


def test_preview_shows_the_beginning_and_the_end_of_a_long_document(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", [chat("short?", "no"), chat("begin" + "x" * 400, "y" * 400 + "the end")])
    config = write_config(tmp_path, f"data.sources.mine.path={source}", "data.max_seq_len=1024")
    assert main(["preview", str(config), "-n", "1"]) == 0
    out = capsys.readouterr().out
    assert "begin" in out and "the end<|im_end|>]]" in out and "[[no<|im_end|>]]" in out
    assert out.count("— document ") == 2
    [cut] = [part for part in out.split("— document ") if "not shown" in part]
    found = re.match(
        r"\d: (\d+) tokens, (\d+) trained\n[^…]*… (\d+) tokens not shown \((\d+) of them are trained\) …", cut
    )
    assert found is not None
    tokens, trained, left_out, left_out_trained = map(int, found.groups())
    assert tokens - left_out == SHOWN_FIRST + SHOWN_LAST
    assert trained - left_out_trained == SHOWN_LAST - 1, (
        "all tokens at the end are trained but the last line break of the template"
    )
    assert cut.count("x") + cut.count("y") < 200


def test_preview_uses_prepared_data_if_it_exists(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", str(config_file)]) == 0
    capsys.readouterr()
    assert main(["preview", str(config_file), "-n", "1"]) == 0
    assert "of the first" not in capsys.readouterr().out


def test_preview_warns_if_the_template_writes_no_stop_token(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", [chat("q", "a")])
    template = tmp_path / "t.jinja"
    template.write_text(
        "{% for m in messages %}{{ m.role }}: {% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "{% endgeneration %}{% else %}{{ m.content }}{% endif %}\n{% endfor %}"
    )
    config = write_config(tmp_path, f"data.sources.mine.path={source}", f"data.chat_template={template}")
    assert main(["preview", str(config)]) == 0
    out = capsys.readouterr().out
    assert "[[a<|im_end|>]]" in out
    said = "warning: 'mine': in 1 of 1 record, the chat template writes no special token after an answer"
    assert said in " ".join(out.split())


def test_preview_reads_only_the_first_documents(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", [chat("q", "a")] * 250 + [{"broken": 1}])
    assert main(["preview", str(write_config(tmp_path, f"data.sources.mine.path={source}"))]) == 0
    assert "of the first 200 documents" in capsys.readouterr().out


def test_the_sample_is_printed_from_meta_json(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", [chat("q", "[b]é[/b]")])
    folder = prepare(data_config(tmp_path, f"data.sources.mine.path={source}"))
    plain, terminal = io.StringIO(), io.StringIO()
    print_sample(folder, Console(file=plain))
    assert "assistant\n[[[b]é[/b]<|im_end|>]]\n" in plain.getvalue()
    print_sample(folder, Console(file=terminal, force_terminal=True, width=100))
    assert "[b]é[/b]" in terminal.getvalue(), "text that looks like markup is printed unchanged"
    assert "\x1b[" in terminal.getvalue()
    assert "[[" not in terminal.getvalue()
    write_json(folder / "meta.json", read_meta(folder) | {"warnings": ["look here"]})
    print_sample(folder, Console(file=plain))
    assert plain.getvalue().endswith("warning: look here\n")


def test_control_characters_are_escaped_on_a_terminal() -> None:
    out = io.StringIO()
    print_tokens([["a\x1b[31m", 1], ["b", 0]], Console(file=out, force_terminal=True))
    assert "\x1b[31m" not in out.getvalue()
    assert "a\\x1b[31m" in out.getvalue()


def test_runs_of_trained_tokens_are_in_brackets() -> None:
    assert plain_tokens([["a", 0], ["b", 1], ["c", 1], ["d", 0], ["e", 1]]) == "a[[bc]]d[[e]]"


def test_the_table_shows_dropped_documents_and_warnings() -> None:
    source = {"documents": 1000, "tokens": 1, "trained_tokens": 1, "truncated": 2, "split": 3, "share": 0.25}
    dropped = {"dropped": {"nothing to train": 7}}
    sets = {
        "rows": 5,
        "documents": 9,
        "tokens": 1,
        "trained_tokens": 1,
        "packing_efficiency": 0.987,
        "stop_token": None,
    }
    source |= {"split_chats": 0}
    split = {"split_chats": 3, "documents_of_split_chats": 8, "tokens_of_split_chats": 4321}
    out = io.StringIO()
    heldout = {"h": source | {"dropped": {}}}
    meta = {"sources": {"s": source | dropped | split}, "heldout_sources": heldout, "sets": {"train": sets},
            "general": {"mine": {**sets, "rows": 321}}}  # fmt: skip
    long = "look here" + " and there" * 20
    print_table(meta | {"warnings": [long]}, Console(file=out, width=120))
    for part in ("1,000", "7 nothing to train", "25.0%", "h (held out)", "98.7%", "none", "warning: look here",
                 "general/mine 321", "s: 3 chats became 8 documents, with 4,321 more tokens"):  # fmt: skip
        assert part in " ".join(out.getvalue().split())
    assert f"warning: {long}\n" in out.getvalue(), "not folded in a file"


@pytest.mark.thorough
def test_preview_shows_the_loss_of_the_base_model_for_each_token(tmp_path: Path) -> None:
    """A model whose head is zero gives every token the same probability."""
    import torch
    from transformers import AutoModelForCausalLM

    from tests.helpers.tiny import save_tiny_model

    folder = save_tiny_model(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.nn.init.zeros_(model.lm_head.weight)
    model.save_pretrained(folder)
    source = write_jsonl(tmp_path / "a.jsonl", [chat("q", "ab")])
    own = data_config(tmp_path, f"data.sources.mine.path={source}", f"model.path={folder}", "train.precision=fp32")
    own.model.config = {}
    config = tmp_path / "config.yaml"
    config.write_text(dump_config(own), encoding="utf-8")
    command = [sys.executable, "-m", "ftdist.verify.preview", str(config), "-n", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    out = done.stdout
    assert "3 trained, base model loss 5.56 nats per trained token" in out  # ln 259
    assert "[[a⟨5.56⟩b⟨5.56⟩<|im_end|>⟨5.56⟩]]" in out
    assert "<|im_start|>u⟨5.56⟩" in out  # nothing predicts the first token
