"""Batched answers: questions of similar length together, the longest first.

The longest batch comes first so that one too large for memory shows at once, and the time left on
the progress bar only ever shrinks. What is held in memory doesn't grow with the benchmark: images
are opened for their size first, and decoded a batch at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch.distributed as dist
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from nvlm.evaluate.answers import Answer
from nvlm.evaluate.ask import prompt
from nvlm.evaluate.params import RunParams
from nvlm.evaluate.prompter import Prompter, left_pad
from nvlm.evaluate.question import Question
from nvlm.evaluate.sampling import SeededSampling
from nvlm.model.nvlm import NVLM
from nvlm.model.prompts import END
from nvlm.parallel.tensor import encode_shared


def batches_by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Places in ``lengths``, in batches of neighbours by length, the longest first."""
    order = sorted(range(len(lengths)), key=lambda place: (-lengths[place], place))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


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
    with tqdm(total=len(questions), desc="answers", unit="question", disable=quiet) as bar:
        for places in batches_by_length(lengths, run.batch_size):
            batch = [questions[place] for place in places]
            texts = answer_batch(model, prompter, batch, run.tile_chunk, group)
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
            bar.update(len(places))


def answer_batch(
    model: NVLM,
    prompter: Prompter,
    questions: Sequence[Question],
    tile_chunk: int,
    group: dist.ProcessGroup,
) -> list[str]:
    """The answers to ``questions``, asked at once, in their order."""
    device = next(model.parameters()).device
    stop_ids = stop_tokens(prompter.tokenizer)
    batch = left_pad([prompter.encode(question) for question in questions])
    sampling = prompter.params.sampling
    ids = [question.id for question in questions]
    generated = model.generate(
        input_ids=batch.input_ids.to(device),
        attention_mask=batch.attention_mask.to(device),
        visual_index=batch.visual_index.to(device),
        features=encode_shared(model, batch.tiles.to(device), group, tile_chunk),
        tiles_per_row=batch.tiles_per_row,
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
