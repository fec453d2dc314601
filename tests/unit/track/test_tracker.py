"""metrics.jsonl and samples.jsonl hold complete lines only, and are cut back when a run resumes."""

import json
import resource
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from ftdist.base.json_files import read_records
from ftdist.base.redact import REDACTED
from ftdist.config.login import logged_in, resolve_mode
from ftdist.config.schema import RunConfig, Wandb
from ftdist.run.rundir import RunDir
from ftdist.track.jsonl import JsonLines, rewind_record
from ftdist.track.tracker import Tracker
from ftdist.track.wandb_config import public_config


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path)


def tracker(run: RunDir, rank: int = 0, resumed: bool = False, notes: list[str] | None = None) -> Tracker:
    config = RunConfig()
    config.track.wandb = Wandb.disabled
    return Tracker(config, run, rank, resumed, note=(notes if notes is not None else []).append)


def test_a_record_is_written_at_once(run: RunDir) -> None:
    made = tracker(run)
    made.log(1, {"train/loss": 0.1 + 0.2, "train/trained_tokens": 12})
    (record,) = read_records(run.metrics)  # before finish
    assert (record["step"], record["train/loss"], record["train/trained_tokens"]) == (1, 0.1 + 0.2, 12)
    assert isinstance(record["train/trained_tokens"], int) and record["time"] > 1.7e9
    made.samples(1, [{"set": "a", "index": 0, "answer": "Grüße\n"}, {"set": "a", "index": 1, "answer": "\ud800"}])
    assert [(row["step"], row["index"], row["answer"]) for row in read_records(run.samples)] == [
        (1, 0, "Grüße\n"),
        (1, 1, "?"),  # half a surrogate pair cannot be written as UTF-8
    ]
    made.finish(0)


def test_other_ranks_write_nothing(run: RunDir) -> None:
    made = tracker(run, rank=1)
    made.log(1, {"train/loss": 1.0})
    made.samples(1, [{"set": "a"}])
    made.finish(0)
    assert list(run.path.iterdir()) == []


def test_values_that_are_not_finite_are_written_as_text(run: RunDir) -> None:
    made = tracker(run)
    made.log(1, {"a": float("nan"), "b": float("inf"), "c": -float("inf")})
    made.finish(0)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    record = json.loads(run.metrics.read_text(), parse_constant=refuse)
    assert [record[name] for name in "abc"] == ["nan", "inf", "-inf"]
    assert float(record["c"]) == -float("inf")


def test_numpy_numbers_are_written_as_numbers(run: RunDir) -> None:
    import numpy

    made = tracker(run)
    made.log(1, {"a": numpy.float32(0.5), "b": numpy.int64(3), "c": numpy.array([2.0])[0]})
    made.finish(0)
    assert [read_records(run.metrics)[0][name] for name in "abc"] == [0.5, 3, 2.0]


def test_rewind_removes_later_records_and_an_incomplete_line(run: RunDir) -> None:
    made = tracker(run)
    for step in range(6):
        made.log(step, {"train/loss": 1.0})
        made.samples(step, [{"set": "a", "index": 0}])
    made.finish(0)
    before = run.metrics.read_bytes().splitlines(keepends=True)
    with run.metrics.open("ab") as file:
        file.write(b'{"step": 2, "train/lo')
    rewind_record(run, 3)
    assert run.metrics.read_bytes() == b"".join(before[:4])
    assert [row["step"] for row in read_records(run.samples)] == [0, 1, 2, 3]
    assert sorted(path.name for path in run.path.iterdir()) == ["metrics.jsonl", "samples.jsonl"]


def test_rewind_of_a_run_without_records_creates_no_file(run: RunDir) -> None:
    rewind_record(run, 3)
    assert list(run.path.iterdir()) == []


def test_a_resume_appends_after_the_last_complete_line(run: RunDir) -> None:
    run.metrics.write_bytes(b'{"step": 1}\n{"step": 2, "tr')
    made = tracker(run, resumed=True)
    made.log(2, {"train/loss": 1.0})
    made.finish(0)
    assert [record["step"] for record in run.read_metrics()] == [1, 2]


def test_a_start_from_the_beginning_empties_the_record(run: RunDir) -> None:
    run.metrics.write_bytes(b'{"step": 0}\n{"step": 1}\n')
    made = tracker(run, resumed=False)
    made.log(0, {"eval/a/loss": 1.0})
    made.finish(0)
    assert [record["step"] for record in read_records(run.metrics)] == [0]


def test_a_full_disk_delays_records_but_loses_none(run: RunDir) -> None:
    """Records that could not be written are written later, in order."""
    notes: list[str] = []
    made = tracker(run, notes=notes)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        for step in range(40):
            made.log(step, {"train/loss": 1.0})
        meanwhile = run.read_metrics()  # raises an error if a line is damaged
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    made.log(40, {"train/loss": 1.0})
    made.finish(0)
    assert 5 < len(meanwhile) < 30
    assert [record["step"] for record in run.read_metrics()] == [*range(41)]
    assert len(notes) == 1 and "a record could not be written" in notes[0]


def test_a_run_rewinds_while_the_disk_is_full(run: RunDir) -> None:
    notes: list[str] = []
    made = tracker(run, notes=notes)
    for step in range(6):
        made.log(step, {"train/loss": 1.0})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))
    try:
        made.log(6, {"train/loss": 1.0})
        made.rewind(3, evaluated=True)
        made.log(4, {"train/loss": 2.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    made.log(5, {"train/loss": 2.0})
    made.finish(0)
    found = [(record["step"], record["train/loss"]) for record in run.read_metrics()]
    assert found == [(0, 1.0), (1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0), (5, 2.0)]
    assert len(notes) == 1 and [path.name for path in run.path.iterdir()] == ["metrics.jsonl"]


def test_json_lines_count_lost_records(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "missing" / "folder" / "metrics.jsonl")
    assert not lines.append({"step": 1})
    assert lines.error is not None and lines.lost == 0
    lines.close()
    assert lines.lost == 1


def test_json_lines_keep_the_newest_waiting_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ftdist.track.jsonl.MAX_WAITING", 3)
    lines = JsonLines(tmp_path / "later" / "metrics.jsonl")
    for step in range(5):
        lines.append({"step": step})
    (tmp_path / "later").mkdir()
    lines.append({"step": 5})
    lines.close()
    assert lines.lost == 3 and [r["step"] for r in read_records(tmp_path / "later" / "metrics.jsonl")] == [3, 4, 5]


def test_importing_the_tracker_does_not_import_wandb() -> None:
    code = (
        "import sys, ftdist.track.tracker, ftdist.track.wandb, ftdist.track.progress, ftdist.track.report\n"
        "print([name for name in ('wandb', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_mode_of_wandb_is_resolved_without_asking(tmp_path: Path) -> None:
    key = {"WANDB_API_KEY": "k"}
    nothing = {"NETRC": str(tmp_path / "none"), "HOME": str(tmp_path)}
    assert resolve_mode(Wandb.auto, key) is Wandb.online
    assert resolve_mode(Wandb.auto, {**key, "WANDB_MODE": "offline"}) is Wandb.offline
    assert resolve_mode(Wandb.auto, {**key, "WANDB_MODE": "disabled"}) is Wandb.disabled
    assert resolve_mode(Wandb.offline, key) is Wandb.offline
    assert resolve_mode(Wandb.disabled, key) is Wandb.disabled
    assert resolve_mode(Wandb.online, nothing) is resolve_mode(Wandb.auto, nothing) is Wandb.offline


def test_login_is_read_from_the_netrc_file_of_the_right_server(tmp_path: Path) -> None:
    file = tmp_path / "netrc"
    file.write_text("machine api.wandb.ai login user password k\n")
    file.chmod(0o600)
    assert logged_in({"NETRC": str(file)})
    assert not logged_in({"NETRC": str(file), "WANDB_BASE_URL": "https://wandb.example.org"})
    file.write_text("machine machine machine")
    assert not logged_in({"NETRC": str(file)})


def test_the_public_config_hides_secrets_and_keeps_the_rest() -> None:
    config = RunConfig()
    config.model.tokenizer, config.model.revision = "bytes", "c" * 40
    config.model.path = "https://user:word@example.org/model"
    config.data.chat_template = "hf_abcdefghijklmnop"
    config.zero.deepspeed = {"comet": {"api_key": "x", "workspace": "w"}, "hub_token": "x", "tokens_per_batch": 3}
    public = public_config(config)
    assert public["model"]["path"] == public["data"]["chat_template"] == REDACTED
    assert (public["model"]["tokenizer"], public["model"]["revision"]) == ("bytes", "c" * 40)
    assert public["zero"]["deepspeed"] == {"comet": {"workspace": "w"}, "tokens_per_batch": 3}
    assert public["train"]["sample_tokens"] == 64 and public["train"]["precision"] == "bf16"
    assert "track" not in public and "run_dir" not in public
    json.dumps(public)


def test_every_section_of_the_config_is_either_published_or_private() -> None:
    private = {"runs_dir", "run_dir", "cache_dir", "track"}
    assert set(public_config(RunConfig())) == {field.name for field in fields(RunConfig)} - private
