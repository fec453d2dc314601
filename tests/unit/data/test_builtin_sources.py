"""Data sources that need no file."""

import hashlib
import time

import pytest

from ftdist.data.builtin_sources import fake_chats, stdlib_docs


@pytest.mark.thorough
def test_stdlib_docs_are_thousands_of_different_answers_in_a_fixed_order() -> None:
    pairs = list(stdlib_docs())
    answers = [record["messages"][1]["content"] for _, record in pairs]
    assert len(pairs) > 2000
    assert len(set(answers)) == len(answers)
    assert all(30 <= len(answer) <= 1200 for answer in answers)
    names = [where.removeprefix("stdlib_docs: ") for where, _ in pairs]
    assert names == sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest()[:8])
    assert len({name.split(".")[0] for name in names[:100]}) > 20, "the first answers come from many modules"
    questions = {where: record["messages"][0]["content"] for where, record in pairs}
    assert "textwrap.dedent" in questions["stdlib_docs: textwrap.dedent"]


def test_fake_chats_are_fast_depend_on_the_seed_and_have_many_lengths() -> None:
    started = time.process_time()
    chats = list(fake_chats("a", 5000))
    assert time.process_time() - started < 2
    assert chats[:10] == list(fake_chats("a", 10))
    assert chats[:10] != list(fake_chats("b", 10))
    assert len({sum(len(m["content"]) for m in record["messages"]) for _, record in chats}) > 500
