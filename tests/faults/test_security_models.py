"""A model folder, a tokenizer or a GGUF file from somebody else is read, and no code in it runs."""

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftdist.base.errors import FtdistError
from ftdist.config.schema import RunConfig
from ftdist.run.locations import check_model_folder
from tests.faults.canary import pickled, save_torch, source
from tests.faults.table import fault
from tests.helpers.tiny import save_tiny_model, tiny_config

CONVERSATION = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from ftdist.data.tokenizer import bytes_tokenizer

    folder = save_tiny_model(tmp_path_factory.mktemp("clean") / "model")
    bytes_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def model(clean: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(clean, tmp_path / "model"))


def change(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def load_all(model: Path) -> None:
    """Do everything that a run does with a model folder."""
    from ftdist.data.tokenizer import load_tokenizer
    from ftdist.model.attention_plan import BY_DOCUMENT
    from ftdist.model.load import load_model, model_config

    config = tiny_config(model.parent, "model.tokenizer=null")
    check_model_folder(config)
    tokenizer = load_tokenizer(config)
    load_model(config, model_config(config), BY_DOCUMENT, {"zero_optimization": {"stage": 0}})
    render(tokenizer)


def render(tokenizer: Any) -> str:
    from ftdist.config.data import Format, TrainOn
    from ftdist.data.records import Document
    from ftdist.data.render import make_renderer
    from ftdist.data.render import render as render_document

    document = Document("here", Format.messages, messages=CONVERSATION)
    return render_document(document, make_renderer(tokenizer, TrainOn.all))[0].text


def own_code(model: Path, canary: Path) -> None:
    (model / "evil.py").write_text(source(canary))
    classes = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    change(model / "config.json", auto_map=classes, model_type="evil")


def own_code_of_a_known_type(model: Path, canary: Path) -> None:
    own_code(model, canary)
    change(model / "config.json", model_type="llama")


def own_tokenizer(model: Path, canary: Path) -> None:
    (model / "evil.py").write_text(source(canary))
    auto_map = {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]}
    change(model / "tokenizer_config.json", auto_map=auto_map, tokenizer_class="Tokenizer")


def tokenizer_of_another_repository(model: Path, canary: Path) -> None:
    change(model / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "evil/repository--evil.Tokenizer"]})


def tokenizer_elsewhere(model: Path, canary: Path) -> None:
    elsewhere = model.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "evil.py").write_text(source(canary))
    (model / "tokenizer.json").replace(elsewhere / "tokenizer.json")
    named = {"tokenizer_file": str(elsewhere / "tokenizer.json"), "name_or_path": str(elsewhere)}
    change(model / "tokenizer_config.json", **named)


def a_function_as_class(model: Path, canary: Path) -> None:
    change(model / "tokenizer_config.json", tokenizer_class="os.system", processor_class="os.system")
    change(model / "config.json", architectures=["os.system"])


def a_function_as_type(model: Path, canary: Path) -> None:
    change(model / "config.json", dtype="os.system")


def pickle_for_weights(model: Path, canary: Path) -> None:
    (model / "model.safetensors").unlink()
    save_torch(canary, model / "pytorch_model.bin")


def bare_pickle_for_weights(model: Path, canary: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickled(canary))


def pickle_named_safetensors(model: Path, canary: Path) -> None:
    (model / "model.safetensors").write_bytes(pickled(canary))


def pickle_beside_weights(model: Path, canary: Path) -> None:
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "scheduler.pt"):
        save_torch(canary, model / name)


def index_that_names_a_pickle(model: Path, canary: Path) -> None:
    (model / "model.safetensors").unlink()
    save_torch(canary, model / "evil.bin")
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "evil.bin"}}
    (model / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def adapter(model: Path, canary: Path) -> None:
    save_torch(canary, model / "adapter_model.bin")
    (model / "adapter_config.json").write_text(json.dumps({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(model), "r": 2,
        "target_modules": ["q_proj"], "auto_mapping": {"base_model_class": "system", "parent_library": "os"},
    }))  # fmt: skip


REFUSED: dict[Callable[[Path, Path], None], str] = {
    own_code: "Python code in this folder or repository builds the model",
    own_tokenizer: "trust_remote_code",
    pickle_for_weights: "is damaged or contains more than tensors",
    bare_pickle_for_weights: "is damaged or contains more than tensors",
    pickle_named_safetensors: "model.safetensors cannot be read",
    index_that_names_a_pickle: "is damaged or contains more than tensors",
    adapter: "adapter",
    tokenizer_elsewhere: "cannot load the tokenizer",
    a_function_as_type: "os.system",
}
INERT = (own_code_of_a_known_type, tokenizer_of_another_repository, a_function_as_class, pickle_beside_weights)


@fault(
    "security",
    "a model folder from somebody else",
    "auto_map, pickles instead of weights, an adapter, a tokenizer in another folder …",
    "refused, by name; no code runs",
)
@pytest.mark.parametrize("plant", REFUSED, ids=lambda plant: plant.__name__)
def test_a_malicious_model_folder_is_refused(plant: Any, model: Path, tmp_path: Path) -> None:
    plant(model, tmp_path / "canary")
    with pytest.raises(FtdistError) as error:
        load_all(model)
    assert REFUSED[plant] in str(error.value), error.value
    assert not (tmp_path / "canary").exists()


@fault(
    "security",
    "a model folder from somebody else",
    "pickles and code beside the needed files",
    "the model loads; no code runs",
)
@pytest.mark.parametrize("plant", INERT, ids=lambda plant: plant.__name__)
def test_unneeded_files_of_a_model_folder_are_not_run(plant: Any, model: Path, tmp_path: Path) -> None:
    plant(model, tmp_path / "canary")
    load_all(model)
    assert not (tmp_path / "canary").exists()


BREAKOUTS = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.system('touch CANARY') }}",
    "{{ self.__init__.__globals__['__builtins__']['__import__']('os').system('touch CANARY') }}",
    "{% set f = '%c'|format(95) %}{{ (''|attr(f~f~'class'~f~f)|attr(f~f~'mro'~f~f)|last).y.z }}",
    "{{ ''[('__cla', 'ss__')|join].mro() }}",
    "{{ raise_exception.__globals__['os'].system('touch CANARY') }}",
    "{{ strftime_now.__globals__['os'].system('touch CANARY') }}",
    "{{ ('{0.__class__.__init__.__globals__}').format(messages) }}{{ messages.append.__self__ }}",
    "{% include '/etc/passwd' %}",
    "{{ messages.clear() }}",
]


@fault(
    "security",
    "a chat template from somebody else",
    "ways out of Jinja's sandbox",
    "refused; no code runs",
)
@pytest.mark.parametrize("template", BREAKOUTS)
def test_a_chat_template_stays_in_its_sandbox(template: str, model: Path, tmp_path: Path) -> None:
    from ftdist.data.tokenizer import load_tokenizer

    (model / "chat_template.jinja").write_text(template.replace("CANARY", str(tmp_path / "canary")))
    with pytest.raises(FtdistError, match="chat template cannot render|is not valid Jinja"):
        render(load_tokenizer(tiny_config(tmp_path, "model.tokenizer=null")))
    assert not (tmp_path / "canary").exists()


@fault(
    "security",
    "a model folder from somebody else, in ftdist chat",
    "auto_map, a pickle",
    "refused, without a question to the user",
)
@pytest.mark.parametrize("plant", [own_code, own_tokenizer, pickle_for_weights], ids=lambda plant: plant.__name__)
def test_chat_refuses_a_malicious_model_folder(plant: Any, model: Path, tmp_path: Path) -> None:
    from ftdist.serve.chat import load

    plant(model, tmp_path / "canary")
    with pytest.raises(FtdistError):
        load(model)
    assert not (tmp_path / "canary").exists()


def gguf_of(content: bytes) -> Callable[[Path], bytes]:
    return lambda canary: content


@fault(
    "security",
    "a GGUF file from somebody else",
    "a pickle, endless counts, an empty file; code beside it",
    "refused; no code runs, nothing is cached",
)
@pytest.mark.parametrize(
    "content",
    [pickled, gguf_of(b"GGUF\x03\0\0\0" + b"\xff" * 16), gguf_of(b"GGUF\x03\0\0\0" + b"\0" * 16), gguf_of(b"")],
    ids=["a pickle", "endless counts", "nothing in it", "empty"],
)
def test_a_malicious_gguf_file_is_refused(content: Callable[[Path], bytes], tmp_path: Path) -> None:
    from ftdist.model.convert import convert_gguf

    canary, file = tmp_path / "canary", tmp_path / "downloads" / "model.gguf"
    file.parent.mkdir()
    file.write_bytes(content(canary))
    (file.parent / "evil.py").write_text(source(canary))
    auto_map = {"AutoConfig": "evil.Config", "AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]}
    for name in ("config.json", "tokenizer_config.json"):
        (file.parent / name).write_text(json.dumps({"auto_map": auto_map, "model_type": "evil"}))
    with pytest.raises(FtdistError, match="model.gguf"):
        convert_gguf(file, tmp_path / "cache" / "model")
    assert not canary.exists() and not list(tmp_path.glob("cache/*"))


@fault(
    "security",
    "model.config from somebody else",
    "_target_, auto_map",
    "no code runs",
)
def test_a_model_config_instantiates_nothing(tmp_path: Path) -> None:
    from ftdist.model.load import model_config

    config = RunConfig()
    config.model.config = {
        "model_type": "llama", "_target_": "os.system", "command": f"touch {tmp_path / 'canary'}",
        "rope_scaling": {"_target_": "os.system"}, "auto_map": {"AutoConfig": "os.system"},
    }  # fmt: skip
    with contextlib.suppress(FtdistError):  # refused is as good
        model_config(config)
    assert not (tmp_path / "canary").exists()


@fault(
    "security",
    "(a check of these tests)",
    "each kind of planted code is run on purpose",
    "the canary file is found",
)
def test_the_canary_detects_code_that_runs(tmp_path: Path) -> None:
    """Otherwise every test here would pass without proving anything."""
    import torch

    save_torch(tmp_path / "one", tmp_path / "file")
    torch.load(tmp_path / "file", weights_only=False)
    exec(source(tmp_path / "two"))
    assert (tmp_path / "one").exists() and (tmp_path / "two").exists()
