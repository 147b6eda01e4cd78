"""Write `weights.bin`, the one external-data file of a bundle.

Tensors are quantised and written one at a time, so memory holds the model and one more matrix. The graphs of a bundle
share the tensors in the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hivellm_export.targets import Precision
from hivellm_export.weights.quantize import Quantized, block_size, quantize, quantize_channels, smoothing
from hivellm_ort.contract import WEIGHTS_FILE, Site, StoredWeights
from hivellm_ort.errors import ExportError

__all__ = ["ALIGNMENT", "FLOAT_TYPES", "Matrix", "WeightWriter"]

FLOAT_TYPES = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
}
"""By their names in `decoder.json`."""

ALIGNMENT = 4096  # one memory page, so that ONNX Runtime can map tensors instead of reading them


@dataclass(frozen=True)
class Matrix:
    """A weight matrix in the form that an operator needs.

    Attributes:
        bits: Bits of a value; 0 for floats.
        weight: The values. Floats are [K, N] if `transposed`, else [N, K]. Quantised by block: as
            `Quantized.blob`. For 8-bit activations: int8 [K, N].
        scales: Of quantised values: one per block, or one per output for 8-bit activations.
        zero_points: Of asymmetric blocks; None if symmetric.
        transposed: Whether floats are stored [K, N].
        block: Number of values along K that share a scale; 0 for floats and for 8-bit activations.
        smoothing: For 8-bit activations, the factors of the inputs, float32 [K]; else None.
    """

    bits: int
    weight: ir.ExternalTensor
    scales: ir.ExternalTensor | None = None
    zero_points: ir.ExternalTensor | None = None
    transposed: bool = False
    block: int = 0
    smoothing: ir.ExternalTensor | None = None


class WeightWriter:
    """Writes `weights.bin` and gives the tensors of graphs.

    Args:
        folder: Folder of the file, which must not exist yet.
        tensor: Gives a weight by its name in transformers, float32 [N, K] or [N].
        precision: Bits of projections, embedding and LM head, and the float type of everything else.
        tied: Whether embedding and LM head are one tensor.
        ranges: For 8-bit activations: by linear module, the largest magnitude of each input, float32 [K].
    """

    def __init__(
        self,
        folder: Path,
        tensor: Callable[[str], NDArray[np.float32]],
        *,
        precision: Precision,
        tied: bool,
        ranges: Mapping[str, NDArray[np.float32]] | None = None,
    ):
        self._folder = folder
        self._tensor = tensor
        self._ranges = ranges or {}
        self._activation_bits = precision.activation_bits
        self._bits, self._head_bits = precision.bits, precision.head_bits
        self._dtype = FLOAT_TYPES[precision.dtype].numpy()
        self._tied = tied
        self._file: BinaryIO = (folder / WEIGHTS_FILE).open("xb")
        self._cache: dict[str, ir.ExternalTensor] = {}
        self._quantized: dict[str, Matrix] = {}

    def close(self) -> None:
        """Close the file. No tensor can be added later."""
        self._file.close()

    def vector(self, name: str, make: Callable[[], NDArray[np.float32]] | None = None) -> ir.ExternalTensor:
        """A tensor that is not quantised: the weight `name` (a norm, a bias), or what `make()` gives, as `name`."""
        return self._once(name, make or (lambda: self._tensor(name)))

    def bias(self, site: Site) -> ir.ExternalTensor:
        """The biases of a site, side by side; zeros for parts without a bias."""
        return self.vector(
            f"{site.name}.base_bias",
            lambda: np.concatenate(
                [
                    self._tensor(f"{part.module}.bias") if part.bias else np.zeros(part.size, np.float32)
                    for part in site.parts
                ]
            ),
        )

    def linear(self, modules: tuple[str, ...], siblings: tuple[str, ...] = ()) -> Matrix:
        """The weights of linear modules with one input, stacked along N.

        Floats are [K, N] for MatMul. The LM head is [N, K], to share the bytes of a tied embedding.

        Args:
            modules: Names in transformers.
            siblings: For 8-bit activations: all modules with this input, which is quantised once for all of them.
        """
        if modules == ("lm_head",):
            return self._head()
        key = "+".join(modules)
        if self._activation_bits:
            return self._channels(key, modules, siblings)
        if self._bits:
            return self._matrix(key, lambda: self._stack(modules), self._bits)
        weight = self._once(key, lambda: np.ascontiguousarray(self._stack(modules).T))
        return Matrix(0, weight, transposed=True)

    def stored(self, site: Site) -> StoredWeights:
        """Offsets of a site's weights in the file, for `decoder.json`."""
        matrix = self.linear(tuple(part.module for part in site.parts))
        return StoredWeights(
            weight=_offset(matrix.weight),
            bits=matrix.bits,
            block=matrix.block,
            scales=None if matrix.scales is None else _offset(matrix.scales),
            zero_points=None if matrix.zero_points is None else _offset(matrix.zero_points),
            bias=_offset(self.bias(site)) if site.bias else None,
            smoothing=None if matrix.smoothing is None else _offset(matrix.smoothing),
        )

    def embedding(self) -> Matrix:
        """The token embedding [V, H], for GatherBlockQuantized or Gather."""
        name = "model.embed_tokens"
        if not self._head_bits:
            return Matrix(0, self._once(name, lambda: self._tensor(f"{name}.weight")))
        matrix = self._matrix(name, lambda: self._tensor(f"{name}.weight"), self._head_bits)
        rows, blocks, size = matrix.weight.shape
        table = _view(matrix.weight, f"{name}.table", (rows, blocks * size))
        return Matrix(self._head_bits, table, matrix.scales, block=matrix.block)

    def _head(self) -> Matrix:
        name = "model.embed_tokens" if self._tied else "lm_head"
        if self._head_bits:
            return self._matrix(name, lambda: self._tensor(f"{name}.weight"), self._head_bits)
        return Matrix(0, self._once(name, lambda: self._tensor(f"{name}.weight")))

    def _stack(self, modules: tuple[str, ...]) -> NDArray[np.float32]:
        parts = [self._tensor(f"{module}.weight") for module in modules]
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def _matrix(self, key: str, weight: Callable[[], NDArray[np.float32]], bits: int) -> Matrix:
        if key not in self._quantized:
            values = weight()
            columns = values.shape[1]
            block = block_size(columns, bits)
            if key == "model.embed_tokens" and columns % block:
                raise ExportError(
                    f"hidden_size {columns} is not a multiple of {block}: export with --precision fp32"
                )
            result: Quantized = quantize(values, bits)
            zeros = result.zero_points
            self._quantized[key] = Matrix(
                bits,
                self._once(f"{key}.quantized", lambda: result.blob),
                self._once(f"{key}.scales", lambda: result.scales),
                None if zeros is None else self._once(f"{key}.zero_points", lambda: zeros),
                block=block,
            )
        return self._quantized[key]

    def _channels(self, key: str, modules: tuple[str, ...], siblings: tuple[str, ...]) -> Matrix:
        if key not in self._quantized:
            factors = self._smoothing(siblings)
            result = quantize_channels(self._stack(modules), factors)
            self._quantized[key] = Matrix(
                8,
                self._once(f"{key}.quantized", lambda: result.values),
                self._once(f"{key}.scales", lambda: result.scales),
                smoothing=self._once(f"{'+'.join(siblings)}.smoothing", lambda: factors),
            )
        return self._quantized[key]

    def _smoothing(self, modules: tuple[str, ...]) -> NDArray[np.float32]:
        columns = [np.abs(self._tensor(f"{module}.weight")).max(axis=0) for module in modules]
        return smoothing(self._ranges[modules[0]], np.maximum.reduce(columns))

    def _once(self, name: str, make: Callable[[], NDArray[Any]]) -> ir.ExternalTensor:
        if name not in self._cache:
            array = self._stored_form(name, make())
            offset = -(-self._file.tell() // ALIGNMENT) * ALIGNMENT
            self._file.write(bytes(offset - self._file.tell()))
            self._file.write(array.view(np.uint8).data)
            dtype = ir.DataType.from_numpy(array.dtype)
            self._cache[name] = ir.ExternalTensor(
                WEIGHTS_FILE,
                offset,
                array.nbytes,
                dtype,
                shape=ir.Shape(array.shape),
                name=name,
                base_dir=str(self._folder),
            )
        return self._cache[name]

    def _stored_form(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        """Make an array contiguous, and convert floats to the type of the bundle."""
        if array.dtype != np.float32 or self._dtype == np.float32:
            return np.ascontiguousarray(array)
        with np.errstate(over="ignore"):  # reported below, by name
            half = np.ascontiguousarray(array, dtype=self._dtype)
        if not np.isfinite(half).all():
            raise ExportError(
                f"tensor {name} has values beyond the range of {self._dtype}: use --target cuda --precision "
                "bf16, or fp32 or int8 for another target"
            )
        return half


def _offset(tensor: ir.ExternalTensor) -> int:
    assert tensor.offset is not None
    return tensor.offset


def _view(tensor: ir.ExternalTensor, name: str, shape: tuple[int, ...]) -> ir.ExternalTensor:
    """The same bytes of the file under another name and shape."""
    return ir.ExternalTensor(
        tensor.location,
        tensor.offset,
        tensor.length,
        tensor.dtype,
        shape=ir.Shape(shape),
        name=name,
        base_dir=str(tensor.base_dir),
    )
