"""Texts and chats with which a saved tokenizer is compared with the one that the run trained with.

``save_pretrained`` of transformers writes new files for a tokenizer, and they do not always give the same tokenizer.
"""

import tempfile
from pathlib import Path
from typing import Any, Dict, List, Tuple

from ftdist.base.errors import CheckpointError
from ftdist.checkpoint.protocol import HF
from ftdist.config.schema import RunConfig
from ftdist.run.file_names import GENERATION_CONFIG

TEXT = (
    "Hello, World! I'm don't WE'LL you've\n\n  two  spaces\tand tabs \n \r\n  end;\n}\n\nx = foo(bar_Baz[1234567]"
    " + 3.14); HTTPServer iPhone eBay 2024-05-31 naïve café Straße Ünïcödé ÇA ΑΒΓδε Привет мир 你好，世界。"
    " 日本語テキスト 한국어 العربية हिन्दी ไทย 🙂👍🏽 → ≤ ½ ²³ № … — “quotes” don’t\u00a0no-break"
    "   \n\n\n\tdef f(x):\n\t\treturn x**2  # done   "
)
"""A text with all that tokenizers treat in different ways: digits, cases, contractions, white space, scripts, code."""
SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
CONTENTS = {SYSTEM: "Be brief.", USER: "How are you?", ASSISTANT: "Fine, 42 thanks."}
CHATS: Tuple[Tuple[str, ...], ...] = (
    (USER,), (SYSTEM, USER), (USER, ASSISTANT), (USER, ASSISTANT, USER), (SYSTEM, USER, ASSISTANT, USER),
)  # fmt: skip
"""The roles of each chat."""
TOOL = {"type": "function", "function": {"name": "now", "description": "Say the time.",
                                         "parameters": {"type": "object", "properties": {}}}}  # fmt: skip
SPECIAL = ("bos_token_id", "eos_token_id", "unk_token_id", "pad_token_id")


def chat(roles: Tuple[str, ...]) -> List[Dict[str, str]]:
    """Return a chat in which every message has another content."""
    return [{"role": role, "content": f"{CONTENTS[role]} ({number})"} for number, role in enumerate(roles)]


def texts_of(tokenizer: Any) -> List[str]:
    """Return the probe text, and one with each added token."""
    return [TEXT, *(f"a{token}b {token}\n" for token in sorted(tokenizer.get_added_vocab()))]


def rendered_chats(tokenizer: Any, **options: Any) -> List[str]:
    """Return the text of each chat, with the prompt for an answer after a user's message, and of one with a tool.

    For a chat that the template refuses, the result has the type of the error. Without a template it is empty.

    Args:
        options: Arguments of the chat template.
    """
    if not tokenizer.chat_template:
        return []
    texts = [_rendered(tokenizer, roles, roles[-1] == USER, options) for roles in CHATS]
    with_tools = getattr(tokenizer, "tool_use_template", None)
    if with_tools:
        options = {**options, "chat_template": with_tools}
    return [*texts, _rendered(tokenizer, (USER,), True, {**options, "tools": [TOOL]})]


def _rendered(tokenizer: Any, roles: Tuple[str, ...], prompt: bool, options: Dict[str, Any]) -> str:
    try:
        return str(tokenizer.apply_chat_template(chat(roles), tokenize=False, add_generation_prompt=prompt, **options))
    except Exception as error:  # templates raise many kinds, for instance where they take no system message
        return f"refused: {type(error).__name__}"


def tokenizer_difference(trained: Any, read: Any, kwargs: Dict[str, Any], defaults: bool) -> str:
    """Return how a tokenizer differs from the one that the run trained with, or an empty text.

    Args:
        kwargs: ``data.chat_template_kwargs``.
        defaults: They are the defaults of ``read``, so that it needs no arguments.
    """
    if len(trained) != len(read):
        return f"{len(read)} tokens instead of {len(trained)}"
    for name in SPECIAL:
        if getattr(trained, name) != getattr(read, name):
            return f"{name} {getattr(read, name)} instead of {getattr(trained, name)}"
    for with_special in (True, False):
        for text in texts_of(trained):
            ids, found = (t(text, add_special_tokens=with_special)["input_ids"] for t in (trained, read))
            if ids != found:
                return f"other token ids for {first_difference(trained, ids, found)}"
    expected = rendered_chats(trained, **kwargs)
    for text, found_text in zip(expected, rendered_chats(read, **({} if defaults else kwargs)), strict=False):
        if text != found_text:
            return f"a chat is rendered as {found_text!r:.200} instead of {text!r:.200}"
    return "" if bool(trained.chat_template) == bool(read.chat_template) else "no chat template"


def first_difference(tokenizer: Any, ids: List[int], found: List[int]) -> str:
    """Return the text where two lists of token ids differ first, and the ids there."""
    place = next((n for n, (a, b) in enumerate(zip(ids, found, strict=False)) if a != b), min(len(ids), len(found)))
    text = tokenizer.decode(ids[max(place - 2, 0) : place + 3])
    return f"{text!r}: {found[place : place + 3]} instead of {ids[place : place + 3]}"


def check_saved(files: Dict[str, bytes], tokenizer: Any, config: RunConfig) -> None:
    """Check that the tokenizer which every checkpoint will hold is the one that the run trains with.

    Args:
        files: The small files of a checkpoint, from ``hf_files``.

    Raises:
        CheckpointError: transformers reads another tokenizer from these files.
    """
    if config.model.trust_remote_code:  # its own code may not be among the files
        return
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory(prefix="ftdist-tokenizer-") as folder:
        for name, content in files.items():
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        read = AutoTokenizer.from_pretrained(Path(folder) / HF)
    problem = tokenizer_difference(tokenizer, read, config.data.chat_template_kwargs, defaults=False)
    if problem:
        raise CheckpointError(f"transformers saves another tokenizer than it has loaded: {problem}", "the same one",
                              "model.tokenizer=FOLDER, with one that transformers saves unchanged")  # fmt: skip


def check_exported(out: Path, checkpoint: Path, config: RunConfig) -> None:
    """Check that the tokenizer, chat template and generation config of an export are those that the run trained with.

    Args:
        out: An export in Hugging Face format.

    Raises:
        CheckpointError: One of them differs.
    """
    from transformers import AutoTokenizer

    trust = config.model.trust_remote_code
    trained, read = (AutoTokenizer.from_pretrained(f, trust_remote_code=trust) for f in (checkpoint / HF, out))
    problem = tokenizer_difference(trained, read, config.data.chat_template_kwargs, defaults=True)
    if not problem and (out / GENERATION_CONFIG).read_bytes() != (checkpoint / HF / GENERATION_CONFIG).read_bytes():
        problem = f"another {GENERATION_CONFIG}"
    if problem:
        raise CheckpointError(f"{out} does not have the tokenizer and settings of the run: {problem}",
                              "those of the checkpoint", "check the disk, then export again")  # fmt: skip
