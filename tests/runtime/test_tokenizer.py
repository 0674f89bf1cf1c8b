"""Prompts to ids and ids to text, whole and token by token, with templates in the manner of real models."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from swift_edge import errors
from swift_edge.bundle import Architecture, Bundle, Graph, HiddenStates, Manifest, Message, Precision, Tokenizer, Tokens
from swift_edge.options import SamplingOptions

STORIES = Path(__file__).parents[2] / "models" / "stories260k" / "tokenizer.json"

QWEN = """\
{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nBe brief.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

LLAMA = """\
{{- bos_token }}
{%- if strftime_now is defined %}
    {%- set today = strftime_now("%d %b %Y") %}
{%- else %}
    {%- set today = "01 Jan 2024" %}
{%- endif %}
{%- if not tools is defined or tools is not none %}
    {{- raise_exception("tools were given") }}
{%- endif %}
{{- "<|system|>Today: " + today + "<|end|>" }}
{%- for message in messages %}
    {{- '<|' + message['role'] + '|>' + message['content'] | trim + '<|end|>' }}
{%- endfor %}
{{- '<|assistant|>' }}
"""

GEMMA = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {{ raise_exception('System role not
 supported') }}
{%- endif -%}
{%- for message in messages -%}
    <start_of_turn>{{ message['role'] }}
{{ message['content'] | trim }}<end_of_turn>
{% endfor -%}
<start_of_turn>model
"""

LOOPS = """\
{%- set today = strftime_now("%d %B %Y") -%}
{%- for message in messages -%}
    {%- if message.role == "tool" %}{% continue %}{% endif -%}
    {%- if message.role == "assistant" -%}
        {% generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}
    {%- else -%}
        {{ message | tojson }}
    {%- endif -%}
{%- endfor -%}
{{ today }}
"""


def bundle_with(
    path: Path, *, template: str | None = None, tokens: Tokens | None = None, vocab_size: int = 2048
) -> Bundle:
    manifest = Manifest(
        base_model="tiny",
        base_revision=None,
        fingerprint="",
        architecture=Architecture("llama", 1, 8, 1, 1, 8, vocab_size, 64),
        precision=Precision("fp32"),
        hidden_states=HiddenStates(()),
        graph=Graph("in-place"),
        tokens=tokens or Tokens((2,), 1, None),
        sampling=SamplingOptions(),
        files={},
        exporter={},
        parity={},
    )
    return Bundle(path.parent, manifest, path.parent / "model.onnx", path, template, None)


def byte_level(path: Path) -> Path:
    """A byte-level BPE with a few merges, such as GPT-2, Llama 3 and Qwen have."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|bos|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["the cat sat on the mat, 你好 你好 😀 😀 é é"] * 4, trainer)
    backend.save(str(path))
    return path


def metaspace(path: Path) -> Path:
    """Words after a mark for a space, with bytes for the rest, such as SentencePiece models have."""
    marked = ["▁", "▁the", "▁cat", "s", "▁▁", "<x>", "é"]
    vocabulary = {token: i for i, token in enumerate(["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *marked])}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
    backend.save(str(path))
    return path


@pytest.fixture(scope="module")
def by_name(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    folder = tmp_path_factory.mktemp("tokenizers")
    return {
        "stories": Tokenizer(bundle_with(STORIES)),
        "byte level": Tokenizer(bundle_with(byte_level(folder / "byte_level.json"), tokens=Tokens((1,), 0))),
        "metaspace": Tokenizer(bundle_with(metaspace(folder / "metaspace.json"), tokens=Tokens(()))),
    }


NAMES = ["stories", "byte level", "metaspace"]


def streamed(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    stream = tokenizer.stream()
    return [*map(stream.push, ids), stream.finish()]


@pytest.mark.parametrize("name", NAMES)
@given(ids=st.lists(st.integers(0, 520), max_size=40))
def test_streamed_pieces_joined_are_the_text_of_all_ids(
    by_name: dict[str, Tokenizer], name: str, ids: list[int]
) -> None:
    tokenizer = by_name[name]
    assert "".join(streamed(tokenizer, ids)) == tokenizer.decode_response(ids)


@pytest.mark.parametrize("name", NAMES)
@given(ids=st.lists(st.integers(3, 258), max_size=20))
def test_runs_of_single_bytes_stream_exactly(by_name: dict[str, Tokenizer], name: str, ids: list[int]) -> None:
    # In the stories tokenizer nearly all of these ids are bytes, valid UTF-8 or not.
    tokenizer = by_name[name]
    assert "".join(streamed(tokenizer, [*ids, 300, *ids])) == tokenizer.decode_response([*ids, 300, *ids])


@pytest.mark.parametrize("name", ["stories", "byte level"])
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="�▁"), max_size=20))
def test_text_streams_whole_characters_and_comes_back(by_name: dict[str, Tokenizer], name: str, text: str) -> None:
    tokenizer = by_name[name]
    ids = tokenizer.encode_response(text)
    pieces = streamed(tokenizer, ids)
    assert not any("�" in piece for piece in pieces)
    assert "".join(pieces) == text


def test_half_a_character_is_held_back_until_it_is_whole(by_name: dict[str, Tokenizer]) -> None:
    tokenizer = by_name["byte level"]
    ids = tokenizer.encode_response("a🦊")
    assert len(ids) == 4
    stream = tokenizer.stream()
    assert [stream.push(token) for token in ids] == ["a", "", "", "🦊"]
    broken_off = tokenizer.stream()
    assert [broken_off.push(token) for token in ids[:3]] == ["a", "", ""]
    assert broken_off.finish() == "�"


@pytest.mark.parametrize("name", NAMES)
@given(text=st.text(st.characters(codec="ascii", categories=["L", "N", "P", "Zs"]), max_size=20))
def test_a_response_is_encoded_as_it_follows_a_prompt(by_name: dict[str, Tokenizer], name: str, text: str) -> None:
    tokenizer = by_name[name]
    ids = tokenizer.encode_response(text)
    assert tokenizer.encode_response(tokenizer.decode_response(ids)) == ids
    if name == "stories":  # which loses nothing, and would put a space before a text of its own
        assert tokenizer.decode_response(ids) == text
        assert ids == tokenizer.encode_prompt("5" + text)[len(tokenizer.encode_prompt("5")) :]


def test_words_come_as_soon_as_they_are_there(by_name: dict[str, Tokenizer]) -> None:
    tokenizer = by_name["stories"]
    ids = tokenizer.encode_prompt("Once upon a time")
    assert ids == [1, 403, 407, 261, 378]
    # A response follows something: the space before its first word is part of it.
    assert streamed(tokenizer, ids) == ["", " Once", " upon", " a", " time", ""]


def test_special_tokens_and_ids_without_a_token_leave_no_text(by_name: dict[str, Tokenizer]) -> None:
    tokenizer = by_name["stories"]
    assert tokenizer.decode([1, 403, 0, 2, 2047]) == "Once"
    assert streamed(tokenizer, [1, 403, 0, 2, 2047]) == ["", " Once", "", "", "", ""]


def test_numbers_that_are_no_ids_of_any_tokenizer_leave_no_text(by_name: dict[str, Tokenizer]) -> None:
    beyond = [1, 403, -1, 2**32, 10**30]
    assert by_name["stories"].decode(beyond) == "Once"
    assert streamed(by_name["stories"], beyond) == ["", " Once", "", "", "", ""]


def test_an_ordinary_token_that_is_declared_special_stays(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer(models.WordLevel({str(digit): digit for digit in range(10)}, unk_token="0"))
    backend.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex("."), "isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(["0"])
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(bundle_with(tmp_path / "tokenizer.json", tokens=Tokens(()), vocab_size=10))
    assert tokenizer.encode_prompt("331970") == [3, 3, 1, 9, 7, 0]
    assert tokenizer.decode([1, 3, 0, 1]) == "1301"
    assert "".join(streamed(tokenizer, [1, 3, 0, 1])) == "1301"


def rendered(template: str, *messages: Message, tokens: Tokens | None = None) -> str:
    return Tokenizer(bundle_with(STORIES, template=template, tokens=tokens)).render(messages)


USER = {"role": "user", "content": " Why? "}
SYSTEM = {"role": "system", "content": "You are terse."}


def test_a_template_in_the_manner_of_qwen() -> None:
    end = "<|im_start|>user\n Why? <|im_end|>\n<|im_start|>assistant\n"
    assert rendered(QWEN, USER) == "<|im_start|>system\nBe brief.<|im_end|>\n" + end
    assert rendered(QWEN, SYSTEM, USER) == "<|im_start|>system\nYou are terse.<|im_end|>\n" + end


def test_a_template_in_the_manner_of_llama_does_not_know_today() -> None:
    expected = "<s><|system|>Today: 01 Jan 2024<|end|><|user|>Why?<|end|><|assistant|>"
    assert rendered(LLAMA, USER) == expected
    assert rendered(LLAMA, USER, tokens=Tokens((2,), None)) == expected.removeprefix("<s>")


def test_a_template_in_the_manner_of_gemma_refuses_a_system_message() -> None:
    assert rendered(GEMMA, USER) == "<s><start_of_turn>user\nWhy?<end_of_turn>\n<start_of_turn>model"
    with pytest.raises(errors.TemplateError, match="refuses the messages: System role not supported; change"):
        rendered(GEMMA, SYSTEM, USER)


def test_a_template_that_insists_on_a_date_gets_a_fixed_one_and_loops_may_continue() -> None:
    messages = [
        {"role": "user", "content": "<é>"},
        {"role": "tool", "content": "left out"},
        {"role": "assistant", "content": "Yes."},
    ]
    assert rendered(LOOPS, *messages) == '{"role": "user", "content": "<é>"}Yes.</s>26 July 2024'


def test_a_text_becomes_one_user_message_unless_raw_is_set() -> None:
    tokenizer = Tokenizer(bundle_with(STORIES, template="{{ bos_token }}{{ messages[0].content }}!"))
    with_template = tokenizer.encode_prompt("Once upon")
    assert with_template == tokenizer.encode_prompt([{"role": "user", "content": "Once upon"}])
    assert with_template.count(1) == 1  # the template's own, and not the tokenizer's on top
    assert tokenizer.decode(with_template) == "Once upon!"
    assert tokenizer.encode_prompt("Once upon", raw=True) == [1, 403, 407]
    assert tokenizer.encode_prompt("\n", raw=True)[0] == 1


def test_lines_that_hold_only_a_block_leave_nothing() -> None:
    assert rendered("{% if true %}\n    {% set a = 1 %}\nA\n  {% endif %}\nB", USER) == "A\nB"


def test_messages_are_not_changed_by_a_template() -> None:
    with pytest.raises(errors.TemplateError, match="SecurityError"):
        rendered("{{ messages.append(1) }}", USER)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% if %}", r"does not parse \(line 1"),
        ("{{ messages[0].name.first }}", "UndefinedError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{% for i in range(1000000000) %}{% endfor %}", "OverflowError"),
        ("{{ raise_exception(1) }}", "refuses the messages: 1"),
    ],
)
def test_a_template_that_fails_is_one_line(template: str, said: str) -> None:
    with pytest.raises(errors.TemplateError, match=said) as caught:
        rendered(template, USER)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("template", "prompt"),
    [(None, ""), (None, " \n"), (QWEN, ""), (QWEN, " \n"), (QWEN, []), (QWEN, [{"role": "user", "content": " "}])],
)
def test_an_empty_prompt_is_refused(template: str | None, prompt: Any) -> None:
    with pytest.raises(errors.EmptyPromptError):
        Tokenizer(bundle_with(STORIES, template=template)).encode_prompt(prompt)


def test_a_template_that_writes_nothing_is_an_empty_prompt() -> None:
    with pytest.raises(errors.EmptyPromptError):
        Tokenizer(bundle_with(STORIES, template="{# nothing #}")).encode_prompt("Why?")


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("a\udcff", r"the prompt has half a character \(U\+DCFF\) at position 1"),
        ([{"role": "user", "content": "\ud800"}], "message 0 of the prompt has half a character"),
        ([{"role": "robot", "content": "Why?"}], "has the role 'robot'; expected one of system"),
        ([{"content": "Why?"}], "message 0 of the prompt: role is missing"),
        ([USER, {"role": "user", "content": 3}], "message 1 of the prompt: content is of type int; expected a string"),
        (["Why?"], "message 0 of the prompt is of type str; expected a mapping"),
        (b"Why?", "the prompt is of type bytes"),
        (3, "the prompt is of type int; expected a text or a list of messages"),
    ],
)
def test_a_malformed_prompt_says_what_is_wrong(prompt: Any, said: str) -> None:
    with pytest.raises(errors.PromptError, match=said) as caught:
        Tokenizer(bundle_with(STORIES, template=QWEN)).encode_prompt(prompt)
    assert str(caught.value).encode("utf-8")


def test_messages_without_a_template_or_raw_are_refused() -> None:
    with pytest.raises(errors.TemplateError, match="has no chat template"):
        Tokenizer(bundle_with(STORIES)).encode_prompt([USER])
    with pytest.raises(errors.PromptError, match="raw is set"):
        Tokenizer(bundle_with(STORIES, template=QWEN)).encode_prompt([USER], raw=True)


def test_an_answer_with_half_a_character_is_refused() -> None:
    with pytest.raises(errors.PromptError, match="the answer has half a character"):
        Tokenizer(bundle_with(STORIES)).encode_response("\udc80")


def test_a_tokenizer_larger_than_the_vocabulary_is_refused() -> None:
    with pytest.raises(errors.TokenizerError, match="has 512 tokens, but the model's vocabulary has 511"):
        Tokenizer(bundle_with(STORIES, vocab_size=511)).encode_prompt("Why?")


def test_an_added_token_beyond_the_vocabulary_is_refused_only_where_it_is_used(tmp_path: Path) -> None:
    document = json.loads(STORIES.read_text(encoding="utf-8"))
    document["added_tokens"].append(document["added_tokens"][0] | {"id": 512, "content": "<image>"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    tokenizer = Tokenizer(bundle_with(tmp_path / "tokenizer.json", vocab_size=512))
    assert tokenizer.encode_prompt("Once upon") == [1, 403, 407]
    with pytest.raises(errors.TokenizerError, match="'<image>' the id 512, but the model's vocabulary has 512 tokens"):
        tokenizer.encode_prompt("Once <image>")


def test_truncation_and_padding_left_over_from_training_are_ignored(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer.from_file(str(STORIES))
    backend.enable_truncation(3)
    backend.enable_padding(length=40)
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(bundle_with(tmp_path / "tokenizer.json"))
    assert tokenizer.encode_prompt("Once upon a time") == [1, 403, 407, 261, 378]


@pytest.mark.parametrize("text", ["", "{}", "not json"])
def test_a_tokenizer_that_does_not_read_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(errors.TokenizerError, match="does not read as a tokenizer"):
        Tokenizer(bundle_with(tmp_path / "tokenizer.json")).encode_prompt("Why?")


def test_the_file_is_read_only_when_it_is_needed(tmp_path: Path) -> None:
    bundle = bundle_with(tmp_path / "absent.json")
    tokenizer = Tokenizer(dataclasses.replace(bundle, chat_template=QWEN))
    with pytest.raises(errors.EmptyPromptError):
        tokenizer.encode_prompt("")


def test_the_end_of_a_turn_is_the_eos_that_the_template_writes() -> None:
    two = Tokens((2, 1), None)
    ending_in_1 = "{% for m in messages %}{{ m.content }}<s>{% endfor %}"
    assert Tokenizer(bundle_with(STORIES, template=ending_in_1, tokens=two)).end_of_turn == 1
    assert Tokenizer(bundle_with(STORIES, template="{{ messages[0].content }}", tokens=two)).end_of_turn == 2
    refusing = "{% if messages | length > 1 %}{{ raise_exception('one only') }}{% endif %}"
    assert Tokenizer(bundle_with(STORIES, template=refusing, tokens=two)).end_of_turn == 2
    assert Tokenizer(bundle_with(STORIES, tokens=two)).end_of_turn == 2
    assert Tokenizer(bundle_with(STORIES, tokens=Tokens(()))).end_of_turn is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [("Once", [1, 403]), ("<s>Once", [1, 403]), ("<s>", [1]), ("<s><s>Once", [1, 1, 403]), ("</s>Once", [1, 2, 403])],
)
def test_a_raw_prompt_that_begins_with_bos_has_it_once(text: str, expected: list[int]) -> None:
    assert Tokenizer(bundle_with(STORIES)).encode_prompt(text, raw=True) == expected


@pytest.mark.parametrize(("eos_ids", "kept"), [((3,), [2]), ((2,), []), ((1, 2), [])])
@pytest.mark.parametrize("text", ["OnceOnce", "Once</s>"])
def test_a_token_added_at_the_end_takes_none_away_and_ends_no_prompt(
    tmp_path: Path, text: str, eos_ids: tuple[int, ...], kept: list[int]
) -> None:
    backend = tokenizers.Tokenizer.from_file(str(STORIES))
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(bundle_with(tmp_path / "tokenizer.json", tokens=Tokens(eos_ids, 1, None)))
    plain = backend.encode(text, add_special_tokens=False).ids
    assert tokenizer.encode_prompt(text, raw=True) == [1, *plain, *kept]


def test_messages_that_end_with_the_assistants_turn_are_refused() -> None:
    tokenizer = Tokenizer(bundle_with(STORIES, template=QWEN))
    messages = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "It is"}]
    with pytest.raises(errors.PromptError, match=r"the last message .* is the assistant's; expected .* raw=True"):
        tokenizer.encode_prompt(messages)
    assert tokenizer.encode_prompt([*messages, {"role": "user", "content": "So?"}])


def damaged(path: Path, place: Sequence[Any], value: Any) -> Path:
    """The tokenizer of the stories with one value changed."""
    document = inner = json.loads(STORIES.read_text(encoding="utf-8"))
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("model", "continuing_subword_prefix"), "a" * 300),
        (("post_processor", "single", 0, "SpecialToken", "id"), "x"),
        (("decoder", "decoders", 3, "stop"), 1),
    ],
)
def test_a_panic_of_the_library_is_an_error_in_one_line_and_says_nothing_else(
    place: Sequence[Any], value: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tokenizer = Tokenizer(bundle_with(damaged(tmp_path / "tokenizer.json", place, value)))
    with pytest.raises(errors.TokenizerError, match=r"copy tokenizer\.json of 'tiny' again") as caught:
        tokenizer.load()
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_a_panic_on_a_later_text_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    panicking = tokenizers.Tokenizer.from_file(
        str(damaged(tmp_path / "tokenizer.json", ("decoder", "decoders", 3, "stop"), 1))
    )
    tokenizer = Tokenizer(bundle_with(STORIES))
    tokenizer.load()
    tokenizer._backend.decoder = panicking.decoder
    with pytest.raises(errors.TokenizerError, match="failed on a text"):
        tokenizer.decode([])


def test_an_exception_of_the_library_on_a_text_is_an_error_in_one_line(tmp_path: Path) -> None:
    """One changed letter takes the unknown token away: the library raises an `Exception` and nothing less."""
    backend = tokenizers.Tokenizer(models.WordLevel({"A": 0, "[UNK]": 1}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.Fuse()
    path = tmp_path / "tokenizer.json"
    backend.save(str(path))
    path.write_text(path.read_text().replace('"unk_token": "[UNK]"', '"unk_token": "[UNX]"'))
    tokenizer = Tokenizer(bundle_with(path, tokens=Tokens(()), vocab_size=2))
    assert tokenizer.encode_prompt("A A", raw=True) == [0, 0]
    for use in (tokenizer.encode_prompt, tokenizer.encode_response):
        with pytest.raises(
            errors.TokenizerError, match=r"failed on a text \(.*UNK.*\); copy tokenizer\.json of 'tiny'"
        ):
            use("B")


def test_a_text_is_refused_by_its_bytes_and_the_longest_token() -> None:
    tokenizer = Tokenizer(bundle_with(STORIES))  # its context holds 64 tokens
    fits = 64 * tokenizer._longest_token
    for encode, text in (
        (tokenizer.encode_prompt, "a" * (fits + 1)),
        (tokenizer.encode_prompt, "\N{GRINNING FACE}" * (fits // 4 + 1)),
        (tokenizer.encode_response, "a" * (fits + 1)),
    ):
        with pytest.raises(errors.PromptTooLongError, match=r"bytes or more, .* at least 65 tokens, .* holds 64"):
            encode(text)
    # Longer than the context, but not by its bytes: that is for those to refuse who know what else has to fit.
    assert len(tokenizer.encode_prompt("ab " * 40)) > 64


def test_a_text_is_not_read_to_its_end_where_its_beginning_is_too_long(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer(models.BPE({"a": 0, "b": 1, "b" * 10**6: 2}, []))
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(bundle_with(tmp_path / "tokenizer.json", tokens=Tokens(())))
    with pytest.raises(errors.PromptTooLongError) as caught:
        tokenizer.encode_prompt("a" * 10**7)  # no more than a token has, 64 times
    assert caught.value.prompt_tokens == 4 * 64
    assert caught.value.nbytes == 10**7


def test_more_messages_than_the_context_has_tokens_are_refused() -> None:
    with pytest.raises(errors.PromptError, match=r"has 65 messages, .* holds 64 tokens; leave the oldest out"):
        Tokenizer(bundle_with(STORIES, template=QWEN)).encode_prompt([USER] * 65)
    with pytest.raises(errors.PromptTooLongError):
        Tokenizer(bundle_with(STORIES, template=QWEN)).encode_prompt([{**USER, "content": "a" * 10**7}])
