"""Open a GGUF file, or a model in several, with the `gguf` library. Types of values are checked."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, TypeVar

import gguf
import numpy as np
from numpy.typing import NDArray

from hivellm_export.huggingface.files import check_link
from hivellm_ort.errors import ExportError

__all__ = ["GgufFile", "parts_of"]

_PART = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)
_Kind = TypeVar("_Kind", str, int, float, bool, list[Any])


class _Reader(gguf.GGUFReader):
    """The library's reader, with clear errors for files that end too early and for unknown quantisation types."""

    def _get(self, offset: Any, dtype: Any, count: Any = 1, override_order: Any = None) -> NDArray[Any]:
        # A plain array: slices of a memory map are several times slower, and a vocabulary needs 500,000 of them.
        data = self.__dict__.setdefault("_plain", np.asarray(self.data))
        begin, kind = int(offset), np.dtype(dtype)
        end = begin + kind.itemsize * int(count)
        if end > data.size:
            raise ValueError(
                f"the file ends at byte {data.size}, but {end} are needed: it is damaged or incomplete"
            )
        return data[begin:end].view(kind.newbyteorder(override_order or self.byte_order))

    def _get_tensor_info_field(self, orig_offs: int) -> Any:
        field = super()._get_tensor_info_field(orig_offs)
        number = int(field.parts[4][0])
        if number not in gguf.GGMLQuantizationType.__members__.values():
            raise ValueError(
                f"tensor {field.name} has quantisation type {number}, which gguf {_version()} does not know"
            )
        return field


class GgufFile:
    """The metadata and tensors of one model.

    Args:
        path: The file, or the first part of a model in several files.

    Attributes:
        name: Name of the file, for messages.
        paths: All files, in order.
        keys: Every metadata key of the first file.
        tensors: By name, the library's `ReaderTensor` of all files. Data is read when it is used.

    Raises:
        ExportError: A file is damaged, a part is missing, or the file holds no model.
    """

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self.paths = parts_of(path)
        readers = [self._opened(part) for part in self.paths]
        self._fields = readers[0].fields
        self.keys = tuple(key for key in self._fields if not key.startswith("GGUF."))
        count = self.value("split.count", int, 0) or 1
        if count != len(self.paths):
            raise ExportError(
                f"{self.name}: split.count is {count}, but the file's name says {len(self.paths)}: rename the parts "
                f"to …-00001-of-{count:05}.gguf"
            )
        self.tensors: dict[str, gguf.ReaderTensor] = {}
        for reader, part in zip(readers, self.paths, strict=True):
            for tensor in reader.tensors:
                if tensor.name in self.tensors:
                    raise ExportError(f"{part.name}: tensor {tensor.name} is in another part too")
                self.tensors[tensor.name] = tensor
        kind = self.value("general.type", str, "model")
        if kind != "model":
            raise ExportError(f"{self.name}: general.type is {kind!r}: not the file of a language model")

    def _opened(self, path: Path) -> _Reader:
        try:
            reader = _Reader(path)
        except Exception as error:  # the library raises errors of many types
            reason = str(error).replace("\n", " ") or type(error).__name__
            raise ExportError(f"{path.name}: cannot be read as a base model: {reason}") from error
        if reader.byte_order != "I":
            raise ExportError(
                f"{path.name}: it has another byte order than this machine, and the gguf package cannot dequantise "
                "it: convert it with gguf-convert-endian"
            )
        return reader

    def value(self, key: str, kind: type[_Kind], default: Any = ...) -> _Kind:
        """Read a metadata value.

        Args:
            key: The key.
            kind: The value's type. Integers are accepted as floats; items of lists are not checked.
            default: Value if the key is missing; without a default this is an error.

        Raises:
            ExportError: The key is missing, or its value has another type.
        """
        field = self._fields.get(key)
        if field is None:
            if default is ...:
                raise ExportError(f"{self.name}: {key} is missing")
            return default
        try:
            value = field.contents()
        except ValueError as error:  # text that is not UTF-8
            raise ExportError(f"{self.name}: {key} cannot be read: {error}") from error
        if kind is not list and isinstance(value, list) and len(set(value)) == 1:
            value = value[0]  # the same value for all layers
        if kind is float and type(value) in (int, float):
            # The shortest decimal of a float32: 1e-06 and not 9.999999974752427e-07.
            return float(str(np.float32(value)))  # type: ignore[return-value]
        if type(value) is not kind:
            found = "an array" if isinstance(value, list) else repr(value)
            what = ", one for each layer," if isinstance(value, list) else ""
            raise ExportError(
                f"{self.name}: {key} is {found}{what} and must be one value of type {kind.__name__}"
            )
        return value

    def array(self, name: str) -> NDArray[np.float32]:
        """Read a tensor in float32, dequantised, with dimensions in the order of PyTorch.

        Raises:
            ExportError: The `gguf` library cannot dequantise its type, or a value is NaN or infinite.
        """
        tensor = self.tensors[name]
        try:
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            raise ExportError(
                f"{self.name}: tensor {name} has the type {tensor.tensor_type.name}, which gguf {_version()} cannot "
                "dequantise: use a file with another quantisation"
            ) from error
        values = np.array(values, np.float32)  # a copy, not pages of the file
        if not np.isfinite(values).all():
            raise ExportError(f"{self.name}: tensor {name} holds NaN or infinity")
        return values


def parts_of(path: Path) -> list[Path]:
    """The file, or all parts of a model whose first part it is.

    Raises:
        ExportError: The file is a later part, or a part is missing.
    """
    found = _PART.fullmatch(path.name)
    if found is None:
        return [path]
    count = int(found["count"])
    names = [f"{found['stem']}-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)]
    if int(found["number"]) != 1:
        raise ExportError(f"{path.name} is one part of a model in {count} files: give the first, {names[0]}")
    for name in names:
        if not (path.parent / name).is_file():
            raise ExportError(f"{name} is missing: {path.name} is the first of {count} files")
        check_link(path.parent / name)
    return [path, *(path.parent / name for name in names[1:])]


def _version() -> str:
    from importlib.metadata import version

    return version("gguf")
