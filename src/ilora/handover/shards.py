"""The safetensors files of a model: single tensors are read, and written over in a copy, with nothing else in memory.

A file is the length of its header in 8 bytes, the header (JSON: type, shape and place of each tensor), and the data.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ilora.errors import InputError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Shard:
    """One safetensors file."""

    path: Path

    @cached_property
    def _header(self) -> tuple[dict[str, Any], int]:
        """The header, and where the data begins."""
        try:
            with self.path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                if length > self.path.stat().st_size:
                    raise ValueError("its header is longer than the file")
                header = json.loads(file.read(length))
        except (OSError, ValueError, struct.error) as error:
            raise InputError(f"{self.path}: not a safetensors file: {error}") from None
        header.pop("__metadata__", None)
        return header, 8 + length

    @property
    def names(self) -> list[str]:
        """Of its tensors."""
        return list(self._header[0])

    def read(self, name: str) -> Tensor:
        """One tensor, as it is stored. Raises InputError for one that is not of plain floats, or is cut off."""
        entry, start, size = self._place(name)
        if entry["dtype"] not in _TYPES:
            raise InputError(f"{self.path}: {name} is of type {entry['dtype']}; allowed are {', '.join(_TYPES)}")
        content = bytearray(size)
        with self.path.open("rb") as file:
            file.seek(start)
            if file.readinto(content) != size:
                raise InputError(f"{self.path}: {name} is cut off")
        return torch.frombuffer(content, dtype=_TYPES[entry["dtype"]]).view(entry["shape"])

    def overwrite(self, name: str, tensor: Tensor) -> None:
        """Put another tensor of the same type and shape in the place of one."""
        entry, start, size = self._place(name)
        if tensor.nbytes != size or tensor.dtype != _TYPES.get(entry["dtype"]):
            raise ValueError(f"{name}: {tensor.dtype} {tuple(tensor.shape)} in the place of {entry}")
        with self.path.open("r+b") as file:
            file.seek(start)
            file.write(memoryview(tensor.contiguous().flatten().view(torch.uint8).numpy()))  # type: ignore[arg-type]

    def _place(self, name: str) -> tuple[dict[str, Any], int, int]:
        header, start = self._header
        first, last = header[name]["data_offsets"]
        return header[name], start + first, last - first


class Checkpoint:
    """All weights of a model's folder, by name."""

    def __init__(self, folder: Path) -> None:
        """Raises InputError where the weights are not in safetensors files; nothing is unpickled."""
        self.folder, index = folder, folder / INDEX
        if index.is_file():
            files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        elif (folder / SINGLE).is_file():
            files = [SINGLE]
        else:
            raise InputError(f"{folder}: no {SINGLE} and no {INDEX}; other formats of weights are not read")
        if any(Path(name).name != name for name in files):
            raise InputError(f"{index}: it names a file outside of its folder")
        self.shards = [Shard(folder / name) for name in files]
        self._holds = {name: shard for shard in self.shards for name in shard.names}

    def name_of(self, weight: str, prefix: str) -> str | None:
        """The stored name of a weight: some checkpoints leave the base model's prefix (`transformer.`) out."""
        names = (weight, weight.removeprefix(f"{prefix}."))
        return next((name for name in names if name in self._holds), None)

    def shard_of(self, name: str) -> Shard:
        """The file with the tensor of that stored name."""
        return self._holds[name]
