"""Bad input on the command line: one clear error before anything starts, and no file is left behind."""

import json
import math
import os
import re
import struct
from pathlib import Path
from types import MappingProxyType
from typing import Dict, List, Mapping, NamedTuple, Sequence

import pytest

from ftdist.base.errors import EXIT_USAGE
from tests.helpers.cli import Done, ftdist, succeed
from tests.helpers.runs import SMOKE as SMOKE_RUN
from tests.helpers.runs import finished_run

SMOKE = ["experiment=smoke"]
MINE = [*SMOKE, "data=file", "data.heldout_share=0"]
COMPOSE_CPU_S, PREPARE_CPU_S = 2.0, 20.0  # Limits, several times the usual: without torch; with transformers, twice


class Case(NamedTuple):
    name: str
    words: Sequence[str]
    says: Sequence[str]
    """Regular expressions for what was found, what was expected, and the fix."""
    cpu_s: float = COMPOSE_CPU_S
    env: Mapping[str, str] = MappingProxyType({})


COMMAND_LINE = [
    Case("misspelled key", [*SMOKE, "optim.lrr=1"], ["no key 'optim.lrr'", "optim.lr=1"]),
    Case("misspelled key of a source", [*SMOKE, "data.sources.fake.max_docments=3"],
         ["no key .*max_docments", "fix: +data.sources.fake.max_documents"]),
    Case("misspelled option", ["experiment=smok"], ["experiment has no option 'smok'", "fix: +experiment=smoke"]),
    Case("misspelled group", ["experimnt=smoke"], ["no key or group 'experimnt'", "fix: +experiment=smoke"]),
    Case("wrong type", [*SMOKE, "zero.stage=two"], ["zero.stage=two", "an integer"]),
    Case("wrong word", [*SMOKE, "train.precision=bf8"], ["train.precision=bf8", "bf16", "fp32"]),
    Case("out of range", [*SMOKE, "zero.stage=5"], ["zero.stage=5", "between 0 and 3"]),
    Case("negative", [*SMOKE, "optim.lr=-1"], ["optim.lr=-1", "between 0 and"]),
    Case("not divisible", [*SMOKE, "batch.global_batch_size=3"],
         ["batch.global_batch_size=3 is not divisible", "1 × 2", "batch.global_batch_size=2 or 4"]),
    Case("no model", ["data=fake", "train.max_steps=3", "train.epochs=null"], ["model sets none of", "model.hub="]),
    Case("no such folder", [*MINE[:1], "model=folder", "model.path=nowhere"], ["model.path=.*nowhere does not exist"]),
    Case("a folder of photographs", [*SMOKE, "model=folder", "model.path=photos"],
         ["photos holds no config.json; it holds cat.jpg", "config.json, .*safetensors"]),
    Case("a model without weights", [*SMOKE, "model=folder", "model.path=halfmodel"],
         ["halfmodel holds no weights; it holds config.json"]),
    Case("missing data", [*MINE, "data.sources.file.path=nothing.jsonl"], ["nothing.jsonl does not exist", ".jsonl"]),
    Case("empty data", [*MINE, "data.sources.file.path=empty.jsonl"], ["empty.jsonl is empty", "one record"]),
    Case("no such template", [*SMOKE, "data.chat_template=chatlm"], ["data.chat_template=chatlm", "chatml"]),
    Case("more ranks than GPUs", [*SMOKE, "launch.device=cuda", "launch.nproc_per_node=8"],
         ["launch.nproc_per_node=8, but this machine has 2 visible GPUs", "launch.nproc_per_node=2"],
         env={"PATH": "two-gpus"}),
    Case("no GPU", ["experiment=llama31_8b"], ["launch.device=cuda, but this machine has no GPU", "launch.device=cpu"],
         env={"PATH": "no-gpu"}),
    Case("hidden GPUs", [*SMOKE, "launch.device=cuda"], ["has no GPU that CUDA may use", "CUDA_VISIBLE_DEVICES"],
         env={"PATH": "two-gpus", "CUDA_VISIBLE_DEVICES": ""}),
    Case("no room", [*SMOKE, "model=folder", "model.path=huge"],
         ["GiB free; checkpoints of 1,000,018M parameters take 11,176.1 GiB each, ", "runs_dir=FOLDER"],
         PREPARE_CPU_S),  # the model is read first
]  # fmt: skip

DATA = [
    Case("broken line", ["data.sources.file.path=broken.jsonl"], [r"broken.jsonl:2 is not JSON"]),
    Case("not UTF-8", ["data.sources.file.path=latin1.jsonl"], [r"latin1.jsonl:2 is not UTF-8", "iconv|UTF-8"]),
    Case("unknown fields", ["data.sources.file.path=unknown.jsonl"],
         [r"unknown.jsonl:1: the record has the fields question, reply", "prompt", "messages"]),
    Case("fields of another format", ["data.sources.file.path=good.jsonl", "data.sources.file.format=alpaca"],
         [r"good.jsonl:1: the record has the fields messages", "instruction", "format"]),
    Case("nothing to train", ["data.sources.file.path=unanswered.jsonl"],
         ["nothing in the set 'train' would be trained", "3 dropped: nothing to train", "preview|train_on"]),
    Case("no template", ["data.sources.file.path=good.jsonl", "model.tokenizer=plain"],
         [r"good.jsonl:1: the record is a chat, but the tokenizer has no chat template", "data.chat_template=chatml"]),
    Case("template that raises", ["data.sources.file.path=good.jsonl", "data.chat_template=raising.jinja"],
         [r"good.jsonl:1: the chat template cannot render", "no questions today"]),
    Case("template that is no template", ["data.sources.file.path=good.jsonl", "data.chat_template=broken.jinja"],
         [r"broken.jinja:1 is not valid Jinja: .*endfor"]),
]  # fmt: skip

MODEL = [
    Case("unknown model type", ["model.config.model_type=nonsense"], ["model_type=nonsense is", "model_type=llama"]),
    Case("sizes that do not fit", ["model.config.hidden_size=63"], ["model.config.*63.*heads", "correct model.config"]),
    Case("unknown field", ["+model.config.nonsense_key=1"], ["model.config.nonsense_key is not a field of a llama"]),
    Case("both directions", ["model.config.model_type=bert", "~model.config.num_key_value_heads"],
         ["bert reads text in both directions", "is_decoder=true"]),
    Case("learned positions", ["data.max_seq_len=4096", "model.config.model_type=gpt2",
                               "~model.config.intermediate_size", "~model.config.num_key_value_heads"],
         ["data.max_seq_len=4,096, but the model was made for 2,048 positions", "data.max_seq_len=2048"]),
]  # fmt: skip

GOOD = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
HUGE = {"model_type": "llama", "vocab_size": 10**6, "hidden_size": 5 * 10**5, "num_hidden_layers": 1, "head_dim": 2,
        "num_attention_heads": 1, "num_key_value_heads": 1, "intermediate_size": 8}  # fmt: skip
FILES = {
    "empty.jsonl": b"",
    "good.jsonl": json.dumps(GOOD).encode() + b"\n",
    "broken.jsonl": json.dumps(GOOD).encode() + b'\n{"messages": [\n',
    "latin1.jsonl": b'{"text": "Hello"}\n{"text": "Gr\xfc\xdfe"}\n',
    "unknown.jsonl": b'{"question": "q", "reply": "a"}\n',
    "unanswered.jsonl": json.dumps({"messages": GOOD["messages"][:1]}).encode() + b"\n" + 2 * b'{"messages": '
    b'[{"role": "user", "content": "and?"}]}\n',
    "raising.jinja": b"{{ raise_exception('no questions today') }}",
    "broken.jinja": b"{% for message in messages %}{{ message.content }}",
    "photos/cat.jpg": b"\xff\xd8",
    "halfmodel/config.json": b'{"model_type": "llama"}',
    "halfmodel/tokenizer.json": b"{}",
    "huge/config.json": json.dumps(HUGE).encode(),
    "huge/tokenizer.json": b"{}",
    "no-gpu/nvidia-smi": b"#!/bin/sh\necho 'NVIDIA-SMI has failed' >&2\nexit 9\n",
    "two-gpus/nvidia-smi": b"#!/bin/sh\nfor n in 0 1; do echo GPU $n: 'NVIDIA H100 (UUID: GPU-'$n')'; done\n",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with files that are wrong in every way."""
    here = tmp_path_factory.mktemp("bad")
    for name, content in FILES.items():
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_bytes(content)
    for script in here.glob("*/nvidia-smi"):
        script.chmod(0o755)
    _write_huge_weights(here / "huge" / "model.safetensors")
    return here


def _write_huge_weights(path: Path) -> None:
    """Write two terabytes of weights that take no space."""
    width, vocabulary = HUGE["hidden_size"], HUGE["vocab_size"]
    layer = {f"self_attn.{name}_proj": [2, width] for name in "qkv"} | {
        "self_attn.o_proj": [width, 2], "mlp.gate_proj": [8, width], "mlp.up_proj": [8, width],
        "mlp.down_proj": [width, 8], "input_layernorm": [width], "post_attention_layernorm": [width],
    }  # fmt: skip
    shapes = {"model.embed_tokens": [vocabulary, width], "lm_head": [vocabulary, width], "model.norm": [width],
              **{f"model.layers.0.{name}": shape for name, shape in layer.items()}}  # fmt: skip
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        header[f"{name}.weight"] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(file.tell() + end)


def _save_tokenizer_without_template(where: Path) -> None:
    from ftdist.data.tokenizer import bytes_tokenizer

    tokenizer = bytes_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(where)


def run_wrong(case: Case, folder: Path) -> Done:
    """Run a case. Most start an interpreter, so that their CPU time includes all imports."""
    variables = {name: str(value) for name, value in case.env.items()}
    if "PATH" in variables:
        variables["PATH"] = f"{folder / variables['PATH']}:{os.environ['PATH']}"
    places = (f"runs_dir={folder / 'runs'}", f"cache_dir={folder / 'cache'}")
    fresh = case.cpu_s == COMPOSE_CPU_S or case.name in (DATA[0].name, MODEL[0].name)
    return ftdist("train", *case.words, *places, cwd=folder, fresh=fresh, **variables)


def check_refused(done: Done, case: Case, folder: Path) -> None:
    assert done.code == EXIT_USAGE, done.text
    assert done.err.startswith("error: ") and done.text.count("error:") == 1 and "Traceback" not in done.text
    assert len(done.err.splitlines()) <= 6, "one message"
    for pattern in case.says:
        assert re.search(pattern, done.err), f"{pattern!r} is not in\n{done.err}"
    assert "expected:" in done.err or "fix:" in done.err
    assert done.cpu_s < case.cpu_s, f"took {done.cpu_s:.1f} s of processor time to say so"
    assert not (folder / "runs").exists()
    assert not list((folder / "cache").glob("data/*")) and not list((folder / "cache").glob("data/.*"))


@pytest.mark.parametrize("case", COMMAND_LINE, ids=lambda case: case.name)
def test_a_wrong_config_is_refused(case: Case, folder: Path) -> None:
    check_refused(run_wrong(case, folder), case, folder)


@pytest.mark.parametrize("case", DATA, ids=lambda case: case.name)
def test_wrong_data_is_refused(case: Case, folder: Path) -> None:
    if "model.tokenizer=plain" in case.words:
        _save_tokenizer_without_template(folder / "plain")
    case = case._replace(words=[*MINE, *case.words], cpu_s=PREPARE_CPU_S)
    check_refused(run_wrong(case, folder), case, folder)


@pytest.mark.parametrize("case", MODEL, ids=lambda case: case.name)
def test_a_wrong_model_is_refused(case: Case, folder: Path) -> None:
    case = case._replace(words=[*SMOKE, *case.words], cpu_s=PREPARE_CPU_S)
    check_refused(run_wrong(case, folder), case, folder)


def test_train_refuses_a_folder_that_holds_a_run(folder: Path) -> None:
    run = finished_run(*SMOKE_RUN)
    case = Case("taken", [*SMOKE, f"run_dir={run.path}"], ["already holds a run", f"ftdist resume {run.path}"])
    check_refused(run_wrong(case, folder), case, folder)
    assert run.read_status()["state"] == "done"


@pytest.mark.parametrize(
    ("what", "rows", "counted"),
    [
        ("truncate", 2, {"truncated": "1"}),
        ("split", 5, {"split": "1"}),
        ("drop", 1, {"dropped": "1 longer than max_seq_len"}),
    ],
)
def test_long_documents_are_truncated_split_or_dropped(
    what: str, rows: int, counted: Dict[str, str], tmp_path: Path
) -> None:
    """This is no error: it is done as the config says, and counted."""
    (tmp_path / "long.jsonl").write_text('{"text": "short"}\n' + json.dumps({"text": "x" * 200}) + "\n")
    done = succeed(
        "prepare", *MINE, "data.sources.file.path=long.jsonl", "data.max_seq_len=64", "data.packing=false",
        f"data.long_documents={what}", f"cache_dir={tmp_path / 'cache'}", cwd=tmp_path, COLUMNS="200",
    )  # fmt: skip
    lines: List[List[str]] = [re.split(r" {2,}", line.strip()) for line in done.out.splitlines()]
    head = next(line for line in lines if line[:1] == ["source"])
    found = dict(zip(head, next(line for line in lines if line[:1] == ["file"]), strict=True))
    expected = {"truncated": "0", "split": "0", "dropped": "0", **counted, "documents": "2"}
    assert {name: found[name] for name in expected} == expected
    assert int(next(line for line in lines if line[:1] == ["train"])[1]) == rows


def test_errors_go_to_standard_error(folder: Path) -> None:
    done = ftdist("train", "experiment=smok", cwd=folder)
    assert not done.out and done.err
