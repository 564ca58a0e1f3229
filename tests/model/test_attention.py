"""Packed samples never see one another, whatever computes attention; one sample needs no mask."""

import pytest
import torch
from tests.parallel.grids import make_batch
from tests.train.planning.test_plan import DECODER
from torch.nn.functional import scaled_dot_product_attention

from nvlm.model import attention
from nvlm.model.language import Stage, build_decoder


def varlen_by_hand(query, key, value, ends, _ends, longest, _longest, **options):
    """What PyTorch's varlen_attn computes, a sequence at a time; it has no kernel for a CPU."""
    assert options["window_size"] == (-1, 0) and longest >= int(ends.diff().max())
    out = torch.empty_like(query)
    for start, end in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        q, k, v = (t[start:end].transpose(0, 1)[None] for t in (query, key, value))
        seen = scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=options["scale"], enable_gqa=options["enable_gqa"]
        )
        out[start:end] = seen[0].transpose(0, 1)
    return out


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    return build_decoder(DECODER, 104, Stage(first=0, last=1)).eval()


def test_varlen_sees_what_the_mask_lets_see(decoder, monkeypatch):
    """Two samples and padding in each of several rows: a batch in which transformers' own search
    for packed samples finds none."""
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_by_hand)
    batch = make_batch(3, seed=1)
    hidden = torch.randn(3, batch.input_ids.shape[1], DECODER.hidden_size)
    options = {"inputs_embeds": hidden, "position_ids": batch.position_ids, "use_cache": False}
    mask = attention.packed_mask(batch.segment_ids, hidden.dtype)
    masked = decoder.model(attention_mask=mask, **options).last_hidden_state
    decoder.set_attn_implementation(attention.VARLEN)
    given = attention.varlen_inputs(batch.segment_lengths)
    varlen = decoder.model(**given, **options).last_hidden_state
    counted = batch.segment_ids > 0
    torch.testing.assert_close(varlen[counted], masked[counted])
    # The first sample alone gives the same: it has not seen the second.
    alone = {"inputs_embeds": hidden[:, :14], "position_ids": batch.position_ids[:, :14]}
    decoder.set_attn_implementation("sdpa")
    torch.testing.assert_close(decoder.model(**alone).last_hidden_state, masked[:, :14])


def test_generation_under_varlen_is_sdpa(decoder):
    ids = torch.randint(100, (2, 9))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    plain = decoder(input_ids=ids, attention_mask=mask).logits
    decoder.set_attn_implementation(attention.VARLEN)
    torch.testing.assert_close(decoder(input_ids=ids, attention_mask=mask).logits, plain)


def test_rows_of_one_sample_have_no_mask(decoder, monkeypatch):
    """Padding comes last and its positions run on, so that transformers sees no packed samples."""
    seen = []
    real = scaled_dot_product_attention

    def watched(query, key, value, attn_mask=None, **options):
        seen.append((attn_mask, options.get("is_causal")))
        return real(query, key, value, attn_mask, **options)

    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", watched)
    hidden = torch.randn(2, 20, DECODER.hidden_size)
    positions = torch.arange(20).expand(2, -1)
    decoder.model(inputs_embeds=hidden, position_ids=positions, attention_mask=None)
    assert seen == [(None, True)]
