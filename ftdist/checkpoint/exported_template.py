"""The chat templates of an export: all of them, with the arguments and the date that they had in training.

Programs that chat with the model (``ftdist chat``, vLLM, ``apply_chat_template``) know neither
``data.chat_template_kwargs`` nor ``data.chat_template_date``. Without these defaults they would give the model another
prompt than training did.
"""

from datetime import date
from pathlib import Path
from typing import Any, Dict

from ftdist.config.schema import RunConfig

TEMPLATES = ("chat_template.jinja", "additional_chat_templates/*.jinja")
DATE_FUNCTION = "strftime_now"
"""The function with which chat templates ask for today's date."""
DIRECTIVES = ("-d", "-m", *"aAbBcdDeFHIjmMpSTuUwWxXyYzZ")
"""The parts of a date that a template can ask for: ``%d`` is the day, ``%-d`` the day without a leading zero."""


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
    """Add lines to the beginning of the chat templates of an export that set what the templates had in training.

    The lines set ``data.chat_template_kwargs`` as default values: an argument that a program passes has precedence. In
    a template that asks for today's date, they also set ``data.chat_template_date``.
    """
    lines = "".join(
        f"{{%- set {name} = {name} if {name} is defined else {value!r} %}}\n"
        for name, value in sorted(config.data.chat_template_kwargs.items())
    )
    for pattern in TEMPLATES:
        for file in folder.glob(pattern):
            text = file.read_text(encoding="utf-8")
            added = lines + (_pinned_date(config.data.chat_template_date) if _asks_for_date(text) else "")
            if added:
                file.write_text(added + text, encoding="utf-8")


def _asks_for_date(template: str) -> bool:
    """Whether a template asks for today's date. A template from an export of ftdist has a fixed date already."""
    return DATE_FUNCTION in template and f"macro {DATE_FUNCTION}" not in template


def _pinned_date(day: str) -> str:
    """Return the line of a template that replaces the function for today's date by one that knows only this date."""
    today = date.fromisoformat(day)
    parts = "".join(f" | replace('%{one}', {today.strftime(f'%{one}')!r})" for one in DIRECTIVES)
    return f"{{%- macro {DATE_FUNCTION}(format) -%}}{{{{ format{parts} }}}}{{%- endmacro %}}\n"


def template_facts(folder: Path, config: RunConfig) -> Dict[str, Any]:
    """Return what a chat template saw in training besides the conversations.

    These are the arguments of the template, and the date if the template asks for it.
    """
    facts: Dict[str, Any] = {}
    if config.data.chat_template_kwargs:
        facts["chat_template_kwargs"] = config.data.chat_template_kwargs
    texts = [file.read_text(encoding="utf-8") for pattern in TEMPLATES for file in folder.glob(pattern)]
    if any(map(_asks_for_date, texts)):
        facts["chat_template_date"] = config.data.chat_template_date
    return facts
