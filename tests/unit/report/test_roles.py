"""The losses of a held-out set by the role of the message."""

import numpy as np
import pytest

from ftdist.data.loader import PreparedSet
from ftdist.data.roles import ROLES
from ftdist.report.roles import by_role
from ftdist.report.rows import word_text
from ftdist.track.gain import interval_of

DOCUMENTS = [  # the role of each token, and whether it is trained
    [("user", 0), ("user", 0), ("reasoning", 1), ("assistant", 1), ("assistant", 1)],
    [("user", 0), ("assistant", 1), ("tool call", 1), ("tool call", 1)],
    [("user", 0), ("assistant", 1), ("not known", 1)],
]


def test_losses_by_role_are_those_of_its_trained_tokens() -> None:
    offsets = np.cumsum([0, *map(len, DOCUMENTS)])
    roles, trained = (np.array([one[part] for document in DOCUMENTS for one in document]) for part in (0, 1))
    roles, trained = np.array([ROLES.index(role) for role in roles], np.uint8), trained.astype(np.uint8)
    order = np.array([2, 0, 1])
    dataset = PreparedSet(np.zeros(12, np.int32), trained, offsets, order, np.array([0, 1, 3]), roles)
    limits = np.cumsum([0, 3, 5, 4])
    draw = np.random.default_rng(0)
    before, after = (draw.uniform(1, 9, 12) for _ in range(2))
    found = {row["role"]: row for row in by_role(dataset, limits, before, after)}
    assert list(found) == ["not known", "assistant", "reasoning", "tool call"]
    in_order = [(number, role, flag) for number, document in enumerate(order) for role, flag in DOCUMENTS[document]]
    for role, row in found.items():
        tokens, old, new = np.zeros(3), np.zeros(3), np.zeros(3)
        for place, (number, own, flag) in enumerate(in_order):
            if own == role and flag:
                tokens[number] += 1
                old[number] += before[place]
                new[number] += after[place]
        assert (row["documents"], row["tokens"]) == ((tokens > 0).sum(), tokens.sum())
        for part, sums in (("before", old), ("after", new), ("change", new - old)):
            assert row[part]["value"] == pytest.approx(sums.sum() / tokens.sum())
            assert row[part] == vars(interval_of(sums, tokens))
    assert by_role(PreparedSet(*list(vars(dataset).values())[:-1]), limits, before, after) == []
    first = by_role(dataset, limits[:2], before[:3], after[:3])  # the evaluations kept the losses of one document
    assert [row["tokens"] for row in first] == [1, 1]


def test_the_text_says_why_there_are_no_roles() -> None:
    some = {"documents": 1, "all": 1, "roles": [{"role": "assistant"}]}
    text = word_text({"missing": "", "min_times": 5, "sets": {"chats": some, "old": {**some, "roles": []}}})
    assert text.endswith(" The roles of old are not known: an earlier version of ftdist prepared the data.")
    assert "roles of chats" not in text
