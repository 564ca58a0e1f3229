"""A conversation as a person has it: typed lines, answers that stream, pictures, mistakes."""

import json
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.evaluate.small_model import become_only_rank, make_checkpoint

from nvlm.chat.__main__ import main, talk
from nvlm.chat.dialogue import Dialogue
from nvlm.chat.local import TILES, open_checkpoint
from nvlm.errors import UserError
from nvlm.evaluate.answering.generation import decode, stop_tokens
from nvlm.model.prompts import SYSTEM, Turn
from nvlm.model.tiling import Tiling, tile_image
from nvlm.model.tokens import TEXT, encode_conversation

NEW = 6


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(1)
    for number, width in enumerate((24, 48)):
        pixels = rng.integers(256, size=(24, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    return [tmp_path / "0.png", tmp_path / "1.png"]


@pytest.fixture
def typed(monkeypatch):
    """Answers ``input`` with lines; a line may be an exception to raise."""

    def give(*lines: Any) -> None:
        left = iter(lines)

        def read(_: str) -> str:
            line = next(left, EOFError())
            if isinstance(line, BaseException):
                raise line
            return str(line)

        monkeypatch.setattr("builtins.input", read)

    return give


def reread(local, turns: list[Turn], images: list[Image.Image]) -> str:
    """The answer without any cache: the whole conversation again for each token."""
    model = local.model
    tiles = [tile_image(image, 24, Tiling(max_tiles=TILES, thumbnail=True)) for image in images]
    encoded = encode_conversation(
        turns,
        local.tokenizer,
        template="chatml",
        family="qwen2",
        tiles_per_image=[len(of_image) for of_image in tiles],
        tokens_per_tile=4,
        tile_tags=True,
        generation=True,
    )
    ids, visual = encoded.input_ids.tolist(), encoded.visual_index.tolist()
    start, stop = len(ids), stop_tokens(local.tokenizer)
    with torch.no_grad():
        pixels = torch.from_numpy(np.concatenate(tiles)).permute(0, 3, 1, 2)
        features = model.encode_tiles(pixels).flatten(0, 1)[None]
        while len(ids) < start + NEW and (len(ids) == start or ids[-1] not in stop):
            hidden = model(
                torch.tensor([ids]),
                position_ids=torch.arange(len(ids))[None],
                segment_ids=torch.ones(1, len(ids), dtype=torch.long),
                visual_index=torch.tensor([visual + [TEXT] * (len(ids) - start)]),
                features=features,
            )
            logits = model.language_model.lm_head(hidden[0, -1])
            ids.append(int(logits[: model.vocabulary].argmax()))
    return decode(local.tokenizer, ids[start:], stop)


def test_turns_about_pictures_are_those_of_the_whole_conversation_read_anew(
    tmp_path, pictures, monkeypatch
):
    """Three turns, the second picture in the third; then another conversation in the same cache."""
    become_only_rank(monkeypatch)  # restores the environment afterwards
    images = [Image.open(path) for path in pictures]
    with open_checkpoint(make_checkpoint(tmp_path, tensor=2)) as local:
        # A byte is a token here: the system turn alone has fifty.
        local.language = replace(local.language, max_positions=400)
        turns = [Turn(role="system", text=SYSTEM)]
        dialogue = Dialogue()
        dialogue.show(pictures[0])
        for number, question in enumerate(("what?", "why <image>?", "and this?")):
            if number == 2:
                dialogue.show(pictures[1])
            dialogue.ask(question)
            pieces = list(local.stream(dialogue, NEW))
            shown = "" if number == 1 else "<image>\n"
            turns.append(Turn(role="user", text=shown + question.replace("<image>", "")))
            expected = reread(local, turns, images[: 2 if number == 2 else 1])
            assert "".join(pieces).strip() == expected and len(pieces) > 1
            dialogue.answer(expected)
            assert len(local._held) > 100  # what the next turn need not read
            turns.append(Turn(role="assistant", text=expected))
        other = Dialogue()
        other.show(pictures[1])
        other.ask("what?")
        turns = [turns[0], Turn(role="user", text="<image>\nwhat?")]
        assert "".join(local.stream(other, NEW)).strip() == reread(local, turns, images[1:])
        other.ask("x" * 300)
        with pytest.raises(UserError, match=r"has \d+ tokens, and the model reads 400: .*/reset"):
            next(local.stream(other, NEW))


def test_a_half_is_nothing_to_talk_with(tmp_path):
    make_checkpoint(tmp_path, tensor=1)
    with (
        pytest.raises(UserError, match="one half of a model"),
        open_checkpoint(tmp_path / "vision"),
    ):
        pass


class Recorder:
    """Answers every question with its own words, a word at a time."""

    def __init__(self) -> None:
        self.seen: list[tuple[list[str], list[str]]] = []
        self.fails = False

    def stream(self, dialogue: Dialogue, max_new_tokens: int) -> Iterator[str]:
        del max_new_tokens
        if self.fails:
            raise UserError("too long")
        self.seen.append(([t.text for t in dialogue.turns], [p.name for p in dialogue.images]))
        for word in dialogue.turns[-1].text.split():
            if word == "stop":
                raise KeyboardInterrupt
            yield f"{word} "


def test_commands_and_what_goes_wrong_with_them(typed, pictures, capsys):
    model = Recorder()
    typed("/image no.png", "/image", f"/image {pictures[0]}", "a b", "/fly", "", "c stop d", "e")
    talk(model, Dialogue(), 9)
    out, err = capsys.readouterr()
    assert out == "<image> a b \nc  [ended]\ne \n\n"
    errors = err.splitlines()
    assert [line.split()[1] for line in errors] == ["no.png", ".", "/fly"]
    assert all(line.startswith("error: ") for line in errors)
    assert model.seen[-1] == (
        [SYSTEM, "<image>\na b", "<image> a b ", "c stop d", "c ", "e"],
        ["0.png"],
    )
    model.fails = True
    dialogue = Dialogue()
    typed(f"/image {pictures[1]}", "long")
    talk(model, dialogue, 9)
    assert capsys.readouterr().err == "error: too long\n"
    model.fails = False
    typed("short", "/reset", "new", KeyboardInterrupt())
    talk(model, dialogue, 9)
    assert model.seen[-2] == ([SYSTEM, "<image>\nshort"], ["1.png"])  # the picture has stayed
    assert model.seen[-1] == ([SYSTEM, "new"], [])


@pytest.fixture
def served():
    """A server of OpenAI's interface on loopback: its address, and the requests that it gets."""
    requests: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._reply(b'{"data": [{"id": "nvlm"}]}')

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append(body | {"key": self.headers.get("Authorization")})
            if "refuse" in str(body["messages"][-1]["content"]):
                self.send_error(400, "no")
                return
            pieces = [{"role": "assistant"}, {"content": "It is "}, {"content": "r\u00f6t."}]
            events = [json.dumps({"choices": [{"delta": piece}]}) for piece in pieces]
            lines = [f"data: {event}\n\n" for event in (*events, "[DONE]")]
            self._reply(": ping\n\n".join(lines).encode())

        def _reply(self, body: bytes) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1", requests
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_server_answers_instead(served, typed, pictures, monkeypatch, capsys):
    url, requests = served
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    arguments = ["--server", url, "--image", str(pictures[0]), "--max-new-tokens", "9"]
    monkeypatch.setattr(sys, "argv", ["nvlm.chat", *arguments])
    typed("what colour?", "refuse", "sure?", "/quit")
    main()
    out, err = capsys.readouterr()
    assert out == "It is r\u00f6t.\nIt is r\u00f6t.\n"
    assert "error: " in err and "/chat/completions refuses with 400" in err
    first, _, last = requests
    assert (first["model"], first["max_tokens"], first["stream"]) == ("nvlm", 9, True)
    assert first["temperature"] == 0 and first["key"] == "Bearer secret"
    system, user = first["messages"]
    assert system == {"role": "system", "content": SYSTEM}
    image, text = user["content"]
    assert image["image_url"]["url"].startswith("data:image/png;base64,iVBOR")
    assert text == {"type": "text", "text": "what colour?"}
    assert [message["role"] for message in last["messages"]] == [
        "system",
        "user",
        "assistant",
        "user",
    ]
    assert last["messages"][2]["content"] == "It is r\u00f6t."
    assert last["messages"][3]["content"] == "sure?"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a checkpoint, or a server"),
        (["x", "--server", "http://localhost:1"], "one of the two answers"),
        (["--server", "http://127.0.0.1:1/v1"], "127.0.0.1:1/v1/models can't be reached"),
        (["--server", "localhost"], "localhost/models can't be reached"),
        (["nowhere"], "nowhere is not a checkpoint"),
        (["x", "--image", "none.png"], "none.png is no picture that can be read"),
        (["x", "--max-new-tokens", "0"], "--max-new-tokens 0 should be 1 or more"),
    ],
)
def test_arguments_that_can_not_be(arguments, message, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["nvlm.chat", *arguments])
    with pytest.raises(UserError, match=message):
        main()
