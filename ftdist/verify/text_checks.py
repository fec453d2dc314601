"""Checks of rendered documents: the text that the template makes of a record, the tokens of this text, and which of the
tokens are trained.

The expected result is read from the messages of the record and the decoded tokens. The character spans from which the
mask was made are not used.
"""

import re
import unicodedata
from typing import Any, Dict, List, NamedTuple, Optional, Pattern, Set, Tuple

import numpy as np

from ftdist.base.counts import count
from ftdist.config.data import TrainOn
from ftdist.data.chat_forms import USUAL, Form
from ftdist.data.messages import Message
from ftdist.data.records import Document
from ftdist.data.render import Renderer
from ftdist.run.checks import Check, judge, not_run

TEXT, MESSAGES, PROMPT, BOS, ANSWERS = (
    "tokens decode to the text", "every message is rendered", "training prompt = chat prompt", "exactly one BOS",
    "only the answers are trained",
)  # fmt: skip
NAMES = (TEXT, MESSAGES, PROMPT, BOS, ANSWERS)
NO_CHAT = "there is no chat among the documents"
NO_SAMPLES = "with --quick this check needs a chat template, and the tokenizer has none"
CHARACTERS_AROUND = 48
"""Number of trained characters that a template may add to an answer (an empty <think> block, a channel)."""
SHOWN_CHARACTERS = 40
# Some templates read these words as a setting and remove them from the text (SmolLM3).
SWITCH = re.compile(r"/(no_)?think\b")


class Sample(NamedTuple):
    """A document, its text and its tokens. It is not cut at max_seq_len."""

    document: Document
    text: str
    """The text that the template makes of the document."""
    ids: np.ndarray
    """Token ids of the text, [n] int32."""
    trained: np.ndarray
    """1 for each token that is trained, else 0, [n] uint8."""
    answers: Tuple[int, ...] = ()
    """Numbers of the messages of a chat that are trained in this document. A chat can become several documents."""
    form: Form = USUAL
    """How the messages of a chat are handed to the template."""


def check_texts(renderer: Renderer, train_on: TrainOn, samples: List[Sample]) -> List[Check]:
    """Run all checks of this module."""
    tokenizer = renderer.tokenizer
    return [
        check_decoded_text(tokenizer, samples), check_messages(train_on, samples), check_prompts(renderer, samples),
        check_bos(renderer, samples), check_answers(tokenizer, train_on, samples),
    ]  # fmt: skip


def check_decoded_text(tokenizer: Any, samples: List[Sample]) -> Check:
    """Check that decoding the tokens of a document gives its text.

    The texts between added tokens are compared without the white space at their ends. Next to added tokens, and nowhere
    else, a tokenizer may remove or add white space.
    """
    if not samples:
        return not_run(TEXT, NO_SAMPLES)
    added = _added_tokens(tokenizer)
    normalized, different = 0, []
    for document, text, ids, *_ in samples:
        decoded = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        expected, found = (_pieces(part, added) for part in (text, decoded))
        if expected == found:
            continue
        if [_nfkc(piece) for piece in expected] == [_nfkc(piece) for piece in found]:
            normalized += 1
        else:
            different.append((document.location, expected, found))
    measured = f"{len(samples) - len(different)} of {count(len(samples), 'document')}"
    measured += f", {normalized} of them with characters in another Unicode form (NFKC)" if normalized else ""
    return judge(TEXT, [_describe_difference(len(different), *different[0])] if different else [], measured)


def _pieces(text: str, added: Pattern[str]) -> List[str]:
    return [piece.strip() for piece in added.split(text)]


def _added_tokens(tokenizer: Any) -> Pattern[str]:
    """Return a pattern that matches the added tokens, without tokens of white space (some tokenizers have them)."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values()} | set(tokenizer.all_special_tokens)
    return _any_of(token for token in added if token.strip())


def _any_of(texts: Any) -> Pattern[str]:
    return re.compile("|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True)) or r"(?!)")


def _nfkc(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


def _without_spaces(text: str) -> str:
    return "".join(_nfkc(text).split())


def _describe_difference(documents: int, location: str, expected: List[str], found: List[str]) -> str:
    space = [_without_spaces(piece) for piece in expected] == [_without_spaces(piece) for piece in found]
    why = (
        "the tokenizer removes or adds white space"
        if space
        else "the tokenizer cannot represent some characters of the text"
    )
    before, after = "|".join(expected), "|".join(found)
    at = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), min(len(before), len(after)))
    half = SHOWN_CHARACTERS // 2
    here, there = (text[max(at - half, 0) : at + half] for text in (before, after))
    return f"{count(documents, 'document')} ({location} …) with another text: {why}; {here!r} became {there!r}"


def check_messages(train_on: TrainOn, samples: List[Sample]) -> Check:
    """Check that the text of a chat contains the content of its messages.

    Messages and calls of tools are not checked, because each template writes them in its own way. The thinking in
    answers is not checked either, because templates may leave it out.
    """
    chats = [sample for sample in samples if sample.document.messages]
    if not chats:
        return not_run(MESSAGES, NO_CHAT)
    checked, missing = 0, []
    for sample in chats:
        document, rendered = sample.document, SWITCH.sub("", sample.text)
        for number, message in enumerate(_rendered_messages(sample, train_on), 1):
            if message["role"] == "tool" or message.get("tool_calls"):
                continue
            checked += 1
            if SWITCH.sub("", _content(message)).strip() not in rendered:
                missing.append(f"{document.location}, message {number} ({message['role']})")
    problems = [f"the text lacks {count(len(missing), 'message')}, or parts of them ({missing[0]}): fix the template"
                ] if missing else []  # fmt: skip
    return judge(
        MESSAGES, problems, f"{checked - len(missing)} of {count(checked, 'message')} of {count(len(chats), 'chat')}"
    )


def _rendered_messages(sample: Sample, train_on: TrainOn) -> List[Message]:
    """Return the messages that are rendered. Unless everything is trained, those after the last answer are left out."""
    messages = sample.document.messages
    return messages[: sample.answers[-1] + 1] if sample.answers and train_on is not TrainOn.all else messages


def _content(message: Message) -> str:
    """Return the content of a message. The thinking of an answer is left out, as templates leave out earlier
    thinking."""
    content: str = message["content"]
    return (content.rpartition("</think>")[2] if message["role"] == "assistant" else content).strip()


def check_prompts(renderer: Renderer, samples: List[Sample]) -> Check:
    """Check that the tokens before an answer are the same in a chat program as in training."""
    tokenizer = renderer.tokenizer
    chats = [sample for sample in samples if sample.answers and sample.answers[-1]]
    if not chats:
        return not_run(PROMPT, NO_CHAT)
    different: List[str] = []
    for document, _, ids, _, answers, form in chats:
        template, messages, arguments = renderer.chats.prompt(document, answers[-1], form)
        prompt = tokenizer.apply_chat_template(
            messages, tools=document.tools, chat_template=template, add_generation_prompt=True, tokenize=True,
            return_dict=False, **arguments,
        )  # fmt: skip
        if ids[: len(prompt)].tolist() != list(prompt):
            at = int(next((i for i, (a, b) in enumerate(zip(ids, prompt, strict=False)) if a != b), len(ids)))
            trained, given = (tokenizer.decode(list(tokens[at : at + 6])) for tokens in (ids, prompt))
            different.append(f"{document.location}: at token {at} training has {trained!r}, a chat program gives "
                             f"{given!r}")  # fmt: skip
    problems = [f"different prompts: {len(different)} of {len(chats)}; {different[0]}: fix the chat template"
                ] if different else []  # fmt: skip
    return judge(PROMPT, problems, f"{len(chats) - len(different)} of {count(len(chats), 'chat')}")


def check_bos(renderer: Renderer, samples: List[Sample]) -> Check:
    """Check the BOS tokens: never two in a row, and one before every document if the tokenizer adds one.

    More than one in a document is allowed. Some models have one at each turn (Llama 2, and SmolLM2, whose BOS is
    <|im_start|>).
    """
    tokenizer, bos, problems = renderer.tokenizer, renderer.tokenizer.bos_token_id, []
    if bos is None:
        return judge(BOS, [], "the tokenizer has no BOS")
    if not samples:
        return not_run(BOS, NO_SAMPLES)
    if (alone := list(tokenizer("a").input_ids)).count(bos) > 1:
        problems.append(f"the tokenizer adds {alone.count(bos)} BOS tokens before each text (ids {alone[:3]}). Other "
                        "programs that use this tokenizer do the same. Fix post_processor in "
                        "tokenizer.json")  # fmt: skip
    # If the BOS is also the EOS, the end of a turn and the start of the next one may be two of them in a row.
    checked = slice(2) if bos == tokenizer.eos_token_id else slice(None)
    twice = [s.document.location for s in samples if _two_in_a_row(s.ids[checked] == bos)]
    if twice:
        problems.append(f"{count(len(twice), 'document')} ({twice[0]} …) with two {tokenizer.bos_token} in a row: "
                        "fix the chat template")  # fmt: skip
    without = [s.document.location for s in samples if s.ids[:1].tolist() != [bos]]
    if without and renderer.bos:
        problems.append(
            f"{count(len(without), 'document')} ({without[0]} …) without a BOS token at the start, although the "
            "tokenizer is configured to add one"
        )
    measured = f"{tokenizer.bos_token} before {len(samples) - len(without)} of {count(len(samples), 'document')}"
    return judge(BOS, problems, measured + ("" if renderer.bos else "; the tokenizer adds none"))


def _two_in_a_row(found: np.ndarray) -> bool:
    return bool((found[1:] & found[:-1]).any())


def check_answers(tokenizer: Any, train_on: TrainOn, samples: List[Sample]) -> Check:
    """Check that the trained tokens decode to the answers that data.train_on selects, with few other characters."""
    if train_on is TrainOn.all:
        return not_run(ANSWERS, "data.train_on=all: everything is trained")
    chosen = [sample for sample in samples if sample.document.messages or sample.document.prompt]
    if not chosen:
        return not_run(ANSWERS, "plain text, all of which is trained" if samples else NO_SAMPLES)
    special = _any_of({token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
                      | set(tokenizer.all_special_tokens))  # fmt: skip
    wrong: Dict[str, List[str]] = {}
    for sample in chosen:
        find_problem = _problem_in_chat if sample.document.messages else _problem_in_completion
        if problem := find_problem(sample, train_on, tokenizer, special):
            wrong.setdefault(problem, []).append(sample.document.location)
    for location in _with_other_answers(chosen, train_on):
        wrong.setdefault("other answers than data.train_on selects are trained", []).append(location)
    problems = [f"{what} in {count(len(where), 'document')} ({where[0]} …)" for what, where in wrong.items()]
    if problems:
        problems[-1] += ": fix the {% generation %} marks of the chat template; ftdist preview shows what is trained"
    correct = sum(all(sample.document.location not in where for where in wrong.values()) for sample in chosen)
    return judge(ANSWERS, problems, f"{correct} of {count(len(chosen), 'document')}")


def _decoded(tokenizer: Any, ids: np.ndarray) -> str:
    return _without_spaces(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _problem_in_chat(sample: Sample, train_on: TrainOn, tokenizer: Any, special: Pattern[str]) -> Optional[str]:
    trained = _decoded(tokenizer, sample.ids[sample.trained == 1])
    answers = [sample.document.messages[number] for number in sample.answers]
    rest, at = 0, 0  # number of trained characters outside the answers; position in ``trained``
    for answer in answers:
        if answer.get("tool_calls"):  # some templates leave out the content of an answer with a call
            continue
        content = _without_spaces(special.sub("", _content(answer)))
        found = trained.find(content, at)
        if found < 0:
            return "an answer, or a part of it, is not trained"
        rest, at = rest + found - at, found + len(content)
    rest += len(trained) - at
    if any(answer.get("tool_calls") for answer in answers):
        return None
    if rest > sum(CHARACTERS_AROUND + _length_of_thinking(answer) for answer in answers):
        return "tokens outside the answers are trained"
    everything, untrained = _decoded(tokenizer, sample.ids), _decoded(tokenizer, sample.ids[sample.trained == 0])
    for message in _rendered_messages(sample, train_on):
        text = _without_spaces(special.sub("", _content(message)))
        other = message["role"] != "tool" and not any(message is answer for answer in answers)
        if other and text in everything and text not in untrained:
            return f"another message ({message['role']}) is trained"
    return None


def _length_of_thinking(answer: Message) -> int:
    """Return the number of characters of an answer's thinking, in its content or in another field. It may be
    trained."""
    texts = [value for name, value in answer.items() if name != "role" and isinstance(value, str)]
    return sum(map(len, texts)) - len(_content(answer))


def _with_other_answers(samples: List[Sample], train_on: TrainOn) -> List[str]:
    """Return the locations of the chats whose documents together do not train the selected answers."""
    found: Dict[str, Set[int]] = {}
    for sample in samples:
        found.setdefault(sample.document.location, set()).update(sample.answers)
    documents = {sample.document.location: sample.document for sample in samples if sample.document.messages}
    return [location for location, document in documents.items()
            if found[location] != set(_selected_answers(document, train_on))]  # fmt: skip


def _selected_answers(document: Document, train_on: TrainOn) -> List[int]:
    completion = train_on in (TrainOn.auto, TrainOn.completion)  # auto selects the completion if there is one
    first = document.num_prompt_messages if completion else 0
    answers = [number for number, message in enumerate(document.messages)
               if message["role"] == "assistant" and number >= first]  # fmt: skip
    if train_on in (TrainOn.auto, TrainOn.marked) and any(mark is not None for mark in document.marks or []):
        marks = {number: (document.marks or [])[number] for number in answers}
        chosen = [number for number in answers if marks[number]]
        unmarked = [number for number in answers if marks[number] is None]
        return chosen if chosen or train_on is TrainOn.marked else unmarked
    return answers[-1:] if train_on is TrainOn.last else answers


def _problem_in_completion(sample: Sample, train_on: TrainOn, tokenizer: Any, special: Pattern[str]) -> Optional[str]:
    """The first trained token may include the end of the prompt, if one token covers both."""
    document, ids = sample.document, sample.ids[sample.trained == 1]
    completion = _without_spaces(special.sub("", document.text[len(document.prompt) :]))
    trained = _decoded(tokenizer, ids)
    if not trained.endswith(completion):
        return "the completion, or a part of it, is not trained"
    after_first = _decoded(tokenizer, ids[1:]).lstrip("\ufffd")  # may start with the rest of a multi-byte character
    exact = trained == completion or (len(after_first) < len(completion) and completion.endswith(after_first))
    return None if exact else "tokens outside the completion are trained"
