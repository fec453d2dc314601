"""The Modelfile with which Ollama loads a GGUF file: the chat template in Ollama's language, and the stop texts.

Ollama does not run Jinja templates. It replaces those that it knows, and ignores others without a message. The template
is derived from rendered chats. The text before a message may depend only on its role and on the role of the message
before it.
Sources: https://github.com/ollama/ollama/blob/main/docs/modelfile.md and template.md beside it.
"""

from typing import Any, Dict, List, Optional, Tuple

from ftdist.checkpoint.probes import ASSISTANT, CHATS, SYSTEM, USER, chat

FIRST, LAST = "", "end"
"""In place of a role: nothing before the message, nothing after it."""
LONG = (USER, ASSISTANT, USER, ASSISTANT, USER)
NOT_WRITTEN = (
    "# The chat template cannot be written in Ollama's language: the text before a message depends on more than the\n"
    "# roles. Use llama-server --jinja, which runs the template in the file."
)
Texts = Dict[Tuple[str, str], str]
"""The text between two messages, by their roles."""


def modelfile(tokenizer: Any, file_name: str, stops: List[str], without_bos: bool) -> str:
    """Return the text of a Modelfile.

    Args:
        file_name: Name of the GGUF file, which is in the same folder.
        stops: Texts of the tokens that end an answer.
        without_bos: llama.cpp adds the BOS token itself, so that the template must not have it.
    """
    lines = [f"FROM ./{file_name}"]
    texts = _texts(tokenizer)
    template = _template(texts, tokenizer.bos_token if without_bos else None) if texts else None
    if template is not None:
        lines.append(f'TEMPLATE """{template}"""')
    elif tokenizer.chat_template:
        lines.append(NOT_WRITTEN)
    lines += [f'PARAMETER stop "{stop}"' for stop in stops if '"' not in stop]
    return "\n".join(lines) + "\n"


def _render(tokenizer: Any, roles: Tuple[str, ...]) -> Optional[str]:
    try:
        return str(tokenizer.apply_chat_template(chat(roles), tokenize=False, add_generation_prompt=roles[-1] == USER))
    except Exception:  # the template refuses these roles
        return None


def _texts(tokenizer: Any) -> Optional[Texts]:
    """Return the texts between messages, or None if they depend on more than the roles."""
    if not tokenizer.chat_template:
        return None
    found: Texts = {}
    for roles in (*CHATS, LONG):
        rest = _render(tokenizer, roles)
        if rest is None and SYSTEM in roles:
            continue
        before = FIRST
        for role, message in zip(roles, chat(roles), strict=True):
            head, content, rest = (rest or "").partition(message["content"])
            if not content or found.setdefault((before, role), head) != head:
                return None
            before = role
        if roles[-1] == USER and found.setdefault((USER, LAST), rest or "") != rest:
            return None
    return found


def _template(texts: Texts, bos: Optional[str]) -> Optional[str]:
    """Return the texts as a template in Go's language, or None if a Modelfile cannot hold it."""
    if any('"""' in text for text in texts.values()):
        return None
    blocks = []
    for role in (SYSTEM, USER, ASSISTANT):
        befores = [before for before, after in texts if after == role and before != FIRST]
        cases = [f'{{{{ if eq $before "{before}" }}}}{_literal(texts[before, role])}' for before in befores]
        first = _literal(_without(texts.get((FIRST, role), ""), bos))
        inner = "{{ else }}".join([*cases, first]) + "{{ end }}" * len(cases)
        if cases or first:
            blocks.append(
                f'{{{{ if eq .Role "{role}" }}}}{inner}{{{{ .Content }}}}{{{{ $before = .Role }}}}{{{{ end }}}}'
            )
    end = _literal(texts.get((USER, LAST), ""))
    return (
        '{{ $before := "" }}{{ range .Messages }}' + "".join(blocks) + "{{ end }}"
        f'{{{{ if ne $before "{ASSISTANT}" }}}}{end}{{{{ end }}}}'
    )  # fmt: skip


def _without(text: str, bos: Optional[str]) -> str:
    return text[len(bos) :] if bos and text.startswith(bos) else text


def _literal(text: str) -> str:
    return text.replace("{{", "{{ `{{` }}")
