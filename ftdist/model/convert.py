"""Convert a GGUF file to a Hugging Face model folder: ``python -m ftdist.model.convert GGUF FOLDER``.

The folder is in the cache, so a file is converted only once.
"""

import shutil
import sys
from pathlib import Path
from typing import List, Optional

from ftdist.base.errors import EXIT_DONE, ConfigError
from ftdist.base.main import run_main
from ftdist.base.output import accept_any_text
from ftdist.base.permissions import follow_umask
from ftdist.base.temporary import remove_leftovers, temporary_path


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write the config, weights, tokenizer and chat template of a GGUF file to ``folder``.

    Quantized weights are dequantized; all weights are written in bfloat16. The folder is written under a temporary name
    and renamed, so it is never incomplete.

    Raises:
        ConfigError: The file is not a GGUF file, or transformers does not support its architecture.
    """
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.quantization_config import GgufConfig

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if not gguf.is_file():
        raise ConfigError(f"{gguf} does not exist", "a .gguf file", "check model.path")
    # Python files in the same folder do not belong to the GGUF file: they are never run, and the user is not asked.
    options = {"gguf_file": gguf.name, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **options)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True), **options
        )
    except Exception as error:  # the reader raises many kinds of exceptions
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"{gguf} cannot be read: {reason}", "a GGUF file that transformers supports",
            "convert it to a Hugging Face folder with other tools and set model.path to that folder",
        ) from error  # fmt: skip
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    unfinished = temporary_path(folder)
    unfinished.mkdir()
    try:
        model.to(torch.bfloat16).save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        follow_umask(unfinished)
        if not folder.exists():  # otherwise another process has converted the same file
            unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def main(argv: Optional[List[str]] = None) -> int:
    """Run the program. Returns the exit code (see ``ftdist.base.errors``)."""
    gguf, folder = sys.argv[1:] if argv is None else argv

    def convert() -> int:
        convert_gguf(Path(gguf), Path(folder))
        return EXIT_DONE

    return run_main(convert)


if __name__ == "__main__":
    accept_any_text()
    sys.exit(main())
