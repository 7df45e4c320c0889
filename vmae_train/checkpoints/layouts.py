"""How the same weights are named: VideoMAE's own names, which ours are, and Hugging Face's.

Hugging Face cuts attn.qkv.weight into query, key and value by rows. Its version 4 named the two biases q_bias and
v_bias, its version 5 query.bias and value.bias; both are read, the first is written, which both versions read.
Early releases of version 5 read them as zeros without a word.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from vmae_data.errors import DataError

__all__ = ["from_hf_names", "plain_names", "to_hf_names"]


class _Pair(NamedTuple):
    official: str
    hf: str


_OUTER = {
    "pretrain": (
        _Pair("encoder.patch_embed.proj.", "videomae.embeddings.patch_embeddings.projection."),
        _Pair("encoder.blocks.", "videomae.encoder.layer."),
        _Pair("encoder.norm.", "videomae.layernorm."),
        _Pair("decoder.blocks.", "decoder.decoder_layers."),
        *(_Pair(name, name) for name in ("encoder_to_decoder.", "mask_token", "decoder.norm.", "decoder.head.")),
    ),
    "head": (
        _Pair("patch_embed.proj.", "videomae.embeddings.patch_embeddings.projection."),
        _Pair("blocks.", "videomae.encoder.layer."),
        _Pair("fc_norm.", "fc_norm."),
        _Pair("head.", "classifier."),
    ),
}
_INNER = (
    _Pair("norm1.", "layernorm_before."),
    _Pair("norm2.", "layernorm_after."),
    _Pair("attn.q_bias", "attention.attention.q_bias"),
    _Pair("attn.v_bias", "attention.attention.v_bias"),
    _Pair("attn.proj.", "attention.output.dense."),
    _Pair("mlp.fc1.", "intermediate.dense."),
    _Pair("mlp.fc2.", "output.dense."),
)
_QKV = "attn.qkv.weight"
_PARTS = tuple(f"attention.attention.{part}.weight" for part in ("query", "key", "value"))
_VERSION_5 = (
    _Pair("attention.attention.q_bias", "attention.attention.query.bias"),
    _Pair("attention.attention.v_bias", "attention.attention.value.bias"),
)
_BLOCK = re.compile(r"(.*?(?:blocks|layer|layers|decoder_layers)\.\d+\.)(.*)")


def plain_names(path: Path, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without what wrappers put before the names: torch.compile, data-parallel training, a backbone of a detector.

    Raises DataError where two weights, not the same, come to one name.
    """
    plain = _renamed_alone(path, {name: _unwrapped(name) for name in state}, state)
    if "encoder_to_decoder.weight" in plain:
        return plain
    return _renamed_alone(path, {name: name.removeprefix("encoder.") for name in plain}, plain)


def _unwrapped(name: str) -> str:
    return name.replace("_orig_mod.", "").removeprefix("module.").removeprefix("backbone.")


def _renamed_alone(path: Path, names: dict[str, str], state: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for old, name in names.items():
        if name in renamed and not torch.equal(renamed[name], state[old]):
            both = " and ".join(other for other in names if names[other] == name)
            raise DataError(f"{path}: {both} are one weight ({name}), with two values; keep the one that counts")
        renamed[name] = state[old]
    return renamed


def to_hf_names(state: dict[str, Tensor], *, pretrain: bool) -> dict[str, Tensor]:
    """Official names to version 4's."""
    outer = _OUTER["pretrain" if pretrain else "head"]
    named: dict[str, Tensor] = {}
    for name, value in state.items():
        before, inner = _cut(name)
        if inner == _QKV:
            hf_before = _renamed(before, outer, forth=True)
            named |= {hf_before + part: x.clone() for part, x in zip(_PARTS, value.chunk(3), strict=True)}
        else:
            named[_renamed(before, outer, forth=True) + _renamed(inner, _INNER, forth=True)] = value
    return named


def from_hf_names(state: dict[str, Tensor], *, pretrain: bool) -> dict[str, Tensor]:
    """Names of version 4 or 5 to official ones. What is not known keeps its name."""
    outer = _OUTER["pretrain" if pretrain else "head"]
    named: dict[str, Tensor] = {}
    for name, value in state.items():
        before, inner = _cut(name)
        own_before = _renamed(before, outer, forth=False)
        if inner in _PARTS and all(before + part in state for part in _PARTS):
            if inner == _PARTS[0]:
                named[own_before + _QKV] = torch.cat([state[before + part] for part in _PARTS])
            continue
        inner = _renamed(inner, _VERSION_5, forth=False)
        named[own_before + _renamed(inner, _INNER, forth=False)] = value
    return named


def _cut(name: str) -> tuple[str, str]:
    """`…blocks.7.` and what stands behind it; a name outside the blocks is all before."""
    found = _BLOCK.fullmatch(name)
    return (found[1], found[2]) if found else (name, "")


def _renamed(name: str, pairs: tuple[_Pair, ...], *, forth: bool) -> str:
    for pair in pairs:
        old, new = (pair.official, pair.hf) if forth else (pair.hf, pair.official)
        if name.startswith(old):
            return new + name[len(old) :]
    return name
