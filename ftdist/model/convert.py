"""Make an ordinary Hugging Face folder of a GGUF file, once: ``python -m ftdist.model.convert GGUF FOLDER``."""

import shutil
import sys
from pathlib import Path
from typing import List, Optional

from ftdist.base.errors import ConfigError, FtdistError
from ftdist.base.temporary import remove_leftovers, temporary_path


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Dequantise to bfloat16 and write config, weights, tokenizer and chat template to ``folder``, whole or not at all.

    Raises:
        ConfigError: the file is not a GGUF file, or one of an architecture that transformers does not read.
    """
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.quantization_config import GgufConfig

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if not gguf.is_file():
        raise ConfigError(f"{gguf} does not exist", "a .gguf file", "check model.path")
    # Not asked: code that lies beside the file is not the model's.
    own = {"gguf_file": gguf.name, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **own)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True), **own
        )
    except Exception as error:  # the reader raises many kinds; all mean that this file cannot be used
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"{gguf} cannot be read: {first}", "a GGUF file that transformers reads",
            "convert it to a Hugging Face folder with other tools and set model.path to that",
        ) from error  # fmt: skip
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    unfinished = temporary_path(folder)
    unfinished.mkdir()
    try:
        model.to(torch.bfloat16).save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        if not folder.exists():  # else another process was faster
            unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def main(argv: Optional[List[str]] = None) -> int:
    gguf, folder = sys.argv[1:] if argv is None else argv
    try:
        convert_gguf(Path(gguf), Path(folder))
    except FtdistError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
