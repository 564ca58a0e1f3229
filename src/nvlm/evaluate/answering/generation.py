"""Batched answers: questions of one image together, the longest prompts first.

The longest batch comes first so that one too large for memory shows at once, and the time left on
the progress bar only ever shrinks. What is held in memory doesn't grow with the benchmark: images
are opened for their size first, and decoded a batch at a time, while the model answers the batch
before.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from nvlm.evaluate.answering.answers import Answer
from nvlm.evaluate.answering.ask import images, prompt
from nvlm.evaluate.answering.prompter import Prompter
from nvlm.evaluate.answering.sampling import SeededSampling
from nvlm.evaluate.answering.shared_prefix import PromptTree, generate_from_tree, prompt_tree
from nvlm.evaluate.params import RunParams
from nvlm.evaluate.question import Question
from nvlm.model.nvlm import NVLM
from nvlm.model.prompts import END
from nvlm.parallel.tensor import encode_shared


def batches_by_length(
    lengths: Sequence[int], batch_size: int, images: Sequence[Hashable] | None = None
) -> Iterator[list[int]]:
    """Places in ``lengths``, in batches of neighbours by length, the longest first.

    Places with equal ``images`` stay together, as far as batches allow; the longest of them counts.
    """
    shown = images if images is not None else range(len(lengths))
    longest: dict[Hashable, tuple[int, int]] = {}
    for place, key in enumerate(shown):
        length, first = longest.get(key, (0, place))
        longest[key] = max(length, lengths[place]), first

    def order(place: int) -> tuple[int, int, int, int]:
        length, first = longest[shown[place]]
        return -length, first, -lengths[place], place

    places = sorted(range(len(lengths)), key=order)
    for start in range(0, len(places), batch_size):
        yield places[start : start + batch_size]


def generate_answers(
    model: NVLM,
    prompter: Prompter,
    questions: Sequence[Question],
    run: RunParams,
    *,
    group: dist.ProcessGroup,
    write: Callable[[Sequence[Answer]], None] | None,
) -> None:
    """Give the model's answers to ``write``, a batch at a time.

    Every rank of the model's tensor-parallel ``group`` calls this with the same questions; the one
    that writes shows the progress.
    """
    quiet = True if write is None else None
    lengths = [
        prompter.length(question) for question in tqdm(questions, "prompts", disable=quiet, delay=2)
    ]
    shown = [tuple(images(question, prompter.ask)) for question in questions]

    def encode(tiles: Tensor) -> Tensor:
        return encode_shared(model, tiles, group, run.tile_chunk)

    batches = (
        [questions[place] for place in places]
        for places in batches_by_length(lengths, run.batch_size, shown)
    )
    with tqdm(total=len(questions), desc="answers", unit="question", disable=quiet) as bar:
        for batch, tree in _read_ahead(prompter, batches):
            texts = answer_batch(model, prompter, batch, tree, encode)
            if write is not None:
                write(
                    [
                        Answer(
                            question_id=question.id,
                            prompt=prompt(question, prompter.ask),
                            text=text,
                            grids=prompter.grids(question),
                        )
                        for question, text in zip(batch, texts, strict=True)
                    ]
                )
            bar.update(len(batch))


def _read_ahead(
    prompter: Prompter, batches: Iterable[list[Question]]
) -> Iterator[tuple[list[Question], PromptTree]]:
    """``batches`` and what the model reads of each, the next one's being made on another thread."""

    def read(batch: Sequence[Question]) -> PromptTree:
        samples = [prompter.encode(question) for question in batch]
        return prompt_tree(samples, [tuple(images(each, prompter.ask)) for each in batch])

    with ThreadPoolExecutor(1) as reader:
        waiting = None
        for batch in batches:
            following = batch, reader.submit(read, batch)
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = following
        if waiting is not None:
            yield waiting[0], waiting[1].result()


def answer_batch(
    model: NVLM,
    prompter: Prompter,
    questions: Sequence[Question],
    tree: PromptTree,
    encode: Callable[[Tensor], Tensor],
) -> list[str]:
    """The answers to ``questions``, asked at once as ``tree`` has them, in their order.

    ``encode`` gives the tower's features of tiles.
    """
    stop_ids = stop_tokens(prompter.tokenizer)
    sampling = prompter.params.sampling
    ids = [question.id for question in questions]
    generated = generate_from_tree(
        model,
        tree,
        encode,
        max_new_tokens=prompter.ask.max_new_tokens,
        stop_ids=stop_ids,
        processors=[] if sampling is None else [SeededSampling(sampling, ids)],
    )
    return [decode(prompter.tokenizer, row, stop_ids) for row in generated.tolist()]


def stop_tokens(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """ChatML's end of turn, and the tokenizer's own end of text where that is another token."""
    end = tokenizer.get_added_vocab()[END]
    eos = tokenizer.eos_token_id
    return [end] if eos is None or eos == end else [end, eos]


def decode(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int], stop_ids: Sequence[int]) -> str:
    """The text of ``ids`` up to the first stop token, without white space at its ends."""
    length = next((place for place, token in enumerate(ids) if token in stop_ids), len(ids))
    return str(tokenizer.decode(list(ids[:length]), skip_special_tokens=True)).strip()
