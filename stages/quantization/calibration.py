"""Blocks of tokens that GPTQ looks at: `calibration_blocks(rows, num_samples=256, block=2048, seed=42)`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from stages.training.rows import TokenRows

__all__ = ["calibration_blocks"]


def calibration_blocks(rows: TokenRows, *, num_samples: int, block: int, seed: int) -> NDArray[np.int32]:
    """Shuffles the rows, leaves out those longer than a block, and cuts what remains, end to end, into blocks.

    Args:
        rows: tokenized rows; their labels do not matter.
        num_samples: rows at most (`--quant_n_samples`).
        block: tokens of a block (`--quant_seqlen`).
        seed: of the shuffle (`--data_seed`).

    Returns:
        Token ids of shape (blocks, block); the rest that fills no block is left out.

    Raises:
        DataError: there is not one block's worth of tokens.
    """
    import numpy as np

    lengths = rows.lengths
    lengths = rows.lengths
    order = np.random.default_rng(seed).permutation(len(rows)).tolist()
    fitting = [index for index in order if lengths[index] <= block]
    chosen = fitting[:num_samples]
    num_tokens = sum(lengths[index] for index in chosen)
    if num_tokens < block:
        longer = len(order) - len(fitting)
        raise DataError(
            f"calibration needs one block of `--quant_seqlen {block}` tokens, and {len(chosen)} rows have {num_tokens}"
            + (f" ({longer} longer rows are left out)" if longer else "")
            + (f". Raise `--quant_n_samples {num_samples}`" if len(chosen) < len(fitting) else ". Give more rows")
            + f", or lower `--quant_seqlen`{f' to {num_tokens} at most' if num_tokens else ''}"
        )
    ids = np.concatenate([rows[index]["input_ids"] for index in chosen])
    blocks: NDArray[np.int32] = ids[: num_tokens // block * block].reshape(-1, block)
    return blocks
