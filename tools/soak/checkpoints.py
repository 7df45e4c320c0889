"""Checkpoints that are damaged, made to do harm, or named by other programs; each beside an independent reader.

    python -m tools.soak.checkpoints

The independent readers are plain `torch.load`, safetensors, and transformers if it is installed. Exit status 1 if an
outcome differs.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from vmae_data.errors import VmaeError
from vmae_train import load_model
from vmae_train.checkpoints.convert import ConvertSpec, convert
from vmae_train.checkpoints.ema import ModelEma
from vmae_train.distributed import Distributed
from vmae_train.engines.ddp import DataParallel
from vmae_train.models.geometry import ModelSpec
from vmae_train.models.heads import Classifier
from vmae_train.training.checkpoint import RunState, resume, save_checkpoint
from vmae_train.training.optimizer import OptimSpec, build_optimizer

GEOMETRY = ModelSpec(size="tiny", depth=1, decoder_depth=1, position="sinusoid-1d").geometry()
FIELDS: dict[str, Any] = {"num_heads": 3, "image_size": 32, "num_frames": 16}
CLASSES = ("links", "rechts", "auf → ab", "ünïcode")
STEP, WEIGHTS = "checkpoints/step-000000003", "model.safetensors"
GROWTH_KB = 256 << 10


def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    checks = [(group, name, check) for group, table in TABLES.items() for name, check in table.items()]
    wrong = 0
    for group, name, check in checks:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            problem = check(Path(folder))
        wrong += problem is not None
        print(f"{'ok' if problem is None else 'WRONG'}  {group}: {name}{'' if problem is None else f' ({problem})'}")
    return 1 if wrong else 0


def _model(seed: int = 1) -> Classifier:
    return Classifier(GEOMETRY, CLASSES, seed=seed)


def _refusal(call: Callable[[], Any], says: str) -> str | None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        call()
    except VmaeError as error:
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        return None if says in str(error) and grown < GROWTH_KB else f"{error}; {grown} kB more"
    return "was read"


# Damages that a plain reader of the file does not see.


def _training(seed: int = 1) -> tuple[Classifier, torch.optim.Optimizer, ModelEma]:
    model = _model(seed)
    optimizer = build_optimizer(model, OptimSpec(base_lr=1e-3, warmup_steps=1), depth=1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return model, optimizer, ModelEma(model, 0.9)


def _run(folder: Path, seed: int = 1) -> Path:
    model, optimizer, ema = _training(seed)
    tensors = DataParallel(model, model, torch.device("cpu"), Distributed()).gather(optimizer, ema)
    save_checkpoint(folder, model, tensors, RunState(step=3, samples=24), keep=1)
    return folder


def _changed(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], str | None]:
    def check(folder: Path) -> str | None:
        path = _run(folder) / STEP / name
        path.write_bytes(change(path.read_bytes()))
        json.loads(path.read_bytes()) if path.suffix == ".json" else load_file(path)  # still readable
        return _refusal(lambda: resume(folder, *_training()), "checksum")

    return check


def _other_runs_file(folder: Path) -> str | None:
    (_run(folder / "b", seed=2) / STEP / WEIGHTS).rename(_run(folder / "a") / STEP / WEIGHTS)
    load_file(folder / "a" / STEP / WEIGHTS)
    return _refusal(lambda: load_model(folder / "a"), "checksum")


def _converted(folder: Path) -> str | None:
    convert(str(_run(folder / "a")), folder / "native", to="native")
    path = folder / "native" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-4096] + bytes(4096))
    load_file(path)
    return _refusal(lambda: load_model(folder / "native"), "checksum")


# Files that claim more than their size.


def _claims(make: Callable[[Path], None], says: str) -> Callable[[Path], str | None]:
    def check(folder: Path) -> str | None:
        make(folder / "a.pth")
        return _refusal(lambda: load_model(folder / "a.pth"), says)

    return check


def _expanded(numbers: int, kind: torch.dtype, place: Callable[[torch.Tensor], Any], *, zipped: bool = True) -> Any:
    def make(path: Path) -> None:
        content = {"model": _model().state_dict(), "more": place(torch.zeros(1, dtype=kind).expand(numbers))}
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        assert numbers > path.stat().st_size
        torch.load(path, mmap=zipped or None)  # the plain reader takes it

    return make


def _packed(compression: int) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        torch.save(_model().state_dict(), path)
        with zipfile.ZipFile(path) as old:
            members = {info.filename: old.read(info) for info in old.infolist()}
        with zipfile.ZipFile(path, "w", compression) as new:
            for name, data in members.items():
                new.writestr(name, data)

    return make


# Names and numbers that the weights don't hold.


def _named(order: Callable[[tuple[str, ...]], tuple[str, ...]]) -> Callable[[Path], str | None]:
    def check(folder: Path) -> str | None:
        model, wanted = _model(), order(CLASSES)
        torch.save({"model": model.state_dict()}, folder / "a.pth")
        read = load_model(folder / "a.pth", classes=CLASSES, **FIELDS)
        assert isinstance(read, Classifier)
        read.reorder_classes(wanted)
        plain = torch.load(folder / "a.pth")["model"]["head.weight"]
        same = all(torch.equal(read.head.weight[wanted.index(name)], plain[n]) for n, name in enumerate(CLASSES))
        return None if same else "rows of other classes"

    return check


def _preprocessed(files: dict[str, Any]) -> Callable[[Path], str | None]:
    def check(folder: Path) -> str | None:
        try:
            from transformers import AutoImageProcessor
        except ImportError:
            return None
        torch.save({"model": _model().state_dict()}, folder / "a.pth")
        native = folder / "native"
        convert(str(folder / "a.pth"), native, to="native", spec=ConvertSpec(model=FIELDS))
        convert(str(native), folder / "hf", to="hf")
        base = json.loads((folder / "hf/preprocessor_config.json").read_text())
        for name in ("image_mean", "image_std"):
            base.pop(name)
        for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
            (folder / "hf" / name).unlink()
        for name, content in files.items():
            nested = {part: base | values for part, values in content.items() if isinstance(values, dict)}
            (folder / "hf" / name).write_text(json.dumps(nested or base | content))
        frames = torch.randint(0, 256, (16, 32, 32, 3), dtype=torch.uint8)
        theirs = AutoImageProcessor.from_pretrained(folder / "hf")(list(frames.numpy()), return_tensors="pt")
        ours = load_model(folder / "hf").preprocess(frames[None]).transpose(1, 2)
        distance = float((ours - theirs["pixel_values"]).abs().max())
        return None if distance < 1e-3 else f"pixels differ by {distance}"

    return check


TABLES: dict[str, dict[str, Callable[[Path], str | None]]] = {
    "a file of a checkpoint differs from its checksum": {
        "a bit of the last weight": _changed(WEIGHTS, lambda data: data[:-2] + bytes([data[-2] ^ 1]) + data[-1:]),
        "zeros in the moments": _changed("optimizer.safetensors", lambda data: data[:-512] + bytes(512)),
        "two blocks of the average swapped": _changed(
            "ema.safetensors", lambda data: data[:-2048] + data[-1024:] + data[-2048:-1024]
        ),
        "another mean in the description": _changed("model.json", lambda data: data.replace(b"0.485", b"0.486")),
        "the weights of another run": _other_runs_file,
        "zeros in a converted model": _converted,
    },
    "a .pth claims more than its size": {
        "float16 of stride 0, in a list": _claims(_expanded(10**9, torch.float16, lambda t: [t]), "claims"),
        "int64 of stride 0, in the optimizer's state": _claims(
            _expanded(10**9, torch.int64, lambda t: {"state": {0: {"exp_avg": t}}}), "claims"
        ),
        "a parameter of stride 0": _claims(
            _expanded(10**9, torch.float32, lambda t: torch.nn.Parameter(t, requires_grad=False)), "claims"
        ),
        "stride 0 before torch 1.6": _claims(_expanded(10**9, torch.float32, lambda t: (t,), zipped=False), "claims"),
        "members packed by bzip2": _claims(_packed(zipfile.ZIP_BZIP2), "compresses nothing"),
        "members packed by LZMA": _claims(_packed(zipfile.ZIP_LZMA), "compresses nothing"),
    },
    "class names are given": {
        "in the same order": _named(lambda names: names),
        "backwards": _named(lambda names: names[::-1]),
        "by the alphabet": _named(lambda names: tuple(sorted(names))),
        "rotated": _named(lambda names: names[1:] + names[:1]),
    },
    "mean and standard deviation are in other files": {
        "nested, with another file beside": _preprocessed(
            {
                "processor_config.json": {"image_processor": {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3]}},
                "preprocessor_config.json": {"image_mean": [0.5] * 3},
            }
        ),
        "another factor": _preprocessed({"preprocessor_config.json": {"rescale_factor": 1 / 127.5}}),
        "no division by 255": _preprocessed(
            {"preprocessor_config.json": {"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [50.0] * 3}}
        ),
        "not normalised": _preprocessed({"preprocessor_config.json": {"do_normalize": False}}),
        "the class's own numbers": _preprocessed({"preprocessor_config.json": {}}),
    },
}

if __name__ == "__main__":
    sys.exit(main())
