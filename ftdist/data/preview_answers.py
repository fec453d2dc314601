"""What a preview shows beside the rows: how the answers of the first records are trained.

For each source: whether the three rules of ``ftdist.data.answers`` hold, and one example of each way in which answers
are trained, with the prompt that the model will be given.
"""

from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Dict, Iterator, List, Tuple

from ftdist.base.counts import count
from ftdist.base.errors import DataError
from ftdist.config.data import LongDocuments
from ftdist.config.schema import RunConfig
from ftdist.data.answers import Answer, answers_of
from ftdist.data.bad_records import read_good
from ftdist.data.encode import EncodeSettings, read_and_render
from ftdist.data.prepare import encode_settings, list_sources
from ftdist.data.sources import read_source
from ftdist.run.sample import printable

SHOWN_CHARACTERS = 300
"""Number of characters of a prompt and of an answer that an example shows, at their end."""
NO_LIMIT = 2**62


@dataclass(frozen=True)
class AnswerGroup:
    """Answers that are trained in the same way."""

    count: int
    example: Answer
    """The first of them."""

    @property
    def is_plain(self) -> bool:
        """Whether these answers need no explanation: the conversation is one document, and there are no warnings."""
        return not self.example.warnings and not self.example.stripped and self.example.num_documents == 1

    def title(self) -> str:
        one = self.example
        document = f", document {one.document} of {one.num_documents}" if one.num_documents > 1 else ""
        number = f"{self.count:,} {'answer' if self.count == 1 else 'answers'}"
        return f"{number}, for example message {one.message} of {one.location}{document}"

    def remarks(self) -> List[str]:
        """Return what the user should know about each of these answers."""
        one = self.example
        stripped = f"the chat template leaves out {' and '.join(one.stripped)}, here and at inference"
        return [*([stripped] if one.stripped else []), *(f"warning: {warning}" for warning in one.warnings)]

    def texts(self) -> List[Tuple[str, str, str]]:
        """Return ``(label, text, trained text)`` of what is shown of the example. Texts are shortened."""
        one = self.example
        shown = [("at inference", _end(one.prompt), "")] if one.prompt is not None and one.differs else []
        label = "trained" if shown or one.prompt is None else "at inference, and trained"
        return [*shown, (label, _end(one.context), _end(one.trained))]


@dataclass(frozen=True)
class SourceAnswers:
    """The answers of the first records of a source."""

    config_key: str
    num_records: int
    answers: List[Answer]
    problem: str = ""
    """Why the records of a hub data set cannot be read again, although the data is prepared."""

    def title(self) -> str:
        if self.problem:
            return f"the answers of {self.config_key} cannot be shown: {self.problem}"
        answers, records = len(self.answers), self.num_records
        of = f"the first {records:,} records" if records > 1 else "the first record"
        return f"{count(answers, 'answer')} in {of} of {self.config_key}"

    def rules(self) -> List[Tuple[bool, str]]:
        """Return for each rule whether it holds for all answers, and how many there are."""
        if self.problem or self.answers[0].in_whole:
            return []
        number, stripped = len(self.answers), sum(bool(answer.stripped) for answer in self.answers)
        without = f" ({stripped:,} without the reasoning of earlier answers)" if stripped else ""
        held = (
            (sum(not answer.lost for answer in self.answers), "each field of the record is shown once", without),
            (sum(answer.stops for answer in self.answers), "the answer ends in a trained stop token", ""),
            (sum(answer.ends for answer in self.answers), "nothing is trained after the stop", ""),
        )
        return [(count == number, f"{what}: {count:,} of {number:,}{more}") for count, what, more in held]

    def groups(self) -> List[AnswerGroup]:
        """Return the ways in which the answers are trained, the most frequent one first."""
        found: Dict[Any, List[Answer]] = {}
        for one in self.answers:
            found.setdefault((one.warnings, bool(one.stripped), one.num_documents > 1), []).append(one)
        groups = [AnswerGroup(len(answers), answers[0]) for answers in found.values()]
        return sorted(groups, key=lambda group: -group.count)


def collect_answers(config: RunConfig, tokenizer: Any, max_records: int) -> Iterator[SourceAnswers]:
    """Yield the answers of the first records of each source that has any.

    A hub data set may not be reachable when its prepared data is shown. Then a message takes the place of its answers.

    Raises:
        DataError: A record is bad, and bad records are not dropped.
    """
    cuts = config.data.long_documents is not LongDocuments.split
    for source in list_sources(config):
        settings = encode_settings(config, source, tokenizer)
        try:
            located = list(islice(read_source(source.config_key, source.source), max_records))
        except DataError as error:
            if not source.source.hub:
                raise
            yield SourceAnswers(source.config_key, 0, [], error.found)
            continue
        read = partial(_answers, settings, settings.max_seq_len if cuts else NO_LIMIT)
        made, _ = read_good(located, read, config.data.bad_records)
        if answers := [answer for found in made for answer in found]:
            yield SourceAnswers(source.config_key, len(located), answers)


def _answers(settings: EncodeSettings, max_seq_len: int, location: str, record: Any) -> List[Answer]:
    document, texts = read_and_render(settings, location, record)
    return answers_of(document, texts, settings.renderer, max_seq_len)


def _end(text: str) -> str:
    return printable(text if len(text) <= SHOWN_CHARACTERS else "…" + text[-SHOWN_CHARACTERS:])
