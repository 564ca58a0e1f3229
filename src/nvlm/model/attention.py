"""Who sees whom in a row, and the kernel that computes it.

Three cases, none of which lets packed samples see one another:

- Rows of one sample (``packing: false``, the full scale): causal, without a mask. Padding comes
  last, so that no token sees it. A mask would keep PyTorch from its flash kernel, and from grouped
  queries.
- Packed rows on a GPU: PyTorch's own ``varlen_attn``, a sequence a sample, by lengths that the
  loader has made. Its backward pass heeds ``use_deterministic_algorithms``. (transformers'
  flash_attention_2 finds packed samples in batches of one row alone, waits for the GPU in every
  layer to look for them, and takes each padded position for a sequence of its own.)
- Packed rows elsewhere: a mask.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

VARLEN = "nvlm_varlen"  # the name by which transformers finds ``varlen_attention``
CAUSAL = (-1, 0)  # varlen_attn's window: all that is before, nothing that is after


def packed_mask(segment_ids: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, S) segments to (B, 1, S, S), 0 where attended, else -inf.

    A token sees itself and the earlier tokens of its own segment. Padding (segment 0) sees only
    padding, so that no row of the softmax is empty. A mask of booleans would be turned into this
    one anew in every layer.
    """
    length = segment_ids.shape[1]
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    causal = torch.ones(length, length, dtype=torch.bool, device=segment_ids.device).tril()
    mask = torch.zeros(same.shape, dtype=dtype, device=segment_ids.device)
    return mask.masked_fill_(~(same & causal), -torch.inf)[:, None]


def varlen_inputs(segment_lengths: Tensor) -> dict[str, Tensor]:
    """What ``varlen_attention`` needs, from (B, K) lengths of the segments of each row.

    Padding is a segment, so that a row's lengths add up to its positions; some may be 0. The mask
    is one that transformers hands on as it is: without one it would make its own.
    """
    ends = pad(segment_lengths.flatten().cumsum(0), (1, 0)).int()  # (B K + 1,)
    return {"attention_mask": ends.new_zeros(1, 1, 1, 1), "segment_ends": ends}


def varlen_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    segment_ends: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: (B, heads, S, D) to (B, S, heads, D).

    Without ``segment_ends``, as in generation, it is transformers' own SDPA.
    """
    if segment_ends is None:
        output: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
        return output
    from torch.nn.attention.varlen import varlen_attn

    rows, heads, length, size = query.shape
    attended = varlen_attn(
        query.transpose(1, 2).flatten(0, 1),  # (B S, heads, D)
        key.transpose(1, 2).flatten(0, 1),
        value.transpose(1, 2).flatten(0, 1),
        segment_ends,
        segment_ends,
        length,
        length,
        scale=scaling,
        window_size=CAUSAL,
        enable_gqa=heads != key.shape[1],
    )
    assert isinstance(attended, Tensor)
    return attended.view(rows, length, heads, size), None


AttentionInterface.register(VARLEN, varlen_attention)
AttentionMaskInterface.register(VARLEN, sdpa_mask)
