"""What becomes of a base tensor when an adapter is merged: `edit.apply(base)`, for each kind of adapter.

An edit knows its parts by role: the adapter's tensors, as it names them. `replacement` stands in for the base tensor.
Everything is computed in float32 and given back in the data type of the base.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["AdaLoraEdit", "BoftEdit", "Edit", "FourierEdit", "VeraEdit"]


@dataclass(frozen=True)
class Edit:
    """LoRA, rsLoRA and DoRA; a bias that is added; a tensor that is replaced.

    Attributes:
        name: the base tensor, as the adapter names it.
        parts: the adapter's tensors by role. `replacement` stands in for the base; `A` (rank x inputs) and `B`
            (outputs x rank), or `embedding_A` (rank x tokens) and `embedding_B` (width x rank), are added to it as a
            product; `bias` is added; `magnitude_vector` is the length that DoRA then gives to each output.
        scaling: strength of the update: for LoRA lora_alpha / r, or lora_alpha / sqrt(r) for rsLoRA.
        transposed: the base stores inputs first (Conv1D of GPT-2).
    """

    name: str
    parts: Mapping[str, Tensor]
    scaling: float = 1.0
    transposed: bool = False

    def shape(self) -> tuple[int, ...]:
        """The shape that the base tensor must have."""
        parts = self.parts
        if "A" in parts:
            return self._stored(parts["B"].shape[0], parts["A"].shape[1])
        if "embedding_A" in parts:
            return (parts["embedding_A"].shape[1], parts["embedding_B"].shape[0])
        return tuple(next(iter(parts.values())).shape)

    def apply(self, base: Tensor) -> Tensor:
        """The merged tensor."""
        parts = {role: part.float() for role, part in self.parts.items()}
        merged: Tensor = parts["replacement"] if "replacement" in parts else base.float()
        result: Tensor = self._change(merged, parts).to(base.dtype)
        return result

    def _change(self, merged: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
        if "bias" in parts:
            merged = merged + self.scaling * parts["bias"]
        if "A" in parts:
            merged = merged + self._as_stored(self.scaling * (parts["B"] @ parts["A"]))
        if "embedding_A" in parts:
            merged = merged + self.scaling * (parts["embedding_B"] @ parts["embedding_A"]).T
        if "magnitude_vector" in parts:
            outputs_first = "A" in parts and not self.transposed
            merged = _at_length(merged, parts["magnitude_vector"].flatten(), outputs_first)
        return merged

    def _stored(self, outputs: int, inputs: int) -> tuple[int, ...]:
        return (inputs, outputs) if self.transposed else (outputs, inputs)

    def _as_stored(self, update: Tensor) -> Tensor:
        return update.T if self.transposed else update


def _at_length(weight: Tensor, magnitude: Tensor, outputs_first: bool) -> Tensor:
    """DoRA (arXiv 2402.09353, equation 5): the weight's direction, times a learnt length for each output."""
    factor: Tensor = magnitude / weight.norm(dim=1 if outputs_first else 0)
    return weight * (factor[:, None] if outputs_first else factor)


@dataclass(frozen=True)
class AdaLoraEdit(Edit):
    """AdaLoRA: W + s B diag(E) A. Parts: `lora_A`, `lora_B`, `lora_E`; s is lora_alpha / init_r."""

    def shape(self) -> tuple[int, ...]:
        """See `Edit`."""
        return self._stored(self.parts["lora_B"].shape[0], self.parts["lora_A"].shape[1])

    def _change(self, merged: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
        return merged + self._as_stored(self.scaling * (parts["lora_B"] @ (parts["lora_A"] * parts["lora_E"])))


@dataclass(frozen=True)
class VeraEdit(Edit):
    """VeRA: W + diag(b) B diag(d) A, where A and B are shared, and larger than most layers need.

    Parts: `vera_lambda_b`, `vera_lambda_d`, `vera_A`, `vera_B`.

    Attributes:
        inputs: of the layer; the adapter's tensors do not tell.
    """

    inputs: int = 0

    def shape(self) -> tuple[int, ...]:
        """See `Edit`."""
        inputs = min(self.inputs, self.parts["vera_A"].shape[1])
        return self._stored(self.parts["vera_lambda_b"].shape[0], inputs)

    def _change(self, merged: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
        b, d = parts["vera_lambda_b"], parts["vera_lambda_d"]
        first = d[:, None] * parts["vera_A"][:, : self.inputs]
        return merged + self._as_stored((b[:, None] * parts["vera_B"][: len(b)]) @ first)


@dataclass(frozen=True)
class FourierEdit(Edit):
    """FourierFT: W + s Re(F⁻¹(C)), where C is zero but for the trained entries. Part: `fourierft_spectrum`.

    Attributes:
        stored: the shape of the base tensor; the adapter does not tell.
        seed: where the entries are follows from it.
    """

    stored: tuple[int, ...] = ()
    seed: int = 0

    def shape(self) -> tuple[int, ...]:
        """See `Edit`."""
        return self.stored

    def _change(self, merged: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
        import torch

        spectrum = parts["fourierft_spectrum"]
        outputs, inputs = reversed(self.stored) if self.transposed else self.stored
        order = torch.randperm(outputs * inputs, generator=torch.Generator().manual_seed(self.seed))
        dense = torch.zeros(outputs * inputs)
        dense[order[: len(spectrum)]] = spectrum
        return merged + self._as_stored(torch.fft.ifft2(dense.view(outputs, inputs)).real * self.scaling)


@dataclass(frozen=True)
class BoftEdit(Edit):
    """BOFT with one factor: diag(s) W Rᵀ, where R has rotations along its diagonal. Parts: `boft_R`, `boft_s`."""

    def shape(self) -> tuple[int, ...]:
        """See `Edit`."""
        _, blocks, size, _ = self.parts["boft_R"].shape
        return (self.parts["boft_s"].shape[0], blocks * size)

    def _change(self, merged: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
        """Block by block: R as a whole would be as large as the weight."""
        import torch

        blocks = parts["boft_R"][0]
        skew = 0.5 * (blocks - blocks.transpose(1, 2))
        one = torch.eye(blocks.shape[-1])
        rotations = torch.linalg.solve(one + skew, one - skew, left=False)  # Cayley
        outputs, inputs = merged.shape
        parted = merged.view(outputs, len(blocks), -1)
        rotated = torch.einsum("obj,bij->obi", parted, rotations).reshape(outputs, inputs)
        return rotated * parts["boft_s"]
