"""The README.md of a folder of Hugging Face's transformers: a model card."""

from __future__ import annotations

import json

from vmae_data.pages.html import printable
from vmae_train.checkpoints.card_parts import (
    Origin,
    code_block,
    frames_python,
    sampling_text,
    training_parts,
)
from vmae_train.checkpoints.native import ModelFile

__all__ = ["model_card"]

_KINDS = {
    "pretrain": "a VideoMAE that was pretrained by masked autoencoding. It has no classes: finetune it first",
    "classifier": "a VideoMAE that predicts the one class of a clip",
    "multilabel": "a VideoMAE that predicts for each class whether a clip shows it",
    "regressor": "a VideoMAE that predicts values of a clip",
}


def model_card(description: ModelFile, origin: Origin) -> str:
    """The card. Its licence is empty: nothing that was read states it."""
    geometry, names = description.geometry, description.classes or tuple(value.name for value in description.values)
    pretrain = description.kind == "pretrain"
    head = [
        "---",
        "library_name: transformers",
        *([] if pretrain else ["pipeline_tag: video-classification"]),
        "license:  # not known: enter it before you publish this folder",
        "tags:",
        "- videomae",
        "---",
    ]
    size = geometry.image_size
    facts = [
        f"* Frames of a clip: {sampling_text(origin, geometry.num_frames)}.",
        "* Pictures: upright, with square pixels. The Python above does not turn or scale pictures that are not.",
        f"* Size: the short side is resized to {size} pixels, then the centre of {size} × {size} is cropped"
        + ("." if origin.protocol.antialias else ". The training's evaluation resizes without antialias."),
        f"* Colours: RGB, (value / 255 - mean) / std, mean {list(geometry.mean)}, std {list(geometry.std)}.",
    ]
    if not pretrain:
        views = origin.protocol.views
        facts.append(f"* A video's prediction in the evaluation: the mean over {views} views (clips × crops).")
    parts = [
        "\n".join(head),
        f"# VideoMAE, {len(names)} {'values' if description.values else 'classes'}" if names else "# VideoMAE",
        f"This folder holds {_KINDS[description.kind]}.",
        "## Use\n\n```python\n" + _python(description, origin) + "```",
        "## Input\n\n" + "\n".join(facts),
    ]
    if names:
        lines = "\n".join(f"{number} {printable(name)}" for number, name in enumerate(names))
        parts.append(f"## {'Values' if description.values else 'Classes'}\n\n{code_block(lines)}")
    return "\n\n".join((*parts, *training_parts(origin))) + "\n"


def _python(description: ModelFile, origin: Origin) -> str:
    auto = "AutoModel" if description.kind == "pretrain" else "AutoModelForVideoClassification"
    result = {
        "pretrain": "    features = model(**inputs).last_hidden_state.mean(dim=1)\nprint(features.shape)\n",
        "classifier": "    probabilities = model(**inputs).logits[0].softmax(dim=-1)\n"
        "print(model.config.id2label[int(probabilities.argmax())], float(probabilities.max()))\n",
        "multilabel": "    probabilities = model(**inputs).logits[0].sigmoid()\n"
        "print({model.config.id2label[number]: float(p) for number, p in enumerate(probabilities)})\n",
        "regressor": "    values = model(**inputs).logits[0]\n"
        "print({model.config.id2label[number]: float(value) for number, value in enumerate(values)})\n",
    }[description.kind]
    return (
        "import av\nimport numpy as np\nimport torch\n"
        f"from transformers import AutoImageProcessor, {auto}\n\n"
        f"folder = {json.dumps('.')}  # this folder, or its name on the Hub\n"
        "processor = AutoImageProcessor.from_pretrained(folder)\n"
        f"model = {auto}.from_pretrained(folder).eval()\n"
        f"{frames_python(origin.protocol.clip, description.geometry.num_frames)}\n"
        'inputs = processor(list(frames), return_tensors="pt")\n'
        f"with torch.inference_mode():\n{result}"
    )
