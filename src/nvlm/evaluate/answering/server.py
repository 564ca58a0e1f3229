"""Answers of a server with OpenAI's interface, such as vLLM serving an export of the checkpoint.

At most ``concurrency`` requests are under way; each is tried again, later and later, when the
server can't be reached, is busy (429) or fails (5xx). An image goes as the bytes of its file, or
as the RGB picture that the prompter makes of it, so that the server tiles what a local model would;
the system turn and the image's place in the text are those of the local prompt, and the server adds
the chat format. Greedy, or sampled with a seed made of ours and the question's id.

What differs from the prompter, which resizes before it converts to RGB: the edges of what is
transparent, and palette and 1-bit pictures, which it resizes by nearest neighbour. vLLM has to be
started with ``--interleave-mm-strings`` for tasks that show several images.

The key that a server may want is read from the variable OPENAI_API_KEY and never written anywhere.
"""

from __future__ import annotations

import asyncio
import base64
import io
import mimetypes
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
from PIL import Image, ImageOps
from tqdm import tqdm

from nvlm.errors import UserError
from nvlm.evaluate.answering.answers import Answer
from nvlm.evaluate.answering.ask import BLANK, conversation, images, max_tiles_each, prompt
from nvlm.evaluate.params import AskParams, GenerateParams, RunParams
from nvlm.evaluate.question import Question
from nvlm.model.prompts import IMAGE

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds before another try; doubled each time
BUSY = 429
EXPORTED_TILES = 6  # max_dynamic_patch of every export's config.json
# Of these a server makes the RGB picture that the prompter makes.
SENT_AS_THEY_ARE = {"RGB", "L"}
SERVER_ERRORS = range(500, 600)


class _TryAgainError(Exception):
    """A request failed in a way that may pass."""


def ask_server(
    url: str,
    questions: Sequence[Question],
    ask: AskParams,
    params: GenerateParams,
    run: RunParams,
    *,
    write: Callable[[Sequence[Answer]], None],
    blank: bool = False,
) -> None:
    """Give the answers of the server at ``url`` (up to /v1) to ``write``, each as it comes.

    Raises UserError if the server refuses a request, or still fails after ``run.retries``.
    """
    client = _Client(url.rstrip("/"), ask, params, run, blank=blank)
    asyncio.run(client.ask_all(questions, write))


class _Client:
    """Requests to one server."""

    def __init__(
        self,
        url: str,
        ask: AskParams,
        params: GenerateParams,
        run: RunParams,
        *,
        blank: bool,
    ) -> None:
        self._url, self._ask, self._params, self._run = url, ask, params, run
        self._blank = blank

    async def ask_all(
        self, questions: Sequence[Question], write: Callable[[Sequence[Answer]], None]
    ) -> None:
        """Ask all; the first error ends the others."""
        key = os.environ.get("OPENAI_API_KEY")
        waiting = iter(questions)
        with tqdm(total=len(questions), desc="answers", unit="question", disable=None) as bar:
            async with aiohttp.ClientSession(
                headers={"Authorization": f"Bearer {key}"} if key else None,
                timeout=aiohttp.ClientTimeout(total=self._run.timeout),
            ) as session:
                model = await self._model(session)

                async def work() -> None:
                    for question in waiting:  # shared: each takes the next one
                        text = await self._answer(session, model, question)
                        asked = prompt(question, self._ask)
                        write([Answer(question_id=question.id, prompt=asked, text=text)])
                        bar.update()

                try:
                    async with asyncio.TaskGroup() as group:
                        for _ in range(min(self._run.concurrency, len(questions))):
                            group.create_task(work())
                except* UserError as errors:
                    raise errors.exceptions[0] from None

    async def _model(self, session: aiohttp.ClientSession) -> str:
        """The first model that the server has."""
        listed = await self._request(session, "GET", "models", None)
        try:
            return str(listed["data"][0]["id"])
        except (KeyError, IndexError, TypeError) as error:
            raise UserError(f"{self._url}/models names no model: is this the right URL?") from error

    async def _answer(self, session: aiohttp.ClientSession, model: str, question: Question) -> str:
        body = await asyncio.to_thread(self._body, model, question)
        reply = await self._request(session, "POST", "chat/completions", body)
        try:
            content = reply["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError) as error:
            raise UserError(f"{self._url}: a reply has no choices[0].message.content") from error
        # JSON can hold half a surrogate pair, a file of answers can't.
        return str(content or "").encode(errors="replace").decode().strip()

    def _body(self, model: str, question: Question) -> dict[str, Any]:
        shown = images(question, self._ask)
        paths = iter(shown)
        messages: list[dict[str, Any]] = [
            {
                "role": turn.role,
                "content": list(self._parts(turn.text, paths)) if IMAGE in turn.text else turn.text,
            }
            for turn in conversation(question, self._ask)
        ]
        if not self._ask.system:
            # An export's chat template writes the trained system turn where there is none at all.
            messages.insert(0, {"role": "system", "content": ""})
        body = {"model": model, "messages": messages, "max_tokens": self._ask.max_new_tokens}
        body |= {"repetition_penalty": 1}  # repos of decoders suggest others to vLLM
        tiles = max_tiles_each(self._params, len(shown))
        if tiles != EXPORTED_TILES:
            body |= {"mm_processor_kwargs": {"max_dynamic_patch": tiles}}
        sampling = self._params.sampling
        if sampling is None:
            return body | {"temperature": 0}
        # Imported here: sampling of our own needs PyTorch, and a greedy client doesn't.
        from nvlm.evaluate.answering.sampling import question_seed

        return body | {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": question_seed(sampling, question.id),
        }

    def _parts(self, text: str, paths: Iterator[Path]) -> Iterator[dict[str, Any]]:
        """Text and images in turn; the line break after a leading image is the server's to add."""
        for place, piece in enumerate(text.split(IMAGE)):
            if place:
                yield {"type": "image_url", "image_url": {"url": self._data_url(next(paths))}}
            if piece := piece.removeprefix("\n") if place == 1 else piece:
                yield {"type": "text", "text": piece}

    def _data_url(self, path: Path) -> str:
        data, kind = path.read_bytes(), mimetypes.guess_type(path.name)[0] or "image/png"
        try:
            with Image.open(io.BytesIO(data)) as image:
                if self._blank or image.mode not in SENT_AS_THEY_ARE:
                    data, kind = self._png(ImageOps.exif_transpose(image)), "image/png"
        except (OSError, ValueError, SyntaxError) as error:
            raise UserError(f"{path} can't be decoded: {error}") from error
        return f"data:{kind};base64,{base64.b64encode(data).decode()}"

    def _png(self, upright: Image.Image) -> bytes:
        """What the prompter makes of a picture: RGB, whatever was transparent."""
        shown = upright.convert("RGB")
        if self._blank:
            shown = Image.new("RGB", upright.size, (BLANK,) * 3)
        png = io.BytesIO()
        shown.save(png, "PNG", compress_level=1)
        return png.getvalue()

    async def _request(
        self, session: aiohttp.ClientSession, method: str, path: str, body: Any
    ) -> Any:
        """The JSON of a reply, after as many tries as it takes."""
        wait = FIRST_WAIT
        for left in reversed(range(self._run.retries + 1)):
            try:
                return await self._try(session, method, path, body)
            except (_TryAgainError, aiohttp.ClientError, TimeoutError) as error:
                if not left:
                    raise UserError(
                        f"{self._url}/{path} failed {self._run.retries + 1} times, last with "
                        f"{str(error) or type(error).__name__}: see that the server runs, and "
                        "start again to go on"
                    ) from error
            await asyncio.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT)
        raise AssertionError("unreachable")

    async def _try(self, session: aiohttp.ClientSession, method: str, path: str, body: Any) -> Any:
        async with session.request(method, f"{self._url}/{path}", json=body) as reply:
            text = await reply.text()
            if reply.status == BUSY or reply.status in SERVER_ERRORS:
                raise _TryAgainError(f"status {reply.status}")
            if not reply.ok:
                raise UserError(f"{self._url}/{path} refuses with {reply.status}: {text[:300]}")
            try:
                return await reply.json(content_type=None)
            except ValueError as error:
                raise _TryAgainError("a reply that isn't JSON") from error
