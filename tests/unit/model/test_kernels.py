"""Liger's kernels: what is refused, that other models stay plain, and that wrong numbers are found.

These tests need no GPU and no Liger: a small module with Liger's name takes its place. tests/ranks/test_kernels.py runs
Liger itself.
"""

import copy
import sys
from types import ModuleType
from typing import Any, Callable, Dict

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.llama import modeling_llama

from ftdist.base.errors import ConfigError
from ftdist.config.schema import Kernels, RunConfig
from ftdist.method.check import check_run
from ftdist.model import kernels
from ftdist.model.attention_plan import BY_DOCUMENT
from ftdist.model.kernels import prove_kernels, use_kernels
from ftdist.plan.kernels import check_kernels
from ftdist.run.model_facts import describe_model
from tests.helpers.tiny import LLAMA

CPU = torch.device("cpu")
PLAIN = modeling_llama.apply_rotary_pos_emb
Rotate = Callable[..., Any]


def _install(monkeypatch: pytest.MonkeyPatch, functions: Dict[str, Any]) -> None:
    module = ModuleType("liger_kernel.transformers.monkey_patch")
    module.MODEL_TYPE_TO_APPLY_LIGER_FN = functions  # type: ignore[attr-defined]
    for name in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(kernels, "interpreted", lambda: False)  # there is no Triton to prepare


def _liger(rotate: Rotate) -> Callable[..., None]:
    """Return a function that patches a Llama as Liger's does: the function of the Python module, and each norm."""

    def patch(rope: bool = True, rms_norm: bool = True, cross_entropy: bool = False,
              fused_linear_cross_entropy: bool = True, model: Any = None) -> None:  # fmt: skip
        assert not cross_entropy and not fused_linear_cross_entropy
        if rope:
            modeling_llama.apply_rotary_pos_emb = rotate
        if rms_norm:
            modeling_llama.LlamaRMSNorm = torch.nn.RMSNorm
        if model is not None and rms_norm:
            model.model.norm._get_name = lambda: "LigerRMSNorm"

    return patch


def _scaled(scale: float) -> Rotate:
    def rotate(*args: Any, **kwargs: Any) -> Any:
        queries, keys = PLAIN(*args, **kwargs)
        return scale * queries, keys

    return rotate


def _config(**fields: Any) -> RunConfig:
    config = RunConfig()
    config.model.config, config.model.tokenizer, config.model.kernels = {**LLAMA, **fields}, "bytes", Kernels.liger
    config.train.max_steps, config.data.max_seq_len = 1, 128
    return config


def _model() -> Any:
    fields = dict(LLAMA)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields)).eval()


def test_without_liger_one_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    with pytest.raises(ConfigError, match="model.kernels=liger needs liger-kernel") as error:
        check_run(_config())
    assert "pip install 'ftdist[liger]'" in error.value.fix and "model.kernels=none" in error.value.fix


def test_a_family_that_liger_does_not_know_is_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, {"qwen3": _liger(PLAIN)})
    with pytest.raises(ConfigError, match="Liger has no kernels for llama") as error:
        check_run(_config())
    assert error.value.expected == "one of qwen3" and error.value.fix == "model.kernels=none"


def test_a_model_in_which_nothing_is_replaced_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, {"llama": lambda model=None: None})
    with pytest.raises(ConfigError, match="Liger replaces nothing in a llama model"):
        check_run(_config())


def test_a_version_that_does_not_fit_transformers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def patch(model: Any = None) -> None:
        if model is not None:
            modeling_llama.apply_rotary_pos_emb = None
            raise AttributeError("no attribute 'post_norm'")

    _install(monkeypatch, {"llama": patch})
    with pytest.raises(ConfigError, match="Liger cannot patch a llama model: AttributeError: no attribute 'post_norm'"):
        check_run(_config())
    assert modeling_llama.apply_rotary_pos_emb is PLAIN


def test_a_cpu_is_refused_unless_triton_interprets_its_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ConfigError, match="model.kernels=liger cannot be used on CPU"):
        check_kernels(Kernels.liger, "cpu")
    check_kernels(Kernels.liger, "cuda")
    check_kernels(Kernels.none, "cpu")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    check_kernels(Kernels.liger, "cpu")


def test_the_banner_names_the_kernels() -> None:
    config = _config()
    assert describe_model(config) == "random weights, with Liger's kernels"
    config.model.kernels = Kernels.none
    assert "Liger" not in describe_model(config)


def test_only_the_patched_model_uses_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def rotate(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return _scaled(2.0)(*args, **kwargs)

    _install(monkeypatch, {"llama": _liger(rotate)})
    names = dict(vars(modeling_llama))
    plain, model, ids = _model(), _model(), torch.arange(20)[None]
    expected = plain(input_ids=ids).logits
    use_kernels(model)
    assert dict(vars(modeling_llama)) == names and modeling_llama.apply_rotary_pos_emb is PLAIN
    assert model.ftdist_kernels == {"LigerRMSNorm": 1, kernels.ROTARY: LLAMA["num_hidden_layers"]}
    with torch.no_grad():
        assert not torch.allclose(model(input_ids=ids).logits, expected)
        assert len(calls) == LLAMA["num_hidden_layers"]
        assert torch.equal(plain(input_ids=ids).logits, expected)
        assert torch.equal(_model()(input_ids=ids).logits, expected)
        assert torch.equal(copy.deepcopy(model)(input_ids=ids).logits, model(input_ids=ids).logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_with_the_numbers_of_plain_transformers_are_accepted(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install(monkeypatch, {"llama": _liger(_scaled(1.0))})
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    proof = _prove(dtype)
    assert proof is not None and proof.loss < 1e-5 and proof.gradient < 1e-3


def test_kernels_with_other_numbers_are_refused_with_both_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, {"llama": _liger(_scaled(1.1))})
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(ConfigError, match=r"the loss is off by [\d.e-]+, the gradient of \S+ by [\d.e-]+") as error:
        _prove(torch.float32)
    assert error.value.fix == "model.kernels=none"


def test_kernels_that_are_wrong_in_bf16_only_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def rotate(queries: Any, *args: Any, **kwargs: Any) -> Any:
        return _scaled(1.0 if queries.dtype is torch.float32 else 1.5)(queries, *args, **kwargs)

    _install(monkeypatch, {"llama": _liger(rotate)})
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(ConfigError, match=r"the loss is off by [\d.e-]+, the gradient of the whole model by [\d.e-]+"):
        _prove(torch.bfloat16)


def _prove(dtype: torch.dtype) -> Any:
    fields = dict(LLAMA)
    arch = AutoConfig.for_model(fields.pop("model_type"), **fields)
    return prove_kernels(_config(), arch, BY_DOCUMENT, CPU, dtype, one_document=False)
