"""The chat templates of an export: all of them, and the arguments of training become their defaults.

Programs that chat with the model (``ftdist chat``, vLLM, ``apply_chat_template``) do not know
``data.chat_template_kwargs``. Without these defaults they would give the model another prompt than training did.
"""

from pathlib import Path
from typing import Any, Dict

from ftdist.config.schema import RunConfig

TEMPLATES = ("chat_template.jinja", "additional_chat_templates/*.jinja")
DATE_FUNCTION = "strftime_now"
"""The function with which chat templates ask for today's date."""


def save_tokenizer(tokenizer: Any, folder: str | Path) -> None:
    """Save a tokenizer with all its chat templates.

    ``load_tokenizer`` keeps the template for conversations with tools apart from the default one. It is saved under its
    name, so that ``apply_chat_template`` uses it for conversations with tools, as training did.
    """
    default, with_tools = tokenizer.chat_template, getattr(tokenizer, "tool_use_template", None)
    if with_tools:
        tokenizer.chat_template = {"default": default, "tool_use": with_tools}
    try:
        tokenizer.save_pretrained(folder)
    finally:
        tokenizer.chat_template = default


def write_defaults(folder: Path, config: RunConfig) -> None:
    """Write ``data.chat_template_kwargs`` into the chat templates of an export, as default values.

    An argument that a program passes still has precedence.
    """
    lines = "".join(
        f"{{%- set {name} = {name} if {name} is defined else {value!r} %}}\n"
        for name, value in sorted(config.data.chat_template_kwargs.items())
    )
    for pattern in TEMPLATES if lines else ():
        for file in folder.glob(pattern):
            file.write_text(lines + file.read_text(encoding="utf-8"), encoding="utf-8")


def template_facts(folder: Path, config: RunConfig) -> Dict[str, Any]:
    """Return what a chat template saw in training besides the conversations.

    These are the arguments of the template, and the date if the template asks for it.
    """
    facts: Dict[str, Any] = {}
    if config.data.chat_template_kwargs:
        facts["chat_template_kwargs"] = config.data.chat_template_kwargs
    texts = [file.read_text(encoding="utf-8") for pattern in TEMPLATES for file in folder.glob(pattern)]
    if any(DATE_FUNCTION in text for text in texts):
        facts["chat_template_date"] = config.data.chat_template_date
    return facts
