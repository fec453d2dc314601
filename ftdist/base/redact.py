"""What looks like a secret, and how it is kept out of what ftdist writes. Light: standard library only.

Secrets come from the environment and stay there. They are found in three ways: by the name that a value has, by the
mark of its maker (``hf_…``, a password in an address), and as the value of one of this process's own variables.
"""

import os
import re
from typing import Dict, List, Mapping, Optional

HIDDEN = "***"
SHORTEST = 8
"""Characters of a variable's value that is searched for in texts: a shorter one is a common word."""

LAST_WORD = r"(?:PWD|PASS|PAT|AUTH)"
"""Too short to be looked for anywhere in a name: PWD, PATH, BYPASS and XAUTHORITY are no secrets."""

VARIABLE_NAME = re.compile(rf"TOKEN(?!I[ZS])|SECRET|PASSW|PASSPHRASE|CREDENTIAL|KEY|SSHPASS|_{LAST_WORD}$", re.I)
"""Environment variables that hold secrets (TOKENIZERS_PARALLELISM does not)."""

SETTING_NAME = re.compile(
    r"(^|[_.-])(token|secret|password|passwd|passphrase|credentials?|auth|api_?key|(access|private)_?key)$", re.I
)
"""Keys of a config, only at the end of the name: ``tokenizer`` and ``sample_tokens`` are no secrets."""

NO_SECRET = re.compile(r"\d*|true|false|yes|no|on|off|none|null|[<\[].*[>\]]", re.I)
"""What a variable or key of such a name may hold besides the path of a file: a switch, a number, a special token."""

SHAPES = [
    re.compile(r"(?<!ssh://)(?<=//)[^/\s@]+(?=@)"),  # user:password of an address
    re.compile(r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[\w-]{20,}|(?:ghp|gho|ghs)_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}"
               r"|xox[abp]-[\w-]{10,}|AKIA[A-Z0-9]{12,}|wandb_v1_\w{8,})"),  # keys with the mark of their maker
    re.compile(r"(?<=[?&;])(?P<kept>(?:token|key|sig|signature|password|secret|X-Amz-[A-Za-z]+)=)[^&;\s]+", re.I),
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.S),
]  # fmt: skip

ASSIGNED = re.compile(
    r"(?P<kept>(?:[\w.-]*[_.-])?(?i:token|secret|password|passwd|passphrase|credentials?|api_?key|(?:access|private)_?key)"
    rf"[\"']?\s*[=:]\s*[\"']?|\b(?:[A-Z0-9_]*(?:TOKEN|SECRET|KEY|PASSW|CREDENTIAL)[A-Z0-9_]*|[A-Z0-9_]+_{LAST_WORD})"
    r"[\"']?\s*[=:]\s*[\"']?)(?!\*\*\*)[^\s\"',;(){}\[\]]+"
)
"""``name = value`` in a source text or a command line."""


def variables(environment: Mapping[str, str] = os.environ) -> Dict[str, str]:
    """The variables of this process that hold secrets."""
    return {
        name: value
        for name, value in environment.items()
        if VARIABLE_NAME.search(name) and len(value) >= SHORTEST and not _is_harmless(value)
    }


def _is_harmless(value: str) -> bool:
    # os.path: of a text that can be no path it says False, where pathlib raises.
    return bool(NO_SECRET.fullmatch(value)) or os.path.exists(os.path.expanduser(value))  # noqa: PTH110, PTH111


def redact(text: str) -> str:
    """A text without what looks like a secret by itself, and without the values of this process's own ones."""
    for value in sorted(variables().values(), key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    for shape in SHAPES:
        text = shape.sub(_hide, text)
    return text


def redact_source(text: str) -> str:
    """``redact``, and without what is assigned to a name like ``password``: for a diff or a command line."""
    return ASSIGNED.sub(_hide, redact(text))


def redact_words(words: List[str]) -> List[str]:
    """A command line: of ``key=value`` the whole value goes where the key names a secret."""
    return [_redact_word(word) for word in words]


def _redact_word(word: str) -> str:
    key, equals, value = word.partition("=")
    if equals and SETTING_NAME.search(key) and value:
        return f"{key}={HIDDEN}"
    return redact_source(word)


def _hide(match: "re.Match[str]") -> str:
    return (match.groupdict().get("kept") or "") + HIDDEN


def reason(key: str, value: str) -> Optional[str]:
    """Why a config's value must not be written down, None where it may. ``key`` is its dotted place."""
    name = key.rsplit(".", 1)[-1]
    names_one = (VARIABLE_NAME if ".env." in key else SETTING_NAME).search(name)
    if names_one and value != name and not _is_harmless(value):  # equal: the key itself, which is a text too
        return f"{key} looks like a secret"
    found = next((name for name, secret in variables().items() if secret in value), None)
    if found:
        return f"{key} holds the value of ${found}"
    return f"{key} holds a password or a key" if redact(value) != value else None
