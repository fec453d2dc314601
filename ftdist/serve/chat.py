"""Talk to a model in the terminal: ``python -m ftdist.serve.chat MODEL``. MODEL is an export or a Hugging Face
folder."""

import argparse
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional

from ftdist.base.errors import EXIT_DONE, ConfigError, FtdistError
from ftdist.base.json_files import read_json
from ftdist.base.main import run_main
from ftdist.base.output import accept_any_text
from ftdist.base.permissions import require_readable_folder
from ftdist.base.terminal import task
from ftdist.run.file_names import ADAPTER_CONFIG
from ftdist.run.locations import holds_model
from ftdist.track.report import TRUNCATION_MARK

Messages = List[Dict[str, str]]


def main(argv: Optional[List[str]] = None) -> int:
    """Load the model and chat until the end of input. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="ftdist chat", description="Talk to a model. /new starts a new conversation, Ctrl-D ends the program."
    )
    parser.add_argument("model", help="a Hugging Face folder")
    parser.add_argument("--max-tokens", type=int, default=256, help="maximum number of tokens of an answer")
    parser.add_argument("--trust-remote-code", action="store_true", help="run the Python code in the model's folder")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 always selects the most likely token")
    args = parser.parse_args(argv)

    def chat() -> int:
        with task("loading the model", sys.stdin.isatty()):
            model, tokenizer = load(Path(args.model), args.trust_remote_code)
        try:
            talk(model, tokenizer, args.max_tokens, args.temperature)
        except KeyboardInterrupt:  # a usual way to leave a chat
            print()
        return EXIT_DONE

    return run_main(chat)


def load(folder: Path, trust_remote_code: bool = False) -> Any:
    """Load the model and the tokenizer of a Hugging Face folder, on the GPU if there is one.

    Args:
        trust_remote_code: Run the Python code in the folder, if the model needs it.

    Raises:
        ConfigError: The folder does not hold a model that transformers can load, or the model needs its own Python code
            and ``trust_remote_code`` is not set.
        CheckpointError: The folder is the adapter of a run whose base model now has other weights.
    """
    require_readable_folder(folder)
    if not holds_model(folder):
        raise ConfigError(f"{folder} holds no config.json", "an exported model", "ftdist export RUN_DIR")
    import torch
    import transformers
    from transformers import AutoTokenizer

    from ftdist.checkpoint.export import check_base_of_export
    from ftdist.model.opened import open_exported

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if (folder / ADAPTER_CONFIG).is_file():
        check_base_of_export(folder)
    try:
        model = open_exported(folder, trust_remote_code)
        tokenizer = AutoTokenizer.from_pretrained(_tokenizer_of(folder), trust_remote_code=trust_remote_code)
    except FtdistError:
        raise
    except Exception as error:  # transformers raises many types of errors
        found = f"{folder}: {(str(error).splitlines() or [type(error).__name__])[0][:200]}"
        without_code = "" if trust_remote_code else " without running code from its folder"
        raise ConfigError(found, f"a model that transformers can load{without_code}",
                          "name a run directory, its export, or another model folder") from error  # fmt: skip
    return model.to(device).eval(), tokenizer


def _tokenizer_of(folder: Path) -> str:
    """Return where the tokenizer of a model folder is. That of an adapter may be with its base model."""
    own = not (folder / ADAPTER_CONFIG).is_file() or (folder / "tokenizer_config.json").is_file()
    return str(folder) if own else str(read_json(folder / ADAPTER_CONFIG)["base_model_name_or_path"])


def talk(model: Any, tokenizer: Any, max_tokens: int, temperature: float) -> None:
    """Read questions from standard input and print the answers, until the end of input."""
    history: Messages = []
    prompt = "> " if sys.stdin.isatty() else ""
    if prompt:
        print("/new starts a new conversation, Ctrl-D ends the program")
    while True:
        try:
            line = input(prompt).strip()
        except EOFError:
            if prompt:
                print()  # so that the shell's prompt is on its own line
            return
        if line == "/new":
            history = []
        elif line:
            history.append({"role": "user", "content": line})
            history.append({"role": "assistant", "content": answer(model, tokenizer, history, max_tokens, temperature)})


def answer(model: Any, tokenizer: Any, history: Messages, max_tokens: int, temperature: float) -> str:
    """Print the answer while it is generated, and return it. An answer that was cut at max_tokens is printed with
    "…"."""
    from transformers import TextStreamer

    if tokenizer.chat_template:
        inputs = tokenizer.apply_chat_template(
            history, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
    else:
        inputs = tokenizer(history[-1]["content"], return_tensors="pt")
    inputs = inputs.to(model.device)
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    streamer.on_finalized_text = lambda text, stream_end=False: print(text, end="", flush=True)  # without a line break
    output = model.generate(**inputs, max_new_tokens=max_tokens, streamer=streamer, **sampling)
    generated = output[0, inputs["input_ids"].shape[1] :]
    stops = model.generation_config.eos_token_id
    ended = int(generated[-1]) in (stops if isinstance(stops, list) else [stops])
    print("" if ended else TRUNCATION_MARK, flush=True)
    return tokenizer.decode(generated, skip_special_tokens=True)


if __name__ == "__main__":
    accept_any_text()
    sys.exit(main())
