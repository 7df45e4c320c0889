"""A file of classes → the class names in the order of their numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec

from vmae_data.errors import MisuseError
from vmae_data.format import INDEX, NOT_JSON, Index, decode_record
from vmae_data.sources.text import read_text
from vmae_data.storage import StoragePath, exists, is_folder, listable, read_bytes, storage_path

__all__ = ["numbered_classes", "read_classes", "read_numbered_lines"]

EXPECTED_NUMBERS = 'Expected {"name": "0", …}'


def read_classes(url: str) -> tuple[str, ...]:
    """The classes of another data set (its folder or index.json), SSv2's labels, UCF101's classInd.txt, or one name per line.

    Raises MisuseError for a file without classes, a repeated class, and a file that is not text.
    """
    path = storage_path(url)
    if _is_data_set(path):
        path = path / INDEX
    if path.suffix == ".json":
        names = _classes_of_json(path)
    else:
        lines = _read_lines(path)
        names = numbered_lines(lines) or tuple(line.strip() for line in lines if line.strip())
    if not names:
        raise MisuseError(f"{url}: has no classes. Expected an index with labels, or a file with one class per line")
    repeated = next((name for name, count in Counter(names).items() if count > 1), None)
    if repeated is not None:
        raise MisuseError(f"{url}: has the class {repeated!r} twice. Each class has one number")
    return names


def _is_data_set(path: StoragePath) -> bool:
    """Whether this is a folder. A web server can't tell: there, a name without a suffix is a folder."""
    return not exists(path) and is_folder(path) if listable(path) else not path.suffix


def _classes_of_json(path: StoragePath) -> tuple[str, ...]:
    data = read_bytes(path)
    try:
        is_index = "shardlist" in msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    except NOT_JSON:
        is_index = False
    return decode_record(data, Index, str(path)).classes if is_index else numbered_classes(path)


def numbered_classes(path: StoragePath) -> tuple[str, ...]:
    """Classes from JSON of names and numbers, {"Bending something": "0", …}, in the order of the numbers.

    Raises MisuseError unless the numbers are 0, 1, 2, …
    """
    try:
        numbers = msgspec.json.decode(read_text(path, EXPECTED_NUMBERS), type=dict[str, int], strict=False)
    except NOT_JSON as error:
        raise MisuseError(f"{path}: is not JSON of names and numbers ({error}). {EXPECTED_NUMBERS}") from error
    if sorted(numbers.values()) != list(range(len(numbers))):
        raise MisuseError(f"{path}: its {len(numbers)} class numbers are not 0 to {len(numbers) - 1}, each once")
    return tuple(sorted(numbers, key=numbers.__getitem__))


def read_numbered_lines(path: StoragePath) -> tuple[str, ...]:
    """The classes of UCF101's classInd.txt or Moments in Time's moments_categories.txt. Raises MisuseError for another form."""
    classes = numbered_lines(_read_lines(path))
    if classes is None:
        raise MisuseError(f"{path}: expected lines such as `1 ApplyEyeMakeup` or `clapping,0`, one class per line")
    return classes


def _read_lines(path: StoragePath) -> list[str]:
    expected = "Expected a file in UTF-8 with one class per line"
    try:
        return read_text(path, expected).decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise MisuseError(f"{path}: is not text in UTF-8 ({error}). {expected}") from error


def numbered_lines(lines: Sequence[str]) -> tuple[str, ...] | None:
    """Classes from lines `1 ApplyEyeMakeup`, from 1 in order, or `clapping,0`, from 0; None for lines of another form."""
    lines = [line.strip() for line in lines if line.strip()]
    fields = [line.split(maxsplit=1) for line in lines]
    numbers = [field[0] if len(field) == 2 else "" for field in fields]
    if lines and numbers == [str(n) for n in range(1, len(fields) + 1)]:
        return tuple(field[1] for field in fields)
    by_number = {number: name for name, _, number in (line.rpartition(",") for line in lines)}
    expected = [str(n) for n in range(len(lines))]
    return tuple(by_number[number] for number in expected) if lines and set(by_number) == set(expected) else None
