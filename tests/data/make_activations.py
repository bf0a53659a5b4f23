"""Record the real attention activations in ``thinformer/data/activations``.

Three trained encoders read one input each; the queries, keys and values of a few heads of an early,
a middle and a late layer are stored as they enter softmax attention: after the projections with
their biases and before any scaling (the scale is 1 / sqrt(head_dim) in all three). They are rounded
to float16; those of text and audio, which are in the wheel, are then coded in a byte a number
(``activation_codes.py``).

    python -m venv activations && . activations/bin/activate
    pip install --no-deps -r tests/data/requirements-activations.txt
    python tests/data/make_activations.py [text|vision|audio ...]

Everything is computed in float64, so that what is left after the rounding to float16 hardly depends
on the machine, its number of threads or its BLAS.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from activation_codes import coded
from packaged_models import (
    IMAGE_MEAN,
    IMAGE_SIZE,
    IMAGE_STD,
    ROLES,
    dinov2,
    minilm_folder,
    whisper,
)
from PIL import Image
from scipy.signal import lfilter
from skimage import data
from tokenizers import Tokenizer
from transformers import BertModel
from transformers.audio_utils import mel_filter_bank
from transformers.utils import logging

HERE = Path(__file__).resolve().parent
OUTPUT = HERE.parents[1] / "thinformer" / "data" / "activations"
PASSAGE = HERE / "make_activations_passage.txt"

TOKENS = 512
RATE, SECONDS = 16_000, 30
FRAME, HOP, MELS = 400, 160, 80


class Case(NamedTuple):
    """One encoder: what it reads, what is recorded of it, where its projections are."""

    build: Callable[[], tuple[torch.nn.Module, dict[str, torch.Tensor]]]
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    head_dim: int
    projection: str


# Text: MiniLM-L6 reads the opening of Moby-Dick


def build_text() -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """MiniLM-L6 and a passage of exactly 512 tokens."""
    folder = minilm_folder()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(TOKENS)
    ids = tokenizer.encode(PASSAGE.read_text(encoding="utf-8")).ids
    assert len(ids) == TOKENS, f"the passage has only {len(ids)} tokens"
    logging.disable_progress_bar()
    return BertModel.from_pretrained(folder), {"input_ids": torch.tensor([ids])}


# Vision: DINOv2-small looks at the astronaut


def photograph() -> torch.Tensor:
    """The astronaut as DINOv2 wants it: bicubic, with ImageNet's mean and deviation."""
    image = Image.fromarray(data.astronaut()).resize((IMAGE_SIZE,) * 2, Image.Resampling.BICUBIC)
    pixels = (np.asarray(image) / 255 - IMAGE_MEAN) / IMAGE_STD
    return torch.tensor(pixels.transpose(2, 0, 1)[None])


def build_vision() -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """DINOv2-small and a photograph of 37 x 37 patches: 1370 tokens with the class token."""
    return dinov2(), {"pixel_values": photograph()}


# Audio: Whisper tiny.en listens to synthetic speech and music


def resonance(sound: np.ndarray, frequency: float, bandwidth: float) -> np.ndarray:
    """The sound through a two-pole resonator of gain one at frequency zero."""
    radius = np.exp(-np.pi * bandwidth / RATE)
    poles = [1, -2 * radius * np.cos(2 * np.pi * frequency / RATE), radius**2]
    return lfilter([sum(poles)], poles, sound)


def swell(sound: np.ndarray, edge: float = 0.02) -> np.ndarray:
    """The sound with its first and last moments faded, at a peak of one."""
    time = np.arange(sound.size) / RATE
    return sound * np.clip(np.minimum(time, time[::-1]) / edge, 0, 1) / np.abs(sound).max()


def syllable(rng: np.random.Generator) -> np.ndarray:
    """A noisy consonant, a vowel of three formants on a falling pitch, sometimes a pause."""
    hiss = rng.standard_normal(int(RATE * rng.uniform(0.03, 0.09)))
    consonant = swell(np.diff(resonance(hiss, rng.uniform(1500, 5000), 800)), 0.01)
    samples = int(RATE * rng.uniform(0.10, 0.24))
    pitch = np.linspace(rng.uniform(110, 170), rng.uniform(90, 130), samples)
    pulses = np.diff(np.floor(np.cumsum(pitch) / RATE), prepend=0)
    vowels = ((730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240), (530, 1840, 2480))
    for formant, bandwidth in zip(vowels[rng.integers(4)], (80, 100, 140), strict=True):
        pulses = resonance(pulses, formant, bandwidth)
    pause = np.zeros(int(RATE * rng.choice([0.02, 0.05, 0.35], p=[0.5, 0.3, 0.2])))
    return np.concatenate([0.25 * consonant, swell(pulses), pause])


def note(rng: np.random.Generator) -> np.ndarray:
    """A decaying note of a pentatonic scale with six harmonics, sometimes with a fifth above."""
    time = np.arange(int(RATE * rng.choice([0.25, 0.5]))) / RATE
    pitches = 220 * 2 ** (rng.choice([0, 3, 5, 7, 10, 12, 15]) / 12) * np.array([1, 1.5])
    pitches = pitches[: rng.integers(1, 3), None, None]
    order = np.arange(1, 7)[:, None]
    sines = np.sin(2 * np.pi * pitches * order * time) / order * np.exp(-4 * time)
    return swell(sines.sum(axis=(0, 1)))


def chirp(rng: np.random.Generator) -> np.ndarray:
    """A tone that glides up or down."""
    start, stop = rng.uniform(200, 4000, size=2)
    pitch = np.geomspace(start, stop, int(RATE * rng.uniform(0.3, 0.8)))
    return swell(np.sin(2 * np.pi * np.cumsum(pitch) / RATE))


def fill(
    make: Callable[[np.random.Generator], np.ndarray], seconds: float, rng: np.random.Generator
) -> np.ndarray:
    """Sounds one after the other for that long, as loud or a little softer."""
    samples, parts = int(RATE * seconds), [np.zeros(0)]
    while sum(part.size for part in parts) < samples:
        parts.append(rng.uniform(0.5, 1) * make(rng))
    return np.concatenate(parts)[:samples]


def synthesise() -> np.ndarray:
    """Thirty seconds: speech-like syllables, a pause, music, chirps, then speech over music."""
    rng = np.random.default_rng(2024)
    both = fill(syllable, 9, rng) + 0.3 * fill(note, 9, rng)
    scenes = [
        fill(syllable, 10, rng),
        np.zeros(RATE),
        fill(note, 7, rng),
        fill(chirp, 3, rng),
        both,
    ]
    sound = 0.3 * np.concatenate(scenes)
    return sound + 1e-3 * rng.standard_normal(sound.size)


def log_mel(sound: np.ndarray) -> np.ndarray:
    """Whisper's features: 80 mel bands of 25 ms frames, in log10, cut 8 below the loudest."""
    padded = np.pad(sound, FRAME // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, FRAME)[:-1:HOP]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FRAME) / FRAME)
    power = np.abs(np.fft.rfft(frames * window)) ** 2
    bands = mel_filter_bank(
        FRAME // 2 + 1, MELS, 0.0, RATE / 2, RATE, norm="slaney", mel_scale="slaney"
    )
    level = np.log10(np.maximum(power @ bands, 1e-10))
    return (np.maximum(level, level.max() - 8).T + 4) / 4


def build_audio() -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """The encoder of Whisper tiny.en and 30 seconds of sound: 1500 tokens."""
    return whisper(), {"input_features": torch.tensor(log_mel(synthesise())[None])}


# Recording

# The heads are evenly spaced in the layer and were fixed before anything was measured.
CASES = {
    "text": Case(
        build_text, (0, 2, 5), (2, 6, 10), 32, "encoder.layer.{layer}.attention.self.{role}"
    ),
    "vision": Case(
        build_vision, (0, 3, 11), (1, 4), 64, "encoder.layer.{layer}.attention.{role[0]}_proj"
    ),
    "audio": Case(build_audio, (0, 1, 3), (3,), 64, "layers.{layer}.self_attn.{role[0]}_proj"),
}


def record(case: Case) -> dict[str, np.ndarray]:
    """The arrays of one file: queries, keys, values and head numbers of every recorded layer."""
    model, inputs = case.build()
    model = model.double().eval()
    outputs = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: tuple, output: torch.Tensor) -> None:
            outputs[name] = output.unflatten(-1, (-1, case.head_dim))[:, :, case.heads]

        return hook

    for layer in case.layers:
        for role in ROLES:
            projection = model.get_submodule(case.projection.format(layer=layer, role=role))
            projection.register_forward_hook(keep(f"layer{layer}_{role}"))
    with torch.no_grad():
        model(**inputs)

    arrays = {}
    for layer in case.layers:
        for role in ROLES:
            name = f"layer{layer}_{role}"
            arrays[name] = outputs[name].numpy().astype(np.float16)
            assert np.isfinite(arrays[name]).all(), f"{name} overflows float16"
        arrays[f"layer{layer}_heads"] = np.array(case.heads, dtype=np.int64)
    return arrays


def main() -> None:
    """Record the cases named on the command line, all of them without a name."""
    for name in sys.argv[1:] or CASES:
        arrays = record(CASES[name])
        OUTPUT.mkdir(parents=True, exist_ok=True)
        stored = arrays if name == "vision" else coded(arrays)
        np.savez_compressed(OUTPUT / f"{name}.npz", **stored)
        for layer in CASES[name].layers:
            query, key, value = (np.abs(arrays[f"layer{layer}_{role}"]) for role in ROLES)
            largest = f"largest entries {query.max():.1f}, {key.max():.1f}, {value.max():.1f}"
            print(f"{name} layer {layer}: query, key, value of shape {query.shape}, {largest}")


if __name__ == "__main__":
    main()
