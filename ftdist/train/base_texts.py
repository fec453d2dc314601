"""Texts that the model itself wrote before the first step. Forgetting is measured on them.

They are drawn from the model's own distribution: at temperature 1, and any token of the vocabulary can be drawn. Half
of them begin with the first token of a text alone, the others with a general prompt. The same model and settings always
give the same texts, so that the forgetting of several runs can be compared.
"""

import zipfile
from dataclasses import dataclass
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, Callable, List, Optional, Sequence

import numpy as np
import torch

from ftdist.base.temporary import replace_file
from ftdist.config.data import DataConfig, Format
from ftdist.data.chat_forms import USUAL
from ftdist.data.loader import PreparedSet
from ftdist.data.records import Document
from ftdist.data.render import Rendered, make_renderer, with_one_bos
from ftdist.engine.engine import ForwardEngine
from ftdist.train.evaluate import next_tokens

QUESTIONS = (
    "Why is the sky blue?", "Write a short story about a journey by train.", "Give me three tips for better sleep.",
    "Write a Python function that reverses a list.", "What happened in Europe in the year 1848?",
    "How do you say 'good morning' in French, German and Spanish?", "What is 17 times 6? Explain each step.",
    "Write a polite letter that cancels a contract.",
)  # fmt: skip
"""Prompts for models with a chat template."""
OPENINGS = (
    "The history of the city begins", "Once upon a time", "In this paper, we", "def main():", "Ingredients:",
    "Dear Sir or Madam,", "Let n be a natural number.", "Yesterday the government announced",
)  # fmt: skip
"""Prompts for other models."""
CHECKED_EVERY = 16
"""Number of tokens of each text after which the ranks agree whether the run was asked to stop."""


@dataclass(frozen=True)
class BaseTexts:
    """The texts, and their losses before the first step."""

    tokens: np.ndarray
    """[tokens] int32: ids of all texts with their prompts, one text after another."""
    drawn: np.ndarray
    """[tokens] uint8: 1 for tokens that the model drew, 0 for prompts."""
    offsets: np.ndarray
    """[texts + 1] int64: text i is ``tokens[offsets[i]:offsets[i + 1]]``."""
    losses: np.ndarray
    """[texts] float64: the negative log-probability of the drawn tokens of each text in nats, before the first step."""

    def save(self, path: Path) -> None:
        """Write the texts to a file (``.npz``), which is complete or does not exist.

        Raises:
            OSError: It cannot be written.
        """
        with replace_file(path) as file:
            np.savez(file, **vars(self))

    @classmethod
    def load(cls, path: Path) -> "BaseTexts":
        """Return the texts of a file.

        Raises:
            OSError: The file cannot be read.
            ValueError: It is damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as found:  # each array has a checksum
                texts = cls(**{name: found[name] for name in cls.__dataclass_fields__})
        except (zipfile.BadZipFile, KeyError, EOFError) as error:
            raise ValueError(str(error)) from error
        sizes = len(texts.tokens), len(texts.drawn), len(texts.losses)
        if sizes != (texts.offsets[-1], texts.offsets[-1], len(texts.offsets) - 1):
            raise ValueError("its sizes do not match")
        return texts


def as_set(prompts: Sequence[Sequence[int]], texts: Sequence[Sequence[int]], max_seq_len: int) -> PreparedSet:
    """Return texts as a set for ``evaluate``, in which the drawn tokens are trained. See ``rows_of``.

    Args:
        prompts: The prompt of each text.
        texts: The tokens that follow it.
    """
    whole = [[*prompt, *text] for prompt, text in zip(prompts, texts, strict=True)]
    drawn = [[0] * len(prompt) + [1] * len(text) for prompt, text in zip(prompts, texts, strict=True)]
    offsets = np.array([0, *accumulate(map(len, whole))], dtype=np.int64)
    tokens, marks = (np.array(list(chain.from_iterable(rows))) for rows in (whole, drawn))
    return rows_of(tokens.astype(np.int32), marks.astype(np.uint8), offsets, max_seq_len)


def rows_of(tokens: np.ndarray, drawn: np.ndarray, offsets: np.ndarray, max_seq_len: int) -> PreparedSet:
    """Return a set whose rows hold the texts in order, as many in each row as fit.

    Args:
        max_seq_len: Length of a row. 1: each text has a row of its own.
    """
    rows, begin = [0], 0
    for text in range(1, len(offsets) - 1):
        if offsets[text + 1] - offsets[begin] > max_seq_len:
            rows.append(text)
            begin = text
    return PreparedSet(tokens, drawn, offsets, np.arange(len(offsets) - 1), np.array([*rows, len(offsets) - 1]))


def prompts_of(tokenizer: Any, data: DataConfig, count: int, longest: int) -> List[List[int]]:
    """Return the prompts of ``count`` texts. Every second prompt is only the token with which texts begin.

    Args:
        longest: Maximum number of tokens of a prompt. Longer ones are left out.
    """
    first = [tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id]
    renderer = make_renderer(tokenizer, data.train_on, data.turns, data.chat_template_kwargs, data.chat_template_date)
    found = []
    for question, opening in zip(QUESTIONS, OPENINGS, strict=True):
        chat = Document("", Format.messages, messages=[{"role": "user", "content": question}])
        text = renderer.chats.prompt_text(chat, 1, USUAL) if tokenizer.chat_template else None
        text = with_one_bos(Rendered(opening if text is None else text, []), renderer.bos).text
        ids = tokenizer(text, add_special_tokens=False).input_ids
        found += [ids] if len(ids) <= longest else []
    given = [first if number % 2 == 0 or not found else found[number // 2 % len(found)] for number in range(count)]
    return [list(map(int, prompt)) for prompt in given]


@torch.no_grad()
def draw_texts(
    engine: ForwardEngine, prompts: Sequence[Sequence[int]], limits: Sequence[int], stop_ids: Sequence[int],
    vocab_size: int, device: torch.device, stopped: Callable[[int], bool] = lambda column: False, seed: int = 0,
) -> Optional[List[List[int]]]:  # fmt: skip
    """Let the model continue each prompt. Every rank must make the same call, and uses the tokens that rank 0 draws.

    All texts are one batch. While the model already continues short prompts, the other texts get the next token of
    their prompt in place of a drawn one. No random state of PyTorch is used: text i gets its random numbers from
    ``seed`` and i.

    Args:
        limits: Maximum number of drawn tokens of each text. A text also ends with a token of ``stop_ids``.
        stopped: Is called with the number of tokens done; if it returns true, drawing ends.

    Returns:
        The drawn tokens of each text. None if drawing was ended.
    """
    uniform = np.stack([np.random.default_rng([seed, text]).random(max(limits)) for text in range(len(prompts))])
    texts: List[List[int]] = [[] for _ in prompts]
    column = min(map(len, prompts))

    def choose(logits: torch.Tensor) -> torch.Tensor:
        at = [min(max(column - len(prompt), 0), len(row) - 1) for prompt, row in zip(prompts, uniform, strict=True)]
        draw = torch.from_numpy(uniform[range(len(at)), at]).to(logits.device)
        total = logits.double().softmax(-1).cumsum(-1)
        chosen = torch.searchsorted(total, (draw * total[:, -1])[:, None], right=True)[:, 0].clamp(max=vocab_size - 1)
        given = torch.tensor([prompt[column] if column < len(prompt) else -1 for prompt in prompts])
        return torch.where(given.to(chosen.device) >= 0, given.to(chosen.device), chosen)

    stops = [[token] for token in stop_ids]

    def ended(text: int) -> bool:
        return len(texts[text]) == limits[text] or texts[text][-1:] in stops

    ids = torch.tensor([list(prompt[:column]) for prompt in prompts], device=device)
    with engine.evaluation():
        for new in next_tokens(engine, ids, vocab_size, choose):
            for text, token in enumerate(new.tolist()):
                if column >= len(prompts[text]) and not ended(text):
                    texts[text].append(token)
            column += 1
            if all(map(ended, range(len(texts)))):
                return texts
            if column % CHECKED_EVERY == 0 and stopped(column):
                return None
    raise AssertionError("next_tokens does not end")
