"""Load the tokenizer of a run. Preparation, training, evaluation and verification all use ``load_tokenizer``."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Dict, Optional

from ftdist.base.errors import ConfigError
from ftdist.config.schema import RunConfig
from ftdist.run.locations import tokenizer_location, tokenizer_revision
from ftdist.run.prepared import template_text

SPECIAL_BYTES_TOKENS = ("<|im_start|>", "<|im_end|>", "<|pad|>")
"""Special tokens of the bytes tokenizer."""
SENTENCEPIECE = "tokenizer.model"
"""File of the original tokenizer, if it was made with SentencePiece."""


def load_tokenizer(config: RunConfig) -> Any:
    """Load the tokenizer with the run's chat template and new special tokens.

    Returns:
        A fast tokenizer of transformers. Its attribute ``num_known_tokens`` is the number of tokens without the new
        special tokens, and ``sentencepiece_file`` the path of its ``tokenizer.model`` or None. It always has a padding
        token. If it had none, the EOS token is used. This is safe because padding is masked by position, never by
        token id.

    Raises:
        ConfigError: The tokenizer cannot be loaded, is not a fast tokenizer (only these report the characters of each
            token, which the mask needs), has no EOS token, or its chat template is not valid Jinja.
    """
    location = tokenizer_location(config)
    tokenizer = bytes_tokenizer() if location == "bytes" else _load(config, location)
    if not tokenizer.is_fast:
        raise ConfigError(f"the tokenizer {location} has no fast version", "a tokenizer with tokenizer.json",
                          "model.tokenizer=FOLDER, with the files of a fast tokenizer of this model")  # fmt: skip
    tokenizer.num_known_tokens = len(tokenizer)  # larger ids are new to the model
    tokenizer.sentencepiece_file = _sentencepiece_file(config, location)
    if config.model.new_special_tokens:
        tokenizer.add_special_tokens(
            {"additional_special_tokens": list(config.model.new_special_tokens)}, replace_extra_special_tokens=False
        )
    template = template_text(config)
    if template is not None:
        tokenizer.chat_template = template
    elif isinstance(tokenizer.chat_template, dict):  # several named templates
        tokenizer.tool_use_template = tokenizer.chat_template.get("tool_use")  # used where a record has tools
        tokenizer.chat_template = tokenizer.chat_template.get("default")
    if tokenizer.chat_template is not None:
        named = config.data.chat_template
        _check_template(tokenizer.chat_template, named or f"the chat template of the tokenizer {location}")
    if tokenizer.eos_token is None:
        raise ConfigError(
            f"the tokenizer {location} has no eos_token",
            "a token that ends an answer",
            "set eos_token in its tokenizer_config.json",
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _check_template(template: str, name: str) -> None:
    """Compile the template. Otherwise its syntax errors would be reported as errors of the first record."""
    from jinja2 import TemplateSyntaxError
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        render_jinja_template([[]], chat_template=template)
    except TemplateSyntaxError as error:
        raise ConfigError(
            f"{name}:{error.lineno} is not valid Jinja: {error.message}", "a Jinja template",
            "correct the template, or data.chat_template=chatml",
        ) from error  # fmt: skip
    except Exception:  # a valid template can raise any exception for an empty conversation
        return


def bytes_tokenizer() -> Any:
    """Create a byte-level tokenizer without files, with 259 ids.

    Id b < 256 is the byte b. The ids 256 to 258 are ``<|im_start|>``, ``<|im_end|>`` (EOS) and ``<|pad|>``.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(vocab=_byte_characters(), merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_BYTES_TOKENS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        # No byte is unknown. But some model types (Qwen2) load the files with their own class, which adds an unk_token.
        unk_token="<|pad|>",
        additional_special_tokens=["<|im_start|>"],
    )
    tokenizer.chat_template = template_text(_chatml())
    return tokenizer


def _load(config: RunConfig, location: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            location, revision=_revision(config), trust_remote_code=config.model.trust_remote_code
        )
    except Exception as error:  # transformers raises many kinds of exceptions: files, network, custom code
        if (
            "`tiktoken` is required" in str(error) and find_spec("sentencepiece") is None
        ):  # it reads the file as one of either kind
            raise ConfigError(
                f"the tokenizer {location} has no tokenizer.json, and SentencePiece, which reads its tokenizer.model, "
                "is not installed", "a tokenizer with tokenizer.json, or SentencePiece", "pip install sentencepiece",
            ) from error  # fmt: skip
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"cannot load the tokenizer {location}: {reason}",
            "tokenizer files or a hub id",
            "model.tokenizer=FOLDER (or model.trust_remote_code=true if the tokenizer needs its own code)",
        ) from error


def _sentencepiece_file(config: RunConfig, location: str) -> Optional[str]:
    """Return the path of the tokenizer's ``tokenizer.model``, or None if it has none.

    ftdist does not read this file. It is part of an export, because llama.cpp's converter needs it for some families.
    """
    from transformers.utils.hub import cached_file

    if location == "bytes" or Path(location).is_dir():
        file = Path(location) / SENTENCEPIECE
        return str(file) if file.is_file() else None
    found = cached_file(
        location, SENTENCEPIECE, revision=_revision(config), _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False,
    )  # fmt: skip
    return str(found) if found else None


def _revision(config: RunConfig) -> str:
    return tokenizer_revision(config) or "main"


def _chatml() -> RunConfig:
    config = RunConfig()
    config.data.chat_template = "chatml"
    return config


def _byte_characters() -> Dict[str, int]:
    """Return the byte for each visible character that byte-level tokenizers use in its place.

    Source: ``bytes_to_unicode`` of GPT-2, https://github.com/openai/gpt-2/blob/master/src/encoder.py
    """
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    characters = {chr(byte): byte for byte in visible}
    characters.update({chr(256 + number): byte for number, byte in enumerate(hidden)})
    return characters
