"""Why transformers or torch raised an error, as one line of a message."""

import re

from huggingface_hub.errors import StrictDataclassError

from ftdist.base.errors import FtdistError

LONGEST = 200
"""Maximum number of characters of a reason."""
NO_TYPE = re.compile(r" with value (.*) doesn't match any type in \((.*?)\)\. Errors: .*")
"""What huggingface_hub says of a value that can have several types. Their list repeats the value for each."""


def reason_of(error: BaseException, longest: int = LONGEST) -> str:
    """Return the kind of an error and its first line, or the reason why a value of a config is not valid.

    The first line of an error of validation only says what was validated. Its reason follows, on one or more lines.
    """
    if isinstance(error, FtdistError):
        return error.found
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, StrictDataclassError) and len(lines) > 1:
        what, reason = lines[0], NO_TYPE.sub(_types, " ".join(lines[1:]))
        name = what.rpartition("field ")[2].strip("':") if "field " in what else ""
        text = reason if name in reason else f"{name}: {reason}"
    else:
        text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return text if len(text) <= longest else f"{text[: longest - 2].rstrip()} …"


def _types(found: re.Match[str]) -> str:
    names = [name.rpartition(".")[2] for name in re.findall(r"<class '([^']*)'>", found[2])]
    return f" expected {' or '.join(names)}, got {found[1]}"


def pickle_reason(error: Exception) -> str:
    """Return the line of an error of ``torch.load`` that names the function which a file tried to call, or the first.

    The other lines of torch's message explain how to allow this call.
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return next((line.strip() for line in lines if "GLOBAL" in line), lines[0])[:200]
