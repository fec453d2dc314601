"""What the launcher prints before and after the ranks."""

import json
import shlex
from pathlib import Path

import pytest

from ftdist.base.errors import EXIT_PREEMPTED
from ftdist.base.json_files import write_json
from ftdist.config.method import MethodKind
from ftdist.launch.attempt import failure
from ftdist.launch.runs import banner, resolve
from ftdist.run.model_facts import ModelFacts, describe_method, describe_model, write_facts
from ftdist.run.rundir import MANIFEST, RunDir, manifest_text
from tests.unit.launch.run_tools import make_run, smoke

pytestmark = pytest.mark.usefixtures("here")


def test_the_banner_names_the_model_and_the_data_and_warns_about_long_rows(
    monkeypatch: pytest.MonkeyPatch, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = smoke(f"cache_dir={here}/cache", "data.max_seq_len=4096", f"run_dir={here}/run")
    plan = resolve.resolve(config)
    banner.show_run(config, plan, here / "nothing")
    said = capsys.readouterr().out
    assert "model      random weights\n" in said and "data       fake\n" in said and "warning" not in said
    write_facts(config, ModelFacts("llama", 1234, max_positions=2048, has_position_table=False, recomputes=True))
    banner.show_run(config, plan, here / "nothing")
    said = capsys.readouterr().out
    assert "model      random weights: llama, 1,234 parameters\n" in said
    config.model.adapter, config.method.kind, config.method.init_from = "/a/folded", MethodKind.lora, "/a/first"
    assert describe_method(config) == "lora; continues /a/first"
    write_facts(config, ModelFacts("llama", 1234, 2048, has_position_table=False, recomputes=True, trained=50))
    assert describe_model(config) == "random weights: llama, 1,234 parameters, with the adapter /a/folded"
    assert describe_method(config) == "lora: 50 of 1,234 parameters are trained (4.05%); continues /a/first"
    assert "warning: data.max_seq_len=4,096, but the model was made for 2,048 positions\n" in said


def test_the_printed_next_commands_work_from_the_current_folder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place, status in (("runs/a", "ftdist status"), ("elsewhere/a", "ftdist status elsewhere")):
        run = RunDir(here / place)
        run.path.mkdir(parents=True)
        run.write_status(state="done")
        banner.show_next(run, 0, 3.0)
        said = capsys.readouterr().out
        commands = said.splitlines()
        assert commands[-1].strip() == status and f"ftdist eval {place} --checkpoint best" in commands[-2]
        assert "--merged" not in said
        run.export.mkdir()
        settings = {"r": 8, "lora_alpha": 16, "base_model_name_or_path": "models/base"}
        write_json(run.export / "adapter_config.json", settings)
        banner.show_next(run, 0, 3.0)
        said = capsys.readouterr().out
        assert f"ftdist export {place} --merged\n" in said and f"ftdist chat {place}\n" in said
        write_json(run.export / "adapter_config.json", {**settings, "base_model_name_or_path": None})
        banner.show_next(run, 0, 3.0)
        said = capsys.readouterr().out
        assert f"ftdist chat {place}\n" not in said, "the base has random weights and is in no folder"
        assert said.index(f"ftdist export {place} --merged\n") < said.index(f"ftdist chat {place}/export-merged\n")
        run.report.mkdir()
        run.report_page.touch()
        banner.show_next(run, 0, 3.0)
        assert capsys.readouterr().out.splitlines()[-1] == f"report        {place}/report/report.html"
        run.checkpoint(1).mkdir(parents=True)
        (run.checkpoint(1) / MANIFEST).write_text(manifest_text({"eval_loss": None}))
        banner.show_next(run, 0, 3.0)
        assert "--checkpoint best" not in capsys.readouterr().out, "no checkpoint is the best one"
        for record, offered in (({"step": 0, "eval/a/loss": 3.0}, True), ({"step": 1, "train/loss": 3.0}, False)):
            run.metrics.write_text(json.dumps(record) + "\n")
            banner.show_next(run, 0, 3.0)
            assert ("ftdist eval" in capsys.readouterr().out) == offered, "without held-out data it would fail"


def test_the_printed_resume_command_quotes_the_path(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(here / "it's a run", state="preempted")
    banner.show_next(run, EXIT_PREEMPTED, 1.0)
    words = shlex.split(capsys.readouterr().out.split("resume with: ")[1])
    assert words == ["ftdist", "resume", "it's a run"]
    fix = failure.explain_failure(run, 0, [run.logs / "none"], 1).fix
    assert shlex.split(fix) == ["ftdist", "resume", str(run.path)]


def test_a_resume_names_the_checkpoint_that_it_starts_from(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Never that it begins again where the ranks will refuse to."""
    run = make_run(here / "run", state="failed", max_steps=10)

    def said() -> str:
        banner.show_resume(run)
        return capsys.readouterr().out.strip()

    run.checkpoints.mkdir()
    assert said() == "starting run from its beginning: it has no checkpoint"
    run.checkpoint(4).mkdir()  # it has lost its manifest
    assert said() == "looking for a checkpoint of run that can be trusted"
    run.checkpoint(4).rename(run.checkpoints / "bad-step-00000004")
    assert said() == "looking for a checkpoint of run that can be trusted"
    run.checkpoint(8).mkdir()
    (run.checkpoint(8) / "manifest.json").touch()
    assert said() == "resuming run after step 8 of 10"
