"""Framework tax: the time of ftdist's optimizer step relative to a plain DeepSpeed loop that does the same work."""

import itertools
import random
import statistics
import time
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

from ftdist.config.schema import RunConfig
from tests.bench.figures import Section, Spread, spread
from tests.bench.subject import assemble_run, make_subject, num_ranks, parameter_count, start_rank
from tests.helpers.ranks import run_ranks

WARMUP_STEPS = 3
BLOCK_STEPS = 2
SAME_LOSS = 2e-2  # relative; bf16 in other kernels. fp32 agrees to 1e-5
RESAMPLES = 2000

Step = Callable[[int], float]
Blocks = List[List[float]]

ABOUT = """\
`ftdist` is the real assembly and a full step of its loop: reading rows, counting tokens, forward, backward, update,
reducing the loss over ranks, writing metrics.jsonl and status.json (W&B off). `bare` is a plain DeepSpeed loop over
batches that are tensors already: `engine(input_ids, labels).loss`, `engine.backward`, `engine.step`. Both train the
same Llama of {parameters:.1f} M parameters from the same weights on the same rows in the same order ({rows} rows of
{tokens} tokens a step, accumulation 2, {ranks} ranks, {precision}), with the same ZeRO stage, AdamW and clipping. Their
losses are compared at every step (largest relative difference {difference:.0e}). ftdist computes no logits of untrained
tokens. Here all tokens are trained and a row is one document, so this gives no advantage.

The loops take turns in the same processes, {block} steps each, {rounds} rounds, in changing order. A tax is the ratio
of the medians minus 1, with its 95 % interval (bootstrap over rounds). `CPU tax` is the same for the CPU time of all
ranks, which other load of the machine hardly changes (on a GPU it includes waiting and says little). `noise` compares
the bare loop with a second bare loop. `data` is the share of ftdist's step in which the host waits for its rows."""


def measure(folder: Path, quick: bool) -> Section:
    rounds = 6 if quick else 24
    config = make_subject(folder, quick)
    stages: Dict[str, Any] = {}
    for stage in (2, 3):
        per_rank = run_ranks(_on_rank, num_ranks(), at_stage(config, stage), folder, rounds, timeout_s=3600)
        stages[f"zero{stage}"] = _figures(per_rank)
    rows = [_row(name.replace("zero", "ZeRO-"), figures) for name, figures in stages.items()]
    about = ABOUT.format(
        parameters=per_rank[0]["parameters"] / 1e6, rows=config.batch.global_batch_size, tokens=config.data.max_seq_len,
        ranks=num_ranks(), precision=config.train.precision.name, block=BLOCK_STEPS, rounds=rounds,
        difference=max(figures["loss_difference"] for figures in stages.values()),
    )  # fmt: skip
    header = ["", "ftdist, a step", "bare, a step", "tax", "noise", "CPU tax", "CPU noise", "data"]
    return Section("tax", "Framework tax", about, header, rows, stages)


def at_stage(config: RunConfig, stage: int) -> RunConfig:
    config = deepcopy(config)
    config.zero.stage = stage
    return config


def _on_rank(config: RunConfig, folder: Path, rounds: int) -> Dict[str, Any]:
    from ftdist.run.prepared import data_folder
    from tests.bench.bare import BareLoop

    ranks = start_rank(config)
    steps = WARMUP_STEPS + rounds * BLOCK_STEPS
    data = data_folder(config) / "train"
    bare = BareLoop(config, data, ranks, steps)
    training = assemble_run(config, folder / f"zero{config.zero.stage}", ranks)
    twin = BareLoop(config, data, ranks, steps)
    shares: List[float] = []
    loops = {"bare": bare.step, "ftdist": ftdist_step(training, shares), "twin": twin.step}
    wall, cpu, losses = _take_turns(loops, rounds)
    difference = _largest_difference(losses, ranks)
    return {
        "wall": wall,
        "cpu": cpu,
        "loss_difference": difference,
        "data_share": shares[WARMUP_STEPS:],
        "parameters": parameter_count(training.engine),
    }


def ftdist_step(training: Any, shares: Optional[List[float]] = None) -> Step:
    """One turn of ``ftdist.train.loop.train`` in which neither an evaluation nor a checkpoint is due.

    Args:
        shares: Gets the share of each step in which the host waits for its rows.
    """
    from ftdist.train import loop

    def step(index: int) -> float:
        started = time.perf_counter()
        result = loop.train_step(training, index)
        training.state.step += 1
        training.state.tokens_seen += result.tokens
        training.state.trained_tokens += result.trained_tokens
        seconds, phases = time.perf_counter() - started, training.clock.end_step()
        if shares is not None:
            shares.append(phases["perf/data_s"] / seconds)
        loop._log_step(training, result, seconds, phases)
        return result.loss

    return step


def _take_turns(loops: Dict[str, Step], rounds: int) -> Tuple[Dict[str, Blocks], Dict[str, Blocks], Dict[str, Any]]:
    """Run the loops in turns, a block of steps each. The order changes, so that no loop always follows the same one.

    Returns, by loop: wall seconds of each step by round, processor seconds of each step by round, the losses.
    """
    import torch.distributed as dist

    wall: Dict[str, Blocks] = {name: [] for name in loops}
    cpu: Dict[str, Blocks] = {name: [] for name in loops}
    losses: Dict[str, List[float]] = {name: [] for name in loops}
    orders = itertools.cycle(itertools.permutations(loops))
    first = 0
    for count in [WARMUP_STEPS] + [BLOCK_STEPS] * rounds:
        for name in next(orders):
            dist.barrier()
            timed = [_timed(loops[name], index) for index in range(first, first + count)]
            wall[name].append([one[0] for one in timed])
            cpu[name].append([one[1] for one in timed])
            losses[name] += [one[2] for one in timed]
        first += count
    return _without_warmup(wall), _without_warmup(cpu), losses


def _without_warmup(times: Dict[str, Blocks]) -> Dict[str, Blocks]:
    return {name: blocks[1:] for name, blocks in times.items()}


def _timed(step: Step, index: int) -> Tuple[float, float, float]:
    import torch

    wall, cpu = time.perf_counter(), time.process_time()
    loss = step(index)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - cpu, loss


def _largest_difference(losses: Dict[str, List[float]], ranks: Any) -> float:
    """Return the largest relative difference of ftdist's losses and those of the bare loop, averaged over ranks."""
    from ftdist.parallel.mesh import data_parallel

    bare = [total / ranks.world_size for total in data_parallel(ranks).sum(losses["bare"])]
    worst = max(abs(a - b) / abs(b) for a, b in zip(losses["ftdist"], bare, strict=True))
    assert worst < SAME_LOSS, f"the loops do not do the same: losses differ by {worst:.2g}"
    return worst


def _figures(per_rank: List[Dict[str, Any]]) -> Dict[str, Any]:
    wall = per_rank[0]["wall"]  # all ranks wait for each other and measure the same
    cpu = {name: _sum_blocks([rank["cpu"][name] for rank in per_rank]) for name in wall}
    return {
        "ftdist_s": asdict(spread(_pooled(wall["ftdist"]))),
        "bare_s": asdict(spread(_pooled(wall["bare"]))),
        "tax": ratio_less_one(wall["ftdist"], wall["bare"]),
        "noise": ratio_less_one(wall["twin"], wall["bare"]),
        "cpu_tax": ratio_less_one(cpu["ftdist"], cpu["bare"]),
        "cpu_noise": ratio_less_one(cpu["twin"], cpu["bare"]),
        "loss_difference": per_rank[0]["loss_difference"],
        "data_share": asdict(spread(per_rank[0]["data_share"])),
        "parameters": per_rank[0]["parameters"],
    }


def _sum_blocks(ranks: List[Blocks]) -> Blocks:
    return [[sum(steps) for steps in zip(*blocks, strict=True)] for blocks in zip(*ranks, strict=True)]


def _pooled(blocks: Blocks) -> List[float]:
    return [step for block in blocks for step in block]


def ratio_less_one(one: Blocks, other: Blocks) -> Dict[str, float]:
    """Return the ratio of medians minus 1, with its 95 % interval from a bootstrap over rounds.

    The blocks of both loops in a round are drawn together, because a disturbance affects both.
    """

    def ratio(rounds: List[int]) -> float:
        medians = [statistics.median(_pooled([blocks[number] for number in rounds])) for blocks in (one, other)]
        return medians[0] / medians[1] - 1

    draw, every = random.Random(0), list(range(len(one)))
    again = sorted(ratio(draw.choices(every, k=len(every))) for _ in range(RESAMPLES))
    return {"ratio": ratio(every), "low": again[int(0.025 * RESAMPLES)], "high": again[int(0.975 * RESAMPLES) - 1]}


def _row(stage: str, figures: Dict[str, Any]) -> List[str]:
    seconds = [Spread(**figures[name]).show("ms", 1000, 0) for name in ("ftdist_s", "bare_s")]
    return [stage, *seconds, *(_percent(figures[name]) for name in ("tax", "noise", "cpu_tax", "cpu_noise")),
            Spread(**figures["data_share"]).show("%", 100)]  # fmt: skip


def _percent(figure: Dict[str, float]) -> str:
    return f"{figure['ratio']:+.1%} ({figure['low']:+.1%} – {figure['high']:+.1%})"
