"""What a run directory knows about its run: curves, answers, settings, faults, and the commands to repeat it."""

import math
import re
from contextlib import suppress
from itertools import pairwise
from typing import Any, Dict, List, Optional, Sequence, Tuple

from ftdist.base.json_files import read_json
from ftdist.base.output import quoted_path
from ftdist.base.shell import shell_word
from ftdist.checkpoint.protocol import STATE
from ftdist.config.schema import RunConfig
from ftdist.plan.goodput import Attempt, Goodput
from ftdist.report.documents import changed_documents
from ftdist.report.words import changed_words
from ftdist.run.adapters import to_train_longer
from ftdist.run.identity import recorded_folder
from ftdist.run.prepared import GENERAL, is_ready, read_meta
from ftdist.run.rundir import RunDir, checkpoint_step, read_manifest
from ftdist.run.sample import joined
from ftdist.run.task_results import read_results
from ftdist.run.timeline import STEPS
from ftdist.track.gain import evaluations_of, forgets_too_much, gain_of
from ftdist.track.report import answers, forgetting_curve, gain_curve, general_gain, heldout_losses, step_times
from ftdist.track.wandb_config import public_config, public_facts

MAX_POINTS = 500
"""Maximum number of points of a curve in the report. metrics.jsonl has all."""
ENDS = {"failed": "failed", "preempted": "was stopped", "paused": "paused at a rung", "done": "was done"}
"""How an attempt ended, by its state."""
REPLACED_WITH_MODEL = ("path", "hub", "builtin", "config", "revision", "adapter", "tokenizer", "tokenizer_revision",
                       "new_special_tokens")  # fmt: skip
"""Settings that are left out of a command whose model is an export, because the export holds their result already."""
SHOWN_FIELDS = ("set", "question", "before", "after", "reference")


def facts_of(run: RunDir, config: RunConfig, ending: str = "", reason: str = "") -> Dict[str, Any]:
    """Return the parts of the report that need no model.

    Args:
        ending: The state that the run is about to have, or ``ftdist.report.build.DEAD``. Empty: the one in status.json.
        reason: Why the run has this state.
    """
    status, records, best = run.read_status(), run.read_metrics(), run.best_checkpoint()
    heldout, general = heldout_losses(run), heldout_losses(run, GENERAL)
    train = [[record["step"], record["train/loss"]] for record in records if {"train/loss", "step"} <= record.keys()]
    if ending:
        status |= {"state": ending, "exit_reason": reason}
    return {
        "run": config.name, "folder": str(run.path), "state": status.get("state"), "reason": status.get("exit_reason"),
        "step": status.get("step"), "max_steps": status.get("max_steps"), "tokens": tokens_until(run),
        "gains": [list(point) for point in gain_curve(run)], "gain_of": config.train.best,
        "best": None if best is None else {"step": checkpoint_step(best), "loss": read_manifest(best)["eval_loss"]},
        "heldout": {name: [list(point) for point in points] for name, points in heldout.items()},
        "evaluations": evaluations_of(run, heldout | {f"{GENERAL}/{name}": one for name, one in general.items()}),
        "train": train[:: -(-len(train) // MAX_POINTS) or 1],
        **gain_and_forgetting(run, config), "general": general_gain(run),
        "general_losses": {name: [list(point) for point in points] for name, points in general.items()},
        "step_times": step_times(run),
        "documents": changed_documents(run, config, heldout), "words": changed_words(run, config, heldout),
        "tasks": read_results(run),
        "answers": [{name: row.get(name) for name in SHOWN_FIELDS} for row in answers(run)],
        "data": data_of(run, config), "settings": changed_settings(config), "faults": faults_of(run, records),
        "commands": commands_of(run, config, status.get("state")),
    }  # fmt: skip


def tokens_until(run: RunDir, step: Optional[int] = None) -> Optional[int]:
    """Return the number of input tokens of the steps until ``step``. None: it is not known.

    A checkpoint of this step has the number. Without one, it is that of the newest record of metrics.jsonl until
    ``step``, which lacks the steps after this record (``train.log_every``).

    Args:
        step: None: the newest one with a record.
    """
    records = run.read_metrics()
    if step is not None:
        with suppress(OSError, ValueError, KeyError):
            return int(read_json(run.checkpoint(step) / STATE)["tokens_seen"])
    seen = [record["train/tokens_seen"] for record in records
            if "train/tokens_seen" in record and (step is None or record["step"] <= step)]  # fmt: skip
    return int(seen[-1]) if seen else None


def data_of(run: RunDir, config: RunConfig) -> Optional[Dict[str, Any]]:
    """Return the prepared data of a run: ``sources`` (counts by name), ``warnings``, and ``sample``: one document as
    texts, each with whether it is trained. None: the data was removed from the cache.
    """
    folder = recorded_folder(run, config)
    if not is_ready(folder):
        return None
    meta = read_meta(folder)
    sources = {**meta["sources"], **{f"{name} (held out)": one for name, one in meta["heldout_sources"].items()}}
    return {
        "sources": {name: {"documents": one["documents"], "tokens": one["tokens"], "trained": one["trained_tokens"],
                           "dropped": sum(one["dropped"].values())} for name, one in sources.items()},
        "warnings": meta["warnings"], "sample": [list(piece) for piece in joined(meta["sample"])],
    }  # fmt: skip


def gain_and_forgetting(run: RunDir, config: RunConfig) -> Dict[str, Any]:
    """Return ``gain`` (see ``ftdist.track.gain.gain_of``) and ``forgetting``.

    ``forgetting`` is None if the run did not measure it. Else ``curve`` has step, KL(base ‖ now) in nats per token and
    its standard error, and ``warning`` is a sentence if it has outrun the gain, else None.
    """
    gain, curve = gain_of(run, heldout_losses(run)), forgetting_curve(run)
    if not curve:
        return {"gain": gain, "forgetting": None}
    warning = forgets_too_much(gain, curve[-1], config.optim.lr)
    return {"gain": gain, "forgetting": {"curve": [list(point) for point in curve], "warning": warning}}


def first_and_last(points: List[Any]) -> Tuple[str, str, str]:
    """Return as texts the loss before the first step, the last one, and its change. Texts are empty if a loss is
    missing; that of the change also if a loss is not finite.

    Args:
        points: (step, loss) of each evaluation.
    """
    (first, before), (last, after) = points[0], points[-1]
    if first != 0 or last == 0:
        return "", f"{float(after):.4f}", ""
    change = 100 * (float(after) / float(before) - 1) if float(before) else math.nan
    return f"{float(before):.4f}", f"{float(after):.4f}", f"{change:+.1f} %" if math.isfinite(change) else ""


def changed_settings(config: RunConfig) -> List[Dict[str, Any]]:
    """Return the settings that do not have their default: ``key``, ``value``, ``default``. Secrets are left out.

    A source of data has no default; its settings that are not empty are returned.
    """
    given, default = _flat(public_config(config)), _flat(public_config(RunConfig()))
    return [
        {"key": key, "value": value, "default": default.get(key)} for key, value in given.items()
        if value != default.get(key) and (key in default or value not in (None, [], {}))
    ]  # fmt: skip


def faults_of(run: RunDir, records: List[Dict[str, Any]]) -> List[str]:
    """Return one line for each thing that went wrong and each resume: bad steps, rollbacks, damaged checkpoints."""
    found = []
    for record in records:
        if "train/rolled_back_from" in record:
            found.append(f"rolled back from step {record['train/rolled_back_from']} to step {record['step'] - 1}: "
                         f"{record.get('train/bad')}")  # fmt: skip
        elif "train/bad" in record:
            found.append(f"bad step {record['step']}: {record['train/bad']}; the weights were not updated")
    found += [f"checkpoint {name} was damaged and set aside" for name in run.bad_checkpoints()]
    resumes = run.read_provenance().get("resumes")
    for resume in resumes if isinstance(resumes, list) else []:
        found.append(f"resumed with other settings: {' '.join(map(str, resume.get('overrides', [])))}")
    return found


def waiting_s(times: Dict[str, float], goodput: Goodput) -> Optional[float]:
    """Return how many seconds of the steps that count rank 0 spent in the phase ``agreement``, where it sums numbers
    over all ranks and so waits for slower ones. None: there is one rank, or the time is not known.

    Args:
        times: From ``ftdist.track.report.step_times``.
    """
    several = any((attempt.ranks or 1) > 1 for attempt in goodput.attempts)
    if not several or not times.get("step_s") or "agreement_s" not in times:
        return None
    return times["agreement_s"] / times["step_s"] * goodput.seconds.get(STEPS, 0.0)


def resumes_of(attempts: Sequence[Attempt]) -> List[str]:
    """Return one line for each attempt after the first: how the one before it ended, and from where it went on."""
    return [
        f"attempt {before.number} {ENDS.get(before.state or '', 'was killed')}; attempt {after.number} "
        + ("has not trained" if after.first_step is None else f"went on from step {after.first_step}")
        for before, after in pairwise(attempts)
    ]  # fmt: skip


def commands_of(run: RunDir, config: RunConfig, state: Optional[str]) -> Dict[str, Any]:
    """Return the commands that repeat a run and that go on from it, and the versions that it ran with."""
    origin, place = run.read_provenance(), quoted_path(run.path)
    further = command_to_train_longer(run, config) if state == "done" else f"ftdist resume {place}"
    return {"repeat": origin.get("command"), "folder": origin.get("cwd"), "continue": further, **public_facts(origin)}


def command_to_train_longer(run: RunDir, config: RunConfig) -> str:
    """Return the command of a new run that continues from the export of a finished run. It is the command of the
    finished run with the export as its model. "…" stands for overrides that are not known.
    """
    more, argv = to_train_longer(config, str(run.path)), run.read_provenance().get("argv")
    if not isinstance(argv, list) or argv[1:2] not in (["train"], ["demo"]) or {"-m", "--multirun"} & set(argv):
        return f"ftdist train … {more}"
    replaced = r"run_dir|method|method\.init_from" if more.startswith("method") else "run_dir"
    if more.startswith("model"):
        replaced += rf"|model|model\.({'|'.join(REPLACED_WITH_MODEL)})(\..*)?"
    kept = [word for word in argv[2:] if not re.fullmatch(replaced, word.lstrip("+~").partition("=")[0])]
    return " ".join(["ftdist", argv[1], *map(shell_word, kept), more])


def _flat(tree: Dict[str, Any], prefix: str = "") -> Dict[str, Any]:
    """Return the values of a nested dict by their dotted keys."""
    found: Dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found
