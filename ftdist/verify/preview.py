"""Preview the data with the base model's loss of each token: ``python -m ftdist.verify.preview CONFIG``."""

from ftdist.base.collector import pause_collector, resume_collector

if __name__ == "__main__":
    pause_collector()

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import List, Optional

import numpy as np
import torch

from ftdist.base.output import accept_any_text
from ftdist.config.schema import Recompute, RunConfig
from ftdist.data.main import quiet_libraries, run_step
from ftdist.data.preview import preview
from ftdist.data.preview_rows import TokenLosses
from ftdist.data.tokenizer import load_tokenizer
from ftdist.model.attention_plan import PLAIN
from ftdist.model.exactness import micro_batch
from ftdist.model.load import load_model, model_config
from ftdist.model.vocabulary import fit_vocabulary
from ftdist.objective.head import Head, find_head, target_logprobs
from ftdist.verify.reference import token_losses


def main(arguments: Optional[List[str]] = None) -> int:
    """Print the preview, or write it to a file. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m ftdist.verify.preview", description=__doc__.splitlines()[0])
    parser.add_argument("config", help="a YAML file, or - for standard input")
    parser.add_argument("-n", type=int, default=2, help="number of rows to show")
    parser.add_argument("--html", type=Path, help="write the preview to this HTML file")
    given = parser.parse_args(arguments)
    return run_step(lambda config: preview(config, given.n, given.html, base_losses(config)), given.config)


def base_losses(config: RunConfig) -> TokenLosses:
    """Return a function that computes the loss of each token of a document, with the model before training.

    The model runs on the GPU if there is one. It sees one document at a time. The function returns [n] nats; the first
    value is nan, because the first token is not predicted.
    """
    tokenizer = load_tokenizer(config)
    config.train.gradient_checkpointing = Recompute.none
    model = load_model(
        config, model_config(config), replace(PLAIN, implementation=None), {"zero_optimization": {"stage": 0}}
    )
    rows = fit_vocabulary(model, tokenizer.num_known_tokens, len(tokenizer), config.model.pad_vocab_to_multiple_of)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).eval()
    head = find_head(model, rows, device)

    @torch.no_grad()
    def losses(ids: np.ndarray) -> np.ndarray:
        if isinstance(head, Head):  # long documents need no whole logits
            text = torch.from_numpy(ids.astype(np.int64)).to(device)
            positions = torch.arange(len(ids) - 1, device=device)
            found = -target_logprobs(model, micro_batch([text]), positions, text[1:], rows, head)
        else:
            found = token_losses(model, ids, rows)
        return np.concatenate([[np.nan], found.cpu().numpy()])

    return losses


if __name__ == "__main__":
    resume_collector()
    accept_any_text()
    quiet_libraries()
    sys.exit(main())
