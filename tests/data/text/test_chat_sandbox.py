"""A template that would fill the memory is refused before it does."""

import tracemalloc

import pytest

from mmtrain.data.text import chat_sandbox
from mmtrain.data.text.chat import ChatTemplate
from mmtrain.errors import UsageError

_NS = "{% set ns = namespace(t='xy', l=[], n=7) %}"
_BIG = _NS + "{% for i in range(13) %}{% set ns.t = ns.t ~ ns.t %}{% endfor %}"
"""Makes a text of 16,384."""


_ENDS = "{% endfor %}" * 3


def _again(statement: str) -> str:
    return _NS + "{% for i in range(99) %}" + statement + "{% endfor %}"


GROWING = {
    "~": _again("{% set ns.t = ns.t ~ ns.t %}"),
    "+": _again("{% set ns.t = ns.t + ns.t %}"),
    "lists": _again("{% set ns.l = ns.l + ns.l + [1] %}"),
    "texts in a list": _BIG
    + "{% for i in range(99) %}{% set ns.l = ns.l + [ns.t ~ 1] %}{% endfor %}",
    "slices": _BIG + "{% for i in range(99) %}{% set ns.l = ns.l + [ns.t[1:]] %}{% endfor %}",
    "a list twice in a list": _again("{% set ns.l = [ns.l, ns.l] %}"),
    "a tuple": _again("{% set ns.l = (ns.l, ns.l) %}"),
    "a dict": _again("{% set ns.l = dict(a=ns.l, b={'c': ns.l}) %}"),
    "output": _BIG + "{% for i in range(99) %}{{ ns.t }}{% endfor %}",
    "a variable's block": _again("{% set ns.t %}{{ ns.t }}{{ ns.t }}{% endset %}"),
    "its own text": "{% for i in range(99) %}" + "x" * 9999 + "{% endfor %}",
    "a macro": "{% macro f(n, t) %}{{ f(n - 1, t ~ t) if n }}{% endmacro %}{{ f(90, 'x') }}",
    "a macro's copies": _BIG
    + "{% macro f(n, t) %}{{ f(n - 1, t[1:]) if n }}{% endmacro %}{{ f(90, ns.t) }}",
    "sum": _again("{% set ns.l = [ns.l, ns.l]|sum(start=[]) + [1] %}"),
    "select": "{% for i in range(99999) %}{{ range(99999)|select('false')|list }}{% endfor %}",
}
AT_ONCE = {
    "*": "{{ 'x' * 10**9 }}",
    "* of a list": "{{ 10**8 * [0] }}",
    "replace": _BIG + "{{ ns.t.replace('', ns.t) }}",
    "|replace": _BIG + "{{ ns.t|replace('x', ns.t) }}",
    "join": _BIG + "{{ ns.t.join(range(999)|map('string')) }}",
    "|join": _BIG + "{{ range(999)|join(ns.t) }}",
    "|join of the same": _BIG + "{{ range(999)|map(attribute='no', default=ns.t)|join }}",
    "%": "{{ '%1000000000d' % 1 }}",
    "% *": "{{ '%*d' % (1000000000, 1) }}",
    "|format": "{{ '%.1000000000f'|format(1) }}",
    "format": "{{ '{:{}}'.format(1, 1000000000) }}",
    "format of the same": _BIG + "{{ ('{0[0]}' * 999).format([ns.t]) }}",
    "format_map": _BIG + "{{ ('{a}' * 999).format_map({'a': ns.t}) }}",
    "center": "{{ 'x'.center(10**9) }}",
    "|center": "{{ 'x'|center(width=1000000000) }}",
    "zfill": "{{ 'x'.zfill(10**9) }}",
    "tabs": "{{ ('\t' * 9999).expandtabs(99999) }}",
    "bytes": "{{ (1).to_bytes(10**9, 'big') }}",
    "translate": _BIG + "{{ ns.t.translate({120: ns.t}) }}",
    "indent": "{{ ('\n' * 9999)|indent(99999) }}",
    "wordwrap": _BIG + "{{ ns.t|wordwrap(1, wrapstring=ns.t) }}",
    "tojson": "{{ [[1]]|tojson(indent=1000000000) }}",
    "batch": "{{ [1]|batch(10**9, 'x')|list }}",
    "slice": "{{ [1]|slice(10**9)|list }}",
    "round": "{{ 1.5|round(10**9, 'ceil') }}",
}


@pytest.fixture
def _little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_sandbox, "_MOST_CHARACTERS", 100_000)


@pytest.mark.usefixtures("_little")
@pytest.mark.parametrize("source", [*GROWING.values(), *AT_ONCE.values()], ids=GROWING | AT_ONCE)
def test_what_grows_is_refused_before_it_is_made(source: str) -> None:
    template = ChatTemplate(source, special_tokens={})
    tracemalloc.start()
    try:
        with pytest.raises(UsageError) as refused:
            template.render([{"role": "user", "content": "hi"}])
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()
    assert str(refused.value).startswith("chat template: it makes more than 326,000 characters of")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (_again("{% set ns.n = ns.n * ns.n %}"), "it makes a number of 11,499 bits"),
        ("{% set _step = dict %}" + "{% for i in 'x' * 2000 %}" * 3 + _ENDS, "rounds"),
        (
            "{% for i in 'x' * 2000 %}{% for j in 'x' * 2000 if false %}{% endfor %}{% endfor %}",
            "r",
        ),
        ("{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}", "recursion"),
        ("{{ lipsum(9) }}", "'lipsum' is undefined"),
    ],
)
def test_numbers_and_rounds_end_too(
    source: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_sandbox, "_MOST_STEPS", 20_000)
    with pytest.raises(UsageError, match=f"chat template: .*{message}"):
        ChatTemplate(source, special_tokens={}).render([{"role": "user", "content": "hi"}])


def test_a_namespace_in_a_namespace_is_not_written_out() -> None:
    source = _again("{% set ns.l = [namespace(a=ns.l, b=ns.l)] %}") + "{{ ns.l }}"
    assert ChatTemplate(source, special_tokens={}).render([]) == "[<Namespace>]"


def test_a_long_conversation_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where a template gathers the text anew with every turn, and looks all of them up."""
    monkeypatch.setattr(chat_sandbox, "_MOST_CHARACTERS", 0)
    source = (
        "{% set ns = namespace(t='', l=[]) %}{% for m in messages %}"
        "{% set all = messages|selectattr('role', 'equalto', m.role)|list %}"
        "{% set ns.l = ns.l + [m.content] %}{% set ns.t = ns.t ~ m.content %}{% endfor %}"
        "{{ ns.t }}{{ ns.l|join|length }}{{ messages|tojson(indent=4)|length }}"
    )
    turns = [{"role": "user", "content": "what? " * 10}] * 100
    text = ChatTemplate(source, special_tokens={}).render(turns)
    assert text.startswith("what? " * 1000 + "6000")
