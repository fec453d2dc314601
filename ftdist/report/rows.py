"""The tables of a report as rows of texts, which each format shows in its way."""

from typing import Any, Dict, List

from ftdist.base.terminal import format_seconds
from ftdist.report.texts import drawable, finite, interval, number, percent, share_with_interval
from ftdist.run.prepared import GENERAL
from ftdist.track.report import perplexity

KINDS = {"matrix": "matrices", "embedding": "embeddings", "head": "head", "norm": "norms", "vector": "biases"}
TASK_HEAD = ["task", "step", "measure", "questions", "base model", "trained model", "gained", "lost", "p"]
TASK_TEXT = "In brackets: 95 % interval. p: McNemar's exact test on the same questions."

EVALUATION_HEAD = ["set", "step", "loss", "perplexity", "token accuracy"]
EVALUATION_TEXT = "Losses are in nats per token. In brackets: 95 % intervals (bootstrap over documents)."
DATA_HEAD = ["", "documents", "tokens", "trained tokens", "dropped"]
ATTEMPT_HEAD = ["attempt", "ranks", "steps", "time", "goodput", "end"]
GAIN_HEAD = ["set", "measure", "before", "after", "change", "documents"]
GAIN_TEXT = ("The numbers are means over tokens, with 95 % intervals (bootstrap over documents). Losses and entropies "
             "are in nats. The change compares the same documents.")  # fmt: skip

Rows = List[List[str]]


DOCUMENT_HEAD = ["set", "beginning of the text", "tokens", "before", "after", "change"]
DOCUMENT_TITLES = {"gained": "The held-out documents that gained most", "lost": "The held-out documents that lost most"}
WORD_HEAD = ["set", "word", "times", "tokens", "before", "after", "change each time", "change in total"]
WORD_TITLES = {"gained": "The words that gained most in total", "lost": "The words that lost most in total",
               "gained_each": "The words that gained most each time",
               "lost_each": "The words that lost most each time"}  # fmt: skip
RARITY_HEAD = ["set", "in general texts", "words", "times", "tokens", "before", "after", "change"]
RARITY_TITLE = "How rare the words are in general texts"
ROLE_HEAD = ["set", "role", "documents", "tokens", "before", "after", "change"]
ROLE_TITLE = "Losses by the role of the message"
WORD_TEXT = ("Losses before and after are in nats per token. The changes, each time and in total, are in nats for the "
             "whole word. The lists by the change each time have only words that occur at least {times} times. Rarity "
             "is how often a word occurs, whatever its case, in the built-in general texts. No word: punctuation, "
             "white space and special tokens. Losses by role are means over tokens in nats, with 95 % intervals over "
             "documents.")  # fmt: skip
GENERAL_TEXT = "Loss of general texts that the run was not trained on. A rise is forgetting."


def document_rows(documents: Dict[str, Any], kind: str, most: int) -> Rows:
    """Return the documents that gained or lost most. ``DOCUMENT_HEAD`` names the columns; losses are in nats per token.

    Args:
        kind: ``gained`` or ``lost``.
        most: Number of documents of a set.
    """
    return [
        [name, str(one["text"]), str(one["tokens"]), *(f"{drawable(one[when]):.4f}" for when in ("before", "after")),
         f"{drawable(one['change']):+.4f}"]
        for name, found in documents.items() for one in found[kind][:most]
    ]  # fmt: skip


def word_rows(words: Dict[str, Any], kind: str, most: int) -> Rows:
    """Return the words of a list. ``WORD_HEAD`` names the columns.

    Args:
        kind: A key of ``WORD_TITLES``.
        most: Number of words of a set.
    """
    return [
        [name, str(one["word"]), *_counts_and_losses(one), *(f"{drawable(one[key]):+.4g}" for key in ("each", "total"))]
        for name, found in words["sets"].items() for one in found[kind][:most]
    ]  # fmt: skip


def rarity_rows(words: Dict[str, Any]) -> Rows:
    """Return the words by how often they occur in the general texts. ``RARITY_HEAD`` names the columns."""
    return [
        [name, str(one["group"]), f"{one['words']:,}", *_counts_and_losses(one), f"{drawable(one['change']):+.4f}"]
        for name, found in words["sets"].items() for one in found["rarity"]
    ]  # fmt: skip


def role_rows(words: Dict[str, Any]) -> Rows:
    """Return the losses by role. ``ROLE_HEAD`` names the columns."""
    return [
        [name, str(one["role"]), f"{one['documents']:,}", f"{one['tokens']:,}",
         *(interval(one[part]) for part in ("before", "after", "change"))]
        for name, found in words["sets"].items() for one in found["roles"]
    ]  # fmt: skip


def word_text(words: Dict[str, Any]) -> str:
    """Return how to read the tables of words, or why there are none."""
    if words["missing"]:
        return f"Not known: {words['missing']}."
    cut = [f" Of {name}, the first {one['documents']:,} of {one['all']:,} documents were read."
           for name, one in words["sets"].items() if one["documents"] < one["all"]]  # fmt: skip
    old = [f" The roles of {name} are not known: an earlier version of ftdist prepared the data."
           for name, one in words["sets"].items() if not one["roles"]]  # fmt: skip
    return WORD_TEXT.format(times=words["min_times"]) + "".join(cut + old)


def _counts_and_losses(one: Dict[str, Any]) -> List[str]:
    losses = (f"{drawable(one[when]):.4f}" for when in ("before", "after"))
    return [f"{one['times']:,}", f"{one['tokens']:,}", *losses]


def evaluation_rows(report: Dict[str, Any]) -> Rows:
    """Return the numbers of each held-out and general set at every evaluation. ``EVALUATION_HEAD`` names the
    columns."""
    known = {(name, one["step"]): one for name, found in report["evaluations"].items() for one in found}
    kinds = (("", "", report["heldout"]), (f"{GENERAL}/", "general text: ", report["general_losses"]))
    return [
        [shown + name, str(step), *_evaluated(known.get((prefix + name, step), {}), loss)]
        for prefix, shown, sets in kinds for name, points in sets.items() for step, loss in points
    ]  # fmt: skip


def _evaluated(one: Dict[str, Any], loss: Any) -> List[str]:
    """Return loss, perplexity and accuracy of an evaluation; without intervals if its documents are not known."""
    if not one:
        return [f"{drawable(loss):.4f}", perplexity(drawable(loss)), ""]
    value, low, high = (perplexity(drawable(one["loss"][part])) for part in ("value", "low", "high"))
    ends = "" if None in map(finite, (one["loss"]["low"], one["loss"]["high"])) else f" ({low} to {high})"
    accuracy = interval(one["accuracy"], share=True) if "accuracy" in one else ""
    return [interval(one["loss"]), value + ends, accuracy]


def data_rows(data: Dict[str, Any]) -> Rows:
    """Return the counts of each source of data. ``DATA_HEAD`` names the columns."""
    return [[name, *(f"{one[key]:,}" for key in ("documents", "tokens", "trained", "dropped"))]
            for name, one in data["sources"].items()]  # fmt: skip


def gain_rows(gain: Dict[str, Any]) -> Rows:
    """Return the loss and each metric of each held-out set, before and after. ``GAIN_HEAD`` names the columns."""
    return [
        [name, measure, *(interval(found[part], share=measure == "accuracy") for part in ("before", "after", "change")),
         f"{one['documents']:,}"]
        for name, one in gain.items() for measure, found in {"loss": one, **one.get("metrics", {})}.items()
    ]  # fmt: skip


def cost_rows(cost: Dict[str, Any]) -> Rows:
    """Return what is counted, for this run, and for the training of this model from zero."""
    zero = cost["from_zero"]
    known = zero["parameters"] is not None
    tokens = f"published: {zero['source']}" if zero["source"] else "20 tokens a parameter, a low estimate"
    more = [f" ({tokens})", f" (6 · N · D, N = {number(zero['parameters'])})"] if known else ["", ""]
    return [
        ["tokens", number(cost["tokens"]), number(zero["tokens"]) + more[0]],
        ["FLOPs", number(cost["flops"]), number(zero["flops"]) + more[1]],
        ["device-hours", number(cost["device_hours"]), number(zero["device_hours"])],
        ["price", number(cost["price"]), number(zero["price"])],
    ]


def cost_text(cost: Dict[str, Any]) -> str:
    """Return how to read the rows of the cost."""
    share, rate = cost["from_zero"]["share"], cost["flops_per_s"]
    measured = "not known" if rate is None else f"{number(rate)} FLOPs a second on all devices"
    pretraining = "" if share is None else f" The run needed {percent(share)} of the operations of pretraining."
    return (f"Measured rate in steps that count: {measured}. The column 'this model from zero' assumes this rate "
            f"on the same devices.{pretraining} {energy_text(cost['energy'])}")  # fmt: skip


def energy_text(energy: Dict[str, Any]) -> str:
    """Return the energy of a run as a sentence."""
    kinds = {"GPUs": energy["gpu_kwh"], "processors and their memory": energy["cpu_kwh"]}
    known = [f"{kind} {number(kwh)} kWh" for kind, kwh in kinds.items() if kwh is not None]
    if not known:
        return "The energy is not known: the machines do not tell it."
    least = "" if energy["complete"] else ", at least, because some machines or attempts did not tell it"
    return f"Energy: {', '.join(known)}{least}."


def task_rows(tasks: List[Dict[str, Any]]) -> Rows:
    """Return a row for each measure of each task. ``TASK_HEAD`` names the columns."""
    return [
        [str(one["task"]), str(one["step"]), measure, str(one["questions"]), share_with_interval(found["base"]),
         share_with_interval(found["run"]), str(found["gained"]), str(found["lost"]), f"{found['p']:.2g}"]
        for one in tasks for measure, found in one["measures"].items()
    ]  # fmt: skip


def phase_rows(goodput: Dict[str, Any]) -> Rows:
    """Return phase, time and share."""
    total = goodput["total_s"]
    return [[phase, format_seconds(seconds), percent(seconds / total)] for phase, seconds in goodput["seconds"].items()]


def attempt_rows(goodput: Dict[str, Any]) -> Rows:
    """Return a row for each attempt. ``ATTEMPT_HEAD`` names the columns."""
    return [
        [str(one["number"]), str(one["ranks"] or "?"),
         "" if one["first_step"] is None else f"{one['first_step']} to {one['last_step']}",
         format_seconds(sum(one["seconds"].values())), percent(one["goodput"] or 0.0),
         one["state"] or "not known"]
        for one in goodput["attempts"]
    ]  # fmt: skip


def step_rows(step_times: Dict[str, float]) -> Rows:
    """Return phase, time and share of a step, without the step as a whole. Empty if it is not known.

    Args:
        step_times: Means in seconds, from ``ftdist.track.report.step_times``.
    """
    whole = step_times.get("step_s")
    return [[name.removesuffix("_s"), f"{seconds:.3g} s", percent(seconds / whole)]
            for name, seconds in step_times.items() if whole and name.endswith("_s") and name != "step_s"]  # fmt: skip


def waiting_text(goodput: Dict[str, Any]) -> str:
    """Return how long rank 0 waited for slower ranks, as a sentence. Empty if it is not known or there is one rank."""
    seconds = goodput["waiting_s"]
    if seconds is None:
        return ""
    share = percent(seconds / goodput["total_s"])
    return (f"Waiting for slower ranks: rank 0 spent {format_seconds(seconds)} ({share}) of the steps in `agreement`, "
            "where it sums numbers over all ranks. Ranks also wait for each other while DeepSpeed reduces gradients, "
            "in `backward` or in `update`.")  # fmt: skip


def tensor_rows(moved: Dict[str, Any], most: int) -> Rows:
    """Return name, ‖ΔW‖/‖W‖, ‖ΔW‖ and rank of the tensors that moved most.

    Args:
        most: Number of rows.
    """
    tensors = sorted(moved["tensors"], key=lambda one: finite(one["relative"]) or 0.0, reverse=True)
    return [[one["name"], percent(one["relative"]), number(one["norm"]), _rank(one)] for one in tensors[:most]]


def _rank(tensor: Dict[str, Any]) -> str:
    return "" if tensor["rank"] is None else f"> {tensor['rank']}" if tensor["rank_exceeds"] else str(tensor["rank"])
