"""A rank of TRL's SFTTrainer for ``beside_trl.py``: ``python trl_rank.py SETTINGS OUT`` in TRL's environment.

It imports nothing of ftdist. SETTINGS is a JSON file that ``beside_trl.py`` writes.
"""

import json
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Dict, List


def train(settings: Dict[str, Any]) -> Dict[str, Any]:
    """Train on documents whose tokens are given. Returns for each step its seconds, CPU seconds, tokens and loss."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    libraries = peak_memory()
    model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.bfloat16)
    documents = json.loads(Path(settings["documents"]).read_text())
    steps: List[Dict[str, float]] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *given: Any, **more: Any) -> None:
            steps.append({"tokens": 0, "wall": -time.perf_counter(), "cpu": -time.process_time()})

        def on_step_end(self, *given: Any, **more: Any) -> None:
            steps[-1]["wall"] += time.perf_counter()
            steps[-1]["cpu"] += time.process_time()

    class InOrder(SFTTrainer):
        def _get_train_sampler(self, *given: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

        def compute_loss(self, model: Any, inputs: Dict[str, Any], *given: Any, **more: Any) -> Any:
            mask = inputs.get("attention_mask")
            steps[-1]["tokens"] += int(inputs["input_ids"].numel() if mask is None else mask.sum())
            return super().compute_loss(model, inputs, *given, **more)

    zero = {"zero_optimization": {"stage": settings["stage"]}, "bf16": {"enabled": True},
            "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto",
            "gradient_clipping": "auto"}  # fmt: skip
    args = SFTConfig(
        settings["folder"], per_device_train_batch_size=settings["batch"], max_steps=settings["steps"],
        gradient_accumulation_steps=settings["accumulation"], learning_rate=settings["lr"],
        lr_scheduler_type="constant", report_to=[], use_cpu=True, bf16=True, adam_beta2=0.95, weight_decay=0.0,
        max_grad_norm=1.0, logging_steps=1, save_strategy="no", disable_tqdm=True, deepspeed=zero,
        ddp_backend="gloo", packing=settings["packing"], max_length=settings["max_length"],
        gradient_checkpointing=settings["recompute"], dataset_num_proc=None,
    )  # fmt: skip
    loop = InOrder(
        model, args, train_dataset=Dataset.from_list(documents), callbacks=[Clock()],
        processing_class=AutoTokenizer.from_pretrained(settings["model"]),
    )  # fmt: skip
    loop.train()
    losses = [float(entry["loss"]) for entry in loop.state.log_history if "loss" in entry]
    return {"steps": steps, "losses": losses, "peak": peak_memory(), "libraries": libraries}


def peak_memory() -> int:
    """Return the peak of this process's resident memory in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


if __name__ == "__main__":
    try:
        found = train(json.loads(Path(sys.argv[1]).read_text()))
    except Exception:
        found = {"error": traceback.format_exc()}
    Path(sys.argv[2]).write_text(json.dumps(found))
    sys.exit("error" in found)
