"""Logits of Megatron-core's GPTModel from a checkpoint of ours: run by its own Python, on CPUs.

Run with: python megatron_logits.py CHECKPOINT FORMAT RANKS IDS.pt LOGITS.pt PORT
"""

import contextlib
import os
import sys
from pathlib import Path

import torch
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker
from megatron.core.transformer.transformer_config import TransformerConfig
from torch.multiprocessing.spawn import spawn

# Rotary embeddings go to the current device, which PyTorch for CPUs has none of.
vars(torch.cuda)["current_device"] = lambda: "cpu"


def main(rank: int, directory: str, form: str, ranks: int, ids: str, logits: str) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks)}
    torch.distributed.init_process_group("gloo")
    parallel_state.initialize_model_parallel(ranks)
    iteration = Path(directory) / "iter_0000001"
    if form == "torch_dist":
        common = dist_checkpointing.load_common_state_dict(str(iteration))
    else:
        path = iteration / f"mp_rank_{rank:02d}/model_optim_rng.pt"
        common = torch.load(path, weights_only=False)
    args = common["args"]
    config = TransformerConfig(
        tensor_model_parallel_size=ranks,
        num_layers=args.num_layers,
        hidden_size=args.hidden_size,
        ffn_hidden_size=args.ffn_hidden_size,
        num_attention_heads=args.num_attention_heads,
        num_query_groups=args.num_query_groups,
        normalization=args.normalization,
        layernorm_epsilon=args.norm_epsilon,
        add_bias_linear=args.add_bias_linear,
        add_qkv_bias=args.add_qkv_bias,
        gated_linear_unit=args.swiglu,
        activation_func=torch.nn.functional.silu,
        hidden_dropout=args.hidden_dropout,
        attention_dropout=args.attention_dropout,
        use_cpu_initialization=True,
    )
    model = GPTModel(
        config,
        get_gpt_layer_local_spec(normalization=args.normalization),
        vocab_size=args.padded_vocab_size,
        max_sequence_length=args.max_position_embeddings,
        position_embedding_type=args.position_embedding_type,
        rotary_base=args.rotary_base,
        share_embeddings_and_output_weights=not args.untie_embeddings_and_output_weights,
        parallel_output=False,
    )
    if form == "torch_dist":
        sharded = model.sharded_state_dict(metadata=common["content_metadata"])
        state = dist_checkpointing.load({"model": sharded}, str(iteration))["model"]
    else:
        # The norms' names without Transformer Engine, as the layer specs map them.
        new = {
            "linear_qkv.layer_norm_": "input_layernorm.",
            "fc1.layer_norm_": "pre_mlp_layernorm.",
        }
        state = {}
        for name, value in common["model"].items():
            for old, local in new.items():
                if old in name:
                    layer = ".".join(name.split(".")[:3])
                    state[f"{layer}.{local}{name.rpartition('_')[2]}"] = value
                    break
            else:
                state[name] = value
    missing, unexpected = model.load_state_dict(state, strict=False)
    odd = [name for name in (*missing, *unexpected) if "_extra_state" not in name]
    assert not odd, odd
    # Dropout draws from CUDA's generators, also where its probability is 0.
    get_cuda_rng_tracker().fork = contextlib.nullcontext
    tokens = torch.load(ids)
    positions = torch.arange(tokens.shape[1])[None]
    mask = torch.ones(1, 1, tokens.shape[1], tokens.shape[1]).triu(1).bool()
    with torch.no_grad():
        found = model.eval()(tokens, positions, mask)
    if rank == 0:
        torch.save(found, logits)


if __name__ == "__main__":
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": sys.argv.pop()}
    words = sys.argv[1:]
    arguments = (words[0], words[1], int(words[2]), words[3], words[4])
    spawn(main, arguments, nprocs=arguments[2])
