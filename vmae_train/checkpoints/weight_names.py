"""Names of weights: VideoMAE's own names, which this program uses ↔ the names of Hugging Face's transformers.

transformers splits attn.qkv.weight by rows into query, key and value. Its version 4 names the two biases q_bias and
v_bias; version 5 names them query.bias and value.bias. Both are read. The names of version 4 are written, because both
versions read them. Early releases of version 5 read them as zeros without a warning.

mmaction2's names differ in three places. Wrappers of training programs put prefixes before all names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from vmae_data.errors import DataError

__all__ = ["from_hf_names", "has_hf_names", "official_names", "to_hf_names"]

# Official prefix → prefix of transformers 4.
_PRETRAIN = {
    "encoder.patch_embed.proj.": "videomae.embeddings.patch_embeddings.projection.",
    "encoder.blocks.": "videomae.encoder.layer.",
    "encoder.norm.": "videomae.layernorm.",
    "decoder.blocks.": "decoder.decoder_layers.",
    **{name: name for name in ("encoder_to_decoder.", "mask_token", "decoder.norm.", "decoder.head.")},
}
_HEAD = {
    "patch_embed.proj.": "videomae.embeddings.patch_embeddings.projection.",
    "blocks.": "videomae.encoder.layer.",
    "norm.": "videomae.layernorm.",
    "fc_norm.": "fc_norm.",
    "head.": "classifier.",
}
_IN_BLOCK = {
    "norm1.": "layernorm_before.",
    "norm2.": "layernorm_after.",
    "attn.q_bias": "attention.attention.q_bias",
    "attn.v_bias": "attention.attention.v_bias",
    "attn.proj.": "attention.output.dense.",
    "mlp.fc1.": "intermediate.dense.",
    "mlp.fc2.": "output.dense.",
}
_QKV = "attn.qkv.weight"
_HF_QKV = tuple(f"attention.attention.{part}.weight" for part in ("query", "key", "value"))
_VERSION_5_TO_4 = {
    "attention.attention.query.bias": "attention.attention.q_bias",
    "attention.attention.value.bias": "attention.attention.v_bias",
}
_MMACTION = {
    "patch_embed.projection.": "patch_embed.proj.",
    ".mlp.layers.0.0.": ".mlp.fc1.",
    ".mlp.layers.1.": ".mlp.fc2.",
    "cls_head.fc_cls.": "head.",
}
_WRAPPERS = re.compile(r"^((module|model|backbone|_orig_mod)\.)+|_orig_mod\.")
# A bare encoder of transformers lacks the prefix that the encoder of its models has.
_NOT_OF_HF_ENCODER = ("videomae.", "decoder.", "encoder_to_decoder.", "mask_token", "classifier.", "fc_norm.", "norm.")
_BLOCK = re.compile(r"(.*?(?:blocks|layer|layers|decoder_layers)\.\d+\.)(.*)")


def official_names(path: Path, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights by the names of any known program → by VideoMAE's names. An unknown name stays.

    Removes the prefixes of torch.compile, data-parallel training, Lightning and a detector's backbone.
    Raises DataError if two different weights get the same name.
    """
    plain = _renamed(path, {name: _WRAPPERS.sub("", name) for name in state}, state)
    if has_hf_names(plain):
        hf = {name if name.startswith(_NOT_OF_HF_ENCODER) else f"videomae.{name}": plain[name] for name in plain}
        return from_hf_names(hf, pretrain="encoder_to_decoder.weight" in hf)
    plain = _renamed(path, {name: _from_mmaction(name) for name in plain}, plain)
    if "encoder_to_decoder.weight" in plain:
        return plain
    return _renamed(path, {name: name.removeprefix("encoder.") for name in plain}, plain)


def has_hf_names(state: Mapping[str, Tensor]) -> bool:
    return any(_HF_QKV[0] in name for name in state)


def _from_mmaction(name: str) -> str:
    for theirs, official in _MMACTION.items():
        name = name.replace(theirs, official)
    return name


def _renamed(path: Path, new_names: dict[str, str], state: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for old, new in new_names.items():
        if new in renamed and not torch.equal(renamed[new], state[old]):
            both = " and ".join(other for other in new_names if new_names[other] == new)
            raise DataError(f"{path}: {both} are both {new}, but their values differ. Keep only the right one")
        renamed[new] = state[old]
    return renamed


def to_hf_names(state: dict[str, Tensor], *, pretrain: bool) -> dict[str, Tensor]:
    """Official names → names of transformers 4."""
    outside = _PRETRAIN if pretrain else _HEAD
    named: dict[str, Tensor] = {}
    for name, value in state.items():
        block, rest = _split_block(name)
        block = _replace_prefix(block, outside)
        if rest == _QKV:
            named |= {block + part: rows.clone() for part, rows in zip(_HF_QKV, value.chunk(3), strict=True)}
        else:
            named[block + _replace_prefix(rest, _IN_BLOCK)] = value
    return named


def from_hf_names(state: dict[str, Tensor], *, pretrain: bool) -> dict[str, Tensor]:
    """Names of transformers 4 or 5 → official names. An unknown name stays."""
    outside = {hf: official for official, hf in (_PRETRAIN if pretrain else _HEAD).items()}
    in_block = {hf: official for official, hf in _IN_BLOCK.items()}
    named: dict[str, Tensor] = {}
    for name, value in state.items():
        hf_block, rest = _split_block(name)
        block = _replace_prefix(hf_block, outside)
        if rest not in _HF_QKV or not all(hf_block + part in state for part in _HF_QKV):
            named[block + _replace_prefix(_replace_prefix(rest, _VERSION_5_TO_4), in_block)] = value
        elif rest == _HF_QKV[0]:
            named[block + _QKV] = torch.cat([state[hf_block + part] for part in _HF_QKV])
    return named


def _split_block(name: str) -> tuple[str, str]:
    """`…blocks.7.` and the rest of the name; outside the blocks the rest is empty."""
    match = _BLOCK.fullmatch(name)
    return (match[1], match[2]) if match else (name, "")


def _replace_prefix(name: str, prefixes: Mapping[str, str]) -> str:
    for old, new in prefixes.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name
