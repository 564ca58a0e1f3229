"""Serve a Hugging Face export with OpenAI's interface: its own chat(), one question at a time.

Run with: python -m tests.evaluate.serve_export EXPORT MAX_TILES (prints the port)
"""

import base64
import io
import sys
from typing import Any

import torch
from aiohttp import web
from PIL import Image
from tests.evaluate.loopback import completion
from transformers import AutoModel, AutoTokenizer

from nvlm.model.tiling import Tiling, tile_image
from nvlm.model.vision import IMAGE_MEAN, IMAGE_STD


def main() -> None:
    directory, max_tiles = sys.argv[1], int(sys.argv[2])
    model = AutoModel.from_pretrained(directory, trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tiling = Tiling(max_tiles=max_tiles, thumbnail=True)
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (IMAGE_MEAN, IMAGE_STD))

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "export"}]})

    async def chat(request: web.Request) -> web.Response:
        body: dict[str, Any] = await request.json()
        image, text = body["messages"][-1]["content"]
        data = base64.b64decode(image["image_url"]["url"].partition(",")[2])
        with Image.open(io.BytesIO(data)) as opened:
            tiles = tile_image(opened, model.config.force_image_size, tiling)
        pixels = (torch.from_numpy(tiles).permute(0, 3, 1, 2) / 255 - mean) / std
        answer = model.chat(tokenizer, pixels, text["text"], max_new_tokens=body["max_tokens"])
        return completion(answer)

    app = web.Application(client_max_size=1 << 26)
    app.router.add_get("/v1/models", models)
    app.router.add_post("/v1/chat/completions", chat)
    web.run_app(
        app, host="127.0.0.1", port=0, print=lambda text: print(text, file=sys.stderr, flush=True)
    )


if __name__ == "__main__":
    main()
