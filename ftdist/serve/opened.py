"""Open a checkpoint or its base model for evaluation, on any number of ranks."""

import gc
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional

from ftdist.base.terminal import task
from ftdist.checkpoint.export import check_trained
from ftdist.checkpoint.state import load_trained
from ftdist.config.schema import ModelConfig, RunConfig
from ftdist.data.tokenizer import load_tokenizer
from ftdist.engine.engine import ForwardEngine, build_forward_engine
from ftdist.method.build import METHODS
from ftdist.model.load import DTYPES, load_model, model_config
from ftdist.model.plan_choice import choose_plan
from ftdist.model.vocabulary import fit_vocabulary
from ftdist.objective.base import Objective
from ftdist.objective.build import build_objective, choose_head
from ftdist.parallel.mesh import Mesh, data_parallel
from ftdist.parallel.ranks import Ranks, on_rank_0
from ftdist.plan.batch import BatchPlan, never_two_documents
from ftdist.plan.deepspeed import read_settings


@dataclass(frozen=True)
class Opened:
    """A model that can be evaluated."""

    engine: ForwardEngine
    objective: Objective
    tokenizer: Any
    plan: BatchPlan
    mesh: Mesh
    max_positions: Optional[int]
    """Number of positions of the model. None: not known."""

    def close(self) -> None:
        """Free what DeepSpeed holds, so that another model can be opened in this process."""
        self.engine.destroy()
        gc.collect()


def open_model(config: RunConfig, settings_file: Path, folder: Optional[Path], ranks: Ranks) -> Opened:
    """Open a model. Every rank must call it.

    Args:
        settings_file: The settings of DeepSpeed (``deepspeed.json``).
        folder: The model in Hugging Face format; a checkpoint if the method trains only a part of it. None: the base
            model of the config, as the run has loaded it.

    Raises:
        CheckpointError: The checkpoint is damaged, or was trained on another base model.
    """
    tokenizer = load_tokenizer(config)
    whole = config.method.facts.whole
    exported = whole and folder is not None
    if exported:
        config = replace(config, model=replace(ModelConfig(), path=str(folder), attention=config.model.attention,
                                               trust_remote_code=config.model.trust_remote_code))  # fmt: skip
    elif folder is not None:
        on_rank_0(ranks, lambda: check_trained(folder, config))
    plan = BatchPlan(config.batch.micro_batch_size, 1, ranks.world_size, config.data.max_seq_len)
    settings = read_settings(settings_file, plan)
    arch = model_config(config)
    dtype = DTYPES[config.train.precision]
    choice = on_rank_0(ranks, lambda: choose_plan(config, arch, ranks.device, dtype, never_two_documents(config)))
    with task(f"loading the {'base ' if folder is None else ''}model", ranks.first):
        model = load_model(config, arch, choice.plan, settings)
        # An export already has the rows of new tokens.
        known, padding = len(tokenizer), 1
        if not exported:
            known, padding = tokenizer.num_known_tokens, config.model.pad_vocab_to_multiple_of
        vocab_size = fit_vocabulary(model, known, len(tokenizer), padding)
        if not whole and folder is not None:
            METHODS[config.method.kind].apply(model, config)
            load_trained(model, folder)
        engine = build_forward_engine(model.eval(), settings, ranks.device, config.zero.expert_groups)
    mesh = data_parallel(ranks)
    head, _ = choose_head(config, engine, vocab_size, mesh)
    limit = getattr(arch.get_text_config(), "max_position_embeddings", None)
    return Opened(engine, build_objective(config, vocab_size, head), tokenizer, plan, mesh, limit)
