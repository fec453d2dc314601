import pytest

from ftdist.data.template_conditions import Conditions, conditions_of

CONDITIONS = {
    "{% if 'on' in messages[0].content %}{% endif %}": Conditions(("on",)),
    "{% if messages[0]['content'].endswith('?') %}{% endif %}": Conditions(("?",)),
    "{% set tag = '<x>' %}{% if tag in m.content %}{% endif %}": Conditions(("<x>",)),
    "{% set c = m.content | trim %}{% set on = 'on' in c %}{% if on %}{% endif %}": Conditions(("on",)),
    "{% set ns = namespace() %}{% set ns.s = m.content %}{% if 'on' in ns.s %}{% endif %}": Conditions(("on",)),
    "{% macro f(x) %}{% if x.startswith('on') %}{% endif %}{% endmacro %}{{ f(m.content) }}": Conditions(("on",)),
    "{% for w in m.content.split(' ') %}{{ 1 if w == 'on' }}{% endfor %}": Conditions((" ", "on")),
    "{% if 'On' in m.content | lower %}{% endif %}": Conditions(("on",), any_case=True),
    "{% if m.content | length > 100 %}{% endif %}": Conditions((), others=True),
    "{% if m.content == messages[0].content %}{% endif %}": Conditions((), others=True),
    "{% if m.content.isupper() %}{% endif %}": Conditions((), others=True),
    "{% if m.content and m.content is string and m.content | length > 0 %}{{ m.content }}{% endif %}": Conditions(()),
    "{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}": Conditions(()),
    "{% if m.role == 'user' and 'content' in m and messages | length > 2 %}{{ m.content }}{% endif %}": Conditions(()),
    "{% generation %}{{ m.content }}{% endgeneration %}": Conditions(()),
    "{% if %}": Conditions(()),
}


@pytest.mark.parametrize("template", CONDITIONS)
def test_the_words_that_a_template_looks_for_are_found_in_its_conditions(template: str) -> None:
    assert conditions_of(template) == CONDITIONS[template]


def test_a_text_can_be_an_exception_because_of_a_word_or_white_space_only() -> None:
    found = conditions_of("{% if 'On' in m.content | lower %}{% endif %}")
    assert [found.touch(text) for text in ("it is ON", "off", " ", "")] == [True, False, True, False]
