"""LongLoRA's attention in training (arXiv 2309.12307, algorithm 1): `shifted_attention(…, group=2048, context=8192)`.

A row is cut into groups, and a token attends to its own group; for the second half of the heads the groups are shifted
by half a group, so that neighbours know of each other. The last shifted group wraps around the context: it is made of
its end and its beginning. Left as it is, the beginning would see the end, which it is to predict; so no token attends
to a later one. With one group as long as the context this is plain causal attention.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Segment", "register", "segments", "shifted_attention"]


class Segment(NamedTuple):
    """Tokens that attend to each other.

    Attributes:
        start: the first of them.
        end: the one after the last.
        first: so many tokens of the row's beginning are in their group too.
    """

    start: int
    end: int
    first: int = 0


def segments(length: int, group: int, context: int, shift: int) -> list[Segment]:
    """The groups of a row.

    Args:
        length: tokens of the row.
        group: tokens of a group.
        context: tokens of the longest row, where the groups wrap around.
        shift: so many tokens the groups are shifted by.
    """
    around = max(context, -(-length // group) * group) - shift
    borders = [0, *range(shift or group, length, group), length]
    return [Segment(start, end, shift if start >= around > 0 else 0) for start, end in pairwise(borders)]


def shifted_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    group: int,
    context: int,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """An attention function as transformers calls it; plain where the module is not in training.

    A mask is not looked at in training: rows are padded on the right, which no token before the padding attends to.

    Args:
        module: the attention layer.
        query: (rows, heads, tokens, width).
        key: (rows, heads of keys, tokens, width).
        value: like key.
        attention_mask: for plain attention.
        group: tokens of a group.
        context: tokens of the longest row.
        dropout: share of weights that are dropped.
        scaling: of the products of queries and keys.
        kwargs: what else transformers hands over.

    Returns:
        (rows, tokens, heads, width), and no weights.
    """
    import torch
    from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

    if not module.training:
        plain: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return plain
    times = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, times), repeat_kv(value, times)
    half, length = query.shape[1] // 2, query.shape[2]
    made = []
    for heads, shift in ((slice(None, half), 0), (slice(half, None), group // 2)):
        parts = [
            _attend(query[:, heads], key[:, heads], value[:, heads], segment, dropout, scaling)
            for segment in segments(length, group, context, shift)
        ]
        made.append(torch.cat(parts, dim=2))
    return torch.cat(made, dim=1).transpose(1, 2).contiguous(), None


def _attend(
    query: Tensor, key: Tensor, value: Tensor, segment: Segment, dropout: float, scaling: float | None
) -> Tensor:
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    own, mask = slice(segment.start, segment.end), None
    keys, values = key[:, :, own], value[:, :, own]
    if segment.first:
        keys, values = (torch.cat([whole[:, :, : segment.first], whole[:, :, own]], dim=2) for whole in (key, value))
        size = segment.end - segment.start
        mask = torch.ones(size, size + segment.first, dtype=torch.bool, device=query.device).tril(segment.first)
    return scaled_dot_product_attention(
        query[:, :, own], keys, values, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scaling
    )


def register(group: int, context: int) -> str:
    """Makes it known to transformers, for these numbers.

    Returns:
        The name, for `model.set_attn_implementation`.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    name = f"shifted_{group}_of_{context}"
    AttentionInterface.register(name, partial(shifted_attention, group=group, context=context))
    AttentionMaskInterface.register(name, sdpa_mask)
    return name
