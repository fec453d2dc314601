"""The roles of the tokens of held-out documents."""

from itertools import groupby
from pathlib import Path
from typing import Any, List, Tuple

import numpy as np
import pytest

from ftdist.config.data import SourceConfig
from ftdist.data.loader import open_set
from ftdist.data.prepare import HELDOUT, TRAIN, prepare
from ftdist.data.roles import ROLES
from ftdist.data.tokenizer import bytes_tokenizer
from ftdist.run.prepared import ROLES_FILE, content_hash, read_meta
from tests.unit.data_tools import chat, data_config, write_jsonl

CALL = [{"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 3}}}]
CHAT = {"messages": [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 2 + 3?"},
    {"role": "assistant", "content": "I add.", "reasoning_content": "They want a sum.", "tool_calls": CALL},
    {"role": "tool", "content": "5"},
    {"role": "assistant", "content": "It is 5."},
]}  # fmt: skip
END = "<|im_end|>"


def parts(folder: Path, record: Any, *overrides: str) -> List[Tuple[str, str, bool]]:
    """Return the text of each part of a held-out document with its role, and whether it is trained."""
    config = data_config(folder, f"data.sources.mine.path={write_jsonl(folder / 'train.jsonl', [{'text': 'other'}])}",
                         *overrides)  # fmt: skip
    config.data.heldout = {"docs": SourceConfig(path=str(write_jsonl(folder / "docs.jsonl", [record])))}
    dataset = open_set(prepare(config), "docs")
    assert dataset.roles is not None
    trained = dataset.trained.copy()
    trained[dataset.offsets[:-1]] = 1  # the first token has no loss
    found = []
    for (role, flag), group in groupby(zip(dataset.tokens, dataset.roles, trained, strict=True), lambda one: one[1:]):
        found.append((bytes_tokenizer().decode([int(one[0]) for one in group]), ROLES[role], bool(flag)))
    return found


@pytest.mark.parametrize("turns", ["auto", "each"])
def test_an_answer_is_reasoning_content_and_calls(tmp_path: Path, turns: str) -> None:
    found = parts(tmp_path, CHAT, f"data.turns={turns}", "data.chat_template=chatml")
    answers = [(text, role) for text, role, trained in found if trained and role != "not known"]
    (thought, reasoning), (content, assistant), (call, calls), (last, again) = answers
    assert (reasoning, assistant, calls, again) == ("reasoning", "assistant", "tool call", "assistant")
    assert thought.endswith("They want a sum.") and content.endswith("I add.")
    assert "add" in call and call.endswith(END) and last == f"It is 5.{END}"
    assert all(role == "not known" for _, role, trained in found if not trained)


def test_with_everything_trained_all_messages_have_their_roles(tmp_path: Path) -> None:
    found = parts(tmp_path, CHAT, "data.train_on=all", "data.chat_template=chatml")
    assert [role for _, role, _ in found] == [
        "system", "user", "reasoning", "assistant", "tool call", "tool", "assistant"]  # fmt: skip
    texts = {role: text for text, role, _ in found[:-1]}
    assert texts["system"].endswith("Be brief.") and texts["tool call"].endswith(END)
    assert "What is 2 + 3?" in texts["user"] and "5" in texts["tool"]
    assert found[-1][0].startswith(f"It is 5.{END}")


@pytest.mark.parametrize("train_on", ["auto", "all"])
def test_texts_prompts_and_completions(tmp_path: Path, train_on: str) -> None:
    (tmp_path / "b").mkdir()
    assert parts(tmp_path, {"text": "Once more."}, f"data.train_on={train_on}") == [(f"Once more.{END}", "text", True)]
    prompt, completion = parts(tmp_path / "b", {"prompt": "2+2=", "completion": "4"}, f"data.train_on={train_on}")[-2:]
    assert completion == (f"4{END}", "completion", True) and "2+2=".endswith(prompt[0]) and prompt[1] == "prompt"


def test_a_split_document_keeps_the_roles_of_its_pieces(tmp_path: Path) -> None:
    long = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "answer " * 20}]}
    found = parts(tmp_path, long, "data.max_seq_len=64", "data.long_documents=split", "data.chat_template=chatml")
    assert "".join(text for text, role, _ in found if role == "assistant").count("answer") == 20


def test_the_one_document_that_a_small_share_holds_out_has_its_roles(tmp_path: Path) -> None:
    chats = [chat(f"What is {number}?", f"It is {number}.") for number in (1, 2, 3)]
    path = write_jsonl(tmp_path / "a.jsonl", [*chats, *chats])  # equal documents are held out together
    folder = prepare(data_config(tmp_path, f"data.sources.mine.path={path}", f"data.sources.more.path={path}",
                                 "data.heldout_share=0.0001", "data.chat_template=chatml"))  # fmt: skip
    dataset, meta = open_set(folder, HELDOUT), read_meta(folder)
    assert dataset.roles is not None and len(dataset.row_docs) == 4 and meta["sets"][TRAIN]["documents"] == 8
    trained = dataset.roles[dataset.trained == 1]
    assert len(trained) and {ROLES[role] for role in trained} == {"assistant"}


def test_only_held_out_sets_have_roles_and_the_hash_of_the_data_is_as_before(tmp_path: Path) -> None:
    parts(tmp_path, CHAT, "data.chat_template=chatml")
    folder = next((tmp_path / "cache" / "data").iterdir())
    config = data_config(tmp_path)
    assert open_set(folder, TRAIN).roles is None
    before = content_hash(config, folder)
    (folder / "docs" / ROLES_FILE).unlink()
    assert open_set(folder, "docs").roles is None and content_hash(config, folder) == before, "as in earlier versions"
    np.zeros(3, np.uint8).tofile(folder / "docs" / ROLES_FILE)
    with pytest.raises(Exception, match="their sizes do not match"):
        open_set(folder, "docs")
