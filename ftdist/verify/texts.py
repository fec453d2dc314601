"""Checks of rendered documents: what a template makes of a record, a tokenizer of the text, and what of it is trained.

What is expected is read from the records' messages and the decoded tokens, not from the spans that made the mask.
"""

import re
import unicodedata
from typing import Any, Dict, List, NamedTuple, Optional, Pattern

import numpy as np

from ftdist.config.schema import TrainOn
from ftdist.data.records import Document, Message
from ftdist.data.render import Renderer
from ftdist.run.checks import Check, judge, not_run

TEXT, MESSAGES, PROMPT, BOS, ANSWERS = (
    "text survives tokenisation", "every message is rendered", "training prompt = chat prompt", "exactly one BOS",
    "answers are what is trained",
)  # fmt: skip
NAMES = (TEXT, MESSAGES, PROMPT, BOS, ANSWERS)
NO_CHAT, NOTHING = "no chat among the documents", "--quick, and there is no chat template"
AROUND = 48
"""Characters that a template may write around an answer inside what is trained (an empty <think> block, a channel)."""
SHOWN = 40
# What some templates take for a setting of the answer and leave out of the text (SmolLM3).
SWITCH = re.compile(r"/(no_)?think\b")


class Sample(NamedTuple):
    document: Document
    text: str
    """As rendered."""
    ids: np.ndarray
    """[n] int32, of the whole text: it is not cut at max_seq_len."""
    trained: np.ndarray
    """[n] uint8."""


def text_checks(renderer: Renderer, train_on: TrainOn, samples: List[Sample]) -> List[Check]:
    tokenizer = renderer.tokenizer
    return [
        text_survives(tokenizer, samples), messages_are_rendered(train_on, samples),
        prompt_is_the_same(tokenizer, samples), one_bos(renderer, samples),
        answers_are_trained(tokenizer, train_on, samples),
    ]  # fmt: skip


def text_survives(tokenizer: Any, samples: List[Sample]) -> Check:
    """Pieces between added tokens are compared: there, and nowhere else, tokenizers may strip or add white space."""
    if not samples:
        return not_run(TEXT, NOTHING)
    added = _added_tokens(tokenizer)
    normalised, lost = 0, []
    for document, text, ids, _ in samples:
        decoded = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        expected, found = (_pieces(part, added) for part in (text, decoded))
        if expected == found:
            continue
        if [_one_form(piece) for piece in expected] == [_one_form(piece) for piece in found]:
            normalised += 1
        else:
            lost.append((document.location, expected, found))
    measured = f"{len(samples) - len(lost)} of {len(samples)} documents"
    measured += f", {normalised} of them with characters in another form (NFKC)" if normalised else ""
    return judge(TEXT, [_how_it_differs(len(lost), *lost[0])] if lost else [], measured)


def _pieces(text: str, added: Pattern[str]) -> List[str]:
    return [piece.strip() for piece in added.split(text)]


def _added_tokens(tokenizer: Any) -> Pattern[str]:
    """Matches them; not those that are white space themselves, which some tokenizers have for code."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values()} | set(tokenizer.all_special_tokens)
    return _any_of(token for token in added if token.strip())


def _any_of(texts: Any) -> Pattern[str]:
    return re.compile("|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True)) or r"(?!)")


def _one_form(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


def _plain(text: str) -> str:
    return "".join(_one_form(text).split())


def _how_it_differs(documents: int, location: str, expected: List[str], found: List[str]) -> str:
    space = [_plain(piece) for piece in expected] == [_plain(piece) for piece in found]
    why = "the tokenizer drops or adds white space" if space else "the tokenizer lacks characters of it"
    before, after = "|".join(expected), "|".join(found)
    at = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), min(len(before), len(after)))
    here, there = (text[max(at - SHOWN // 2, 0) : at + SHOWN // 2] for text in (before, after))
    return f"{documents} documents ({location} …) decode to another text: {why}; {here!r} became {there!r}"


def messages_are_rendered(train_on: TrainOn, samples: List[Sample]) -> Check:
    """Not looked at: tools' messages and calls, which templates write in their own way, and earlier thinking."""
    chats = [sample for sample in samples if sample.document.messages]
    if not chats:
        return not_run(MESSAGES, NO_CHAT)
    looked_at, missing = 0, []
    for document, text, _, _ in chats:
        rendered = SWITCH.sub("", text)
        for number, message in enumerate(_rendered_messages(document, train_on), 1):
            if message["role"] == "tool" or message.get("tool_calls"):
                continue
            looked_at += 1
            if SWITCH.sub("", _said(message)).strip() not in rendered:
                missing.append(f"{document.location}, message {number} ({message['role']})")
    problems = [f"{len(missing)} messages are not in the text, or not whole ({missing[0]}): mend the chat template"
                ] if missing else []  # fmt: skip
    return judge(MESSAGES, problems, f"{looked_at - len(missing)} of {looked_at} messages of {len(chats)} chats")


def _rendered_messages(document: Document, train_on: TrainOn) -> List[Message]:
    """What comes after the last answer teaches nothing and is left out, unless all is trained."""
    turns = [number for number, message in enumerate(document.messages) if message["role"] == "assistant"]
    return document.messages[: turns[-1] + 1] if turns and train_on is not TrainOn.all else document.messages


def _said(message: Message) -> str:
    """A message's content; of an answer what comes after its thinking, since templates leave earlier thinking out."""
    content: str = message["content"]
    return (content.rpartition("</think>")[2] if message["role"] == "assistant" else content).strip()


def prompt_is_the_same(tokenizer: Any, samples: List[Sample]) -> Check:
    """What a chat program gives the model before an answer is what came before the answer in training."""
    chats = [s for s in samples if s.document.messages and s.document.messages[-1]["role"] == "assistant"]
    if not chats:
        return not_run(PROMPT, NO_CHAT)
    different: List[str] = []
    for document, _, ids, _ in chats:
        prompt = tokenizer.apply_chat_template(
            document.messages[:-1], tools=document.tools, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        if ids[: len(prompt)].tolist() != list(prompt):
            at = int(next((i for i, (a, b) in enumerate(zip(ids, prompt, strict=False)) if a != b), len(ids)))
            trained, given = (tokenizer.decode(list(tokens[at : at + 6])) for tokens in (ids, prompt))
            different.append(f"{document.location}: trained with {trained!r}, a chat program gives {given!r} "
                             f"at token {at}")  # fmt: skip
    problems = [f"{len(different)} of {len(chats)} prompts differ; {different[0]}: mend the chat template"
                ] if different else []  # fmt: skip
    return judge(PROMPT, problems, f"{len(chats) - len(different)} of {len(chats)} chats")


def one_bos(renderer: Renderer, samples: List[Sample]) -> Check:
    """Never two next to each other, and one before every document where the tokenizer puts one. Some models have one at
    each turn by design (Llama 2; SmolLM2, whose BOS is <|im_start|>)."""
    tokenizer, bos, problems = renderer.tokenizer, renderer.tokenizer.bos_token_id, []
    if bos is None:
        return judge(BOS, [], "none, the tokenizer has none")
    if not samples:
        return not_run(BOS, NOTHING)
    if (alone := list(tokenizer("a").input_ids)).count(bos) > 1:
        problems.append(f"the tokenizer puts {alone.count(bos)} before a text ({alone[:3]}), and so will programs "
                        "that use it: mend its post_processor in tokenizer.json")  # fmt: skip
    # Where it is the EOS too, the end of one turn and the beginning of the next may stand next to each other.
    looked_at = slice(2) if bos == tokenizer.eos_token_id else slice(None)
    twice = [s.document.location for s in samples if _next_to_each_other(s.ids[looked_at] == bos)]
    if twice:
        problems.append(f"{len(twice)} documents ({twice[0]} …) have two {tokenizer.bos_token} next to each other: "
                        "mend the chat template")  # fmt: skip
    without = [s.document.location for s in samples if s.ids[:1].tolist() != [bos]]
    if without and renderer.bos:
        problems.append(f"{len(without)} documents ({without[0]} …) do not begin with one, which the tokenizer puts")
    measured = f"{tokenizer.bos_token} before {len(samples) - len(without)} of {len(samples)} documents"
    return judge(BOS, problems, measured + ("" if renderer.bos else "; the tokenizer puts none"))


def _next_to_each_other(found: np.ndarray) -> bool:
    return bool((found[1:] & found[:-1]).any())


def answers_are_trained(tokenizer: Any, train_on: TrainOn, samples: List[Sample]) -> Check:
    """What is trained, decoded, is the answers that data.train_on asks for and little else."""
    if train_on is TrainOn.all:
        return not_run(ANSWERS, "data.train_on=all: everything is trained")
    chosen = [sample for sample in samples if sample.document.messages or sample.document.prompt]
    if not chosen:
        return not_run(ANSWERS, "plain text, all of which is trained" if samples else NOTHING)
    special = _any_of({token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
                      | set(tokenizer.all_special_tokens))  # fmt: skip
    wrong: Dict[str, List[str]] = {}
    for sample in chosen:
        wrong_here = _wrong_in_chat if sample.document.messages else _wrong_in_completion
        if problem := wrong_here(sample, train_on, tokenizer, special):
            wrong.setdefault(problem, []).append(sample.document.location)
    problems = [f"{what} in {len(where)} documents ({where[0]} …)" for what, where in wrong.items()]
    if problems:
        problems[-1] += ": mend the {% generation %} marks of the chat template; ftdist preview shows what is trained"
    good = len(chosen) - sum(map(len, wrong.values()))
    return judge(ANSWERS, problems, f"{good} of {len(chosen)} documents")


def _decoded(tokenizer: Any, ids: np.ndarray) -> str:
    return _plain(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _wrong_in_chat(sample: Sample, train_on: TrainOn, tokenizer: Any, special: Pattern[str]) -> Optional[str]:
    trained = _decoded(tokenizer, sample.ids[sample.trained == 1])
    answers = _wanted_answers(sample.document, train_on)
    rest, at = 0, 0
    for answer in answers:
        if answer.get("tool_calls"):  # some templates leave out what is said beside a call
            continue
        said = _plain(special.sub("", _said(answer)))
        found = trained.find(said, at)
        if found < 0:
            return "an answer is not trained, or not whole,"
        rest, at = rest + found - at, found + len(said)
    rest += len(trained) - at
    if any(answer.get("tool_calls") for answer in answers):
        return None
    if rest > sum(AROUND + _thought(answer) for answer in answers):
        return "more than the answers is trained"
    everything, untrained = _decoded(tokenizer, sample.ids), _decoded(tokenizer, sample.ids[sample.trained == 0])
    for message in _rendered_messages(sample.document, train_on):
        text = _plain(special.sub("", _said(message)))
        other = message["role"] != "tool" and not any(message is answer for answer in answers)
        if other and text in everything and text not in untrained:
            return f"another message ({message['role']}) is trained"
    return None


def _thought(answer: Message) -> int:
    """Characters of an answer's thinking, in its content or a field of its own: it may be trained too."""
    texts = [value for name, value in answer.items() if name != "role" and isinstance(value, str)]
    return sum(map(len, texts)) - len(_said(answer))


def _wanted_answers(document: Document, train_on: TrainOn) -> List[Message]:
    completion = train_on in (TrainOn.auto, TrainOn.completion)  # auto: those of the completion, if there is one
    first = document.num_prompt_messages if completion else 0
    turns = [message for message in document.messages[first:] if message["role"] == "assistant"]
    return turns[-1:] if train_on is TrainOn.last else turns


def _wrong_in_completion(sample: Sample, train_on: TrainOn, tokenizer: Any, special: Pattern[str]) -> Optional[str]:
    """The first trained token may begin in the prompt, where the two make one token."""
    document, ids = sample.document, sample.ids[sample.trained == 1]
    completion = _plain(special.sub("", document.text[len(document.prompt) :]))
    trained = _decoded(tokenizer, ids)
    if not trained.endswith(completion):
        return "the completion is not trained, or not whole,"
    after_first = _decoded(tokenizer, ids[1:]).lstrip("\ufffd")  # the rest of a character may begin it
    clean = trained == completion or (len(after_first) < len(completion) and completion.endswith(after_first))
    return None if clean else "more than the completion is trained"
