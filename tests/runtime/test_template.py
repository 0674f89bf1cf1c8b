"""Chat templates: those in the manner of real models render as jinja2 renders them, and hostile ones come to an end."""

import datetime
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from swift_edge.bundle import Tokenizer, open_bundle
from swift_edge.errors import TemplateError

STORIES = Path(__file__).parents[2] / "models" / "stories260k"

THINKING = """
{%- set last = namespace(user=messages | length) %}
{%- for turn in messages[::-1] if turn.role == 'user' and turn.content is string %}
    {%- if loop.first %}{% set last.user = messages | length - loop.index %}{% endif %}
{%- endfor %}
{%- for turn in messages %}
    {%- set text = turn['content'] | trim %}
    {%- if turn.role == 'assistant' and '</think>' in text and loop.index0 < last.user %}
        {%- set text = text.split('</think>')[-1].lstrip('\n') %}
    {%- endif %}
    {{- '<|' + turn.role + '|>' ~ loop.index0 ~ ' of ' ~ loop.length + '\n' + text + '<|end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt and thinking is not defined %}<|assistant|><think>{% endif %}
"""

TOOLS = """
{%- macro kind(schema, required=[], depth=0) %}
    {%- if schema.type == 'array' %}{{ kind(schema['items'], [], depth + 1) ~ '[]' }}
    {%- elif schema.enum %}{{ '"' ~ schema.enum | join('" | "') ~ '"' }}
    {%- elif schema.properties %}{
        {%- for name, inner in schema.properties.items() if name != 'secret' %}
            {{- name ~ ('' if name in (schema.required or []) else '?') }}: {{ kind(inner, required, depth + 1) }}
            {%- if not loop.last %}, {% endif %}
        {%- endfor -%} }
    {%- else %}{{ schema.type | default('any') | upper }}{% endif %}
{%- endmacro %}
{{- bos_token }}Today is {{ strftime_now('%d %B %Y') }}.
{% for tool in tools or [] %}
{{ tool.function.name }}({{ kind(tool.function.parameters) }})
{{ tool.function | tojson(indent=2) }}
{% endfor %}
{%- set asked = messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list %}
{%- for message in messages %}
    {%- if message.tool_calls is defined and message.tool_calls is not none %}
        {%- for call in message.tool_calls %}<call>{{ call | tojson }}</call>{% endfor %}
    {%- elif message.role == 'user' and message.content == asked[-1] %}
        {{- '[LAST] %s (%03d)' % (message.content, asked | length) }}
    {%- else %}{{ '{}: {:>12}'.format(message.role, message.content.replace('\n\n', '\n')) }}{% endif %}
    {%- if loop.last and message.role == 'assistant' %}{% break %}{% endif %}
{%- endfor %}
"""

ALTERNATING = """
{%- if messages[0].role == 'system' %}
    {%- set first, rest = messages[0].content ~ '\n\n', messages[1:] %}
{%- else %}{% set first, rest = '', messages %}{% endif %}
{%- for message in rest %}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('no turns') }}{% endif %}
    {%- set who = {'user': 'user', 'assistant': 'model'}[message.role] %}
    {{- '<turn>' + who + '\n' + (first if loop.first else '') + message.content | trim + '</turn>\n' }}
{%- endfor %}
{{- '<turn>model\n' if add_generation_prompt }}
"""

USER = {"role": "user", "content": "Hi"}
MESSAGES = [
    {"role": "system", "content": "Be brief.\n"},
    {"role": "user", "content": "Why <é>?"},
    {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nSo."},
    {"role": "user", "content": " And\n\n{why}%s? "},
]
SCHEMA = {
    "properties": {
        "a": {"type": "array", "items": {"type": "string"}},
        "b": {"enum": ["x", "y"]},
        "c": {"properties": {"d": {"type": "integer"}}, "required": ["d"]},
        "secret": {},
    },
    "required": ["a"],
}
TOOL = {"type": "function", "function": {"name": "find", "parameters": SCHEMA}}
MANNERS = {
    "thinking": THINKING,
    "tools": "{% set tools = " + json.dumps([TOOL]) + " %}" + TOOLS,
    "alternating": ALTERNATING,
}


def by_jinja2(source: str, messages: Any) -> str:
    """The text that jinja2's own sandbox makes, which counts nothing."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["strftime_now"] = datetime.datetime(2024, 7, 26).strftime
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    given = {"messages": messages, "add_generation_prompt": True, "tools": None, "bos_token": "<s>"}
    return environment.from_string(source).render(given)


def rendered(source: str, messages: Any = MESSAGES) -> str:
    bundle = open_bundle(STORIES)
    long = replace(bundle.manifest.architecture, context_length=10**6)
    manifest = replace(bundle.manifest, architecture=long)
    return Tokenizer(replace(bundle, manifest=manifest, chat_template=source)).render(messages)


@pytest.mark.parametrize("manner", MANNERS)
@pytest.mark.parametrize("count", [4, 1000])
def test_a_template_in_the_manner_of_real_models_renders_as_without_counting(manner: str, count: int) -> None:
    more = [{"role": ("assistant", "user")[turn % 2], "content": "<think>a</think> word " * 9} for turn in range(count)]
    messages = [*MESSAGES, *more][:count]
    assert rendered(MANNERS[manner], messages) == by_jinja2(MANNERS[manner], messages)


# A list that holds a list twice, which holds another one twice, and so on: written out it fills any memory.
DOUBLED = "{% set ns = namespace(a=[1], t=(1,)) %}{% for i in range(60) %}"
DOUBLED += "{% set ns.a = [ns.a, ns.a] %}{% set ns.t = (ns.t, ns.t) %}{% endfor %}"
LONG = "{% set s = 'x' * 999999 %}{% set r = range(99999) | list %}{% for i in range(99999) %}{% set q = "


@pytest.mark.parametrize(
    "source",
    [
        # loops and calls
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
        "{% for x in [40] recursive %}{% if x %}{{ loop([x - 1, x - 1]) }}{% endif %}{% endfor %}",
        "{% for x in [1] recursive %}{{ loop([x, x]) }}{% endfor %}",
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
        "{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}",
        "{{ ([-999999] * 99999) | map('(steps)') | list | length }}" + "{{ range(99999) | map('string') | list }}" * 99,
        # operators
        "{{ 10 ** (10 ** 8) }}",
        "{% set ns = namespace(a=2) %}{% for i in range(99) %}{% set ns.a = ns.a * ns.a %}{% endfor %}",
        "{{ ('a' * 2000000000) | length }}",
        "{{ (2000000000 * [1]) | length }}",
        "{% set ns = namespace(a='x') %}{% for i in range(99) %}{% set ns.a = ns.a ~ ns.a %}{% endfor %}",
        "{% set ns = namespace(a='x') %}{% for i in range(99) %}{% set ns.a = ns.a + ns.a %}{% endfor %}",
        "{{ '%2000000000d' % 1 }}",
        "{{ '%*d' % (2000000000, 1) }}",
        # methods
        "{{ '{:20000}'.format(1) }}",
        "{{ '{:{}}'.format(1, 2000000000) }}",
        "{{ 'a'.center(2000000000) | length }}",
        "{{ 'a'.ljust(width=2000000000) | length }}",
        "{{ ('a' * 99999).replace('a', 'b' * 99999) | length }}",
        "{{ ('a' * 9999).join(['b'] * 9999) | length }}",
        "{{ ('a ' * 4000000).split() | length }}",
        "{{ ('ab' * 1000000).rfind('b' + 'ab' * 400000 + 'b') }}",
        "{{ 'é'.encode() * 2000000000 }}",
        "{{ 'a'.expandtabs(2000000000) }}",
        "{{ (1).to_bytes(2000000000) }}",
        # filters
        "{{ [1] | slice(99999999) | list | length }}",
        "{{ [1] | batch(2000000000, 'x') | list | length }}",
        "{{ {'a': 1} | tojson(indent=2000000000) }}",
        "{{ 'a' | center(2000000000) }}",
        "{{ 'a\nb' | indent(2000000000) }}",
        "{{ ('a ' * 99999) | wordwrap(1) }}",
        "{{ ('a' * 99999) | replace('a', 'b' * 99999) | length }}",
        "{{ '%2000000000d' | format(1) }}",
        "{{ range(99999) | map('string') | join('x' * 9999) | length }}",
        "{{ ([[1]] * 99999) | sum(start=[]) | length }}",
        "{{ 1.5 | round(100000000) }}",
        # values that share their parts
        DOUBLED + "{{ ns.a }}",
        DOUBLED + "{{ ns }}",
        DOUBLED + "{{ ns.a == [ns.a] }}",
        DOUBLED + "{{ ns.a ~ '' }}",
        DOUBLED + "{{ ns.a | tojson }}",
        DOUBLED + "{{ '%s' % ns.a }}",
        DOUBLED + "{{ {ns.t: 1} }}",
        DOUBLED + "{{ {}.get(ns.t) }}",
        DOUBLED + "{{ {}[ns.t] }}",
        DOUBLED + "{{ raise_exception(ns.a) }}",
        # long values, again and again
        LONG + "s | upper %}{% endfor %}",
        LONG + "s[1:] %}{% endfor %}",
        LONG + "s is upper %}{% endfor %}",
        LONG + "r.index(99998) %}{% endfor %}",
        LONG + "'q' in r %}{% endfor %}",
        LONG + "r | sort %}{% endfor %}",
        LONG + "r[1:] %}{% endfor %}",
        LONG + "1 %}{{ s }}{% endfor %}",
        # sources
        "{{ " + "(" * 9999 + "1" + ")" * 9999 + " }}",
        "{{ " + "9" * 5000 + " }}",
        "{% for a in [1] %}" * 50 + "{% endfor %}" * 50,
        "x" * 200_000,
    ],
    ids=lambda source: source[:60],
)
def test_a_template_without_end_is_ended(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swift_edge.bundle.template.MOST_STEPS", 300_000)
    with pytest.raises(TemplateError, match=r"the chat template of .*stories260k") as caught:
        rendered(source)
    assert "\n" not in str(caught.value)
    assert "repair" in str(caught.value)


def test_the_bounds_of_a_template_grow_with_the_messages() -> None:
    source = "{% for m in messages %}{% for n in messages %}{% endfor %}{{ m.content }}{% endfor %}"
    assert len(rendered(source, [{**USER, "content": "word " * 4000}] * 1000)) == 1000 * 20_000
    with pytest.raises(TemplateError, match=r"takes more than 1003006 steps"):
        rendered("{% for i in range(2000) %}{% for n in range(2000) %}{% endfor %}{% endfor %}", [USER])


def test_what_a_refusal_says_is_one_short_line() -> None:
    with pytest.raises(TemplateError, match=r"refuses the messages: a b x") as caught:
        rendered("{{ raise_exception('a\nb ' ~ 'x' * 999999) }}")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("source", ["{% include 'x' %}", "{% extends 'x' %}", "{% import 'x' as y %}"])
def test_a_template_reads_no_other(source: str) -> None:
    with pytest.raises(TemplateError, match="no loader"):
        rendered(source)
