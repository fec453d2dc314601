"""What a message offers can be pasted: names with spaces, quotes and commas, in any encoding of the terminal."""

import io
import re
import shlex
import sys

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from ftdist.base.shell import override_list, override_word, shell_word, shell_words
from ftdist.launch.config.texts import quote_texts


def unquoted(word: str) -> bytes:
    """Return the bytes that a shell makes of ``$'…'``."""
    assert word.startswith("$'") and word.endswith("'") and word.isascii()
    return re.sub(rb"\\(\d{3})", lambda found: bytes([int(found[1], 8)]), word[2:-1].encode())


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize("name", ["größe 5→ü", "it's \\ a$b", "caf\udce9", "two\nlines", "\x1b[31m"])
def test_a_name_is_never_replaced_in_a_command(encoding: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    word = shell_word(name)
    word.encode(encoding)
    shown = name.isprintable() and (name.isascii() or encoding == "utf-8")
    assert shlex.split(word) == [name] if shown else unquoted(word) == name.encode("utf-8", "surrogateescape")
    assert shell_words(["ls", name]) == f"ls {word}"


VALUES = ["a,b.jsonl", "plain", "it's a $HOME", "'x", "[1].json", "(a).json", "{a}", "choice(1).txt", " a ", "null",
          "True", "a\\'b,c\\", "größe 5→ü, x", "a[1].json", "12e3"]  # fmt: skip


@pytest.mark.parametrize("value", VALUES)
def test_hydra_reads_the_text_of_an_offered_override(value: str) -> None:
    (word,) = quote_texts(shlex.split(override_word("name", value)))
    read = OverridesParser.create().parse_override(word).value()
    assert read == value and type(read) is str


def test_hydra_reads_the_texts_of_an_offered_list() -> None:
    texts = ["--gres=gpu:2", *VALUES]
    (word,) = quote_texts(shlex.split(override_list("name", texts)))
    assert OverridesParser.create().parse_override(word).value() == texts
    assert shell_word("a='b c'") == "\"a='b c'\"" and shell_word("it's $HOME")[:1] == "'"
