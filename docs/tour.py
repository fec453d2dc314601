"""Write two tables into docs/design.md (`make docs`): where to find what, and a tour of the code.

The tour has one line for each file, from its docstring. The order in which to read the files is fixed here. A file that
is not listed comes after the files of its folder. A test fails if a file has no docstring, or if a name in ``WHERE`` no
longer exists.
"""

import ast
import re
from pathlib import Path
from typing import Dict, List

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "design.md"
BEGIN, END = "<!-- tour: generated from the docstrings by `make docs` -->", "<!-- end of the tour -->"

WHERE: Dict[str, str] = {
    "the loss is normalized": "ftdist/train/loop.py train_step",
    "a checkpoint is published": "ftdist/checkpoint/protocol.py write_checkpoint",
    "ranks are started": "launch/attempt/torchrun.py run_ranks",
    "a rank begins": "ftdist/train/main.py main",
    "DeepSpeed's settings are made": "ftdist/plan/deepspeed.py deepspeed_settings",
    "the batch script of Slurm is rendered": "launch/backends/slurm/script.py render",
    "the memory of a rank is computed: model states": "ftdist/plan/memory.py rank_memory",
    "the memory of a rank is computed: activations": "ftdist/plan/activations.py kept_activations",
    "the memory of a rank is computed: the loss head": "ftdist/plan/loss_head.py head_bytes",
    "a record becomes tokens": "ftdist/data/encode.py encode",
    "the rows of a step are chosen": "ftdist/data/row_order.py train_rows",
    "documents are checked for isolation": "ftdist/model/isolation.py measure_isolation",
    "the settings that a resume may change are listed": "ftdist/config/resumable.py CHANGEABLE",
    "a method is added": "ftdist/method/build.py METHODS",
    "an objective is added": "ftdist/objective/build.py OBJECTIVES",
    "an optimizer is added": "ftdist/config/optim.py OPTIMIZERS",
    "a launcher (backend) is added": "launch/backends/registry.py BACKENDS",
    "a verb is added": "launch/verbs/table.py VERBS",
    "a setting is added": "ftdist/config/schema.py RunConfig",
}
"""Where something happens: a file, and the function, class or variable in it."""

TOUR: Dict[str, List[str]] = {
    "From the command line to a config": [
        "launch/__init__.py", "ftdist/__main__.py", "launch/cli.py", "ftdist/base/main.py",
        "launch/verbs/table.py", "launch/verbs/train.py",
        "launch/config/compose.py", "launch/config/session.py", "launch/config/origins.py",
        "launch/config/places.py", "launch/config/precedence.py", "launch/config/adapter.py",
        "launch/config/texts.py", "launch/config/yaml_text.py", "launch/config/site.py",
        "launch/config/keys.py", "launch/config/messages.py", "launch/config/hydra_private.py",
        "ftdist/config/schema.py", "ftdist/config/data.py", "ftdist/config/method.py", "ftdist/config/optim.py",
        "ftdist/config/sweep.py", "ftdist/config/report.py", "ftdist/config/stop_when.py",
        "ftdist/config/launch.py", "ftdist/config/zero.py", "ftdist/config/checks.py", "ftdist/config/limits.py",
        "ftdist/config/login.py", "ftdist/config/track.py", "ftdist/config/debug.py",
    ],
    "From a config to a run directory": [
        "launch/runs/pipeline.py", "launch/runs/resolve.py", "launch/attempt/machine.py", "launch/runs/inputs.py",
        "launch/runs/programs.py", "ftdist/plan/batch.py", "ftdist/plan/layout.py", "ftdist/plan/run_length.py",
        "ftdist/plan/warmup.py", "ftdist/plan/memory.py",
        "ftdist/plan/activations.py", "ftdist/plan/loss_head.py", "ftdist/plan/flops.py", "ftdist/plan/disk.py",
        "ftdist/plan/deepspeed.py", "ftdist/plan/deepspeed_keys.py", "ftdist/plan/communication.py",
        "ftdist/plan/data_warnings.py",
        "launch/runs/freeze.py", "ftdist/config/frozen.py", "ftdist/config/resumable.py", "launch/runs/banner.py",
        "launch/runs/verify.py",
    ],
    "What both planes read": [
        "ftdist/run/__init__.py", "ftdist/run/rundir.py", "ftdist/run/timeline.py", "ftdist/run/task_results.py",
        "ftdist/plan/goodput.py",
        "ftdist/plan/cost.py", "ftdist/plan/energy.py", "ftdist/plan/pretraining.py",
        "ftdist/run/file_names.py", "ftdist/run/locations.py", "ftdist/run/weight_files.py", "ftdist/run/prepared.py",
        "ftdist/run/identity.py", "ftdist/run/base_model.py", "ftdist/run/file_hashes.py", "ftdist/run/adapters.py",
        "ftdist/run/source_files.py", "ftdist/run/split_names.py", "ftdist/run/model_facts.py",
        "ftdist/run/sample.py", "ftdist/run/checks.py", "ftdist/run/hub.py",
    ],
    "From a run directory to ranks": [
        "launch/backends/base.py", "launch/backends/registry.py", "launch/attempt/lifecycle.py",
        "launch/attempt/command.py", "launch/attempt/torchrun.py", "launch/attempt/signals.py",
        "launch/attempt/agent.py",
        "launch/attempt/failure.py", "launch/attempt/companion.py", "launch/backends/foreground.py",
        "launch/backends/slurm/ownership.py",
        "launch/backends/local.py", "launch/backends/rendezvous.py", "launch/backends/nodes.py",
        "launch/backends/deepspeed.py", "launch/backends/hostfile.py", "launch/backends/slurm/backend.py",
        "launch/backends/slurm/resolve.py", "launch/backends/slurm/names.py", "launch/backends/slurm/script.py",
        "launch/backends/slurm/answers.py",
        "launch/verbs/start_node.py", "launch/backends/slurm/meeting.py", "launch/backends/slurm/hostlist.py",
        "launch/attempt/cpus.py",
        "launch/backends/slurm/client.py", "launch/backends/slurm/submission.py",
        "launch/backends/slurm/follow.py", "launch/backends/slurm/stop.py",
        "launch/runs/liveness.py",
    ],
    "Data": [
        "ftdist/data/main.py", "ftdist/data/prepare.py", "ftdist/data/sources.py", "ftdist/data/builtin_sources.py",
        "ftdist/data/text_files.py", "ftdist/data/csv_files.py", "ftdist/data/arrow_files.py",
        "ftdist/data/records.py", "ftdist/data/fields.py", "ftdist/data/record_fields.py",
        "ftdist/data/messages.py", "ftdist/data/tool_calls.py",
        "ftdist/data/bad_records.py",
        "ftdist/data/render.py", "ftdist/data/chat_documents.py", "ftdist/data/chat_plan.py",
        "ftdist/data/chat_notes.py", "ftdist/data/answers.py",
        "ftdist/data/chat_checks.py", "ftdist/data/template_conditions.py",
        "ftdist/data/chat_turn.py", "ftdist/data/chat_forms.py", "ftdist/data/skeleton.py", "ftdist/data/thinking.py",
        "ftdist/data/chat_template.py", "ftdist/data/tokenise.py", "ftdist/data/tokenizer.py", "ftdist/data/encode.py",
        "ftdist/data/worker_pool.py", "ftdist/data/prepare_progress.py", "ftdist/data/pack.py",
        "ftdist/data/set_writer.py", "ftdist/data/general.py", "ftdist/data/meta.py", "ftdist/data/row_order.py",
        "ftdist/data/loader.py",
        "ftdist/data/preview.py", "ftdist/data/preview_rows.py", "ftdist/data/preview_page.py",
        "ftdist/data/preview_answers.py",
        "ftdist/data/token_text.py", "ftdist/data/words.py", "ftdist/data/roles.py",
    ],
    "Model": [
        "ftdist/model/__init__.py", "ftdist/model/fetch.py",
        "ftdist/model/check.py", "ftdist/model/config_values.py", "ftdist/model/reasons.py",
        "ftdist/model/stored_weights.py", "ftdist/model/weights_fit.py",
        "ftdist/model/convert.py", "ftdist/model/load.py",
        "ftdist/model/random_weights.py", "ftdist/model/vocabulary.py",
        "ftdist/model/sharded_load.py", "ftdist/model/opened.py", "ftdist/model/adapter.py",
        "ftdist/model/quantized.py",
        "ftdist/model/attention.py", "ftdist/model/attention_plan.py", "ftdist/model/exactness.py",
        "ftdist/model/plan_choice.py", "ftdist/model/cache_trial.py",
        "ftdist/model/forward.py", "ftdist/model/recompute.py", "ftdist/model/host_copies.py",
        "ftdist/model/routers.py", "ftdist/model/expert_load.py",
        "ftdist/model/isolation.py", "ftdist/model/save.py",
        "ftdist/model/export_trial.py", "ftdist/model/grouped_mm.py",
        "ftdist/model/fixed.py", "ftdist/model/finite.py", "ftdist/model/parts.py", "ftdist/model/text_only.py",
        "ftdist/model/standin.py", "ftdist/model/standin_layers.py", "ftdist/model/standin_sizes.py",
    ],
    "One training step": [
        "ftdist/train/main.py", "ftdist/parallel/ranks.py", "ftdist/parallel/rank_process.py",
        "ftdist/parallel/mesh.py", "ftdist/train/state.py", "ftdist/train/timeline.py", "ftdist/train/batches.py",
        "ftdist/train/phases.py", "ftdist/train/throughput.py", "ftdist/train/profile.py",
        "ftdist/model/compiled.py", "ftdist/plan/kernels.py", "ftdist/model/kernels.py",
        "ftdist/model/interpreted_kernels.py",
        "ftdist/train/loop.py", "ftdist/objective/base.py",
        "ftdist/objective/build.py", "ftdist/objective/sft.py", "ftdist/objective/token_loss.py",
        "ftdist/objective/head.py", "ftdist/objective/chunked.py",
        "ftdist/objective/balance.py", "ftdist/objective/coefficient.py",
        "ftdist/method/base.py", "ftdist/method/build.py", "ftdist/method/full.py", "ftdist/method/partial.py",
        "ftdist/method/select.py", "ftdist/method/lora.py", "ftdist/method/adapters.py", "ftdist/method/whole.py",
        "ftdist/method/check.py", "ftdist/method/continued.py", "ftdist/method/qlora.py", "ftdist/engine/engine.py",
        "ftdist/engine/muon.py", "ftdist/engine/optimizers.py", "ftdist/engine/lion.py",
        "ftdist/engine/muon_adamw.py", "ftdist/engine/no_gradient.py",
        "ftdist/engine/size.py",
        "ftdist/engine/gathered_views.py", "ftdist/engine/expert_groups.py",
        "ftdist/train/describe.py", "ftdist/train/schedule.py",
        "ftdist/train/evaluate.py", "ftdist/train/base_texts.py", "ftdist/train/forgetting.py",
        "ftdist/train/stop_when.py",
        "ftdist/train/bad_steps.py", "ftdist/train/preempt.py", "ftdist/train/time_limit.py",
        "ftdist/train/out_of_memory.py",
        "ftdist/parallel/device_memory.py", "ftdist/parallel/energy.py", "ftdist/train/watchdog.py",
        "ftdist/parallel/collectives.py",
        "ftdist/train/from_deepspeed.py",
    ],
    "Checkpoints": [
        "ftdist/checkpoint/saver.py", "ftdist/checkpoint/protocol.py", "ftdist/checkpoint/durable.py",
        "ftdist/checkpoint/tensors.py", "ftdist/checkpoint/state.py", "ftdist/engine/shards.py",
        "ftdist/engine/whole.py", "ftdist/checkpoint/export.py", "ftdist/checkpoint/model_card.py",
        "ftdist/checkpoint/compatibility.py", "ftdist/checkpoint/exported_template.py", "ftdist/checkpoint/probes.py",
        "ftdist/checkpoint/main.py", "ftdist/checkpoint/gguf_export.py", "ftdist/checkpoint/gguf_family.py",
        "ftdist/checkpoint/gguf_types.py", "ftdist/checkpoint/gguf_vocabulary.py", "ftdist/checkpoint/gguf_write.py",
        "ftdist/checkpoint/gguf_check.py", "ftdist/checkpoint/modelfile.py",
    ],
    "What a run reports": [
        "ftdist/track/tracker.py", "ftdist/track/base.py", "ftdist/track/jsonl.py", "ftdist/track/wandb.py",
        "ftdist/track/wandb_config.py", "ftdist/track/progress.py", "ftdist/track/report.py", "ftdist/track/gain.py",
        "ftdist/track/token_losses.py",
    ],
    "Verification": [
        "ftdist/verify/main.py", "ftdist/verify/trial.py", "ftdist/verify/reference.py",
        "ftdist/verify/reference_method.py", "ftdist/verify/reference_model.py",
        "ftdist/verify/reference_optimizer.py",
        "ftdist/verify/token_checks.py", "ftdist/verify/text_checks.py", "ftdist/verify/number_checks.py",
        "ftdist/verify/compare.py", "ftdist/verify/preview.py",
    ],
    "The other verbs": [
        "launch/verbs/resume.py", "launch/verbs/status.py", "launch/verbs/logs.py", "launch/verbs/cancel.py",
        "launch/verbs/eval.py", "launch/verbs/eval_model.py",
        "ftdist/serve/evaluate.py", "ftdist/serve/opened.py", "ftdist/serve/tasks.py",
        "ftdist/serve/questions.py", "ftdist/serve/choices.py", "ftdist/serve/harness.py", "ftdist/serve/accuracy.py",
        "launch/verbs/report.py", "ftdist/report/main.py",
        "ftdist/report/build.py", "ftdist/report/at_end.py",
        "ftdist/report/moved.py", "ftdist/report/rank.py", "ftdist/report/neighbours.py", "ftdist/report/facts.py",
        "ftdist/report/documents.py", "ftdist/report/words.py", "ftdist/report/roles.py",
        "ftdist/report/cost.py", "ftdist/report/summary.py", "ftdist/report/rows.py", "ftdist/report/texts.py",
        "ftdist/report/markdown.py", "ftdist/report/page_run.py", "ftdist/report/page.py",
        "ftdist/report/page_style.py", "ftdist/report/charts.py", "ftdist/report/labels.py",
        "ftdist/report/axis.py",
        "ftdist/report/compare.py", "ftdist/report/page_compare.py",
        "launch/verbs/export.py", "launch/verbs/chat.py",
        "ftdist/serve/chat.py", "launch/verbs/prepare.py", "launch/verbs/preview.py", "launch/verbs/verify.py",
        "launch/verbs/node.py", "launch/verbs/under_torchrun.py", "launch/backends/slurm/srun_task.py",
        "launch/verbs/batch_script.py", "launch/verbs/report_job.py",
        "launch/verbs/guard.py", "launch/verbs/completion.py",
    ],
    "Sweeps": [
        "launch/verbs/sweep.py", "launch/config/sweeper.py", "launch/sweeps/sweep.py", "launch/sweeps/folder.py",
        "launch/sweeps/objective.py", "launch/sweeps/replicates.py", "launch/sweeps/rungs.py",
        "launch/sweeps/this_machine.py", "launch/sweeps/slurm_array.py", "launch/sweeps/table.py",
        "launch/sweeps/preview.py", "launch/sweeps/stop.py",
    ],
    "Used everywhere": [
        "ftdist/__init__.py", "ftdist/base/errors.py", "ftdist/base/redact.py", "ftdist/base/names.py",
        "ftdist/base/output.py", "ftdist/base/shell.py", "ftdist/base/permissions.py", "ftdist/base/terminal.py",
        "ftdist/base/tables.py",
        "ftdist/base/json_files.py", "ftdist/base/temporary.py", "ftdist/base/process.py",
        "ftdist/base/ranges.py", "ftdist/base/collector.py", "ftdist/base/counts.py",
    ],
}  # fmt: skip


def subjects() -> Dict[str, List[str]]:
    """Return the files of each subject: those of ``TOUR``, and after the last one of a folder those of this folder that
    ``TOUR`` does not list.

    Raises:
        ValueError: No file of the folder is listed.
    """
    found = {subject: list(files) for subject, files in TOUR.items()}
    for path in sorted(path for top in ("launch", "ftdist") for path in (ROOT / top).rglob("*.py")):
        file, folder = path.relative_to(ROOT).as_posix(), path.parent.relative_to(ROOT).as_posix()
        if any(file in files for files in found.values()) or not path.read_text(encoding="utf-8"):
            continue
        beside = [(subject, other) for subject, files in found.items() for other in files if _folder(other) == folder]
        if not beside:
            raise ValueError(f"{file} is in a new folder: list it in TOUR")
        subject, other = beside[-1]
        found[subject].insert(found[subject].index(other) + 1, file)
    return found


def _folder(file: str) -> str:
    return file.rpartition("/")[0]


def summary(file: str) -> str:
    """Return the first paragraph of a file's docstring on one line."""
    doc = ast.get_docstring(ast.parse((ROOT / file).read_text(encoding="utf-8"))) or ""
    return " ".join(doc.split("\n\n")[0].split())


def where() -> str:
    """Return the table of ``WHERE`` as Markdown.

    Raises:
        ValueError: A file does not define the name.
    """
    lines = ["| where | file | name |", "|---|---|---|"]
    for what, place in WHERE.items():
        file, name = place.split()
        if not re.search(rf"^(def|class) {name}\b|^{name}\b.* = ", (ROOT / file).read_text(encoding="utf-8"), re.M):
            raise ValueError(f"{file} does not define {name}")
        lines.append(f"| {what} | [`{file}`](../{file}) | `{name}` |")
    return "\n".join(lines)


def tour() -> str:
    """Return the tour as Markdown: a table for each subject."""
    lines = ["### Where to find what", "", where(), ""]
    for subject, files in subjects().items():
        lines += [f"### {subject}", "", "| file | |", "|---|---|"]
        lines += [f"| [`{file}`](../{file}) | {summary(file)} |" for file in files]
        lines.append("")
    return "\n".join(lines)


def page() -> str:
    """Return the page with a fresh tour. The rest of it is written by hand."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    return f"{before}{BEGIN}\n\n{tour()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")
