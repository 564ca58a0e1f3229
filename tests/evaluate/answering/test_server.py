"""The server backend over loopback: what is sent, how much at once, and what failures do."""

import asyncio
import base64
import dataclasses
import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from PIL import Image
from tests.evaluate.loopback import completion, server

from nvlm.errors import UserError
from nvlm.evaluate.answering import server as backend
from nvlm.evaluate.answering.answers import Answer
from nvlm.evaluate.params import AskParams, GenerateParams, RunParams, SamplingParams
from nvlm.evaluate.question import Question
from nvlm.model.tiling import Tiling, tile_image

ASK = AskParams(system="Be brief.", prompt="{question}", max_new_tokens=7)
PARAMS = GenerateParams(max_tiles=6, thumbnail=True, tile_tags=True, dtype="float32")
RUN = RunParams(batch_size=1, tile_chunk=1, concurrency=3, retries=2, timeout=5, answer_ahead=False)


def questions(directory: Path, count: int) -> list[Question]:
    images = []
    for number in range(2):
        images.append(directory / f"{number}.jpg")
        Image.new("RGB", (8 + number, 6), "red").save(images[-1])
    return [
        Question(id=number, images=tuple(images), text=f"q{number}", references=("a",))
        for number in range(count)
    ]


def ask(url: str, asked: list[Question], **changed: Any) -> list[Answer]:
    written: list[Answer] = []
    options = {"ask": ASK, "params": PARAMS, "run": RUN, "blank": False} | changed
    backend.ask_server(
        url,
        asked,
        options["ask"],
        options["params"],
        options["run"],
        blank=options["blank"],
        write=written.extend,
    )
    return written


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(backend, "FIRST_WAIT", 0.001)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def image_of(part: dict[str, Any]) -> bytes:
    head, _, data = part["image_url"]["url"].partition(",")
    assert head.startswith("data:image/")
    return base64.b64decode(data)


def test_the_request_is_the_prompt_and_the_bytes_of_the_image(tmp_path: Path):
    bodies = []

    async def reply(body: dict[str, Any]) -> web.Response:
        bodies.append(body)
        return completion(" yes \n")

    asked = questions(tmp_path, 1)
    with server(reply) as url:
        assert ask(url, asked) == [Answer(question_id=0, prompt="q0", text="yes")]
        ask(url, asked, blank=True)
        sampling = SamplingParams(temperature=0.5, top_p=0.9, seed=3)
        ask(url, asked, params=dataclasses.replace(PARAMS, sampling=sampling))
        every = dataclasses.replace(ASK, images="all")
        named = dataclasses.replace(asked[0], text="Is <image 2> as <image 1>?")
        ask(url, [named], ask=every)
    system, user = bodies[0]["messages"]
    assert system == {"role": "system", "content": "Be brief."}
    assert image_of(user["content"][0]) == asked[0].images[0].read_bytes()
    assert user["content"][1:] == [{"type": "text", "text": "q0"}]
    assert (bodies[0]["model"], bodies[0]["max_tokens"]) == ("nvlm", 7)
    assert (bodies[0]["temperature"], "seed" in bodies[0]) == (0, False)
    assert (bodies[0]["repetition_penalty"], "mm_processor_kwargs" in bodies[0]) == (1, False)
    with Image.open(io.BytesIO(image_of(bodies[1]["messages"][1]["content"][0]))) as grey:
        assert (grey.size, grey.getcolors()) == ((8, 6), [(48, (128, 128, 128))])
    assert (bodies[2]["temperature"], bodies[2]["top_p"]) == (0.5, 0.9)
    assert bodies[2]["seed"] > 0
    first, image, middle, other, last = bodies[3]["messages"][1]["content"]
    assert (first["text"], middle["text"], last["text"]) == ("Is ", " as ", "?")
    assert [image_of(part) for part in (image, other)] == [
        path.read_bytes() for path in reversed(asked[0].images)
    ]
    # Two images share the tiles of one.
    assert bodies[3]["mm_processor_kwargs"] == {"max_dynamic_patch": 3}


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1", "CMYK"])
def test_a_picture_of_another_mode_goes_as_the_prompter_sees_it(tmp_path: Path, mode: str):
    bodies = []

    async def reply(body: dict[str, Any]) -> web.Response:
        bodies.append(body)
        return completion("")

    pixels = np.random.default_rng(0).integers(256, size=(24, 24, 4), dtype=np.uint8)
    path = tmp_path / ("0.tiff" if mode == "CMYK" else "0.png")
    Image.fromarray(pixels).convert(mode).save(path)
    asked = Question(id=0, images=(path,), text="q", references=("a",))
    with server(reply) as url:
        ask(url, [asked], params=dataclasses.replace(PARAMS, max_tiles=1))
    assert bodies[0]["mm_processor_kwargs"] == {"max_dynamic_patch": 1}
    sent = Image.open(io.BytesIO(image_of(bodies[0]["messages"][1]["content"][0])))
    assert sent.mode == "RGB"
    with Image.open(path) as image:
        (seen,) = tile_image(image, 24, Tiling(max_tiles=1, thumbnail=True))
    assert np.array_equal(np.asarray(sent), seen)


def test_an_empty_system_turn_is_sent_so_that_the_template_adds_none(tmp_path: Path):
    bodies = []

    async def reply(body: dict[str, Any]) -> web.Response:
        bodies.append(body)
        return completion("")

    with server(reply) as url:
        ask(url, questions(tmp_path, 1), ask=dataclasses.replace(ASK, system=""))
    assert bodies[0]["messages"][0] == {"role": "system", "content": ""}
    assert [message["role"] for message in bodies[0]["messages"]] == ["system", "user"]


def test_a_picture_that_is_none_is_one_sentence(tmp_path: Path):
    asked = questions(tmp_path, 1)
    asked[0].images[0].write_bytes(b"GIF89a")

    async def reply(_: dict[str, Any]) -> web.Response:
        return completion("")

    with server(reply) as url, pytest.raises(UserError, match=r"0\.jpg can't be decoded"):
        ask(url, asked)


def test_requests_overlap_but_only_so_many(tmp_path: Path):
    under_way, most = 0, 0

    async def reply(body: dict[str, Any]) -> web.Response:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.02)
        under_way -= 1
        return completion(body["messages"][1]["content"][1]["text"])

    with server(reply) as url:
        answers = ask(url, questions(tmp_path, 12))
    assert most == 3
    assert {answer.question_id: answer.text for answer in answers} == {
        number: f"q{number}" for number in range(12)
    }


@pytest.mark.parametrize("failure", [429, 500, 503, "garbage", "closed"])
def test_a_failure_that_may_pass_is_tried_again(tmp_path: Path, failure: int | str):
    seen: Counter[str] = Counter()

    async def reply(body: dict[str, Any]) -> web.Response:
        name = body["messages"][1]["content"][1]["text"]
        seen[name] += 1
        if seen[name] > 2:
            return completion(name)
        if failure == "closed":
            raise ConnectionResetError
        return web.Response(text="{", status=200 if failure == "garbage" else int(failure))

    with server(reply) as url:
        assert len(ask(url, questions(tmp_path, 2))) == 2
    assert set(seen.values()) == {3}


def test_what_does_not_pass_is_an_error_and_the_answers_so_far_are_kept(tmp_path: Path):
    async def reply(body: dict[str, Any]) -> web.Response:
        name = body["messages"][1]["content"][1]["text"]
        return web.Response(status=500) if name == "q3" else completion(name)

    written: list[Answer] = []
    one = dataclasses.replace(RUN, concurrency=1)
    with (
        server(reply) as url,
        pytest.raises(UserError, match=r"failed 3 times, last with status 500: .* start again"),
    ):
        backend.ask_server(url, questions(tmp_path, 5), ASK, PARAMS, one, write=written.extend)
    assert [answer.text for answer in written] == ["q0", "q1", "q2"]


def test_a_refusal_is_not_tried_again(tmp_path: Path):
    calls = []

    async def reply(body: dict[str, Any]) -> web.Response:
        calls.append(body)
        return web.Response(status=400, text="image too large")

    one = dataclasses.replace(RUN, concurrency=1)
    with server(reply) as url, pytest.raises(UserError, match="refuses with 400: image too large"):
        ask(url, questions(tmp_path, 2), run=one)
    assert len(calls) == 1


@pytest.mark.parametrize("content", ["[]", '{"choices": []}', '{"choices": [{"message": 1}]}'])
def test_a_reply_without_an_answer_is_named(tmp_path: Path, content: str):
    async def reply(_: dict[str, Any]) -> web.Response:
        return web.Response(text=content, content_type="application/json")

    with server(reply) as url, pytest.raises(UserError, match=r"no choices\[0\]"):
        ask(url, questions(tmp_path, 1))


def test_an_empty_answer_is_an_answer(tmp_path: Path):
    async def reply(_: dict[str, Any]) -> web.Response:
        return completion(None)

    with server(reply) as url:
        assert ask(url, questions(tmp_path, 1))[0].text == ""


def test_half_a_surrogate_pair_is_replaced(tmp_path: Path):
    async def reply(_: dict[str, Any]) -> web.Response:
        text = '{"choices": [{"message": {"content": "a\\ud83d"}}]}'
        return web.Response(text=text, content_type="application/json")

    with server(reply) as url:
        assert ask(url, questions(tmp_path, 1))[0].text == "a?"


def test_no_server_is_one_sentence(tmp_path: Path):
    with pytest.raises(UserError, match="models failed 3 times, last with Cannot connect"):
        ask("http://127.0.0.1:9/v1", questions(tmp_path, 1))
