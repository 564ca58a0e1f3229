"""A checkpoint that answers in this process: what was read before stays in the cache.

Shapes: S positions of the conversation, N tiles, V visual tokens a tile, C channels of the tower.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerFast

from nvlm.chat.dialogue import Dialogue
from nvlm.checkpoint.format.manifest import read_manifest
from nvlm.checkpoint.relayout.reshard import reshard
from nvlm.errors import UserError
from nvlm.evaluate.answering.generation import stop_tokens
from nvlm.evaluate.answering.prompter import Prompter
from nvlm.evaluate.params import AskParams, GenerateParams
from nvlm.evaluate.question import Question
from nvlm.model.nvlm import NVLM
from nvlm.model.tokens import TEXT, EncodedConversation, encode_conversation, load_tokenizer
from nvlm.parallel.grid import GridParams
from nvlm.parallel.mesh import parallel_mesh
from nvlm.parallel.state import load_model

TILES = 6  # of an image, as in fine-tuning
UNFINISHED = "\ufffd"  # what a decoder makes of the first bytes of a character


class LocalModel:
    """A loaded model, and the keys and values of what it has read."""

    def __init__(self, model: NVLM, tokenizer: PreTrainedTokenizerFast) -> None:
        assert model.architecture.language and model.architecture.vision
        self.model, self.tokenizer = model, tokenizer
        self.language, self.vision = model.architecture.language, model.architecture.vision
        ask = AskParams(system="", prompt="{question}", max_new_tokens=1)
        params = GenerateParams(max_tiles=TILES, thumbnail=True, tile_tags=True, dtype="float32")
        self._prompter = Prompter(tokenizer, model.architecture, params, ask)
        self._forget()

    def stream(self, dialogue: Dialogue, max_new_tokens: int) -> Iterator[str]:
        """The most likely answer to the last turn, piece by piece.

        Raises UserError if an image can't be read, or the conversation has grown too long.
        """
        self._encode_images(dialogue.images)
        prompt = self._encode(dialogue)
        left = self.language.max_positions - len(prompt)
        if left < 1:
            raise UserError(
                f"the conversation has {len(prompt)} tokens, and the model reads "
                f"{self.language.max_positions}: begin anew with /reset"
            )
        stop, told, ids = stop_tokens(self.tokenizer), "", list[int]()
        token = self._read(prompt)
        while token not in stop:
            ids.append(token)
            text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
            if not text.endswith(UNFINISHED):
                yield text[len(told) :]
                told = text
            if len(ids) == min(max_new_tokens, left):
                return
            token = self._step(token)

    def _encode_images(self, images: list[Path]) -> None:
        """Tiles and tower features of images that are new; all anew if one before them has gone."""
        if images[: len(self._images)] != self._images:
            self._forget()
        for path in images[len(self._images) :]:
            question = Question(id=path.name, images=(path,), text="", references=())
            tiles = torch.from_numpy(self._prompter.encode(question).tiles.transpose(0, 3, 1, 2))
            with torch.no_grad():
                self._features.append(self.model.encode_tiles(tiles).flatten(0, 1))  # (N V, C)
            self._images.append(path)
            self._tiles.append(len(tiles))

    def _forget(self) -> None:
        self._images: list[Path] = []
        self._tiles: list[int] = []
        self._features: list[Tensor] = []
        self._cache = DynamicCache(config=self.model.language_model.config)
        # Of each position in the cache: its token and the visual token that it shows.
        self._held = np.empty((0, 2), dtype=np.int64)

    def _encode(self, dialogue: Dialogue) -> EncodedConversation:
        return encode_conversation(
            dialogue.turns,
            self.tokenizer,
            template="chatml",
            family=self.language.family,
            tiles_per_image=self._tiles,
            tokens_per_tile=self.vision.tokens_per_tile,
            tile_tags=True,
            generation=True,
        )

    def _read(self, prompt: EncodedConversation) -> int:
        """Read what of ``prompt`` the cache does not hold; the token that follows it."""
        wanted = np.stack([prompt.input_ids, prompt.visual_index], axis=1)
        shared = min(len(wanted) - 1, len(self._held))  # the last one is read, to be answered
        differ = (wanted[:shared] != self._held[:shared]).any(axis=1).nonzero()[0]
        kept = int(differ[0]) if len(differ) else shared
        if kept < len(self._held):
            self._cache.crop(kept - len(self._held))
        self._held = self._held[:kept]
        return self._forward(wanted[kept:])

    def _step(self, token: int) -> int:
        return self._forward(np.array([[token, TEXT]]))

    @torch.no_grad()
    def _forward(self, read: np.ndarray) -> int:
        """Read tokens and visual indices (S, 2) after those held; the most likely next token."""
        device = self.model.vision_model.embeddings.cls_token.device
        ids, visual = torch.from_numpy(read.T.copy()).to(device).unsqueeze(1)  # (1, S) each
        start = len(self._held)
        self._held = np.concatenate([self._held, read])
        features = torch.cat(self._features)[None] if self._features else None
        try:
            hidden = self.model(
                ids,
                position_ids=torch.arange(start, len(self._held), device=device)[None],
                attention_mask=torch.ones(1, len(self._held), dtype=torch.long, device=device),
                visual_index=visual,
                features=features,
                cache=self._cache,
            )
        except BaseException:  # Ctrl-C, too: some layers have read, others have not
            self._forget()
            raise
        logits = self.model.language_model.lm_head(hidden[0, -1])
        return int(logits[: self.model.vocabulary].argmax())


@contextmanager
def open_checkpoint(checkpoint: Path) -> Iterator[LocalModel]:
    """The model in ``checkpoint``, in this process; laid out anew in a temporary directory if its
    grid is larger. Raises UserError if it is damaged, or no whole model."""
    manifest = read_manifest(checkpoint)
    if not (manifest.architecture.vision and manifest.architecture.language):
        raise UserError(f"{checkpoint} is one half of a model: combine it with the other one first")
    _be_only_rank()
    with tempfile.TemporaryDirectory(prefix="nvlm-chat-") as scratch:
        if (manifest.grid.tensor, manifest.grid.pipeline) != (1, 1):
            print("laying the checkpoint out for one process", file=sys.stderr, flush=True)
            reshard(checkpoint, Path(scratch) / "one", tensor=1, pipeline=1)
            checkpoint = Path(scratch) / "one"
        with parallel_mesh(GridParams(tensor=1)) as mesh:
            # bf16 without a GPU is slower than fp32, and of fewer digits.
            dtype = torch.float32 if mesh.device.type == "cpu" else torch.bfloat16
            model = load_model(checkpoint, mesh, dtype, gather_logits=True)
            yield LocalModel(model, load_tokenizer(checkpoint / "tokenizer"))


def _be_only_rank() -> None:
    """What a launcher tells a rank, for a process that is alone."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = listener.getsockname()[1]
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost"}
    os.environ.update(alone, MASTER_PORT=str(port))
