"""The template in a Modelfile writes the chats that the tokenizer's template writes. A small interpreter runs it."""

import re
from typing import Any, Dict, List

import pytest
from transformers import LlamaTokenizer

from ftdist.checkpoint.modelfile import modelfile
from ftdist.checkpoint.probes import CHATS, USER, chat
from tests.helpers.tokenizers import CHATML, TURNS, byte_level, sentencepiece

DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are {{ 'kind' }}.<|im_end|>\n{% endif %}" + CHATML
)
INSTRUCTIONS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}[SYS]{{ m.content }}[/SYS]"
    "{% elif m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}{{ eos_token }}{% endif %}"
    "{% endfor %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('none') }}{% endif %}" + CHATML
BRACES = "{% for m in messages %}{{ '{{' }}{{ m.role }}}} {{ m.content }}\n{% endfor %}"


def run(template: str, messages: List[Dict[str, str]]) -> str:
    """Interpret the part of Go's template language that Modelfiles of ftdist use."""
    parts = re.split(r"\{\{ (.*?) \}\}", template)
    out: List[str] = []
    before = ""

    def block(at: int, message: Any, active: bool) -> int:
        """Run the parts from ``at`` to the end or ``else`` of their block. Returns the place of that."""
        nonlocal before
        while at < len(parts):
            if at % 2 == 0:
                out.extend([parts[at]] * active)
                at += 1
                continue
            word = parts[at]
            if word in ("end", "else"):
                return at
            if word == "range .Messages":
                last = at
                for one in messages:
                    last = block(at + 1, one, active)
                at = last
            elif word.startswith("if "):
                _, kind, name, value = word.split(" ")
                left = before if name == "$before" else message["role"]
                holds = (left == value.strip('"')) == (kind == "eq")
                at = block(at + 1, message, active and holds)
                if parts[at] == "else":
                    at = block(at + 1, message, active and not holds)
            elif word == ".Content":
                out.extend([message["content"]] * active)
            elif word.startswith("$before"):
                before = ("" if ":=" in word else message["role"]) if active else before
            else:
                assert word.startswith("`") and word.endswith("`"), word
                out.extend([word.strip("`")] * active)
            at += 1
        return at

    block(0, None, True)
    return "".join(out)


@pytest.mark.parametrize(
    "template", [CHATML, TURNS, DEFAULT_SYSTEM, INSTRUCTIONS, NO_SYSTEM, BRACES],
    ids=["chatml", "turns", "default system", "instructions", "no system", "braces"],
)  # fmt: skip
def test_ollamas_template_writes_the_chats_of_training(template: str) -> None:
    tokenizer = sentencepiece(LlamaTokenizer)
    tokenizer.chat_template = template
    bos = "bos_token" in template
    text = modelfile(tokenizer, "model.gguf", ["<|im_end|>", "</s>"], without_bos=bos)
    stops = r'PARAMETER stop "<\|im_end\|>"\nPARAMETER stop "</s>"\n'
    found = re.fullmatch(rf'FROM ./model.gguf\nTEMPLATE """(.*)"""\n{stops}', text, re.DOTALL)
    assert found, text
    for roles in (*CHATS, (*CHATS[-1], "assistant", USER)):
        if (template == NO_SYSTEM and "system" in roles) or roles[-1] != USER:
            continue
        expected = tokenizer.apply_chat_template(chat(roles), tokenize=False, add_generation_prompt=True)
        assert run(found[1], chat(roles)) == expected.removeprefix(tokenizer.bos_token if bos else "")


@pytest.mark.parametrize(
    "template", ["{% for m in messages %}{{ loop.index }} {{ m.content }}{% endfor %}",
                 '{% for m in messages %}"""{{ m.content }}{% endfor %}',
                 "{% for m in messages[-1:] %}{{ m.content }}{% endfor %}"],
    ids=["counts", "quotes", "last message only"],
)  # fmt: skip
def test_a_template_that_ollama_cannot_have_is_left_out_with_a_comment(template: str) -> None:
    tokenizer = byte_level("gpt-2")
    tokenizer.chat_template = template
    text = modelfile(tokenizer, "model.gguf", ["<|im_end|>"], without_bos=False)
    assert "TEMPLATE" not in text and "# The chat template cannot be written" in text and 'stop "<|im_end|>"' in text
    tokenizer.chat_template = None
    assert modelfile(tokenizer, "m.gguf", [], without_bos=False) == "FROM ./m.gguf\n"
