"""Check before a run whether its model can be trained as configured: ``python -m ftdist.method.check -``.

The config is read from standard input. The model is checked first (``ftdist.model.check``). A method that trains only a
part of it is then applied to the model on the meta device, so that names in the config that match nothing are refused
before anything starts. The facts are stored in the cache (``ftdist.run.model_facts``).
"""

from ftdist.base.collector import pause_collector, resume_collector

if __name__ == "__main__":
    pause_collector()

import sys
from dataclasses import replace
from pathlib import Path
from typing import Dict, List, Tuple

import torch
from transformers import PreTrainedModel

from ftdist.base.errors import EXIT_DONE
from ftdist.base.main import run_main
from ftdist.base.output import accept_any_text, read_config_text
from ftdist.config.frozen import parse_config
from ftdist.config.optim import OptimizerKind
from ftdist.config.schema import Kernels, RunConfig
from ftdist.method.build import METHODS
from ftdist.method.continued import check_continued
from ftdist.method.qlora import layers_in_4_bits
from ftdist.model.adapter import check_folded, trained_shapes
from ftdist.model.check import build_on_meta, check_model
from ftdist.model.kernels import use_kernels
from ftdist.model.quantized import import_bitsandbytes
from ftdist.model.vocabulary import whole_shape
from ftdist.run.adapters import INIT_FROM
from ftdist.run.model_facts import ModelFacts, write_facts


def check_run(config: RunConfig) -> ModelFacts:
    """Check the model of a config and its method, and return the facts about both.

    Raises:
        ConfigError: The model cannot be fine-tuned, the method cannot be applied to it, or an adapter does not fit it.
    """
    if config.optim.optimizer is OptimizerKind.adamw_8bit:
        import_bitsandbytes("optim.optimizer=adamw_8bit", "optim.optimizer=adamw")
    if config.optim.paged:
        import_bitsandbytes("optim.paged=true", "optim.paged=false")
    facts = check_model(config)
    if config.model.kernels is not Kernels.none:
        use_kernels(build_on_meta(config))
    if config.model.adapter:
        check_folded(build_on_meta(config), Path(config.model.adapter))
    if config.method.facts.whole:
        return facts
    if config.method.init_from:  # the messages of the method would name settings that are the adapter's
        trained_shapes(INIT_FROM, build_on_meta(config), Path(config.method.init_from))
    model = method_on_meta(config)
    if config.method.init_from:
        check_continued(model, config)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    whole = sum(parameter.numel() for parameter in model.parameters())
    quantized = 0
    if config.method.facts.quantized:
        base = build_on_meta(config)
        quantized = sum(base.get_submodule(name).weight.numel() for name in layers_in_4_bits(base, config))
    return replace(facts, trained=trained, added=whole - facts.parameters, quantized=quantized)


def method_on_meta(config: RunConfig) -> PreTrainedModel:
    """Return the model without weights, with the method applied.

    Raises:
        ConfigError: The method cannot be applied to it.
    """
    model = build_on_meta(config)
    with torch.device("meta"):
        return METHODS[config.method.kind].apply(model, config)


def trained_table(model: torch.nn.Module) -> List[str]:
    """Return one entry for each kind of trained parameter: how many, its name without the number of the layer, its
    shape."""
    counts: Dict[Tuple[str, str], int] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            words = [word for word in name.split(".") if word not in ("weight", "default") and not word.isdigit()]
            kind = ".".join(words[-2:]), " × ".join(map(str, whole_shape(parameter)))
            counts[kind] = counts.get(kind, 0) + 1
    return [f"{number} × {name} [{shape}]" for (name, shape), number in counts.items()]


def main(argv: List[str]) -> int:
    """Run the program. Returns the exit code (see ``ftdist.base.errors``)."""
    import transformers

    assert argv == ["-"], "the config is read from standard input"
    transformers.logging.set_verbosity_error()

    def check() -> int:
        config = parse_config(read_config_text(), "standard input")
        write_facts(config, check_run(config))
        return EXIT_DONE

    return run_main(check)


if __name__ == "__main__":
    resume_collector()
    accept_any_text()
    sys.exit(main(sys.argv[1:]))
