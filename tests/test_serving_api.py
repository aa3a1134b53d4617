"""The OpenAI-compatible API against a live server, with the official client."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from sqlalchemy import select

from nestling.serving import schemas
from nestling.storage import Generation, Judgment, open_database
from nestling.workspace import Workspace
from serving_support import LiveServer, ask, publish, running, wait_until

ANSWER = ("Hello", " dear", " friend", ", 你好", "!\n\nBye")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    workspace = Workspace(tmp_path_factory.mktemp("nest"))
    publish(workspace, ["Hello", (" dear", " kind"), *ANSWER[2:]], "base", context_length=200)
    publish(workspace, [f"word{n} " for n in range(50)], loop=True)
    publish(workspace, ["no"], "ppo")
    publish(workspace, ["no"], "reward_model")
    workspace.versions.mark("v3-ppo", "rejected", "worse")
    workspace.versions.promote("v1-base", "first")
    with running(workspace, max_queue=4) as server:
        yield server.wait()


@pytest.fixture
def client(server: LiveServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0)


def judgments(server: LiveServer) -> list[Judgment]:
    database = open_database(server.workspace.database_path)
    with database.read() as session:
        rows = list(session.scalars(select(Judgment).order_by(Judgment.id)))
    database.close()
    return rows


def generation(server: LiveServer, generation_id: str) -> Generation | None:
    database = open_database(server.workspace.database_path)
    with database.read() as session:
        row = session.get(Generation, generation_id)
    database.close()
    return row


class TestChat:
    def test_the_official_client_works_unchanged(self, client: openai.OpenAI) -> None:
        reply = client.chat.completions.create(model="nestling", messages=ask(), seed=1, temperature=0)  # type: ignore[arg-type]
        choice = reply.choices[0]
        assert choice.message.content in ("".join(ANSWER), "".join(ANSWER).replace("dear", "kind"))
        assert (choice.finish_reason, choice.message.role, reply.model) == ("stop", "assistant", "v1-base")
        assert reply.usage is not None
        assert reply.usage.completion_tokens == len(ANSWER) + 1  # and the end token
        assert reply.usage.total_tokens == reply.usage.prompt_tokens + len(ANSWER) + 1

    def test_a_stream_says_the_same(self, client: openai.OpenAI) -> None:
        options: dict[str, Any] = {"model": "v1-base", "messages": ask(), "seed": 7}
        whole = client.chat.completions.create(**options)
        chunks = list(
            client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True})
        )
        assert chunks[0].choices[0].delta.role == "assistant"
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
        assert text == whole.choices[0].message.content
        assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + [
            "stop"
        ]
        assert chunks[-1].usage == whole.usage and chunks[-1].choices == []
        assert len({chunk.id for chunk in chunks}) == 1

    def test_the_seed_decides(self, client: openai.OpenAI) -> None:
        def say(seed: int | None) -> str | None:
            reply = client.chat.completions.create(model="nestling", messages=ask(), seed=seed)  # type: ignore[arg-type]
            return reply.choices[0].message.content

        assert len({say(seed) for seed in range(12)}) == 2
        assert len({say(5) for _ in range(3)}) == 1
        assert len({say(None) for _ in range(12)}) == 2

    def test_limits_and_stops(self, client: openai.OpenAI) -> None:
        def say(**options: Any) -> tuple[str | None, str]:
            choice = client.chat.completions.create(model="v2-sft", messages=ask(), **options).choices[0]
            return choice.message.content, choice.finish_reason

        assert say(max_tokens=3) == ("word0 word1 word2 ", "length")
        assert say(max_completion_tokens=1) == ("word0 ", "length")
        assert say(stop=["d3", "zzz"]) == ("word0 word1 word2 wor", "stop")
        assert say(stop="1 word2") == ("word0 word", "stop")
        assert (
            say(max_tokens=2, extra_body={"top_k": 1, "min_p": 0.1, "repetition_penalty": 1.0})[1] == "length"
        )

    def test_turns_may_come_in_runs_and_a_greeting_first(
        self, client: openai.OpenAI, server: LiveServer
    ) -> None:
        said: Any = [("assistant", "Hello!"), ("user", "Hi."), ("user", "Who are you?")]
        messages: Any = [{"role": role, "content": content} for role, content in said]
        reply = client.chat.completions.create(model="nestling", messages=messages)
        row = generation(server, reply.id)
        assert row is not None
        assert row.messages == [
            {"role": "assistant", "content": "Hello!"},
            {"role": "user", "content": "Hi.\n\nWho are you?"},
        ]

    def test_messages_may_come_in_parts_and_as_developer(
        self, client: openai.OpenAI, server: LiveServer
    ) -> None:
        messages: Any = [
            {"role": "developer", "content": "Be kind."},
            {"role": "user", "content": [{"type": "text", "text": "Hi "}, {"type": "text", "text": "you"}]},
        ]
        reply = client.chat.completions.create(
            model="nestling", messages=messages, user="mira", metadata={"conversation_id": "c1"}, seed=2**62
        )
        row = generation(server, reply.id)
        assert row is not None
        assert row.messages == [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "Hi you"},
        ]
        assert (row.session_id, row.conversation_id, row.seed) == ("mira", "c1", 2**62)
        assert (row.version, row.answer) == ("v1-base", reply.choices[0].message.content)
        assert row.sampling["temperature"] == 0.7 and row.sampling["max_tokens"] < 200

    def test_store_false_writes_nothing_down(self, client: openai.OpenAI, server: LiveServer) -> None:
        reply = client.chat.completions.create(model="nestling", messages=ask(), store=False)  # type: ignore[arg-type]
        assert generation(server, reply.id) is None

    def test_models(self, client: openai.OpenAI) -> None:
        assert [model.id for model in client.models.list()] == ["nestling", "v1-base", "v2-sft"]
        assert client.models.retrieve("v2-sft").id == "v2-sft"


class TestRefusals:
    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"temperature": -0.1}, "temperature"),
            ({"temperature": "warm"}, "temperature"),
            ({"temperature": True}, "temperature"),
            ({"top_p": 0}, "top_p"),
            ({"top_p": float("nan")}, "top_p"),
            ({"max_tokens": 0}, "max_tokens"),
            ({"max_tokens": 2.5}, "max_tokens"),
            ({"min_p": 2}, "min_p"),
            ({"top_k": -1}, "top_k"),
            ({"repetition_penalty": 0}, "repetition_penalty"),
            ({"stop": [""]}, "stop"),
            ({"seed": 2**63}, "seed"),
            ({"n": 2}, "n"),
            ({"tools": [{"type": "function"}]}, "tools"),
            ({"response_format": {"type": "json_object"}}, "response_format"),
            ({"logprobs": True}, "logprobs"),
            ({"messages": []}, "messages"),
            ({"messages": "hi"}, "messages"),
            ({"messages": [{"role": "tool", "content": "x"}]}, "messages"),
            ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
            ({"messages": [*ask(), {"role": "assistant", "content": "x"}]}, "messages"),
            ({"messages": [*ask(), {"role": "system", "content": "x"}, *ask()]}, "messages"),
            ({"user": ""}, "user"),
            ({"tempreature": 1}, "tempreature"),
        ],
    )
    def test_impossible_values_are_named(
        self, server: LiveServer, fields: dict[str, Any], param: str
    ) -> None:
        body = {"model": "nestling", "messages": ask(), **fields}
        with server.client(headers={"Content-Type": "application/json"}) as client:
            reply = client.post("/v1/chat/completions", content=json.dumps(body))
        assert reply.status_code == 400
        error = reply.json()["error"]
        assert error["type"] == "invalid_request_error" and error["param"] == param
        assert param in error["message"] or "turn" in error["message"]

    def test_our_own_message_can_be_sent_back(self, client: openai.OpenAI) -> None:
        messages: list[Any] = [*ask("hello")]
        first = client.chat.completions.create(model="nestling", messages=messages, max_tokens=4)
        messages += [first.choices[0].message, *ask("and then?")]
        assert client.chat.completions.create(model="nestling", messages=messages, max_tokens=4).choices

    @pytest.mark.parametrize(
        "extreme",
        [{"temperature": 1e-40}, {"top_p": 1e-60}, {"temperature": 2.0, "repetition_penalty": 0.01}],
        ids=str,
    )
    def test_values_beyond_fp32_are_answered(self, server: LiveServer, extreme: dict[str, float]) -> None:
        with server.client() as client:
            body = {"model": "nestling", "messages": ask(), "max_tokens": 3, **extreme}
            for _ in range(2):  # the engine has survived the first one
                assert client.post("/v1/chat/completions", json=body).status_code == 200

    def test_a_judgment_names_its_own_fields(self, server: LiveServer) -> None:
        with server.client() as client:
            wrong = client.post("/api/judgments", json={"kind": "star"}).json()["error"]
            assert wrong["param"] == "kind" and "thumb" in wrong["message"]
            missing = client.post("/api/judgments", json={"kind": "thumb", "value": "up"}).json()["error"]
            assert missing["param"] == "generation_id" and missing["message"].startswith("generation_id: ")
            surrogate = json.dumps({"kind": "thumb", "generation_id": "\ud800", "value": "up"})
            headers = {"Content-Type": "application/json"}
            assert client.post("/api/judgments", content=surrogate, headers=headers).status_code == 400

    def test_neutral_values_of_what_we_lack_are_fine(self, server: LiveServer) -> None:
        neutral = {name: values[-1] for name, values in schemas._NEUTRAL.items()}
        with server.client() as client:
            body = {"model": "nestling", "messages": ask(), "service_tier": "auto", **neutral}
            assert client.post("/v1/chat/completions", json=body).status_code == 200

    @pytest.mark.parametrize("stream", [False, True])
    def test_context_overflow_is_an_error(self, client: openai.OpenAI, stream: bool) -> None:
        with pytest.raises(openai.BadRequestError, match="exceed the context of 200") as caught:
            client.chat.completions.create(model="v1-base", messages=ask("x" * 300), stream=stream)  # type: ignore[call-overload]
        assert caught.value.code == "context_length_exceeded" and caught.value.param == "messages"
        with pytest.raises(openai.BadRequestError, match="max_tokens 500"):
            client.chat.completions.create(model="v1-base", messages=ask(), max_tokens=500)  # type: ignore[arg-type]
        assert client.chat.completions.create(model="v1-base", messages=ask("x" * 150))  # type: ignore[arg-type]

    @pytest.mark.parametrize("name", ["gpt-4", "../v1-base", "", "v3-ppo", "v4-reward-model"])
    def test_unknown_and_rejected_models(self, client: openai.OpenAI, name: str) -> None:
        with pytest.raises(openai.NotFoundError) as caught:
            client.chat.completions.create(model=name, messages=ask())  # type: ignore[arg-type]
        assert caught.value.code == "model_not_found" and caught.value.param == "model"

    @pytest.mark.parametrize(
        ("method", "path", "status"),
        [("GET", "/nothing", 404), ("GET", "/v1/chat/completions", 405), ("GET", "/page/../app.py", 404)],
    )
    def test_other_errors_have_the_same_shape(
        self, server: LiveServer, method: str, path: str, status: int
    ) -> None:
        with server.client() as client:
            reply = client.request(method, path)
        assert reply.status_code == status and reply.json()["error"]["message"]

    def test_a_body_that_is_no_text_or_no_json_is_told_what_is_wanted(self, server: LiveServer) -> None:
        picture = [{"type": "image_url", "image_url": {"url": "data:,"}}]
        with server.client() as client:
            reply = client.post("/v1/chat/completions", content="{}", headers={"Content-Type": "text/plain"})
            assert reply.status_code == 400 and "Content-Type: application/json" in reply.text
            for content, what in ((picture, "leave the part of type 'image_url' out"), (5, "write a text")):
                body = {"model": "nestling", "messages": [{"role": "user", "content": content}]}
                error = client.post("/v1/chat/completions", json=body).json()["error"]
                assert error["param"] == "messages" and what in error["message"]
            body = '{"model": "nestling", "seed": ' + "9" * 5000 + "}"
            reply = client.post(
                "/v1/chat/completions", content=body, headers={"Content-Type": "application/json"}
            )
            assert reply.status_code == 400 and "thousands of digits" in reply.text

    @pytest.mark.parametrize("body", [b"", b"{", b"[]", b"[" * 100_000, b'"x"', b"\xff\xfe", b"null"])
    def test_broken_bodies(self, server: LiveServer, body: bytes) -> None:
        with server.client(headers={"Content-Type": "application/json"}) as client:
            reply = client.post("/v1/chat/completions", content=body)
        assert reply.status_code == 400 and reply.json()["error"]["type"] == "invalid_request_error"


class TestStreamsEnd:
    def test_hanging_up_stops_the_computation(self, server: LiveServer) -> None:
        body = {"model": "v2-sft", "messages": ask(), "stream": True, "max_tokens": 90_000}
        with server.client() as client, client.stream("POST", "/v1/chat/completions", json=body) as reply:
            lines = (line for line in reply.iter_lines() if line)
            generation_id = json.loads(next(lines).removeprefix("data: "))["id"]
            next(lines)
            assert server.status()["open_requests"] == 1
        wait_until(lambda: server.status()["open_requests"] == 0, seconds=2)
        wait_until(lambda: generation(server, generation_id) is not None, seconds=5)
        row = generation(server, generation_id)
        assert row is not None and row.finish_reason == "cancelled" and row.answer.startswith("word0 word1")
        with server.client() as client:  # what was said before the stop can be judged
            thumb = {"kind": "thumb", "generation_id": generation_id, "value": "down"}
            assert client.post("/api/judgments", json=thumb).status_code == 201

    def test_hanging_up_on_a_whole_answer_stops_it_too(self, server: LiveServer) -> None:
        body = {"model": "v2-sft", "messages": ask(), "max_tokens": 90_000}
        with server.client() as client, pytest.raises(httpx.ReadTimeout):
            client.post("/v1/chat/completions", json=body, timeout=0.5)
        wait_until(lambda: server.status()["open_requests"] == 0, seconds=2)

    def test_a_full_queue_says_when_to_come_back(self, server: LiveServer, client: openai.OpenAI) -> None:
        def start() -> openai.Stream[Any]:
            return client.chat.completions.create(
                model="v2-sft",
                messages=ask(),  # type: ignore[arg-type]
                stream=True,
                max_tokens=90_000,
            )

        streams = [start() for _ in range(4)]
        for stream in streams:
            next(stream)
        with pytest.raises(openai.RateLimitError) as caught:
            start()
        assert int(caught.value.response.headers["Retry-After"]) > 0 and caught.value.code == "queue_full"
        for stream in streams:
            stream.close()
        wait_until(lambda: server.status()["open_requests"] == 0, seconds=2)

    def test_many_at_once_say_what_each_says_alone(self, server: LiveServer) -> None:
        def say(seed: int, into: dict[int, str]) -> None:
            with openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=50) as client:
                reply = client.chat.completions.create(model="nestling", messages=ask(), seed=seed)  # type: ignore[arg-type]
                into[seed] = reply.choices[0].message.content or ""

        together: dict[int, str] = {}
        threads = [threading.Thread(target=say, args=(seed, together)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        alone: dict[int, str] = {}
        for seed in range(4):
            say(seed, alone)
        assert together == alone


class TestJudgments:
    def answer(self, server: LiveServer) -> str:
        with server.client() as client:
            reply = client.post(
                "/v1/chat/completions", json={"model": "nestling", "messages": ask(), "user": "mira"}
            )
        return str(reply.json()["id"])

    def test_a_thumb(self, server: LiveServer) -> None:
        generation_id = self.answer(server)
        body = {
            "kind": "thumb",
            "generation_id": generation_id,
            "value": "up",
            "reason": "kind",
            "user": "mira",
        }
        with server.client() as client:
            reply = client.post("/api/judgments", json=body)
        assert reply.status_code == 201
        row = judgments(server)[-1]
        assert (row.id, row.kind, row.value, row.reason) == (reply.json()["id"], "thumb", "up", "kind")
        assert (row.generation_id, row.session_id) == (generation_id, "mira")

    @pytest.mark.parametrize("models", [["nestling", "nestling"], ["v2-sft", "v1-base"]])
    def test_two_answers_and_a_vote(self, server: LiveServer, models: list[str]) -> None:
        body = {"messages": ask(), "models": models, "max_tokens": 9, "user": "mira"}
        with server.client() as client:
            ids, texts = self.compared(client, body)
            vote = {"kind": "vote", "left": ids[0], "right": ids[1], "winner": "right", "user": "mira"}
            reply = client.post("/api/judgments", json=vote)
        assert reply.status_code == 201
        told = reply.json()["versions"]
        assert sorted(told.values()) == sorted(name.replace("nestling", "v1-base") for name in models)
        for version, text in zip((told["left"], told["right"]), texts, strict=True):
            assert text.startswith("Hello" if version == "v1-base" else "word0 ")
        row = judgments(server)[-1]
        assert (row.generation_id, row.other_generation_id, row.value) == (*ids, "b")

    @staticmethod
    def compared(client: httpx.Client, body: dict[str, Any]) -> tuple[list[str], list[str]]:
        """Ids and texts of the answers, in the order they are shown in."""
        count = len(body["models"])
        ids, texts = [""] * count, [""] * count
        with client.stream("POST", "/api/compare", json=body) as reply:
            lines = [line.removeprefix("data: ") for line in reply.iter_lines() if line]
        for event in map(json.loads, lines[:-1]):
            texts[event["answer"]] += event.get("text", "")
            ids[event["answer"]] = event.get("generation_id", ids[event["answer"]])
        assert lines[-1] == "[DONE]" and "v1-base" not in "".join(lines)  # which is which is not told
        return ids, texts

    def test_several_answers_and_a_ranking(self, server: LiveServer) -> None:
        models = ["v1-base", "v2-sft", "nestling", "v2-sft"]
        with server.client() as client:
            ids, texts = self.compared(client, {"messages": ask(), "models": models, "max_tokens": 3})
            ranking = {"kind": "ranking", "answers": ids, "ranks": [2, 1, 2, 3], "user": "mira"}
            reply = client.post("/api/judgments", json=ranking)
            refused = client.post("/api/judgments", json={**ranking, "ranks": [1, 3, 3, 3]})
            twice = client.post("/api/judgments", json={**ranking, "answers": [ids[0]] * 4})
        assert reply.status_code == 201
        told = reply.json()["versions"]
        assert sorted(told) == ["v1-base", "v1-base", "v2-sft", "v2-sft"]
        assert [text.startswith("Hello") for text in texts] == [version == "v1-base" for version in told]
        assert refused.status_code == 400 and "Give each a rank" in refused.json()["error"]["message"]
        assert twice.status_code == 400 and "different answers" in twice.json()["error"]["message"]
        row = judgments(server)[-1]
        assert (row.id, row.kind, row.value, row.generation_id) == (
            reply.json()["id"],
            "ranking",
            "ranked",
            ids[0],
        )

    def test_a_better_answer(self, server: LiveServer) -> None:
        generation_id = self.answer(server)
        body = {"kind": "rewrite", "generation_id": generation_id, "text": " Good day! ", "user": "mira"}
        with server.client() as client:
            reply = client.post("/api/judgments", json=body)
            same = client.post("/api/judgments", json={**body, "text": "  "})
        assert reply.status_code == 201
        row = judgments(server)[-1]
        assert (row.kind, row.generation_id, row.text) == ("rewrite", generation_id, "Good day!")
        assert same.status_code == 400 and "nothing was changed" in same.json()["error"]["message"]

    def test_sides_are_shuffled(self, server: LiveServer) -> None:
        body = {"messages": ask(), "models": ["v1-base", "v2-sft"], "max_tokens": 1, "store": False}
        lefts = set()
        with server.client() as client:
            for _ in range(20):
                text = client.post("/api/compare", json=body).text
                events = [json.loads(line[6:]) for line in text.split("\n") if '"text"' in line]
                lefts.add(next(event["text"] for event in events if event["answer"] == 0))
        assert lefts == {"Hello", "word0 "}

    @pytest.mark.parametrize(
        ("body", "status"),
        [
            ({"kind": "thumb", "generation_id": "nope", "value": "up"}, 404),
            ({"kind": "thumb", "generation_id": "nope", "value": "sideways"}, 400),
            ({"kind": "vote", "left": "a", "right": "b", "winner": "left"}, 404),
            ({"kind": "vote", "left": "a", "right": "b", "winner": "both"}, 400),
            ({"kind": "ranking", "answers": ["a", "b"], "ranks": [1, 2]}, 404),
            ({"kind": "ranking", "answers": ["a"], "ranks": [1]}, 400),
            ({"kind": "ranking", "answers": ["a", "b"], "ranks": [0, 1]}, 400),
            ({"kind": "rewrite", "generation_id": "nope", "text": "Hi"}, 404),
            ({"kind": "rewrite", "generation_id": "nope", "text": ""}, 400),
            ({"kind": "wish"}, 400),
            ({}, 400),
        ],
    )
    def test_impossible_judgments(self, server: LiveServer, body: dict[str, str], status: int) -> None:
        before = len(judgments(server))
        with server.client() as client:
            reply = client.post("/api/judgments", json=body)
        assert reply.status_code == status and reply.json()["error"]["message"]
        assert len(judgments(server)) == before

    def test_different_prompts_cannot_be_compared(self, server: LiveServer) -> None:
        with server.client() as client:
            other = client.post("/v1/chat/completions", json={"model": "nestling", "messages": ask("Bye")})
            vote = {"kind": "vote", "left": self.answer(server), "right": other.json()["id"], "winner": "tie"}
            assert client.post("/api/judgments", json=vote).status_code == 400


class TestStatus:
    def test_versions_with_their_verdicts(self, server: LiveServer) -> None:
        with server.client() as client:
            versions = {v["name"]: v for v in client.get("/api/versions").json()["versions"]}
        assert [name for name, v in versions.items() if v["offered"]] == ["v1-base", "v2-sft"]
        assert [name for name, v in versions.items() if v["serving"]] == ["v1-base"]
        assert versions["v3-ppo"]["state"] == "rejected" and versions["v3-ppo"]["verdict"] == "worse"

    def test_progress_arrives_as_it_happens(self, server: LiveServer) -> None:
        path = server.workspace.root / "progress.json"
        with server.client() as client, client.stream("GET", "/api/events") as reply:
            events = (json.loads(line[6:]) for line in reply.iter_lines() if line.startswith("data: "))
            first = next(events)
            assert first["serving"]["name"] == "v1-base" and first["raising"] is None
            path.write_text(json.dumps({"stage": "ppo", "step": 3}))
            later = next(event for event in events if event["raising"])
            assert later["raising"] == {"stage": "ppo", "step": 3}
        path.unlink()
