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
    """The chat template of a tokenizer, with all that it gets besides the conversation."""

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
        if tools is None and all(map(_is_plain, messages)):
            return self._render_plain(messages, add_generation_prompt)
        return self._render(messages, tools, add_generation_prompt, False)[0]

    def render_with_marks(self, messages: List[Any], tools: Optional[List[Any]]) -> Tuple[str, List[Span]]:
        """Return the text of a conversation and the spans of its generation blocks."""
        return self._render(messages, tools, False, True)

    def _render_plain(self, messages: List[Any], add_generation_prompt: bool) -> str:
        """Return the text of a conversation of strings, as ``render_jinja_template`` does.

        That function also copies all messages, because a message can hold objects. The copies take a third of its time.
        """
        from transformers.utils.chat_template_utils import _compile_jinja_template

        try:
            self._pin_date()
            template = _compile_jinja_template(self.text)
            own = {"messages": messages, "tools": None, "add_generation_prompt": add_generation_prompt}
            return str(template.render({"documents": None, **self.special_tokens, **self.kwargs, **own}))
        except Exception as error:  # a template can raise any exception
            raise _problem(error) from error

    def _render(
        self, messages: List[Any], tools: Optional[List[Any]], add_generation_prompt: bool, with_marks: bool
    ) -> Tuple[str, List[Span]]:
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
            raise _problem(error) from error
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


PLAIN = {"role", "content"}


def _is_plain(message: Any) -> bool:
    """Whether a message has a role and a text, and nothing else."""
    return message.keys() == PLAIN and type(message["content"]) is str


def _problem(error: Exception) -> TemplateProblem:
    from jinja2 import TemplateError

    return TemplateProblem(str(error) if isinstance(error, TemplateError) else f"{type(error).__name__}: {error}")


def has_generation_marks(template: str) -> bool:
    return re.search(r"\{%-?\s*generation\s*-?%\}", template) is not None
