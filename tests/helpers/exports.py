"""Open exports as a user does who has transformers and PEFT only."""

import json
import sys
from pathlib import Path
from typing import Any, Dict, List

from tests.helpers.cli import succeed

OPEN = """
import json, sys
sys.modules["ftdist"] = None  # must not be needed
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoTokenizer
found = []
for path in map(Path, sys.argv[1:]):
    adapter = (path / "adapter_config.json").is_file()
    kind = AutoModelForCausalLM
    if adapter:
        from peft import AutoPeftModelForCausalLM as kind
    folder, file = (path.parent, {"gguf_file": path.name}) if path.suffix == ".gguf" else (path, {})
    model = kind.from_pretrained(folder, dtype="auto", **file)
    tokenizer = AutoTokenizer.from_pretrained(folder, **file)
    ids = tokenizer("hello", return_tensors="pt")
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False, add_generation_prompt=True)
    answer = model.eval().generate(**ids, max_new_tokens=8, do_sample=False)[0].tolist()
    found.append([adapter, answer, chat])
print(json.dumps(found))
"""


def open_plainly(exports: List[Path]) -> Dict[Path, Any]:
    """Open exports in a fresh process without ftdist: folders, and GGUF files, with transformers' own reader.

    Returns:
        For each export: whether it is an adapter, the ids of its greedy answer to "hello" with the prompt, and the
        prompt of a chat.
    """
    done = succeed("-c", OPEN, *exports, command=[sys.executable])
    return dict(zip(exports, json.loads(done.out.splitlines()[-1]), strict=True))
