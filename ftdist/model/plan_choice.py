"""Choose how documents run through a model: the fastest way that gives the numbers of plain transformers.

The numbers are compared on a small stand-in of the model (``ftdist.model.exactness``). The choice is kept in the cache.
"""

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import torch
from transformers import PretrainedConfig

from ftdist.base.errors import ConfigError
from ftdist.base.json_files import read_json, write_json
from ftdist.config.schema import Attention, RunConfig
from ftdist.model.attention_plan import PLAIN, AttentionPlan, Layout, candidates, plans_anywhere
from ftdist.model.config_values import with_cause
from ftdist.model.exactness import VOCABULARY, Choice, Trial
from ftdist.model.load import DTYPES, build_whole
from ftdist.model.parts import is_multimodal, runs_own_code
from ftdist.model.reasons import reason_of
from ftdist.model.standin import Unfit, own_sizes, standin_config, whole_standin_config
from ftdist.model.standin_sizes import short_limits
from ftdist.plan.batch import never_two_documents
from ftdist.run.locations import cache_root

FORMAT_VERSION = 4
"""Increased when the comparison or the plans change."""
OWN_CODE = "several documents in a row: Python code of the model builds its layers, whose limits are not known"
ANY_LENGTH = 10**9
"""A number of tokens that is larger than every limit in the config of a model."""
Fields = Tuple[Dict[str, Any], Dict[str, Any]]
"""Configs of two stand-ins: one for the documents of the run, and one for documents with the answers that the run
samples."""


@dataclass(frozen=True)
class _Wanted:
    """What a choice depends on, besides the stand-in."""

    plans: List[AttentionPlan]
    device: torch.device
    dtype: torch.dtype
    one_document: bool
    generates: bool = True


def choose_plan(
    config: RunConfig, arch: PretrainedConfig, device: torch.device, dtype: torch.dtype, one_document: bool = False
) -> Choice:
    """Return how documents run through the model of a run.

    If the stand-in is of no use, the numbers are compared on a model with the sizes of the real one, if it is small
    enough.

    Args:
        arch: Config of the model.
        device: Device that the model is trained on.
        dtype: Type of the weights.
        one_document: A micro-batch never contains more than one document.

    Raises:
        ConfigError: ``model.attention`` does not run here, no plan gives the numbers of plain transformers, or the
            stand-in is of no use and the model is large.
    """
    wanted = _Wanted(candidates(config.model.attention, arch, device, dtype), device, dtype, one_document)
    slower = [OWN_CODE] if runs_own_code(arch) and config.model.attention is Attention.auto else []
    choice = _choose_or_fall_back(config, arch, wanted)
    return replace(choice, rejected=slower + choice.rejected)


def prove_trainable(config: RunConfig, arch: PretrainedConfig) -> Optional[int]:
    """Check on a CPU, before ranks are started, that a model can be trained with documents kept apart.

    With ``model.attention=auto`` the slowest plan alone is tried, because the faster ones depend on the device.

    Returns:
        The number of tokens in a row for which it can. None: any number. Sparse attention, for example, can see later
        tokens in long documents only.

    Raises:
        ConfigError: See ``choose_plan``; or transformers cannot compute the model in the precision of the run.
    """
    device, dtype = torch.device("cpu"), DTYPES[config.train.precision]
    wanted = _Wanted(
        plans_anywhere(config.model.attention), device, dtype, never_two_documents(config), generates=False
    )
    longer = replace(config, data=replace(config.data, max_seq_len=ANY_LENGTH))
    try:
        _choose_or_fall_back(longer, arch, wanted)
    except ConfigError:
        _choose_or_fall_back(config, arch, wanted)
        return config.data.max_seq_len * config.batch.micro_batch_size
    return None


def _choose_or_fall_back(config: RunConfig, arch: PretrainedConfig, wanted: _Wanted) -> Choice:
    auto = config.model.attention is Attention.auto
    try:
        choice = _choose(config, arch, standin_fields(config, arch), wanted)
    except Unfit as error:
        real = own_sizes(arch)
        if real is not None:
            choice = _choose_on_model(config, arch, real, wanted)
        elif not error.built:  # that the stand-in cannot be built says nothing about the model
            plan = replace(PLAIN, layout=Layout.padded) if auto else wanted.plans[0]
            choice = Choice(replace(plan, cached=False), unproven=f"the small stand-in that ftdist makes of the model "
                            f"{error.reason}, so the numbers were not compared with plain transformers")  # fmt: skip
        else:
            found = ("ftdist makes a small stand-in of a model to find out how documents run through it, and that of "
                     f"{arch.model_type} {error.reason}")  # fmt: skip
            expected = "a stand-in that can be trained, because the model itself is too large to be tried"
            fix = "use another model, or report the config.json of this one to the developers of ftdist"
            raise with_cause(config, ConfigError(found, expected, fix)) from error
    return choice


def standin_fields(config: RunConfig, arch: PretrainedConfig) -> Fields:
    """Return the configs of two stand-ins of a model (see ``Fields``).

    A document with its answer can exceed a limit of the model, for instance a sliding window, that no document reaches.

    Raises:
        Unfit: The config of the model has fields that cannot be reduced.
    """
    try:
        small = (whole_standin_config if is_multimodal(arch) else standin_config)(arch, VOCABULARY)
    except Exception as error:  # the stand-in of an unknown architecture can fail in many ways
        raise Unfit(f"cannot be built ({reason_of(error)})", built=False) from error
    return _with_limits(config, small)


def _with_limits(config: RunConfig, fields: Dict[str, Any]) -> Fields:
    longest = config.data.max_seq_len
    row, answer = longest * config.batch.micro_batch_size, config.train.sample_tokens if config.train.num_samples else 0
    return short_limits(fields, longest, row), short_limits(fields, longest + answer, row + answer)


def _choose_on_model(config: RunConfig, arch: PretrainedConfig, real: Dict[str, Any], wanted: _Wanted) -> Choice:
    """Return the choice for a model whose stand-in is of no use. The model is small enough to be tried itself."""
    try:
        return _choose(config, arch, _with_limits(config, real), wanted)
    except Unfit as error:
        found = f"a {arch.model_type} model with these sizes {error.reason}"
        expected = "a model that transformers can train on documents of any length"
        raise with_cause(config, ConfigError(found, expected, "use another model")) from error


def _choose(config: RunConfig, arch: PretrainedConfig, fields: Fields, wanted: _Wanted) -> Choice:
    """Return the choice of a stand-in, or that of an earlier start.

    Raises:
        ConfigError, Unfit: See ``Trial.choose``.
    """
    small, sampled = fields
    key = {
        "version": FORMAT_VERSION, "transformers": version("transformers"), "torch": version("torch"), "fields": small,
        "plans": [str(plan) for plan in wanted.plans], "device": wanted.device.type, "dtype": str(wanted.dtype),
        "one_document": wanted.one_document, "sampled": sampled, "generates": wanted.generates,
    }  # fmt: skip
    digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:24]
    file = cache_root(config) / "checked" / f"attention-{digest}.json"
    choice = None if runs_own_code(arch) else _read(file)  # the code may change
    if choice is None:
        build_whole()  # only one rank builds the stand-in, so it must not be sharded
        choice = Trial(small, wanted.device, wanted.one_document, arch).choose(
            wanted.plans, wanted.dtype, wanted.generates
        )
        if choice.plan.cached and sampled != small:  # with its answer, a text exceeds a limit that no document reaches
            works = Trial(sampled, wanted.device, wanted.one_document, arch).cache_works(choice.plan)
            choice = replace(choice, plan=replace(choice.plan, cached=works))
        _write(file, choice)
    return choice


def _read(file: Path) -> Optional[Choice]:
    # There is no file, or another version wrote it.
    with suppress(OSError, ValueError, TypeError, KeyError):
        saved = read_json(file)
        plan = saved.pop("plan")
        backend, layout = Attention[plan.pop("backend")], Layout[plan.pop("layout")]
        return Choice(AttentionPlan(backend=backend, layout=layout, **plan), **saved)
    return None


def _write(file: Path, choice: Choice) -> None:
    saved = asdict(choice)
    saved["plan"] |= {"backend": choice.plan.backend.name, "layout": choice.plan.layout.name}
    with suppress(OSError):  # without the cache, the plans are compared again at the next start
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, saved)
