"""What a loaded model's times depend on, counted on its weights. Knows nothing of devices or of how long anything takes."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from transport.messages import ModelSizes

_EXPERTS = ".experts."  # in the names of their weights, in every model class of transformers that has them
_NUM_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


def model_sizes(module: PreTrainedModel, heads: int) -> ModelSizes:
    """Sizes of `module`, whose attention has `heads` query heads. A model that does not say how many experts a token goes to
    counts as one that uses them all.
    """
    config = module.config
    tables = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    output: nn.Module | None = module.get_output_embeddings()  # type: ignore[no-untyped-call]
    blocks = embedding = head = sparse = 0
    for name, weight in module.named_parameters():  # one that is used twice comes once
        if weight.ndim < 2:
            continue
        if id(weight) in tables:
            embedding += weight.numel()
        elif output is not None and weight is output.weight:
            head += weight.numel()
        else:
            blocks += weight.numel()
            sparse += weight.numel() * (_EXPERTS in name)
    experts = next((count for name in _NUM_EXPERTS if (count := getattr(config, name, None))), 1)
    chosen = getattr(config, "num_experts_per_tok", None) or experts
    return ModelSizes(
        heads=heads,
        hidden=config.hidden_size,
        block_params=blocks,
        active_params=blocks - sparse + sparse * chosen // experts,
        embedding_params=embedding,
        head_params=head,
        experts=experts,
        active_experts=chosen,
    )
