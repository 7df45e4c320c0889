"""A checkpoint that is a pickle → its tensors and plain values, without running any of its code.

torch's weights-only reader builds tensors and plain containers. Training programs also store an argparse.Namespace,
loss scalers, NumPy arrays, paths and logs. These become inert objects: the class or function is never imported. A file
with any other name is refused before it is unpickled.

What a file claims is compared with its size before memory is allocated for it.
"""

from __future__ import annotations

import io
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from vmae_data.errors import DataError
from vmae_data.storage import refuse_special

__all__ = ["InertObject", "read_pickle"]

_HARMLESS = re.compile(
    r"argparse\.Namespace|(deepspeed|mmengine|(pytorch_)?lightning(_fabric)?)\..+"
    r"|numpy\.(ndarray|dtype|dtypes\..+|_?core\.multiarray\.(scalar|_reconstruct))"
    r"|pathlib\.(_local\.)?(Pure)?(Posix|Windows)?Path"
)
# torch builds these itself. The first makes as many bytes as it is told; the second may double its input.
_GROWING, _CODEC = "builtins.bytearray", "_codecs.encode"
_GROWING_CODECS = re.compile(r"(?i)(hex|base_?64|uu|quopri|quoted_?printable|bz2|zip|zlib)(_?codec)?|utf.?(16|32).*")
_OLD_PARTS = 4  # pickles before the tensors of a file from before torch 1.6: magic, version, machine, content
# Several names may share a tensor. All of them together claim no more than this many times the file's size.
_MAX_SHARING = 4
# torch.save began its files with this number before it wrote zip files.
_OLD_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


class InertObject:
    """Replaces an object whose class is not imported; keeps its stored fields."""

    fields: dict[str, Any]

    def __new__(cls, *_: object) -> InertObject:
        made = super().__new__(cls)
        made.fields = {}
        return made

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.fields.update({name: value for name, value in state.items() if isinstance(name, str)})


def read_pickle(path: Path) -> Any:
    """The content of a file of torch.save: tensors on the CPU, containers, numbers, strings and `InertObject`s.

    Tensors of a zip file stay on disk until they are used. Raises DataError naming what is not allowed to run, what is
    larger than the file, and members that differ from their checksums.
    """
    refuse_special(path)
    zipped = zipfile.is_zipfile(path)
    if zipped:
        _check_members(path)
    stubs = [(type("InertObject", (InertObject,), {}), name) for name in _harmless_names(path, zipped)]
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(list(stubs)):
            warnings.simplefilter("ignore")  # about the pickle protocol
            content = torch.load(str(path), map_location="cpu", weights_only=True, mmap=zipped or None)
    except FileNotFoundError:
        raise
    except Exception as error:  # damaged bytes can raise anything here
        raise _unreadable(path, error) from error
    _check_tensors(path, content)
    return content


def _check_members(path: Path) -> None:
    """Raises DataError for a member that is packed, larger than the file, or not as its CRC-32 states.

    torch.save packs nothing, and maps members into memory as they are. A CRC-32 of 0 means that it wrote none.
    """
    try:
        with zipfile.ZipFile(path) as file:
            members = file.infolist()
            packed = next((info.filename for info in members if info.compress_type != zipfile.ZIP_STORED), None)
            if packed or sum(info.file_size for info in members) > path.stat().st_size:
                raise DataError(
                    f"{path}: {packed or 'its content'} is compressed, and torch.save compresses nothing. "
                    "Unpack the file and save it with torch.save"
                )
            for info in members:
                with file.open(info) as member:
                    while info.CRC and member.read(1 << 20):
                        pass
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, RuntimeError, NotImplementedError) as error:
        raise _unreadable(path, error) from error


def _check_tensors(path: Path, content: Any) -> None:
    """Raises DataError if tensors claim far more numbers than the file has room for, before anything copies them."""
    size, claimed = path.stat().st_size, 0
    for name, tensor in _tensors(content):
        if tensor.layout is not torch.strided or tensor.device.type != "cpu":
            raise DataError(f"{path}: {name} is not a plain tensor. Save only the weights, as a dict of tensors")
        claimed += tensor.numel() * tensor.element_size()
        if claimed > _MAX_SHARING * size:
            raise DataError(
                f"{path}: {name} claims {tensor.numel()} numbers, which a file of {size} bytes does not hold. "
                "The file is damaged or made to fill the memory. Use another copy"
            )


def _tensors(content: Any) -> Iterator[tuple[str, Tensor]]:
    """All tensors below `content`, each container once, with the names that lead to them."""
    stack, seen = [("the content", content)], set()
    while stack:
        name, value = stack.pop()
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, Mapping | list | tuple | set) and id(value) not in seen:
            seen.add(id(value))
            items = value.items() if isinstance(value, Mapping) else enumerate(value)
            stack += [(str(key), inner) for key, inner in items]


def _harmless_names(path: Path, zipped: bool) -> list[str]:
    """The names in a file that become inert objects. Raises DataError for a name that is not known to be harmless."""
    allowed = torch._weights_only_unpickler._get_allowed_globals()
    try:
        if zipped:
            names, texts = _names_in(io.BytesIO(torch._C.PyTorchFileReader(str(path)).get_record("data.pkl")))
        else:
            names, texts = _names_of_old_file(path)
    except Exception as error:
        raise _unreadable(path, error) from error
    growing = _CODEC in names and next((text for text in texts if _GROWING_CODECS.fullmatch(text)), None)
    if growing:
        raise _unsafe(path, f"{_CODEC} with {growing}")
    for name in sorted(names):
        if name == _GROWING or not (name in allowed or _HARMLESS.fullmatch(name)):
            raise _unsafe(path, name)
    return sorted(names - allowed.keys())


def _names_of_old_file(path: Path) -> tuple[set[str], set[str]]:
    names, texts = set[str](), set[str]()
    with path.open("rb") as file:
        for _ in range(_OLD_PARTS):
            more = _names_in(file)
            names, texts = names | more[0], texts | more[1]
    return names, texts


def _names_in(pickled: IO[bytes]) -> tuple[set[str], set[str]]:
    """The names of classes and functions in one pickle, and its short texts. Nothing is unpickled."""
    names, texts = set[str](), set[str]()
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name in ("GLOBAL", "INST"):
            names.add(str(argument).replace(" ", ".", 1).replace("__builtin__.", "builtins."))
        elif isinstance(argument, str) and len(argument) < 32:
            texts.add(argument)
    return names, texts


def _unsafe(path: Path, name: str) -> DataError:
    return DataError(
        f"{path}: names {name}, which is not loaded because it could run code. "
        "Save only the weights, as a dict of tensors"
    )


def _unreadable(path: Path, error: Exception) -> DataError:
    named = re.search(r"GLOBAL (\S+)", str(error))
    if named:
        return _unsafe(path, named[1])
    if isinstance(error, OSError) and error.strerror:
        return DataError(f"{path}: can't be read ({error.strerror}). Check the file")
    return DataError(f"{path}: not a readable checkpoint. {_explanation(path)}")


def _explanation(path: Path) -> str:
    """What the file is instead, and the next step. torch's own message advises to turn the safety off."""
    with path.open("rb") as file:
        head = file.read(4096)
    if not head:
        return "The file is empty. Copy it again"
    if head.startswith((b"PK", _OLD_MAGIC)):
        return "The file is damaged, truncated, or not from torch.save. Copy it again"
    if head.startswith(b"version https://git-lfs"):
        return "The file is a Git LFS pointer. Run `git lfs pull` to fetch the weights"
    if head.startswith(b"\x80"):
        return "The file is a pickle that torch.save did not write. Save a dict of tensors with torch.save"
    text = head.decode("utf-8", errors="replace").strip()
    if text and text.isascii() and all(c.isprintable() or c.isspace() for c in text):
        return f"The file is text that begins with {text.splitlines()[0][:30]!r}. Use a file from torch.save"
    return "The file is not from torch.save. Use another file"
