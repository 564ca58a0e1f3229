"""A server with OpenAI's interface that answers, such as vLLM with an export of a checkpoint.

The key that it may want is read from the variable OPENAI_API_KEY.
"""

from __future__ import annotations

import base64
import json
import mimetypes
import os
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from nvlm.chat.dialogue import Dialogue
from nvlm.errors import UserError
from nvlm.model.prompts import IMAGE, Turn

TIMEOUT = 600  # seconds without a byte
EVENT, DONE = "data:", "[DONE]"  # of a stream of server-sent events


class ServerModel:
    """The first model of the server at ``url``, which ends in /v1 as a rule."""

    def __init__(self, url: str) -> None:
        """Ask which models there are. Raises UserError if none answers."""
        self._url = url.rstrip("/")
        with self._open("models", None) as reply:
            try:
                self._name = str(json.load(reply)["data"][0]["id"])
            except (ValueError, LookupError, TypeError) as error:
                raise UserError(f"{self._url}/models names no model: see its address") from error

    def stream(self, dialogue: Dialogue, max_new_tokens: int) -> Iterator[str]:
        """The most likely answer, as the server sends it. Raises UserError if it refuses."""
        images = iter(dialogue.images)
        body = {
            "model": self._name,
            "messages": [
                {"role": turn.role, "content": _content(turn, images)} for turn in dialogue.turns
            ],
            "max_tokens": max_new_tokens,
            "temperature": 0,
            "stream": True,
        }
        with self._open("chat/completions", body) as reply:
            for line in reply:
                kind, _, event = line.decode(errors="replace").strip().partition(" ")
                if kind != EVENT or event == DONE:
                    continue
                try:
                    piece = json.loads(event)["choices"][0]["delta"].get("content")
                except (ValueError, LookupError, TypeError, AttributeError) as error:
                    raise UserError(
                        f"{self._url}: an event has no choices[0].delta: {event[:300]}"
                    ) from error
                if piece:
                    yield str(piece)

    def _open(self, path: str, body: Any) -> HTTPResponse:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        address = f"{self._url}/{path}"
        try:
            request = Request(address, data, headers)
            reply: HTTPResponse = urlopen(request, timeout=TIMEOUT)
        except HTTPError as error:
            told = error.read(300).decode(errors="replace")
            raise UserError(f"{address} refuses with {error.code}: {told}") from error
        except (URLError, OSError, ValueError) as error:
            raise UserError(f"{address} can't be reached ({error}): see that it runs") from error
        return reply


def _content(turn: Turn, images: Iterator[Path]) -> str | list[dict[str, Any]]:
    """Images, then text; the line break after an image is the server's to add."""
    shown = turn.text.count(IMAGE) if turn.role == "user" else 0
    if not shown:
        return turn.text
    text = turn.text.replace(f"{IMAGE}\n", "")
    urls = [_data_url(next(images)) for _ in range(shown)]
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [*parts, {"type": "text", "text": text}]


def _data_url(path: Path) -> str:
    kind = mimetypes.guess_type(path.name)[0] or "image/png"
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
