"""Keeps libraries from talking over our own log lines and progress bar: `with quiet(): …`."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["quiet"]

# They complain at import of kernels that this machine cannot use, which changes nothing.
CHATTY = ("torchao", "torch.utils._pytree", "bitsandbytes", "accelerate", "torch.distributed.elastic")


@contextmanager
def quiet() -> Iterator[None]:
    """Errors only from the training libraries, and none of their progress bars; as before afterwards."""
    levels = {name: logging.getLogger(name).level for name in CHATTY}
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    from transformers.utils import logging as chatter

    verbosity, bar = chatter.get_verbosity(), chatter.is_progress_bar_enabled()
    chatter.set_verbosity_error()
    chatter.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # peft 0.21 asks transformers 5 by the old name.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            yield
    finally:
        chatter.set_verbosity(verbosity)
        if bar:
            chatter.enable_progress_bar()
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
