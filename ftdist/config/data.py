"""The section ``data`` of the run config: the training data. ``schema.py`` has the other sections."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Dict, Optional

SOURCE_KINDS = ("sources", "heldout", "general")
"""The fields of ``data`` that hold sources by name."""
BUILTIN_GENERAL = "builtin"
"""The name of the general set that ftdist ships."""


class Format(Enum):
    auto = "auto"
    text = "text"
    messages = "messages"
    prompt_completion = "prompt_completion"
    alpaca = "alpaca"
    sharegpt = "sharegpt"


class TrainOn(Enum):
    auto = "auto"
    assistant = "assistant"
    completion = "completion"
    last = "last"
    marked = "marked"
    all = "all"


class Turns(Enum):
    auto = "auto"
    whole = "whole"
    each = "each"


class LongDocuments(Enum):
    truncate = "truncate"
    split = "split"
    drop = "drop"


class Reasoning(Enum):
    keep = "keep"
    drop = "drop"
    require = "require"


class BadRecords(Enum):
    stop = "stop"
    drop = "drop"


class HeldoutBy(Enum):
    content = "content"
    rendering = "rendering"


RESERVED_TEMPLATE_KWARGS = (
    "messages", "conversation", "conversations", "tools", "add_generation_prompt", "continue_final_message",
    "chat_template", "tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict",
    "return_assistant_tokens_mask", "tokenizer_kwargs", "sanitize_control_tokens",
)  # fmt: skip
"""Arguments of ``apply_chat_template`` that a template does not see, or that ftdist sets itself."""


@dataclass
class SourceConfig:
    path: Optional[str] = None
    """A local file (.jsonl .ndjson .json .csv .tsv .txt .parquet .arrow, text also compressed: .gz .zst .bz2 .xz), a
    glob of such files, a folder of them, or a folder made by ``datasets.save_to_disk``. Exactly one of path, hub and
    builtin is set."""
    hub: Optional[str] = None
    """A data set on the Hugging Face hub: ``org/name``."""
    builtin: Optional[str] = None
    """``stdlib_docs``: questions and answers from the docstrings of the Python standard library. ``fake``: generated
    chats of random words, of different lengths."""
    subset: Optional[str] = None
    """Configuration name of a hub data set."""
    split: str = "train"
    """Split of a hub data set, of a saved DatasetDict, or of a folder whose files are named after splits."""
    revision: Optional[str] = None
    """Commit, branch or tag on the hub. Use a commit for a run that can be repeated."""
    format: Format = Format.auto
    """Format of the records. ``auto`` recognizes it from the field names."""
    fields: Dict[str, str] = field(default_factory=dict)
    """Names of the fields in the records, where they are not the usual ones: ``{prompt: question, completion: answer}``
    reads the field ``question`` as the prompt."""
    weight: float = 1.0
    """Passes over this source in one epoch: 2 uses every document twice, 0.5 uses a seeded half of them."""
    max_documents: Optional[int] = None
    """Maximum number of documents to read. For ``fake``: number of documents to generate."""


@dataclass
class DataConfig:
    sources: Dict[str, SourceConfig] = field(default_factory=dict)
    """Training sources, each under a name that you choose."""
    heldout: Dict[str, SourceConfig] = field(default_factory=dict)
    """Held-out sources by name. Each is evaluated separately, as ``eval/<name>/loss``."""
    builtin_general: bool = True
    """Evaluate the short general texts that ftdist ships (prose, reports, instructions, code, arithmetic, questions) as
    ``general/builtin/loss``. If this loss rises, the model forgets. false: these texts are not used."""
    general: Dict[str, SourceConfig] = field(default_factory=dict)
    """Other general texts by name, evaluated as ``general/<name>/loss``. They are never trained on: a document that is
    also a training document is left out."""
    heldout_share: float = 0.0
    """Share (0 to 0.5) of the documents of ``sources`` that is held out and evaluated as ``eval/heldout/loss``.
    Documents are chosen by a hash of their content: records with equal content are always in the same set (training or
    held-out), and the choice does not depend on their order."""
    heldout_by: HeldoutBy = HeldoutBy.content
    """Input of the hash for ``heldout_share``. ``content``: the record, so that the chat template does not
    change the choice. ``rendering``: the text that the template makes; runs of earlier versions keep it."""
    max_heldout_documents: Optional[int] = None
    """Maximum number of documents in each held-out set. null: all."""
    train_on: TrainOn = TrainOn.auto
    """Tokens that are trained. ``auto``: the assistant turns of chats (those that the author marked, if a record has
    marks), the completions of prompt/completion records, and all of plain text. ``last``: the last assistant turn only.
    ``marked``: only answers that are marked with ``train``, ``training`` or ``loss`` (true) or ``weight`` (1)."""
    bad_records: BadRecords = BadRecords.stop
    """What happens to a record that cannot be used: invalid, with an empty answer, or refused by the chat template.
    ``stop``: nothing is prepared, and the error names it. ``drop``: it is left out, counted by reason, and listed in
    ``bad_records.jsonl`` in the run directory."""
    max_bad_share: float = 0.1
    """Largest share (0 to 1) of the records of a source that ``bad_records=drop`` leaves out. If more are bad, nothing
    is prepared. One bad record is always allowed."""
    reasoning: Reasoning = Reasoning.keep
    """What happens to the reasoning in answers (``reasoning_content``, ``thinking``, ``<think>`` at the beginning).
    ``drop``: it is removed. ``require``: a record with an answer without reasoning is a bad record."""
    turns: Turns = Turns.auto
    """Documents that a chat becomes. ``auto``: one, unless the chat template shows an answer differently when more
    messages follow; such an answer becomes a document of its own, with the prompt that the model will be given.
    ``whole``: always one; a chat whose answers are shown differently later is refused. ``each``: one for each
    answer."""
    chat_template: Optional[str] = None
    """Chat template: the name of one that ftdist ships (``chatml``), or the path of a Jinja file. null: the tokenizer's
    own."""
    chat_template_kwargs: Dict[str, Any] = field(default_factory=dict)
    """Arguments of the chat template, such as ``{enable_thinking: false}``. A record's own ``chat_template_kwargs``
    override these. What ftdist sets itself (``tools``, ``add_generation_prompt``, …) is refused."""
    chat_template_date: str = "2024-07-26"
    """The date (``YYYY-MM-DD``) that a chat template gets as today's date. It is fixed, so that the same config gives
    the same data every day."""
    max_seq_len: int = 2048
    """Length of a row in tokens."""
    packing: bool = True
    """Put several whole documents into each row. Attention does not cross document boundaries. false: one document per
    row, with padding."""
    long_documents: LongDocuments = LongDocuments.truncate
    """What happens to a document that is longer than max_seq_len: its end is cut off, it is split into several
    documents, or it is dropped."""
    num_workers: Optional[int] = None
    """Number of processes that tokenize. null: one for each CPU core."""


def named_sources(data: DataConfig) -> Dict[str, SourceConfig]:
    """Return the sources that the config names, by their key: ``data.sources.NAME``, ``data.heldout.NAME`` and
    ``data.general.NAME``.
    """
    return {f"data.{kind}.{name}": source for kind in SOURCE_KINDS for name, source in getattr(data, kind).items()}


def general_sources(data: DataConfig) -> Dict[str, SourceConfig]:
    """Return the general sets by name, with the built-in one."""
    return {**({BUILTIN_GENERAL: SourceConfig(builtin="general")} if data.builtin_general else {}), **data.general}
