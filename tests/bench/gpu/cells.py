"""The cells of ``make bench-gpu``: what is measured, in the order of importance.

A cell is one measurement in a process of its own. Cells that train are compared with a reference cell of the same
subject, which comes before them.
"""

from dataclasses import dataclass
from typing import Any, Dict, List, Tuple


@dataclass(frozen=True)
class Subject:
    """A model with random weights, and rows of several documents of random tokens."""

    model: Dict[str, Any]
    """Config of the model, with ``model_type``."""
    method: str
    """``method.kind``."""
    tokens: int
    """Tokens of a row."""
    rows: int
    """Rows of a step."""


@dataclass(frozen=True)
class Cell:
    """One measurement."""

    name: str
    kind: str
    """``device``, ``head``, ``reference``, ``training`` or ``saving``: the function that measures it."""
    budget_s: float
    """Seconds after which it is stopped."""
    subject: str = ""
    settings: Tuple[str, ...] = ()
    """Overrides of the config."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of a benchmark."""

    subjects: Dict[str, Subject]
    head: Tuple[int, int, int]
    """Tokens, vocabulary and hidden size of the loss head that is measured alone."""
    steps: int
    """Steps that are measured. One step comes before them, and those that are compared with the reference."""


QWEN_1_5B = {
    "model_type": "qwen2", "vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960,
    "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2, "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
}  # fmt: skip
LLAMA_8B = {
    "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}  # fmt: skip
SMALL = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}  # fmt: skip
SHORT, LONG, FROZEN = "1.5B, 2k", "1.5B, 8k", "8B LoRA, 4k"

FULL_SIZE = Sizes(
    subjects={
        SHORT: Subject(QWEN_1_5B, "full", tokens=2048, rows=4),
        LONG: Subject(QWEN_1_5B, "full", tokens=8192, rows=1),
        FROZEN: Subject(LLAMA_8B, "lora", tokens=4096, rows=1),
    },
    head=(8192, 151936, 4096),
    steps=8,
)
REHEARSAL = Sizes(
    subjects={
        SHORT: Subject({**QWEN_1_5B, **SMALL}, "full", tokens=32, rows=4),
        LONG: Subject({**QWEN_1_5B, **SMALL}, "full", tokens=128, rows=1),
        FROZEN: Subject({**LLAMA_8B, **SMALL}, "lora", tokens=64, rows=1),
    },
    head=(96, 512, 64),
    steps=2,
)

COMPILED = "train.compile=layers"
WAYS: Dict[str, Tuple[str, ...]] = {
    "recompute all": ("train.gradient_checkpointing=full",),
    "recompute none": ("train.gradient_checkpointing=none",),
    "recompute all but attention": ("train.gradient_checkpointing=selective",),
    "recompute every 2nd layer": ("train.gradient_checkpointing=full", "train.recompute_every=2"),
    "recompute all, offloaded": ("train.gradient_checkpointing=full", "train.offload_activations=true"),
    "recompute all but attention, offloaded":
        ("train.gradient_checkpointing=selective", "train.offload_activations=true"),
    "recompute none, compiled": ("train.gradient_checkpointing=none", COMPILED),
    "recompute all, compiled": ("train.gradient_checkpointing=full", COMPILED),
    "recompute all but attention, compiled": ("train.gradient_checkpointing=selective", COMPILED),
    "recompute none, logits": ("train.gradient_checkpointing=none", "objective.loss_head=logits"),
}  # fmt: skip
"""Settings of a cell that trains, by name."""
PLAIN_WAYS = [way for way in WAYS if "compiled" not in way]
"""Those that every subject is measured with. The others take a minute to compile."""


def cells() -> List[Cell]:
    """Return all cells. Where the time ends, the last ones are left out."""
    return [
        Cell("device", "device", 40.0),
        Cell("head", "head", 60.0),
        _reference(LONG),
        *(_training(LONG, way) for way in PLAIN_WAYS),
        _training(LONG, "recompute none, compiled"),
        _reference(FROZEN),
        *(_training(FROZEN, way) for way in PLAIN_WAYS[:3]),
        Cell("saving", "saving", 90.0, SHORT),
        _reference(SHORT),
        *(_training(SHORT, way) for way in PLAIN_WAYS[:3]),
        _training(FROZEN, "recompute all but attention, compiled"),
        _training(LONG, "recompute all, compiled"),
    ]


def _reference(subject: str) -> Cell:
    return Cell(f"{subject}: reference", "reference", 60.0, subject)


def _training(subject: str, way: str) -> Cell:
    return Cell(f"{subject}: {way}", "training", 100.0 if COMPILED in WAYS[way] else 45.0, subject, WAYS[way])
