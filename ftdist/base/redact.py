"""Detection of secrets, and their removal from everything that ftdist writes. Imports the standard library only.

Secrets belong in environment variables. Text is searched for them in three ways:

* by the name of a value, such as ``HF_TOKEN`` or ``password``;
* by the format of the value, such as ``hf_…`` or the password in ``https://user:password@host``;
* by comparison with the values of this process's own environment variables that hold secrets.
"""

import os
import re
from typing import Dict, List, Mapping, Optional

REDACTED = "***"
"""Replaces a secret."""

MIN_SECRET_LENGTH = 8
"""Values of environment variables with fewer characters are not searched for: they may be common words."""

SHORT_ENDING = r"(?:PWD|PASS|PAT|AUTH)"
"""Words that mark a secret only as the last word of a longer name. Otherwise they occur in harmless names such as PWD,
PATH, BYPASS and XAUTHORITY."""

SECRET_VARIABLE = re.compile(rf"TOKEN(?!I[ZS])|SECRET|PASSW|PASSPHRASE|CREDENTIAL|KEY|SSHPASS|_{SHORT_ENDING}$", re.I)
"""Names of environment variables that hold secrets. TOKENIZERS_PARALLELISM is harmless."""

SECRET_KEY = re.compile(
    r"(^|[_.-])(token|secret|password|passwd|passphrase|credentials?|auth|api_?key|(access|private)_?key)$", re.I
)
"""Names of config values that hold secrets. Only the end of a name counts, so ``tokenizer`` and ``sample_tokens`` are
harmless."""

HARMLESS_VALUE = re.compile(r"\d*|true|false|yes|no|on|off|none|null|[<\[].*[>\]]", re.I)
"""Values that are not secret under any name: numbers, switches, and special tokens such as ``<image>`` or ``[PAD]``."""

SECRET_FORMATS = [
    re.compile(r"(?<!ssh://)(?<=//)[^/\s@]+(?=@)"),  # user:password in a URL
    re.compile(r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[\w-]{20,}|(?:ghp|gho|ghs)_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}"
               r"|xox[abp]-[\w-]{10,}|AKIA[A-Z0-9]{12,}|wandb_v1_\w{8,})"),  # keys with the prefix of their issuer
    re.compile(r"(?<=[?&;])(?P<kept>(?:token|key|sig|signature|password|secret|X-Amz-[A-Za-z]+)=)[^&;\s]+", re.I),
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.S),
]  # fmt: skip
"""Formats of secrets. If a format has a group ``kept``, the text of this group is kept, and only the text after it is
the secret."""

SECRET_ASSIGNMENT = re.compile(
    r"(?P<kept>(?:[\w.-]*[_.-])?(?i:token|secret|password|passwd|passphrase|credentials?|api_?key|(?:access|private)_?key)"
    rf"[\"']?\s*[=:]\s*[\"']?|\b(?:[A-Z0-9_]*(?:TOKEN|SECRET|KEY|PASSW|CREDENTIAL)[A-Z0-9_]*|[A-Z0-9_]+_{SHORT_ENDING})"
    r"[\"']?\s*[=:]\s*[\"']?)(?!\*\*\*)[^\s\"',;(){}\[\]]+"
)
"""``name = value`` or ``"name": value`` in source code or on a command line, where the name is that of a secret."""


def redact(text: str) -> str:
    """Replace secrets in a text: values of this process's environment variables, and texts with a secret's format."""
    for value in sorted(secret_variables().values(), key=len, reverse=True):
        text = text.replace(value, REDACTED)
    for secret_format in SECRET_FORMATS:
        text = secret_format.sub(_replacement, text)
    return text


def redact_source(text: str) -> str:
    """Replace secrets in source code, such as a diff: as ``redact`` does, and also values assigned to secret names."""
    return SECRET_ASSIGNMENT.sub(_replacement, redact(text))


def redact_arguments(arguments: List[str]) -> List[str]:
    """Replace secrets in the arguments of a command line.

    If the name in ``name=value`` is that of a secret, the whole value is replaced.
    """
    return [_redact_argument(argument) for argument in arguments]


def _redact_argument(argument: str) -> str:
    key, equals, value = argument.partition("=")
    if equals and SECRET_KEY.search(key) and value:
        return f"{key}={REDACTED}"
    return redact_source(argument)


def _replacement(match: "re.Match[str]") -> str:
    return (match.groupdict().get("kept") or "") + REDACTED


def secret_variables(environment: Mapping[str, str] = os.environ) -> Dict[str, str]:
    """Return the environment variables that hold secrets, with their values."""
    return {
        name: value
        for name, value in environment.items()
        if SECRET_VARIABLE.search(name) and len(value) >= MIN_SECRET_LENGTH and not _is_harmless(value)
    }


def _is_harmless(value: str) -> bool:
    """Return whether a value is harmless although its name is that of a secret: a switch, a number, or the path of a
    file."""
    # os.path returns False for a text that cannot be a path. pathlib would raise an error.
    return bool(HARMLESS_VALUE.fullmatch(value)) or os.path.exists(os.path.expanduser(value))  # noqa: PTH110, PTH111


def secret_problem(key: str, value: str) -> Optional[str]:
    """Return why a config value looks like a secret, without the value. Returns None if it does not.

    Args:
        key: The dotted name of the value in the config, such as ``launch.slurm.env.HF_TOKEN``.
        value: The value. To check a key of a mapping, pass the key itself.
    """
    name = key.rsplit(".", 1)[-1]
    has_secret_name = (SECRET_VARIABLE if ".env." in key else SECRET_KEY).search(name)
    if has_secret_name and value != name and not _is_harmless(value):
        return f"{key} looks like a secret"
    variable = next((name for name, secret in secret_variables().items() if secret in value), None)
    if variable:
        return f"{key} holds the value of ${variable}"
    return f"{key} holds a password or a key" if redact(value) != value else None
