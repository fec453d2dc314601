"""One measurement in a process of its own: ``python -m tests.bench.one_method ROLE CONFIG FOLDER OUT``.

``prepare`` makes the model, the rows and an adapter, ``documents`` the model and the documents of the rows. ``ftdist``
takes the steps of a run, ``trainer`` those of a script with transformers' Trainer, which imports nothing of ftdist.
Both write their times, losses and memory to OUT.

For ``forgetting.py``, ``answers`` lets the base model answer questions, and ``train`` takes all steps of a run and
measures its held-out losses before and after.
"""

import json
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Callable, Dict, List

WARMUP_STEPS, STEPS = 1, 3


def prepare(config: Any, folder: Path) -> Dict[str, Any]:
    """Convert the model, prepare the data, and write an adapter that does not change the model yet."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from ftdist.model.convert import convert_gguf
    from ftdist.run.prepared import data_folder
    from ftdist.verify.reference import read_rows, row_order
    from tests.bench.methods import model_file
    from tests.helpers.tiny import freeze_tiny

    if not (folder / "model").exists():
        convert_gguf(model_file(), folder / "model")
    freeze_tiny(config, folder / "run", 1)
    rows = read_rows(data_folder(config) / "train")
    order = row_order(config.seed, len(rows), (WARMUP_STEPS + STEPS) * config.batch.global_batch_size)
    (folder / "rows.json").write_text(json.dumps([example(*rows[row][0]) for row in order]))
    method = config.method
    settings = LoraConfig(r=method.r, lora_alpha=method.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(folder / "model"), settings).save_pretrained(folder / "adapter")
    return {}


def documents(config: Any, folder: Path) -> Dict[str, Any]:
    """Convert the model, prepare the data, and write the documents of the rows of all steps in their order.

    Returns:
        How many documents there are, and the tokens of each step.
    """
    from ftdist.model.convert import convert_gguf
    from ftdist.run.prepared import data_folder
    from ftdist.verify.reference import read_rows, row_order
    from tests.bench.methods import model_file
    from tests.helpers.tiny import freeze_tiny

    convert_gguf(model_file(), folder / "model")
    freeze_tiny(config, folder / "run", 1)
    rows, batch = read_rows(data_folder(config) / "train"), config.batch.global_batch_size
    order = row_order(config.seed, len(rows), (WARMUP_STEPS + STEPS) * batch)
    examples = [example(*document) for row in order for document in rows[row]]
    (folder / "documents.json").write_text(json.dumps(examples))
    lengths = [sum(len(ids) for ids, _ in rows[row]) for row in order]
    return {"documents": len(examples), "tokens": [sum(lengths[at : at + batch]) for at in range(0, len(order), batch)]}


def example(ids: Any, trained: Any) -> Dict[str, List[int]]:
    """Return a document as lists. The label of a token that is not trained is -100, and so is the first one."""
    labels = [int(token) if of and n else -100 for n, (token, of) in enumerate(zip(ids, trained, strict=True))]
    return {"input_ids": ids.tolist(), "labels": labels}


def ftdist(config: Any, folder: Path) -> Dict[str, Any]:
    """Take the steps of a run, as ``ftdist.train.loop`` does, on one rank."""
    import ftdist.train.main  # noqa: F401
    from tests.bench.subject import assemble_run, start_rank
    from tests.bench.tax import ftdist_step

    libraries = peak_memory()
    training = assemble_run(config, folder / f"run-{config.method.kind.name}", start_rank(config))
    found = timed(ftdist_step(training))
    return {**found, "trained": trained_numbers(training.engine.module), "libraries": libraries}


def timed(step: Callable[[int], float]) -> Dict[str, Any]:
    found: Dict[str, Any] = {"wall": [], "cpu": [], "losses": []}
    for index in range(WARMUP_STEPS + STEPS):
        wall, cpu = time.perf_counter(), time.process_time()
        found["losses"].append(step(index))
        found["wall"].append(time.perf_counter() - wall)
        found["cpu"].append(time.process_time() - cpu)
    return {**found, **{name: found[name][WARMUP_STEPS:] for name in ("wall", "cpu")}, "peak": peak_memory()}


def answers(config: Any, folder: Path) -> Dict[str, Any]:
    """Write ``own.jsonl``: the questions of ``general.jsonl``, with answers that the model samples at temperature 1.

    They are drawn from the base model's own distribution, so the rise of their loss in training estimates the
    divergence KL(base ‖ trained) of answers to these questions, up to the few texts that get other tokens when read.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ftdist.model.convert import convert_gguf
    from tests.bench.methods import model_file

    convert_gguf(model_file(), folder / "model")
    torch.manual_seed(config.seed)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    with (folder / "own.jsonl").open("w", encoding="utf-8") as file:
        for line in Path(__file__).with_name("general.jsonl").read_text(encoding="utf-8").splitlines():
            question = json.loads(line)["messages"][:1]
            prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt",
                                                   return_dict=True)  # fmt: skip
            drawn = model.generate(**prompt, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=64)
            text = tokenizer.decode(drawn[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
            answer = {"role": "assistant", "content": text}
            file.write(json.dumps({"messages": [*question, answer]}) + "\n")
    return {}


def train(config: Any, folder: Path) -> Dict[str, Any]:
    """Take all steps of a run. Returns the losses of each held-out set before and after, and its trained tokens."""
    from ftdist.data.prepare import prepare as prepare_data
    from ftdist.train.evaluate import evaluate
    from tests.bench.subject import assemble_run, start_rank
    from tests.bench.tax import ftdist_step

    prepare_data(config)
    training = assemble_run(config, folder / f"run-{config.method.kind.name}-{config.seed}", start_rank(config))

    def heldout() -> Dict[str, Any]:
        return {
            name: evaluate(training.engine, training.objective, dataset, training.mesh, 1, config.data.packing,
                           training.tokenizer.pad_token_id) for name, dataset in training.heldout.items()
        }  # fmt: skip

    before, step = heldout(), ftdist_step(training)
    losses = [step(index) for index in range(config.train.max_steps)]
    per_token = [{name: of.loss / of.weight for name, of in found.items()} for found in (before, heldout())]
    tokens = {name: of.weight for name, of in before.items()}
    return {"before": per_token[0], "after": per_token[1], "tokens": tokens, "losses": losses}


def trainer(config: Any, folder: Path) -> Dict[str, Any]:
    """Train with transformers' Trainer, as a script does. ``config`` is the text of the config's file as a dict."""
    import torch
    from transformers import AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainingArguments

    if config["method"]["kind"] != "full":
        import peft  # noqa: F401
    libraries = peak_memory()
    optim, batch = config["optim"], config["batch"]
    data = json.loads((folder / "rows.json").read_text())
    model = plain_model(config["method"]["kind"], folder)
    times: List[List[float]] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *given: Any, **more: Any) -> None:
            times.append([time.perf_counter(), time.process_time()])

        def on_step_end(self, *given: Any, **more: Any) -> None:
            times[-1] = [time.perf_counter() - times[-1][0], time.process_time() - times[-1][1]]

    class InOrder(Trainer):
        def _get_train_sampler(self, *given: Any) -> Any:
            return torch.utils.data.SequentialSampler(data)

    args = TrainingArguments(
        str(folder / "trainer"), per_device_train_batch_size=batch["micro_batch_size"],
        gradient_accumulation_steps=batch["global_batch_size"] // batch["micro_batch_size"],
        max_steps=WARMUP_STEPS + STEPS, learning_rate=optim["lr"], lr_scheduler_type="constant", report_to=[],
        use_cpu=True, adam_beta1=0.9, adam_beta2=0.95, adam_epsilon=1e-8, weight_decay=optim["weight_decay"],
        max_grad_norm=optim["max_grad_norm"], logging_steps=1, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    collator = DataCollatorForSeq2Seq(AutoTokenizer.from_pretrained(folder / "model"))
    loop = InOrder(model, args, data_collator=collator, train_dataset=data, callbacks=[Clock()])
    loop.train()
    losses = [float(entry["loss"]) for entry in loop.state.log_history if "loss" in entry]
    wall, cpu = ([step[n] for step in times[WARMUP_STEPS:]] for n in (0, 1))
    return {"wall": wall, "cpu": cpu, "losses": losses, "peak": peak_memory(), "trained": trained_numbers(model),
            "libraries": libraries}  # fmt: skip


def plain_model(kind: str, folder: Path) -> Any:
    """Return the model as a script with PEFT and bitsandbytes loads it."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    options: Dict[str, Any] = {}
    if kind == "qlora":
        nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                 bnb_4bit_compute_dtype=torch.float32)  # fmt: skip
        options = {"quantization_config": nf4, "device_map": {"": "cpu"}}
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32, **options)
    if kind == "full":
        return model
    from peft import PeftModel

    return PeftModel.from_pretrained(model, folder / "adapter", is_trainable=True)


def trained_numbers(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def peak_memory() -> int:
    """Return the peak of this process's resident memory in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def main(role: str, config: Path, folder: Path, out: Path) -> None:
    try:
        if role == "trainer":
            import yaml

            found = trainer(yaml.safe_load(config.read_text()), folder)
        else:
            from ftdist.config.frozen import parse_config

            run = {"prepare": prepare, "documents": documents, "ftdist": ftdist, "answers": answers, "train": train}[
                role
            ]
            found = run(parse_config(config.read_text(), str(config)), folder)
    except Exception:
        found = {"error": traceback.format_exc()}  # a rank's own standard error leads nowhere
    out.write_text(json.dumps(found))
    sys.exit("error" in found)


if __name__ == "__main__":
    main(sys.argv[1], *(Path(word) for word in sys.argv[2:5]))
