"""transformers' VideoMAE is the independent reference: outputs, losses and a short training agree with it."""

from __future__ import annotations

import json
import os
import re
import warnings
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import av
import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from vmae_train import Predictor, load_model
from vmae_train.checkpoints.convert import convert
from vmae_train.checkpoints.load import load_init
from vmae_train.checkpoints.native import save_model
from vmae_train.clips.mask import TokenMask, tube_mask
from vmae_train.clips.rng import ClipRng
from vmae_train.models.geometry import ModelSpec
from vmae_train.models.heads import Classifier, HeadModel, MultiLabelClassifier, RegressedValue, Regressor
from vmae_train.models.videomae import PretrainModel
from vmae_train.training.optimizer import OptimSpec, build_optimizer

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def _has_torchvision() -> bool:
    """PyPI's torchvision is built for CUDA: beside a torch for CPUs, its compiled operators are missing.

    Its import then stops at their names. Defined names are enough: the processors use none of them. The dev extra has
    no torchvision, since nothing of transformers imports beside one that does not fit torch.
    """
    if find_spec("torchvision") is None:
        return False
    for _ in range(8):
        try:
            import_module("torchvision")
            return True
        except RuntimeError as error:
            missing = re.fullmatch(r"operator (torchvision::\w+) does not exist", str(error))
            if missing is None:
                raise
            torch.library.define(missing[1], "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return False


HAS_TORCHVISION = _has_torchvision()
transformers = pytest.importorskip("transformers")

TINY = ModelSpec(size="tiny", depth=2, decoder_depth=2, embed_dim=96, decoder_embed_dim=48, position="sinusoid-1d")
# transformers' own eps: 1e-5 in decoder.norm and fc_norm, for every config.
GEOMETRY = msgspec.structs.replace(TINY.geometry(), decoder_norm_eps=1e-5, fc_eps=1e-5)
CLASSES = ("left", "right", "up")


@torch.no_grad()
def _add_noise(model: torch.nn.Module, seed: int) -> None:
    """Biases and norms start at 0 and 1. Noise makes a lost or swapped one visible."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)


def _clips(seed: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 16, 32, 32, generator=torch.Generator().manual_seed(seed))


def _mask(seed: int, batch: int = 2) -> TokenMask:
    rng = ClipRng.on("cpu", seed=seed, epoch=0, sample=list(range(batch)))
    return tube_mask(rng, slices=8, patches=16, ratio=0.75)


def _masked(mask: TokenMask) -> Tensor:
    masked = torch.zeros(len(mask.masked_BM), 128, dtype=torch.bool)
    return masked.scatter(1, mask.masked_BM, True)


def _written(model: Any, folder: Path) -> Path:
    native, hf = folder / "native", folder / "hf"
    native.mkdir()
    save_model(native, model)
    assert convert(str(native), hf, to="hf") == ()
    return hf


def _their_pretraining(folder: Path) -> Any:
    # Their default attention may use another kernel; every kernel computes the same function.
    return transformers.VideoMAEForPreTraining.from_pretrained(folder)


def test_transformers_reads_every_weight_and_bias_of_our_files(tmp_path: Path) -> None:
    model = PretrainModel(GEOMETRY, seed=1)
    _add_noise(model, 2)
    theirs, info = transformers.VideoMAEForPreTraining.from_pretrained(
        _written(model, tmp_path), output_loading_info=True
    )
    assert not any(info[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for number, block in enumerate(model.encoder.blocks):
        attention = theirs.videomae.encoder.layer[number].attention.attention
        query, key, value = block.attn.qkv.weight.chunk(3)
        for own, reference in (
            (attention.query.weight, query),
            (attention.key.weight, key),
            (attention.value.weight, value),
            (_bias(attention, "query", "q_bias"), block.attn.q_bias),
            (_bias(attention, "value", "v_bias"), block.attn.v_bias),
        ):
            assert torch.equal(own, reference)
            assert own.abs().min() > 0
    assert getattr(attention.key, "bias", None) is None


def _bias(attention: Any, newer: str, older: str) -> Tensor:
    own = getattr(attention, older, None)
    return own if own is not None else getattr(attention, newer).bias


def test_predictions_and_loss_equal_those_of_transformers(tmp_path: Path) -> None:
    model = PretrainModel(GEOMETRY, seed=1).eval()
    _add_noise(model, 2)
    theirs = _their_pretraining(_written(model, tmp_path)).eval()
    assert theirs.config.layer_norm_eps == 1e-6
    clips, mask = _clips(3), _mask(4)
    with torch.no_grad():
        reference = theirs(clips.transpose(1, 2), bool_masked_pos=_masked(mask))
        own, loss = model(clips, mask), model.loss(clips, mask)
    assert (own - reference.logits).abs().max() < 1e-5
    assert abs(float(loss - reference.loss)) < 1e-5
    assert float(own.std()) > 0.1


def test_logits_equal_those_of_transformers(tmp_path: Path) -> None:
    model = Classifier(GEOMETRY, CLASSES, seed=1).eval()
    _add_noise(model, 2)
    theirs = transformers.VideoMAEForVideoClassification.from_pretrained(_written(model, tmp_path)).eval()
    assert theirs.config.use_mean_pooling
    assert tuple(theirs.config.id2label[number] for number in range(3)) == CLASSES
    clips, labels = _clips(3), torch.tensor([2, 0])
    with torch.no_grad():
        reference = theirs(clips.transpose(1, 2), labels=labels)
        own = model(clips)
    assert (own - reference.logits).abs().max() < 1e-5
    assert abs(float(torch.nn.functional.cross_entropy(own, labels) - reference.loss)) < 1e-5


def test_features_equal_the_mean_of_transformers_encoder(tmp_path: Path) -> None:
    model = PretrainModel(GEOMETRY, seed=1).eval()
    _add_noise(model, 2)
    theirs = _their_pretraining(_written(model, tmp_path)).eval().videomae
    clips = _clips(3)
    with torch.no_grad():
        nothing = torch.zeros(2, 128, dtype=torch.bool)
        reference = theirs(clips.transpose(1, 2), bool_masked_pos=nothing).last_hidden_state.mean(1)
        assert (model.features(clips) - reference).abs().max() < 1e-5


@pytest.mark.parametrize("mean_pooling", [True, False])
def test_a_classifier_of_transformers_gives_its_logits_with_either_pooling(mean_pooling: bool, tmp_path: Path) -> None:
    config = transformers.VideoMAEConfig(
        image_size=32, patch_size=8, hidden_size=96, num_hidden_layers=2, num_attention_heads=3, intermediate_size=200,
        num_labels=3, use_mean_pooling=mean_pooling,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(5)
        theirs = transformers.VideoMAEForVideoClassification(config).eval()
    _add_noise(theirs, 5)
    theirs.save_pretrained(tmp_path / "a")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no file of preprocessing; the first token
        ours = load_model(tmp_path / "a")
    assert ours.geometry.pooling == ("mean" if mean_pooling else "first")
    clips = _clips(3)
    with torch.no_grad():
        assert (ours(clips) - theirs(clips.transpose(1, 2)).logits).abs().max() < 1e-5


@pytest.mark.filterwarnings("ignore:.*decoder starts new", "ignore:.*none of processor_config.json")
def test_an_encoder_of_transformers_starts_a_training(tmp_path: Path) -> None:
    model = PretrainModel(GEOMETRY, seed=1)
    _add_noise(model, 2)
    theirs = transformers.VideoMAEModel.from_pretrained(_written(model, tmp_path))
    theirs.save_pretrained(tmp_path / "encoder")
    start = load_init(tmp_path / "encoder", GEOMETRY, position_resize="recompute")
    assert isinstance(start, PretrainModel)
    for name, value in model.encoder.state_dict().items():
        if name.startswith(("patch_embed.", "blocks.")):
            assert torch.equal(start.encoder.state_dict()[name], value), name


@pytest.mark.parametrize("files", ["video", "image", "nested", "none stated"])
@pytest.mark.filterwarnings("ignore:.*files of preprocessing differ")
def test_mean_and_standard_deviation_are_those_that_transformers_reads(files: str, tmp_path: Path) -> None:
    model = PretrainModel(GEOMETRY, seed=1)
    _add_noise(model, 2)
    folder = _written(model, tmp_path)
    old = folder / "preprocessor_config.json"
    (folder / "video_preprocessor_config.json").unlink()
    stated = json.loads(old.read_text()) | {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.1, 0.2, 0.3]}
    if files == "video":
        (folder / "video_preprocessor_config.json").write_text(json.dumps(stated))
    elif files == "nested":
        (folder / "processor_config.json").write_text(json.dumps({"image_processor": stated}))
    else:
        old.write_text(json.dumps(stated if files == "image" else {"image_processor_type": "VideoMAEImageProcessor"}))
    reader = transformers.AutoVideoProcessor if files == "video" else transformers.AutoImageProcessor
    try:
        theirs = reader.from_pretrained(folder)
    except ImportError as error:
        pytest.skip(str(error).splitlines()[0])
    geometry = load_model(folder).geometry
    assert (geometry.mean, geometry.std) == (tuple(theirs.image_mean), tuple(theirs.image_std))


@pytest.mark.filterwarnings("ignore:.*none of processor_config.json")
@pytest.mark.parametrize("shards", [None, "100KB"])
def test_a_model_of_transformers_is_converted_to_official_and_back(tmp_path: Path, shards: str | None) -> None:
    config = transformers.VideoMAEConfig(
        image_size=32, patch_size=8, hidden_size=96, num_hidden_layers=2, num_attention_heads=3, intermediate_size=200,
        decoder_hidden_size=48, decoder_num_hidden_layers=1, decoder_num_attention_heads=2,
        decoder_intermediate_size=70, layer_norm_eps=1e-12, use_mean_pooling=False,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(5)
        theirs = transformers.VideoMAEForPreTraining(config).eval()
    _add_noise(theirs, 5)
    theirs.save_pretrained(tmp_path / "a", **({"max_shard_size": shards} if shards else {}))
    assert (len(list((tmp_path / "a").glob("*.safetensors"))) > 1) == (shards is not None)
    ours = load_model(tmp_path / "a")
    assert (ours.geometry.encoder_eps, ours.geometry.decoder_norm_eps) == (1e-12, 1e-5)
    clips, mask = _clips(3), _mask(4)
    assert isinstance(ours, PretrainModel)
    with torch.no_grad():
        reference = theirs(clips.transpose(1, 2), bool_masked_pos=_masked(mask)).logits
        assert (ours(clips, mask) - reference).abs().max() < 1e-5
    convert(str(tmp_path / "a"), tmp_path / "b.pth", to="official")
    convert(str(tmp_path / "b.pth"), tmp_path / "c", to="hf")
    back = _their_pretraining(tmp_path / "c")
    for name, value in theirs.state_dict().items():
        assert torch.equal(back.state_dict()[name], value), name


def test_fifty_steps_of_pretraining_equal_those_of_transformers_with_plain_adamw(tmp_path: Path) -> None:
    model = PretrainModel(GEOMETRY, seed=1).train()
    theirs = _their_pretraining(_written(model, tmp_path)).train()
    spec = OptimSpec(base_lr=1e-3, warmup_steps=1, betas=(0.9, 0.95), weight_decay=0.05)
    optimizer = build_optimizer(model, spec, depth=GEOMETRY.depth)
    decayed = [p for name, p in theirs.named_parameters() if p.ndim > 1 and name != "mask_token"]
    plain = [p for name, p in theirs.named_parameters() if p.ndim == 1 or name == "mask_token"]
    plain_adamw = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}],
        lr=1e-3, betas=(0.9, 0.95), eps=1e-8,
    )  # fmt: skip
    losses = []
    for step in range(50):
        clips, mask = _clips(100 + step % 4, batch=4), _mask(200 + step, batch=4)
        ours = model.loss(clips, mask)
        reference = theirs(clips.transpose(1, 2), bool_masked_pos=_masked(mask)).loss
        for loss, stepped in ((ours, optimizer), (reference, plain_adamw)):
            stepped.zero_grad()
            loss.backward()
            stepped.step()
        losses.append((ours.item(), reference.item()))
    assert max(abs(ours - reference) for ours, reference in losses) < 1e-4
    assert losses[-1][0] < losses[0][0] - 0.02  # it did learn


# The processors and the pipeline. Frames of another size are rounded to 8 bits by theirs, but not by ours.


def _head(kind: str) -> HeadModel:
    model: HeadModel
    if kind == "regressor":
        model = Regressor(GEOMETRY, tuple(RegressedValue(name=name) for name in CLASSES), seed=1)
    else:
        model = (Classifier if kind == "classifier" else MultiLabelClassifier)(GEOMETRY, CLASSES, seed=1)
    _add_noise(model, 2)
    return model.eval()


def _video(path: Path, height: int, width: int, frames: int = 16) -> np.ndarray:
    """A moving pattern, and its frames as PyAV decodes them to RGB."""
    rng = np.random.default_rng(3)
    pattern = rng.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    with av.open(str(path), "w") as video:
        stream = video.add_stream("libx264", rate=25, options={"bf": "0"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            video.mux(stream.encode(av.VideoFrame.from_ndarray(np.roll(pattern, 2 * number, 1), format="rgb24")))
        video.mux(stream.encode())
    with av.open(str(path)) as video:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)])


def _processor(auto: str, folder: Path) -> Any:
    if auto == "AutoVideoProcessor" and not HAS_TORCHVISION:
        pytest.skip("torchvision is not installed")
    return getattr(transformers, auto).from_pretrained(folder)


@pytest.mark.parametrize("auto", ["AutoImageProcessor", "AutoVideoProcessor"])
@pytest.mark.parametrize("kind", ["classifier", "multilabel", "regressor"])
def test_the_folder_gives_our_prediction_of_the_same_frames(kind: str, auto: str, tmp_path: Path) -> None:
    folder = _written(_head(kind), tmp_path)
    frames = _video(tmp_path / "video.mp4", 32, 32)
    processor = _processor(auto, folder)
    model = transformers.AutoModelForVideoClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        logits = model(**processor(list(frames), return_tensors="pt")).logits
    activated = {"classifier": logits.softmax(-1), "multilabel": logits.sigmoid(), "regressor": logits}[kind]
    ours = Predictor(tmp_path / "native", "cpu").predict_clips(torch.from_numpy(frames)[None])
    assert (activated - ours).abs().max() < 1e-4
    assert float(ours.std()) > 0.01


@pytest.mark.parametrize("size", [(72, 96), (24, 40), (33, 32)])
@pytest.mark.parametrize("auto", ["AutoImageProcessor", "AutoVideoProcessor"])
def test_their_resize_differs_from_ours_by_the_rounding_to_8_bits_only(
    auto: str, size: tuple[int, int], tmp_path: Path
) -> None:
    folder = _written(_head("classifier"), tmp_path)
    frames = torch.randint(0, 256, (16, *size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(7))
    processor, model = _processor(auto, folder), load_model(tmp_path / "native")
    theirs = processor(list(frames.numpy()), return_tensors="pt")["pixel_values"][0]
    ours = model.preprocess(frames[None])[0].transpose(0, 1)
    grey_levels = (theirs - ours).abs() * model.std_C[:, None, None] * 255
    assert grey_levels.max() < 1.1  # PIL rounds twice: after the rows, and after the columns
    assert grey_levels.mean() < 0.4


def _classify(folder: Path, video: Path) -> dict[str, float]:
    if HAS_TORCHVISION and find_spec("torchcodec") is None:
        # With torchvision, their pipeline takes the video processor, whose decoder is torchcodec.
        processor = transformers.AutoImageProcessor.from_pretrained(folder)
        without = {"image_processor": processor, "video_processor": None}
        model = transformers.AutoModelForVideoClassification.from_pretrained(folder)
        pipe = transformers.VideoClassificationPipeline(model=model, **without)
    else:
        pipe = transformers.pipeline("video-classification", model=str(folder), device="cpu")
    return {result["label"]: result["score"] for result in pipe(str(video))}


def test_the_pipeline_gives_our_prediction_of_the_same_frames(tmp_path: Path) -> None:
    folder = _written(_head("classifier"), tmp_path)
    frames = _video(tmp_path / "video.mp4", 32, 32)
    ours = Predictor(tmp_path / "native", "cpu").predict_clips(torch.from_numpy(frames)[None])[0]
    scores = _classify(folder, tmp_path / "video.mp4")
    assert max(abs(scores[name] - float(ours[number])) for number, name in enumerate(CLASSES)) < 1e-4


@pytest.mark.parametrize("kind", ["pretrain", "classifier", "multilabel", "regressor"])
def test_the_python_of_the_model_card_runs_as_printed(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _written(PretrainModel(GEOMETRY, seed=1) if kind == "pretrain" else _head(kind), tmp_path)
    _video(folder / "video.mp4", 72, 96, frames=80)
    monkeypatch.chdir(folder)
    (block,) = re.findall(r"^```python\n(.*?)^```$", Path("README.md").read_text(), flags=re.DOTALL | re.MULTILINE)
    exec(compile(block, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert any(name in printed for name in (["[1, 96]"] if kind == "pretrain" else CLASSES))


def test_the_hubs_own_reader_finds_an_empty_licence_in_the_card(tmp_path: Path) -> None:
    card = import_module("huggingface_hub").ModelCard.load(_written(_head("classifier"), tmp_path) / "README.md")
    assert card.data.license is None
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "video-classification")
