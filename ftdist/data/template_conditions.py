"""Find the words that a chat template looks for in messages.

Some templates change their generation prompt if a message has certain words. For example, words in the system message
switch the thinking on. The conditions of the template have these words. A record without them is rendered in the same
way as its skeleton.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Dict, Iterator, List, Set, Tuple

TEXT_FIELDS = ("content", "reasoning_content", "text", "reasoning", "thinking")
NOT_TEXT = ("type", "role")
HARMLESS = {"string", "none", "defined", "undefined", "mapping", "iterable", "sequence", "true", "false", "boolean"}
"""Tests of the kind of a value. They do not depend on what a text says."""
SEARCHES = {"startswith", "endswith", "find", "rfind", "index", "rindex", "count", "split", "rsplit", "partition",
            "rpartition", "replace"}  # fmt: skip
CASES = {"lower", "upper", "casefold", "title", "capitalize"}


@dataclass(frozen=True)
class Conditions:
    """What the conditions of a template depend on."""

    words: Tuple[str, ...]
    """Texts that it looks for in messages."""
    others: bool = False
    """It depends on something else, such as the length of a text. Then it can render any record differently."""
    any_case: bool = False
    """It compares texts in lower or upper case. Then ``words`` are in lower case."""

    def touch(self, value: str) -> bool:
        """Whether the template may render a message with this text in a special way."""
        if self.any_case:
            value = value.lower()
        return self.others or value.isspace() or any(word in value for word in self.words)


def _called(node: Any) -> str:
    """Return the name of a filter, or of a method that is called."""
    return str(getattr(node, "name", None) or getattr(getattr(node, "node", None), "attr", ""))


@lru_cache(maxsize=64)
def conditions_of(template: str) -> Conditions:
    """Return what a template looks for in the text of messages."""
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import _compile_jinja_template

    try:
        tree = _compile_jinja_template(template).environment.parse(template)
    except TemplateError:  # rendering says what is wrong
        return Conditions(())
    return _Reader(tree).read()


class _Reader:
    """Reads the syntax tree of one template."""

    def __init__(self, tree: Any) -> None:
        from jinja2 import nodes

        self.tree: Any = tree
        self.nodes: Any = nodes
        self.strings: Dict[str, List[str]] = {}
        """The string constants that each variable can have."""
        self.texts: Set[str] = set()
        """Variables and attributes that can hold the text of a message."""

    def read(self) -> Conditions:
        self._find_variables()
        words: Set[str] = set()
        others = any_case = False
        for node in self.tree.find_all((self.nodes.Compare, self.nodes.Call, self.nodes.Test, self.nodes.Filter)):
            if not self._holds_text(node) or self._only_prints(node):
                continue
            found, is_other = self._looks_for(node)
            words.update(found)
            others = others or is_other
            any_case = any_case or _called(node) in CASES
        sought = {word.lower() if any_case else word for word in words} - {""}
        return Conditions(tuple(sorted(sought)), others, any_case)

    def _find_variables(self) -> None:
        """Find the variables with text. If a macro gets a text, each of its arguments may have it."""
        before = -1
        assigned = list(self._assigned())
        for name, value in assigned:
            self.strings.setdefault(name, []).extend(self._constants(value))
        macros = {macro.name: macro for macro in self.tree.find_all(self.nodes.Macro)}
        calls = [call for call in self.tree.find_all(self.nodes.Call) if getattr(call.node, "name", None) in macros]
        while before != len(self.texts):
            before = len(self.texts)
            self.texts.update(name for name, value in assigned if self._holds_text(value))
            for call in calls:
                if any(self._holds_text(one) for one in [*call.args, *call.kwargs]):
                    self.texts.update(argument.name for argument in macros[call.node.name].args)

    def _assigned(self) -> Iterator[Tuple[str, Any]]:
        for node in self.tree.find_all((self.nodes.Assign, self.nodes.For)):
            value = node.iter if isinstance(node, self.nodes.For) else node.node
            targets = node.target.items if isinstance(node.target, self.nodes.Tuple) else [node.target]
            for target in targets:  # an attribute of a namespace has its own name here, without that of the namespace
                yield getattr(target, "attr", None) or target.name, value

    def _holds_text(self, node: Any) -> bool:
        """Whether an expression uses the text of a message. Its type and its role are not text."""
        nodes: Any = self.nodes
        if isinstance(node, nodes.Name):
            return node.name in self.texts
        if isinstance(node, (nodes.Getattr, nodes.Getitem)):
            name = node.attr if isinstance(node, nodes.Getattr) else getattr(node.arg, "value", None)
            if name in NOT_TEXT:
                return False
            if name in TEXT_FIELDS or name in self.texts:
                return True
        return any(self._holds_text(child) for child in node.iter_child_nodes())

    def _only_prints(self, node: Any) -> bool:
        return isinstance(node, self.nodes.Call) and not isinstance(node.node, self.nodes.Getattr)

    def _looks_for(self, node: Any) -> Tuple[List[str], bool]:
        """Return the texts that an expression looks for, and whether it looks at something else."""
        nodes = self.nodes
        if isinstance(node, nodes.Test):
            return [], node.name not in HARMLESS
        if isinstance(node, nodes.Call):
            return (self._values(node.args), False) if node.node.attr in SEARCHES else ([], node.node.attr[:2] == "is")
        if isinstance(node, nodes.Filter):  # a text that a filter changes is found when the record is aligned
            return [], False
        sides = [node.expr, *(operand.expr for operand in node.ops)]
        plain = [side for side in sides if not self._holds_text(side)]
        found = self._values(plain)
        if found:
            return found, False
        numbers = [getattr(side, "value", "") for side in plain]
        return [], any(value not in (0, None, True, False) for value in numbers) or not plain

    def _values(self, expressions: List[Any]) -> List[str]:
        return [text for one in expressions for text in self._constants(one)]

    def _constants(self, node: Any) -> List[str]:
        """Return the string constants in an expression, and those of its variables."""
        found = [node, *node.find_all((self.nodes.Const, self.nodes.Name))]
        constants = [one.value for one in found if isinstance(one, self.nodes.Const) and isinstance(one.value, str)]
        names = [one.name for one in found if isinstance(one, self.nodes.Name)]
        return constants + [text for name in names for text in self.strings.get(name, [])]
