"""The model card of an export: the metadata that the hub reads, and a table of how the model was trained.

Metadata: https://huggingface.co/docs/hub/model-cards#model-card-metadata
"""

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional

from huggingface_hub import ModelCard, ModelCardData, try_to_load_from_cache
from yaml import YAMLError

from ftdist.checkpoint.compatibility import tested_versions
from ftdist.config.schema import RunConfig

BUILTIN_MODELS = {"smollm2-135m-instruct": ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")}
"""Hub id and license of the models that ``model.builtin`` names."""


@dataclass(frozen=True)
class BaseModel:
    """What the card says of the model that was fine-tuned."""

    hub_id: Optional[str] = None
    """Its id on the hub, None if it is not on the hub."""
    license: Optional[str] = None
    """Its license as the hub writes it, None if it is not known."""


def model_card(
    config: RunConfig, checkpoint: str, state: Dict[str, Any], model_type: str,
    template: Optional[Dict[str, Any]] = None, measured: str = "",
) -> str:  # fmt: skip
    """Return the text of the export's README.md.

    Args:
        checkpoint: Name of the checkpoint that is exported.
        state: The ``state.json`` of the checkpoint.
        model_type: The type of the model in transformers.
        template: What the chat template was given besides the conversations, from ``template_facts``.
        measured: What the export measured of a merged model. Empty for every other export.
    """
    adapter = config.method.facts.adapters and not measured
    base = base_model(config)
    sources = [*config.data.sources.values()]
    metadata = ModelCardData(
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["ftdist"],
        base_model=base.hub_id,
        license=base.license,
        datasets=[source.hub for source in sources if source.hub] or None,
    )
    tested = tested_versions("" if adapter else model_type)
    readers = "PEFT; other programs may need the merged model (`ftdist export RUN_DIR --merged`)"
    rows = {**_rows(config, checkpoint, state, tested), **_template_rows(template or {})}
    rows |= {"made to be read by": readers} if adapter else {}
    rows |= {"merging": measured} if measured else {}
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return (
        f"---\n{metadata.to_yaml()}\n---\n\n# {config.name}\n\nFine-tuned with ftdist.\n\n| | |\n|---|---|\n{table}\n"
    )


def base_model(config: RunConfig) -> BaseModel:
    """Return what is known of the base model.

    A model card in the folder of the model or in the hub's cache is read.
    """
    model = config.model
    if model.builtin:
        return BaseModel(*BUILTIN_MODELS[model.builtin])
    if model.hub:
        cached = try_to_load_from_cache(model.hub, "README.md", revision=model.revision)
        return BaseModel(model.hub, _card_data(Path(cached)).get("license") if isinstance(cached, str) else None)
    if model.path:
        found = _card_data(Path(model.path) / "README.md")
        return BaseModel(_first(found.get("base_model")), found.get("license"))
    return BaseModel()


def _card_data(card: Path) -> Dict[str, Any]:
    """Return the metadata of a model card. It is empty if there is no card, or if the card is invalid."""
    with suppress(OSError, ValueError, TypeError, YAMLError):  # an invalid card must not stop the export
        if card.is_file():
            return ModelCard.load(card).data.to_dict()
    return {}


def _first(value: str | List[str] | None) -> Optional[str]:
    return value[0] if isinstance(value, list) and value else value if isinstance(value, str) else None


def _method(config: RunConfig) -> str:
    method = config.method
    if method.facts.whole:
        return method.kind.name
    values = {name: getattr(method, name) for name in method.facts.reads}
    return f"{method.kind.name}: " + ", ".join(f"{name} {_plain(value)}" for name, value in values.items() if value)


def _plain(value: Any) -> str:
    """Return a setting without Python's marks: ``32`` for 32.0, ``q_proj and v_proj`` for a list."""
    if isinstance(value, list):
        return " and ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _rows(config: RunConfig, checkpoint: str, state: Dict[str, Any], tested: str) -> Dict[str, str]:
    evaluated = state["eval_loss"] is not None and state["evaluated_step"] == state["step"]
    return {
        "base model": (config.model.hub or config.model.builtin or config.model.path or "random weights")
        + (f", with the adapter {config.model.adapter}" if config.model.adapter else ""),
        "data": ", ".join(config.data.sources),
        "method": _method(config),
        "objective": config.objective.kind.name,
        "optimizer": config.optim.optimizer.name,
        "optimizer steps": f"{state['step']:,}",
        "trained tokens": f"{state['trained_tokens']:,}",
        "held-out loss (nats per token)": f"{state['eval_loss']:.4f}" if evaluated else "not evaluated at this step",
        "learning rate": f"{config.optim.lr:g} ({config.optim.schedule.name})",
        "rows per step × tokens per row": f"{config.batch.global_batch_size} × {config.data.max_seq_len}",
        "precision": config.train.precision.name,
        "ZeRO stage": str(config.zero.stage),
        "seed": str(config.seed),
        "checkpoint": checkpoint,
        "tested with transformers": tested,
        "made to be read by": "vLLM and llama.cpp's converter (according to their source code; not tested)",
    }


def _template_rows(template: Dict[str, Any]) -> Dict[str, str]:
    rows = {}
    if kwargs := template.get("chat_template_kwargs"):
        text = json.dumps(kwargs, ensure_ascii=False).replace("|", "\\|")
        rows["arguments of the chat template"] = f"`{text}`; the chat template in this folder uses them by default"
    if date := template.get("chat_template_date"):
        rows["date in the chat template"] = (
            f"{date}, in training and in this folder. For today's date, remove the line with `macro strftime_now` from "
            "the chat template"
        )
    return rows
