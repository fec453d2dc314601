"""Render conversations with a chat template."""

import re
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Dict, List, Optional, Tuple

Span = Tuple[int, int]
"""``(start, end)`` in characters."""


class TemplateProblem(Exception):
    """The chat template raised an exception. The text says which."""


@dataclass(frozen=True)
class ChatTemplate:
    """The chat template of a tokenizer, with everything that it can see besides the conversation."""

    text: str
    special_tokens: Dict[str, Any]
    """The tokenizer's ``special_tokens_map``."""
    kwargs: Dict[str, Any] = field(default_factory=dict)
    """``data.chat_template_kwargs``, and those of the record."""
    today: Optional[date] = None
    """The date that the template sees as today. None: the real date."""

    @property
    def is_marked(self) -> bool:
        """Whether the template marks what is trained with ``{% generation %}`` blocks."""
        return has_generation_marks(self.text)

    def render(self, messages: List[Any], tools: Optional[List[Any]], add_generation_prompt: bool = False) -> str:
        """Return the text of a conversation.

        Raises:
            TemplateProblem: The template cannot render it.
        """
        return self._render(messages, tools, add_generation_prompt, False)[0]

    def render_with_marks(self, messages: List[Any], tools: Optional[List[Any]]) -> Tuple[str, List[Span]]:
        """Return the text of a conversation and the spans of its generation blocks."""
        return self._render(messages, tools, False, True)

    def _render(
        self, messages: List[Any], tools: Optional[List[Any]], add_generation_prompt: bool, with_marks: bool
    ) -> Tuple[str, List[Span]]:
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            self._pin_date()
            texts, marks = render_jinja_template(
                [messages],
                tools=tools,
                chat_template=self.text,
                return_assistant_tokens_mask=with_marks,
                add_generation_prompt=add_generation_prompt,
                **{**self.special_tokens, **self.kwargs},
            )
        except Exception as error:  # a template can raise any exception
            raise TemplateProblem(
                str(error) if isinstance(error, TemplateError) else f"{type(error).__name__}: {error}"
            ) from error
        return texts[0], [tuple(mark) for mark in marks[0]] if with_marks else []

    def _pin_date(self) -> None:
        """Let the template see ``today`` as the current date.

        ``render_jinja_template`` compiles each template once and has no argument for the date. So it is set in the
        compiled template.
        """
        if self.today is None or "strftime_now" not in self.text:
            return
        from transformers.utils.chat_template_utils import _compile_jinja_template

        _compile_jinja_template(self.text).globals["strftime_now"] = self.today.strftime


def has_generation_marks(template: str) -> bool:
    return re.search(r"\{%-?\s*generation\s*-?%\}", template) is not None
