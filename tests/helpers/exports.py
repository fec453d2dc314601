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
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer
found = []
for folder in map(Path, sys.argv[1:]):
    adapter = (folder / "adapter_config.json").is_file()
    kind = AutoPeftModelForCausalLM if adapter else AutoModelForCausalLM
    model, tokenizer = kind.from_pretrained(folder, dtype="auto"), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("hello", return_tensors="pt")
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False, add_generation_prompt=True)
    answer = model.eval().generate(**ids, max_new_tokens=8, do_sample=False)[0].tolist()
    found.append([adapter, answer, chat])
print(json.dumps(found))
"""


def open_plainly(exports: List[Path]) -> Dict[Path, Any]:
    """Open export folders in a fresh process without ftdist.

    Returns:
        For each folder: whether it is an adapter, the ids of its greedy answer to "hello" with the prompt, and the
        prompt of a chat.
    """
    done = succeed("-c", OPEN, *exports, command=[sys.executable])
    return dict(zip(exports, json.loads(done.out.splitlines()[-1]), strict=True))
