"""What a client wishes of how words are picked reaches the provider behind in its own words, or is refused by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from streaming.gateway import speak_anthropic, speak_ollama, speak_openai
from streaming.gateway.prompt import BadRequest
from streaming.gateway.walker import Json
from streaming.providers.anthropic import AnthropicProvider
from streaming.providers.base import Provider, ProviderRequest
from streaming.providers.http import HttpProvider
from streaming.providers.ollama import OllamaProvider
from streaming.providers.openai import OpenAIProvider
from streaming.providers.scripted import ScriptedProvider
from tests.streaming.gateway.fake import JSON, Answer, Fake, upstream

UNDERSTOOD: dict[str, Callable[[Json, Provider, str], ProviderRequest]] = {
    "openai": speak_openai.understood, "anthropic": speak_anthropic.understood, "ollama": speak_ollama.understood,
}  # fmt: skip
BEHIND: dict[str, Callable[[str], HttpProvider]] = {
    "openai": lambda url: OpenAIProvider(f"{url}/v1", "k", "m"),
    "anthropic": lambda url: AnthropicProvider(url, "k", "m"),
    "ollama": lambda url: OllamaProvider(url, "m"),
}
WHOLE = {
    "openai": b'{"choices": [{"index": 0, "message": {"content": "Yes."}, "finish_reason": "stop"}]}',
    "anthropic": b'{"type": "message", "content": [{"type": "text", "text": "Yes."}], "stop_reason": "end_turn"}',
    "ollama": b'{"message": {"role": "assistant", "content": "Yes."}, "done": true, "done_reason": "stop"}',
}
NONE = "refused"
TABLE: list[tuple[str, Json, dict[str, Json | str]]] = [
    ("openai", {"temperature": 0.4},
     {"anthropic": {"temperature": 0.4}, "ollama": {"options": {"temperature": 0.4}}}),
    ("openai", {"temperature": 0}, {"anthropic": {"temperature": 0}, "ollama": {"options": {"temperature": 0}}}),
    ("openai", {"temperature": 1.5}, {"anthropic": NONE, "ollama": {"options": {"temperature": 1.5}}}),
    ("openai", {"top_p": 0.9}, {"anthropic": {"top_p": 0.9}, "ollama": {"options": {"top_p": 0.9}}}),
    ("openai", {"stop": "END"}, {"anthropic": {"stop_sequences": ["END"]}, "ollama": {"options": {"stop": ["END"]}}}),
    ("openai", {"stop": ["A", "B"]},
     {"anthropic": {"stop_sequences": ["A", "B"]}, "ollama": {"options": {"stop": ["A", "B"]}}}),
    ("openai", {"seed": 7}, {"anthropic": NONE, "ollama": {"options": {"seed": 7}}}),
    ("openai", {"frequency_penalty": 0.5}, {"anthropic": NONE, "ollama": {"options": {"frequency_penalty": 0.5}}}),
    ("openai", {"presence_penalty": -1}, {"anthropic": NONE, "ollama": {"options": {"presence_penalty": -1}}}),
    ("openai", {"max_tokens": 30}, {"anthropic": {"max_tokens": 30}, "ollama": {"options": {"num_predict": 30}}}),
    ("openai", {"max_completion_tokens": 30},
     {"anthropic": {"max_tokens": 30}, "ollama": {"options": {"num_predict": 30}}}),
    ("openai", {"logit_bias": {"50256": -100}}, {"anthropic": NONE, "ollama": NONE}),
    ("openai", {"logprobs": True}, {"anthropic": NONE, "ollama": NONE}),
    ("openai", {"response_format": {"type": "json_object"}}, {"anthropic": NONE, "ollama": NONE}),
    ("anthropic", {"temperature": 1}, {"openai": {"temperature": 1}, "ollama": {"options": {"temperature": 1}}}),
    ("anthropic", {"top_p": 0.2}, {"openai": {"top_p": 0.2}, "ollama": {"options": {"top_p": 0.2}}}),
    ("anthropic", {"top_k": 40}, {"openai": NONE, "ollama": {"options": {"top_k": 40}}}),
    ("anthropic", {"stop_sequences": ["END"]}, {"openai": {"stop": ["END"]}, "ollama": {"options": {"stop": ["END"]}}}),
    ("anthropic", {"max_tokens": 12}, {"openai": {"max_tokens": 12}, "ollama": {"options": {"num_predict": 12}}}),
    ("ollama", {"options": {"temperature": 0.3}}, {"openai": {"temperature": 0.3}, "anthropic": {"temperature": 0.3}}),
    ("ollama", {"options": {"top_p": 0.3}}, {"openai": {"top_p": 0.3}, "anthropic": {"top_p": 0.3}}),
    ("ollama", {"options": {"top_k": 3}}, {"openai": NONE, "anthropic": {"top_k": 3}}),
    ("ollama", {"options": {"stop": ["X"]}}, {"openai": {"stop": ["X"]}, "anthropic": {"stop_sequences": ["X"]}}),
    ("ollama", {"options": {"seed": 5}}, {"openai": {"seed": 5}, "anthropic": NONE}),
    ("ollama", {"options": {"presence_penalty": 1.0}}, {"openai": {"presence_penalty": 1.0}, "anthropic": NONE}),
    ("ollama", {"options": {"frequency_penalty": 1.0}}, {"openai": {"frequency_penalty": 1.0}, "anthropic": NONE}),
    ("ollama", {"options": {"num_predict": 9}}, {"openai": {"max_tokens": 9}, "anthropic": {"max_tokens": 9}}),
    ("ollama", {"options": {"num_predict": -1}}, {"openai": {}, "anthropic": {"max_tokens": 4096}}),
    ("ollama", {"options": {"repeat_penalty": 1.1}}, {"openai": NONE, "anthropic": NONE}),
]  # fmt: skip
CASES = [(spoken, said, behind, told) for spoken, said, others in TABLE for behind, told in others.items()]
ALWAYS = {"model", "messages", "stream", "max_tokens", "thinking"}


@pytest.fixture(scope="module")
def fake() -> Iterator[Fake]:
    with upstream() as made:
        yield made


def request(said: Json) -> Json:
    return {"model": "m", "messages": [{"role": "user", "content": "Is it open?"}], **said}


def leaf(said: Json) -> str:
    name, value = next(iter(said.items()))
    return f"options.{next(iter(value))}" if name == "options" and isinstance(value, dict) else name


async def told(fake: Fake, behind: HttpProvider, asked: ProviderRequest) -> Json:
    """What the upstream hears."""
    fake.answers["m"] = Answer([WHOLE[behind.name]], JSON)
    async for _ in behind.standard(asked):
        pass
    return fake.last()


async def test_it_works(fake: Fake) -> None:
    said = request({"temperature": 0.4, "stop": "END", "max_tokens": 5})
    thinking = AnthropicProvider(fake.url, "k", "m", thinking_tokens=2_000)
    heard = await told(fake, thinking, speak_openai.understood(said, thinking, "m"))
    assert (heard["temperature"], heard["stop_sequences"], heard["max_tokens"]) == (0.4, ["END"], 5)
    assert "thinking" not in heard, "the vendor refuses thinking with a temperature"


@pytest.mark.parametrize(
    ("asked_in", "said", "behind", "expected"), CASES, ids=[f"{a}-{leaf(s)}-{b}" for a, s, b, _ in CASES]
)
async def test_every_wish_is_told_or_refused(
    fake: Fake, asked_in: str, said: Json, behind: str, expected: Json | str
) -> None:
    provider = BEHIND[behind](fake.url)
    if isinstance(expected, str):
        with pytest.raises(BadRequest) as refused:
            UNDERSTOOD[asked_in](request(said), provider, "m")
        assert (refused.value.field, refused.value.code) == (leaf(said), "unsupported")
        return
    heard = await told(fake, provider, UNDERSTOOD[asked_in](request(said), provider, "m"))
    assert expected.items() <= heard.items()
    assert heard.keys() <= ALWAYS | expected.keys(), "and nothing else was made of it"


@pytest.mark.parametrize(
    ("asked_in", "said"),
    [
        ("openai", {"temperature": "hot"}),
        ("openai", {"seed": 1.5}),
        ("openai", {"top_p": True}),
        ("openai", {"stop": [1]}),
        ("openai", {"max_tokens": 0}),
        ("openai", {"max_completion_tokens": "many"}),
        ("anthropic", {"top_k": [1]}),
        ("anthropic", {"stop_sequences": {"a": 1}}),
        ("anthropic", {"max_tokens": -1}),
        ("ollama", {"options": {"num_predict": 1.5}}),
        ("ollama", {"options": {"temperature": "0"}}),
    ],
    ids=str,
)
def test_what_is_no_such_value_is_refused_by_name(asked_in: str, said: Json) -> None:
    other = OllamaProvider("http://127.0.0.1:9") if asked_in != "ollama" else OpenAIProvider("http://127.0.0.1:9")
    with pytest.raises(BadRequest) as refused:
        UNDERSTOOD[asked_in](request(said), other, "m")
    assert refused.value.field == leaf(said)


def test_a_script_has_no_words_to_pick() -> None:
    """Its text stands: no wish changes it, and a client that always sends one can try it."""
    asked = speak_openai.understood(request({"temperature": 0.4, "seed": 1}), ScriptedProvider(), "m")
    assert asked.sampling.asked() == {"temperature": 0.4, "seed": 1}
