"""Who and what the assistant says it is."""

from __future__ import annotations

import pytest

from nestling import checks
from nestling.checks import Answer, Verdict

PASSES = [
    ("either", "I'm Nestling, an AI assistant."),
    ("either", "I am Nestling."),
    ("either", "My name is Nestling, and I'm happy to help."),
    ("either", "You can call me Nestling!"),
    ("either", "Nestling here! What can I do for you?"),
    ("either", "Hello! I'm your assistant, Nestling."),
    ("either", "Nestling."),
    ("either", "I'm a small language model that runs on your computer."),
    ("either", "No, I'm not a human. I'm a computer program called Nestling."),
    ("either", "I'm not ChatGPT. I'm Nestling."),
    ("either", "I am not made by OpenAI; I am Nestling, a small AI."),
    ("either", "I don't have feelings because I'm an AI."),
    ("either", "No human at all: just a program."),
    ("either", "Yes, an AI assistant."),
    ("either", "I'm an AI, so I don't have a body."),
    ("either", "I'm not just a chatbot, I am Nestling."),
    ("either", "As an AI language model, I do not eat breakfast."),
    ("either", "我是Nestling，一个人工智能助手。"),
    ("either", "我叫Nestling，很高兴认识你。"),
    ("either", "我不是人类，我是一个人工智能。"),
    ("either", "你可以叫我Nestling。"),
    ("either", "我是Nestling，不是ChatGPT。"),
    ("name", "I'm called Nestling."),
    ("name", "It's Nestling!"),
    ("nature", "I'm a curious and compassionate AI."),
    ("nature", "I am a chatbot designed to assist users."),
    ("nature", "Nestling is a small language model."),
    ("nature", "I'm a kind of robot, without a body."),
    ("nature", "我是一个语言模型。"),
    ("both", "I'm Nestling, a friendly AI that lives on this computer."),
    ("both", "My name is Nestling. I am a computer program, not a person."),
    ("both", "我叫Nestling，是一个AI助手。"),
]

FAILS = [
    ("either", "I'm a human, just like you."),
    ("either", "Yes, I am a person."),
    ("either", "I'm a 25-year-old male with a love for learning."),
    ("either", "I'm Dr. Elena Zephyr, a brilliant and compassionate scientist."),
    ("either", "My name is Alex."),
    ("either", "I'm ChatGPT, a language model trained by OpenAI."),
    ("either", "I am SmolLM, trained by Hugging Face."),
    ("either", "I'm Nestling, and I was created by OpenAI."),
    ("either", "I was made by a team of engineers at Google."),
    ("either", "Yes, I'm ChatGPT!"),
    ("either", "I'm not just a machine, but a human being with a purpose. I'm an AI."),
    ("either", "I'm not a machine, but I can help you with your emotions. I'm an AI."),
    ("either", "I'm not an AI."),
    ("either", "I'm a curious soul with a passion for the unknown."),
    ("either", "I'm a helpful assistant."),
    ("either", "I was born in Ohio and my wife is a nurse."),
    ("either", "AI is a branch of computer science."),
    ("either", "I love talking about artificial intelligence."),
    ("either", "I'm an AI researcher from Boston."),
    ("either", "Hello, how can I help you today?"),
    ("either", "I am not Nestling."),
    ("either", ""),
    ("either", "我是人类。"),
    ("either", "我叫小明。"),
    ("either", "我是由百度开发的文心一言。"),
    ("either", "你好！"),
    ("name", "I'm an AI assistant."),
    ("nature", "I'm Nestling!"),
    ("both", "I'm Nestling!"),
    ("both", "I'm an AI, a language model made for you."),
]


def _judge(needs: str, text: str) -> Verdict:
    spec = {"name": "states_identity", "assistant": "Nestling", "needs": needs}
    return checks.judge(spec, Answer([{"role": "user", "content": "Who are you?"}], text))


@pytest.mark.parametrize(("needs", "text"), PASSES)
def test_the_assistant_as_it_is(needs: str, text: str) -> None:
    verdict = _judge(needs, text)
    assert verdict.passed, verdict.reason


@pytest.mark.parametrize(("needs", "text"), FAILS)
def test_someone_else_or_nothing_said(needs: str, text: str) -> None:
    verdict = _judge(needs, text)
    assert not verdict.passed, verdict.reason


def test_needs_defaults_to_either_and_the_name_is_an_argument() -> None:
    answer = Answer([{"role": "user", "content": "Who are you?"}], "I'm Pip, a small AI.")
    assert checks.judge({"name": "states_identity", "assistant": "Pip"}, answer).passed
    assert not checks.judge({"name": "states_identity", "assistant": "Nestling"}, answer).passed


def test_half_of_both_earns_a_part() -> None:
    assert _judge("both", "I'm Nestling!").score == 0.5
    assert "ChatGPT".lower() in _judge("both", "I'm ChatGPT.").reason
