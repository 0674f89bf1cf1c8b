"""A chat template, which is a program from elsewhere, and the messages that it writes."""

import dataclasses
import json

import promise
from fixtures import STORIES
from folders import unpack

from swift_edge.bundle import Tokenizer, open_bundle

BUNDLE = open_bundle(STORIES)
MESSAGES = [{"role": "user", "content": "Hello"}]
WORDS = tuple(
    word.encode()
    for word in (
        "{{ ", " }}", "{% for i in range(9) %}", "{% endfor %}", "{% if ", " %}", "{% endif %}", "range(99999)",
        " ** ", "10", "99999999", "messages", "message", ".content", "['role']", "|tojson", "|tojson(indent=9999999)",
        "|length", "|list", "|join", "|replace('a', 'aaaa')", "|center(99999999)", "|slice(9999)", "|batch(9999)",
        "|indent(9999999)", "|wordwrap(1)", "|format(1)", "'%99999999d' % 1", "'a' * 99999999", "[1] * 99999999",
        "{% set x = ", "{% macro m(x) %}", "{{ m(m) }}", "{% endmacro %}", "raise_exception('no')",
        "strftime_now('%Y')", "namespace(a=1)", "loop.index", "cycler(1)", "lipsum(9999)", "{% generation %}",
        "{% endgeneration %}", "{% break %}", "__class__", ".mro()", "|attr('x')", "|map('string')", "|sum", "|sort",
        "|xmlattr", "|filesizeformat", ".format(x)", "'{:99999999}'.format(1)", "'{0.__class__}'.format(1)",
        "bos_token", "add_generation_prompt",
    )
)  # fmt: skip


def target(data: bytes) -> None:
    files = unpack(data)
    template = files.get("chat_template.jinja", b"").decode("utf-8", "replace")
    try:
        messages = json.loads(files.get("messages.json", b"null"))
    except (ValueError, RecursionError):
        messages = None
    tokenizer = Tokenizer(dataclasses.replace(BUNDLE, chat_template=template))
    promise.kept(lambda: tokenizer.end_of_turn)
    for prompt in (MESSAGES, messages) if messages is not None else (MESSAGES,):
        promise.kept(lambda prompt=prompt: tokenizer.render(prompt))
    promise.kept(lambda: tokenizer.encode_prompt("Hello"))
