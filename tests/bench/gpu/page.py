"""The page and the numbers that ``make bench-gpu`` writes."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from tests.bench.figures import Spread
from tests.bench.gpu.cells import REHEARSAL, Cell, Sizes
from tests.helpers.alone import OK, Outcome

NAME = "bench-gpu"
GIB = 2**30
PARTS = ("states", "activations", "working", "exchange")
"""Of the predicted memory."""
Results = List[Tuple[Cell, Outcome]]

ABOUT = """\
Weights are random, and made on the device. Rows are full of documents of random tokens, of very different lengths, and
all tokens are trained. bf16 with fp32 master weights, AdamW, ZeRO-2 on one rank, no kernels but those of PyTorch. The
first {compared} steps of each cell are compared with plain transformers in plain PyTorch: `loss off` is the largest
relative difference of the loss, `gradient off` that of the gradient of the first step. One step more comes before the
{steps} that are measured.

`MFU` counts the operations of the model, without what is recomputed, against the rate of a matrix product on this
device. `data` is the share of a step in which the host waits for its rows. `predicted` is what ftdist computes: model
states + what the layers keep + the loss head, or the layer that is recomputed if it needs more + buffers for reducing
gradients. The buffers of the attention kernels come on top. `peak` is what PyTorch allocated at most."""


def write(folder: Path, machine: Dict[str, Any], sizes: Sizes, results: Results, seconds: float, compared: int) -> Path:
    """Write ``bench-gpu.json`` and ``bench-gpu.md``. Returns the path of the page."""
    folder.mkdir(parents=True, exist_ok=True)
    value = {
        "machine": machine, "sizes": asdict(sizes), "seconds": seconds, "date": _now(),
        "cells": [{**asdict(cell), **asdict(outcome)} for cell, outcome in results],
    }  # fmt: skip
    (folder / f"{NAME}.json").write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    page = folder / f"{NAME}.md"
    page.write_text(markdown(machine, sizes, results, seconds, compared), encoding="utf-8")
    return page


def markdown(machine: Dict[str, Any], sizes: Sizes, results: Results, seconds: float, compared: int) -> str:
    found = {cell.kind: outcome.figures for cell, outcome in results if outcome.status == OK}
    title = "# Rehearsal at toy sizes: no figure means anything" if sizes == REHEARSAL else "# One GPU"
    parts = [title, _device(machine, found.get("device")), ABOUT.format(compared=compared, steps=sizes.steps)]
    if "head" in found:
        parts.append(_head(found["head"]))
    for subject in sizes.subjects:
        measured = [(cell, outcome) for cell, outcome in results
                    if cell.subject == subject and cell.kind == "training" and outcome.status == OK]  # fmt: skip
        if measured:
            parts.append(_training(subject, measured))
    if "saving" in found:
        parts.append(_saving(found["saving"]))
    left_out = [f"- {cell.name}: {outcome.status}, {outcome.why}" for cell, outcome in results if outcome.status != OK]
    wrong = [f"- {cell.name}: {text}" for cell, outcome in results if (text := outcome.figures.get("wrong"))]
    parts += ["## Wrong numbers\n\n" + "\n".join(wrong)] if wrong else []
    parts += ["## Not measured\n\n" + "\n".join(left_out)] if left_out else []
    return "\n\n".join([*parts, f"Measured {_now()} in {seconds:.0f} s."]) + "\n"


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())


def _table(header: List[str], rows: List[List[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *rows])


def _gib(count: Optional[float]) -> str:
    return "unknown" if count is None else f"{count / GIB:.1f} GiB"


def _device(machine: Dict[str, Any], found: Optional[Dict[str, Any]]) -> str:
    if found is None:
        return f"{machine['system']}, {machine['cpu']}. The device could not be described."
    versions = ", ".join(f"{name} {found[name]}" for name in ("torch", "cuda", "transformers", "deepspeed"))
    return (
        f"{found['name']}, {_gib(found['memory_bytes'])}, {found['matrix_rate'] / 1e12:.1f} TFLOP/s in a bf16 matrix "
        f"product. {machine['system']}, {machine['cores']} cores, Python {machine['python']}, {versions}."
    )


def _head(found: Dict[str, Any]) -> str:
    rows = []
    for name, way in found["ways"].items():
        if "why" in way:
            rows.append([name, way["why"], "", "", ""])
            continue
        off = [f"{way['guard'][key]:.1e}" for key in ("loss", "d_weight")] if "guard" in way else ["", ""]
        rows.append([name, Spread(**way["seconds"]).show("ms", 1000, 1), _gib(way["peak_bytes"]), *off])
    title = f"## Loss head: {found['tokens']:,} tokens × {found['vocabulary']:,} × {found['hidden']:,}"
    return f"{title}\n\n{_table(['', 'forward and backward', 'peak', 'loss off', 'gradient off'], rows)}"


def _training(subject: str, measured: Results) -> str:
    rows = []
    for cell, outcome in measured:
        figures = outcome.figures
        compiled, predicted = figures["compiled"], figures["predicted"]
        rows.append([
            cell.name.split(": ")[1], Spread(**figures["step_s"]).show("ms", 1000, 0),
            f"{figures['tokens_per_s']:,.0f}", f"{figures['mfu']:.1%}", f"{figures['data_share']:.2%}",
            _gib(figures["peak_bytes"]),
            f"{_gib(predicted['total_bytes'])} ("
            + " + ".join(f"{predicted[f'{part}_bytes'] / GIB:.1f}" for part in PARTS)
            + ")",
            "" if compiled is None else f"{compiled['seconds']:.0f} s", f"{figures['guard']['loss']:.1e}",
            f"{figures['guard']['gradient']:.1e}",
        ])  # fmt: skip
    header = ["", "step", "tokens/s", "MFU", "data", "peak", "predicted", "compilation", "loss off", "gradient off"]
    return f"## {subject} (attention: {measured[0][1].figures['attention']})\n\n{_table(header, rows)}"


def _saving(found: Dict[str, Any]) -> str:
    names = {"step_s": "step", "stall_s": "stall", "beside_s": "step beside", "published_s": "published"}
    rows = [[str(number), *(f"{save[key]:.2f} s" for key in names)] for number, save in enumerate(found["saves"], 1)]
    how = "written beside training" if found["background"] else "training waits until it is written"
    return f"## Saving {_gib(found['bytes'])} ({how})\n\n{_table(['save', *names.values()], rows)}"
