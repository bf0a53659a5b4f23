"""Encoders of transformers, and their inputs from files: for `eval-model` and `tune`."""

from __future__ import annotations

import importlib.util
import json
import struct
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import nn

Inputs = list[dict[str, torch.Tensor]]

TOWERS = {"text": "text_model", "image": "vision_model", "audio": "audio_model"}


def folder_of(model: str) -> str:
    """Return the folder of a model, which may be in an installed package, or its name on the hub.

    Raises
    ------
    FileNotFoundError
        Where the folder does not exist or holds no config.json.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise FileNotFoundError(f"{model}: there is no config.json in this folder")
        return str(path)
    found = _package(model)
    if found is not None:
        folders = [config.parent for config in sorted(found.rglob("config.json"))]
        folders = [folder for folder in folders if "model_type" in _json(folder / "config.json")]
        if not folders:
            raise FileNotFoundError(
                f"{model} is a package without a folder that from_pretrained reads"
            )
        return str(folders[0])
    if model.count("/") > 1 or model.startswith((".", "/", "~")) or path.exists():
        raise FileNotFoundError(f"{model}: there is no such folder")
    return model


def load_encoder(folder: str, kind: str) -> nn.Module:
    """Return a model in evaluation mode, with the head that its configuration names.

    An encoder-decoder gives its encoder. A model with several towers, as CLIP, gives the tower for
    this kind of input: "text", "image" or "audio".

    Raises
    ------
    ValueError
        Where the model cannot be loaded.
    """
    model = load_model(folder)
    if getattr(model.config, "is_encoder_decoder", False):
        model = model.get_encoder()
    return getattr(model, TOWERS[kind], model).eval()


def load_model(folder: str) -> Any:
    """Return a whole model in evaluation mode, in float32; see `load_encoder`."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        config = transformers.AutoConfig.from_pretrained(folder)
        named = (getattr(config, "architectures", None) or ["AutoModel"])[0]
        cls = getattr(transformers, named, transformers.AutoModel)
        model = cls.from_pretrained(folder, attn_implementation="sdpa", dtype=torch.float32)
    except Exception as error:  # transformers raises errors of many kinds and lines
        raise ValueError(f"{folder} cannot be loaded: {_first_line(error)}") from error
    return model.eval()


def read_texts(folder: str, paths: Sequence[Path], max_length: int | None) -> Inputs:
    r"""Return the texts of files, one a line, as tokens, cut to `max_length`.

    A line ends with \n, \r\n or \r.
    """
    tokenizer = load_processor(transformers.AutoTokenizer, folder, "tokenizer")
    config = transformers.AutoConfig.from_pretrained(folder)
    if max_length is None:
        most = getattr(config, "max_position_embeddings", None) or 10**9
        max_length = min(tokenizer.model_max_length, most)
    # splitlines() would also cut at form feeds and at the separators of Unicode
    texts = [line for path in paths for line in read_file(path).split("\n") if line.strip()]
    if not texts:
        raise ValueError(f"{', '.join(map(str, paths))}: there is no text, one a line")
    return [
        dict(tokenizer(text, truncation=True, max_length=max_length, return_tensors="pt"))
        for text in texts
    ]


def read_file(path: Path) -> str:
    r"""Return the text of a file in UTF-8; its lines end with \n."""
    try:
        return path.read_text(encoding="utf-8-sig")  # \r\n and \r are \n then
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8") from error


def read_images(folder: str, paths: Sequence[Path]) -> Inputs:
    """Return images as the model's processor prepares them; `read_image` says what it is given."""
    from thinformer.torch.evaluation.images import read_image  # imports PIL

    processor = load_processor(transformers.AutoImageProcessor, folder, "image processor")
    return [dict(processor(images=read_image(path), return_tensors="pt")) for path in paths]


def read_sounds(folder: str, paths: Sequence[Path]) -> Inputs:
    """Return the sounds of .wav files as the model's feature extractor prepares them.

    Integers of any width are scaled to [-1, 1). Channels are averaged.
    """
    from scipy.signal import resample_poly

    extractor = load_processor(transformers.AutoFeatureExtractor, folder, "feature extractor")
    inputs = []
    for path in paths:
        rate, sound = _sound(path)
        sound = resample_poly(sound, extractor.sampling_rate, rate)
        inputs.append(
            dict(extractor(sound, sampling_rate=extractor.sampling_rate, return_tensors="pt"))
        )
    return inputs


def _sound(path: Path) -> tuple[int, NDArray]:
    """The rate of a .wav file, and its sound as one channel of floating numbers."""
    from scipy.io import wavfile

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", wavfile.WavFileWarning)  # chunks of no sound
            rate, sound = wavfile.read(path)
    except (ValueError, struct.error, ZeroDivisionError) as error:  # of a broken header too
        raise ValueError(f"{path}: is no .wav that can be read: {error}") from error
    if len(sound) == 0 or rate == 0:
        raise ValueError(f"{path}: holds no sound: {len(sound)} samples, {rate} a second")
    if sound.dtype.kind == "u":  # up to 8 bits, and 128 is silence
        sound = sound.astype(np.float64) / 128 - 1
    elif sound.dtype.kind == "i":  # fewer bits than the dtype has are its upper ones
        sound = sound / -float(np.iinfo(sound.dtype).min)
    if not np.isfinite(sound).all():
        raise ValueError(f"{path}: holds NaN or infinity; a sound has finite numbers")
    return rate, sound.reshape(len(sound), -1).mean(axis=1)


def pooling_of(folder: str) -> str:
    """Return "first" where a folder of sentence-transformers asks for it, else "mean"."""
    path = Path(folder) / "1_Pooling" / "config.json"
    first = path.is_file() and _json(path).get("pooling_mode_cls_token", False)
    return "first" if first else "mean"


def _package(name: str) -> Path | None:
    """The folder of an installed package, found without importing it."""
    name = name.replace("-", "_")
    found = importlib.util.find_spec(name) if name.isidentifier() else None
    return None if found is None or not found.origin else Path(found.origin).parent


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def load_processor(cls: Any, folder: str, what: str) -> Any:
    """Return what prepares a model's inputs: an object of a class of transformers."""
    try:
        return cls.from_pretrained(folder)
    except Exception as error:  # transformers raises errors of many kinds and lines
        raise ValueError(
            f"{folder} has no {what} that can be loaded: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
