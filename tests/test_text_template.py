"""The sandbox: what templates may do, what a broken or hostile one gives, and the assistant's name."""

from __future__ import annotations

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestling.errors import ConfigError, DataError, ModelError
from nestling.text.messages import Message
from nestling.text.template import ChatTemplate, with_assistant_name
from test_text_support import LLAMA3, MISTRAL, QWEN2, QWEN3, SMOLLM2, assistant, system, user


def render(source: str, *messages: Message) -> str:
    template = ChatTemplate(source, "here")
    return template.render(
        messages or (user("hi"),), add_generation_prompt=True, special_tokens={"bos_token": "<s>"}
    )


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ {'b': 'é<'} | tojson }}", '{"b": "é<"}'),
        ("{{ [1] | tojson(indent=1) }}", "[\n 1\n]"),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("  {% if true %}\nyes\n  {% endif %}\n", "yes\n"),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}!", "hi!"),
        ("{% set n = namespace(k=0) %}{% for m in messages %}{% set n.k = 7 %}{% endfor %}{{ n.k }}", "7"),
        ("{{ dict(a=1).a }}{{ bos_token }}{{ add_generation_prompt }}{{ tools is none }}", "1<s>TrueTrue"),
        ("{{ missing }}", ""),
    ],
)
def test_what_templates_may_use(source: str, text: str) -> None:
    assert render(source) == text


def test_the_date() -> None:
    assert render("{{ strftime_now('%Y') }}") == str(datetime.datetime.now().year)


@pytest.mark.parametrize(
    "source",
    [
        "{% if %}",
        "{{ messages",
        "{% include 'file' %}",
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''.__class__.__init__.__globals__['os'] }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='system') }}",
        "{{ 1 / 0 }}",
        "{{ missing.field }}",
        "{{ 'x' + 1 }}",
        "{{ range(10 ** 9) | length }}",
        "{{ '%s' % dict.__class__.mro() }}",
        "{{ dict.fromkeys }}{{ raise_exception.__globals__['json'] }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_broken_or_hostile_templates_are_model_errors(source: str) -> None:
    with pytest.raises(ModelError, match="here"):
        render(source)


def test_a_refused_conversation_is_a_data_error() -> None:
    with pytest.raises(DataError, match="turns must alternate"):
        render(MISTRAL, user("a"), user("b"))


def test_messages_are_not_changed() -> None:
    message = user("hi")
    render("{% set m = messages[0] %}{{ m.content }}", message)
    assert message == user("hi")


@pytest.mark.parametrize(
    ("source", "old"), [(SMOLLM2, "You are Owl, made by Zoo Labs"), (QWEN2, "You are Heron. ")]
)
def test_a_default_system_sentence_is_replaced(source: str, old: str) -> None:
    named = with_assistant_name(source, "Nestling")
    assert old not in named and "You are a helpful AI assistant named Nestling" in render(named)
    assert render(named, system("S"), user("U")) == render(source, system("S"), user("U"))
    assert with_assistant_name(named, "Žofie-2 明") == with_assistant_name(source, "Žofie-2 明")


@pytest.mark.parametrize("source", [QWEN3, LLAMA3, MISTRAL, "{{ raise_exception('no') }}", "plain", ""])
def test_templates_without_one_stay_as_they_are(source: str) -> None:
    assert with_assistant_name(source, "Nestling") == source


@pytest.mark.parametrize(
    "name", ["", " ", "x" * 41, "a'b", "{{x}}", "<|im_end|>", "a\nb", "a\\b", "a_b", "x🙂"]
)
def test_names_that_could_break_out_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="name"):
        with_assistant_name(SMOLLM2, name)


@given(st.text(max_size=50))
def test_an_accepted_name_reads_back_unchanged(name: str) -> None:
    try:
        named = with_assistant_name(SMOLLM2, name)
    except ConfigError:
        return
    assert f"You are a helpful AI assistant named {name.strip()}" in render(named)


def test_extra_fields_of_a_turn_do_not_reach_the_template() -> None:
    turn = {**assistant("a"), "tool_calls": [{"x": "<|im_end|>"}]}
    assert render("{{ messages[0].tool_calls is defined }}", turn) == "False"  # type: ignore[arg-type]
