"""The think blocks of reasoning models, in the text of chat templates."""

import re
from typing import Optional

TAG = "<think>"
"""The tag with which most models begin their reasoning."""
OPENING = re.compile(r"(<\w*think\w*>|\[THINK\]|<\|inner_prefix\|>|<\|channel>thought|<\|START_THINKING\|>)\s*\Z")
CLOSINGS = {"[THINK]": "[/THINK]", "<|inner_prefix|>": "<|inner_suffix|>", "<|channel>thought": "<channel|>",
            "<|START_THINKING|>": "<|END_THINKING|>"}  # fmt: skip
CLOSED = re.compile(r"</\w*think\w*>|\[/THINK\]|<\|inner_suffix\|>|<channel\|>|<\|END_THINKING\|>")
LIKE_CONTROL = re.compile(r"think\w*>|/(no_?)?think|\[/?THINK|<\||\|>")
"""Text that a template may read as a switch, or as its own notation."""
EMPTY = re.compile(rf"\s*(?:<\w*think\w*>|\[THINK\]|<\|inner_prefix\|>|<\|channel>thought)?\s*(?:{CLOSED.pattern})")

BLOCK = re.compile(rf"\s*(<\w*think\w*>|\[THINK\]|<\|inner_prefix\|>|<\|channel>thought)(\s*)(?:{CLOSED.pattern})")


def opened(prompt: str) -> Optional[str]:
    """Return the tag of the think block that a generation prompt opens at its end, or None."""
    match = OPENING.search(prompt)
    return match[1] if match else None


def closing(tag: str, prompt: str) -> str:
    """Return what a model writes at the end of its reasoning, before the answer.

    Args:
        tag: The tag that opens the think block.
        prompt: The prompt. It ends with the tag, or with the tag and a line break. In the second case, the end of the
            block has line breaks too.
    """
    end = tag.replace("<", "</")
    return CLOSINGS.get(tag) or (end if prompt.endswith(tag) else f"\n{end}\n\n")


def is_closed(text: str) -> bool:
    return CLOSED.search(text) is not None


def ends_closed(prompt: str) -> bool:
    """Whether a generation prompt ends the thinking, so that the model answers at once."""
    return re.search(rf"(?:{CLOSED.pattern})\s*\Z", prompt) is not None


def empty_length(text: str) -> int:
    """Return the length of an empty think block, or of the end of one, at the beginning of a text."""
    match = EMPTY.match(text)
    return match.end() if match else 0


def middle_of_empty(text: str) -> int:
    """Return the position for reasoning in the empty think block at the beginning of a text. 0: there is no block."""
    match = BLOCK.match(text)
    return match.end(1) + len(match[2]) // 2 if match else 0


def is_empty(answer: str) -> bool:
    """Whether an answer begins with an empty think block, or with the end of the block that the prompt opens."""
    return EMPTY.match(answer) is not None
