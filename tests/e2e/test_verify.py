"""``ftdist verify`` on the experiments in conf/ and on broken configs."""

import os
from pathlib import Path

import pytest

from tests.helpers.cli import ftdist, succeed
from tests.helpers.group import ftdist_with_forked_ranks
from tests.helpers.runs import SMOKE

EXPERIMENTS = ("llama31_8b", "llama31_70b", "qwen3_8b", "smollm2_135m", "continued_pretraining")


def test_every_check_of_the_smoke_experiment_passes(tmp_path: Path) -> None:
    done = succeed("verify", "experiment=smoke", cwd=tmp_path)
    assert "23 passed" in done.out
    for name in ("loss and gradient", "save, resume: same step", "export: same logits", "repeated step: same numbers"):
        assert f"✓  {name}" in done.out
    assert not list(tmp_path.iterdir()), "verify leaves files behind"


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_stand_in_of_an_experiment_passes(
    experiment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The hub cannot be reached. Checks that need the model's own tokenizer are reported as not run.

    The ranks are forked. The other tests here start them with torchrun.
    """
    monkeypatch.chdir(tmp_path)
    code = ftdist_with_forked_ranks("verify", "--quick", f"experiment={experiment}")
    text = " ".join(capsys.readouterr().out.split())
    assert code == 0, text
    assert "✓ loss and gradient" in text
    assert "✓ packing isolation" in text
    assert "– tokenization, 12 checks not run: cannot load the tokenizer" in text
    assert "its name suggests the class" in text
    assert "failed" not in text


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_passes(tmp_path: Path) -> None:
    done = succeed("verify", "experiment=demo", cwd=tmp_path)
    assert "23 passed" in done.out
    assert "<|im_end|>, in" in done.out
    for name in ("Q8_0", "Q4_0"):
        assert "578 token ids are those of" in written_as_gguf(tmp_path, name)
    template = (tmp_path / "Modelfile").read_text()
    assert "<|im_start|>system\nYou are a helpful AI assistant named SmolLM" in template


def written_as_gguf(folder: Path, name: str) -> str:
    """Write the model of the demo as a GGUF file and compare, as an export does. Returns what was measured."""
    from ftdist.checkpoint import gguf_export
    from ftdist.checkpoint.gguf_family import FAMILIES
    from ftdist.checkpoint.gguf_types import TYPES
    from ftdist.config.schema import RunConfig

    model, file = Path(os.environ["FTDIST_CACHE"]) / "models" / "smollm2-135m-instruct", folder / f"{name}.gguf"
    return "\n".join(gguf_export._write_and_check(model, file, RunConfig(), FAMILIES["llama"], TYPES[name], ""))


def test_a_refused_tokenizer_is_a_failed_check(tmp_path: Path) -> None:
    done = ftdist("verify", "experiment=smoke", f"model.tokenizer={tmp_path / 'nowhere'}", cwd=tmp_path)
    assert done.code == 1
    text = " ".join(done.out.split())
    assert "✗ tokenizer can be used failed: cannot load the tokenizer" in text
    assert text.count("cannot load") == 1 and "1 passed, 1 failed in" in text


def test_an_impossible_config_exits_with_2(tmp_path: Path) -> None:
    done = ftdist("verify", "experiment=smoke", "batch.global_batch_size=3", cwd=tmp_path)
    assert done.code == 2
    assert "batch.global_batch_size=2 or 4" in done.err


def test_the_demo_shows_the_machine_and_verifies_first(tmp_path: Path) -> None:
    demo = ("demo", *SMOKE, "train.max_steps=1")
    first = [line.split()[0] for line in succeed(*demo, cwd=tmp_path).out.splitlines() if line]
    assert first[0] == "cores" and first.index("libraries") < first.index("verify") < first.index("data")
