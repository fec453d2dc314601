"""The chat template of an export: the arguments with which the model was trained become its defaults.

Programs that chat with the model (``ftdist chat``, vLLM, ``apply_chat_template``) do not know
``data.chat_template_kwargs``. Without these defaults they would give the model another prompt than training did.
"""

from pathlib import Path
from typing import Any, Dict

from ftdist.config.schema import RunConfig

TEMPLATES = ("chat_template.jinja", "additional_chat_templates/*.jinja")
DATE_FUNCTION = "strftime_now"
"""The function with which chat templates ask for today's date."""


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
    """Return what a chat template saw in training besides the conversations: its arguments, and the date if it asks
    for one."""
    facts: Dict[str, Any] = {}
    if config.data.chat_template_kwargs:
        facts["chat_template_kwargs"] = config.data.chat_template_kwargs
    texts = [file.read_text(encoding="utf-8") for pattern in TEMPLATES for file in folder.glob(pattern)]
    if any(DATE_FUNCTION in text for text in texts):
        facts["chat_template_date"] = config.data.chat_template_date
    return facts
