"""A server with OpenAI's interface on the loopback device, in a thread of the test."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web

Reply = Callable[[dict[str, Any]], Awaitable[web.Response]]


def completion(text: str | None) -> web.Response:
    return web.json_response({"choices": [{"message": {"role": "assistant", "content": text}}]})


@contextmanager
def server(reply: Reply) -> Iterator[str]:
    """Yield the URL, up to /v1, of a server that answers chat requests with ``reply``."""
    started, stop, loop = threading.Event(), asyncio.Event(), asyncio.new_event_loop()
    port: list[int] = []

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "nvlm"}]})

    async def chat(request: web.Request) -> web.Response:
        return await reply(await request.json())

    async def serve() -> None:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_get("/v1/models", models)
        app.router.add_post("/v1/chat/completions", chat)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port.append(runner.addresses[0][1])
        started.set()
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert started.wait(10)
    try:
        yield f"http://127.0.0.1:{port[0]}/v1"
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
