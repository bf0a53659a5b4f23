"""Inputs from files: lines of texts, images of every mode of PIL, sounds of every width."""

import struct
import zlib

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from PIL import Image
from scipy.io import wavfile
from small_encoders import WORDS, tokenizer
from transformers import BertConfig, ViTImageProcessor, WhisperFeatureExtractor

from thinformer.torch.evaluation.encoders import _first_line, read_images, read_sounds, read_texts
from thinformer.torch.evaluation.images import read_image

SEPARATORS = {
    "U+2028": "\u2028", "U+2029": "\u2029", "NEL": "\x85", "form feed": "\x0c", "VT": "\x0b",
    "FS": "\x1c", "GS": "\x1d", "RS": "\x1e",
}  # fmt: skip


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    BertConfig(max_position_embeddings=400).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


def texts(folder, path, content):
    """The known words of each text; others have the largest number."""
    path.write_bytes(content.encode("utf-8"))
    return [
        [WORDS[i] for i in x["input_ids"][0].tolist() if i < len(WORDS)]
        for x in read_texts(folder, [path], None)
    ]


@pytest.mark.parametrize("separator", SEPARATORS.values(), ids=SEPARATORS)
def test_other_separators_are_inside_a_line(separator, bert, tmp_path):
    got = texts(bert, tmp_path / "a.txt", f"w1 {separator} w2\nw3 {separator}\n")
    assert got == [["w1", "w2"], ["w3"]]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_lines_end_with_newlines(end, mark, bert, tmp_path):
    got = texts(bert, tmp_path / "a.txt", f"{mark}w1 w2{end}{end} {end}w3{end}")
    assert got == [["w1", "w2"], ["w3"]]


@pytest.mark.parametrize("separator", SEPARATORS.values(), ids=SEPARATORS)
def test_the_first_line_of_an_error(separator):
    assert _first_line(ValueError(f"a{separator}b\nc")) == f"a{separator}b"
    assert _first_line(ValueError("\n")) == "ValueError"


# of each mode: its numbers of one pixel, and the colour they are
COLOURS = {
    "1": (1, (255, 255, 255)),
    "L": (77, (77, 77, 77)),
    "La": ((50, 255), (50, 50, 50)),
    "LA": ((77, 255), (77, 77, 77)),
    "P": (3, (1, 2, 3)),
    "PA": ((3, 255), (1, 2, 3)),
    "RGB": ((10, 20, 30), (10, 20, 30)),
    "RGBX": ((10, 20, 30, 0), (10, 20, 30)),
    "RGBA": ((10, 20, 30, 255), (10, 20, 30)),
    "RGBa": ((10, 20, 30, 255), (10, 20, 30)),
    "CMYK": ((255, 0, 0, 0), (0, 255, 255)),
    "YCbCr": ((76, 85, 255), (254, 0, 0)),
    "HSV": ((0, 255, 255), (255, 0, 0)),
    "LAB": ((255, 0, 0), (255, 255, 255)),
    "I;16": (65535, (255, 255, 255)),
    "I;16L": (32896, (128, 128, 128)),
    "I;16B": (257, (1, 1, 1)),
    "I;16N": (1000, (4, 4, 4)),
    "I": (70000, None),
    "F": (0.5, None),
}
TRANSPARENT = {
    "La": ((0, 0), 255),
    "LA": ((77, 0), 255),
    "PA": ((3, 0), 255),
    "RGBA": ((10, 10, 10, 0), 255),
    "RGBa": ((0, 0, 0, 0), 255),
}


def opened(image, monkeypatch, tmp_path):
    """What is read of a file that PIL opens as this image."""
    monkeypatch.setattr(Image, "open", lambda path: image)
    return read_image(tmp_path / "a.tif")


def of_mode(mode, pixel):
    image = Image.new(mode, (2, 1))
    if mode in ("P", "PA"):
        image.putpalette([0] * 9 + [1, 2, 3])
    bands = pixel if isinstance(pixel, tuple) else (pixel,)
    kinds = {"I": "<i4", "F": "<f4", "I;16": "<u2", "I;16L": "<u2", "I;16B": ">u2", "I;16N": "=u2"}
    if mode == "1":
        image.paste(1, (0, 0, 2, 1))
    else:
        image.frombytes(np.array([bands] * 2, kinds.get(mode, "u1")).tobytes())
    return image


def test_no_mode_is_missing():
    assert set(COLOURS) == set(Image.MODES)


@pytest.mark.parametrize(("mode", "pixel", "colour"), [(m, *c) for m, c in COLOURS.items()])
def test_every_mode(mode, pixel, colour, monkeypatch, tmp_path):
    image = of_mode(mode, pixel)
    if colour is None:
        with pytest.raises(ValueError, match=rf"a\.tif: is an image of mode '{mode}', .*; scale"):
            opened(image, monkeypatch, tmp_path)
        return
    got = opened(image, monkeypatch, tmp_path)
    assert (got.mode, got.size) == ("RGB", (2, 1))
    rounding = 1 if mode == "LAB" else 0  # whose conversion is a library's
    np.testing.assert_allclose(np.asarray(got), [[colour] * 2], rtol=0, atol=rounding)


@pytest.mark.parametrize(("mode", "pixel", "grey"), [(m, *c) for m, c in TRANSPARENT.items()])
def test_transparent_pixels_are_white(mode, pixel, grey, monkeypatch, tmp_path):
    got = opened(of_mode(mode, pixel), monkeypatch, tmp_path)
    assert np.asarray(got).tolist() == [[[grey] * 3] * 2]


def test_half_transparent_pixels_are_mixed(tmp_path):
    Image.new("RGBA", (1, 1), (0, 100, 200, 51)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").getpixel((0, 0)) == (204, 224, 244)  # a fifth of it


def png(path, *, colour, depth, rows, transparent=None, palette=None):
    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data
            + struct.pack(">I", zlib.crc32(name + data))
        )  # fmt: skip

    header = struct.pack(">IIBBBBB", 2, 1, depth, colour, 0, 0, 0)
    chunks = [chunk(b"IHDR", header)]
    if palette is not None:
        chunks.append(chunk(b"PLTE", bytes(palette)))
    if transparent is not None:
        chunks.append(chunk(b"tRNS", transparent))
    chunks.append(chunk(b"IDAT", zlib.compress(b"\0" + rows)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + chunk(b"IEND", b""))


@pytest.mark.parametrize(
    ("options", "second"),
    [
        ({"colour": 0, "depth": 8, "rows": bytes([7, 9]), "transparent": b"\0\7"}, (9, 9, 9)),
        ({"colour": 0, "depth": 16, "rows": struct.pack(">2H", 1000, 60000),
          "transparent": struct.pack(">H", 1000)}, (233, 233, 233)),
        ({"colour": 2, "depth": 8, "rows": bytes([1, 2, 3, 4, 5, 6]),
          "transparent": struct.pack(">3H", 1, 2, 3)}, (4, 5, 6)),
        ({"colour": 3, "depth": 8, "rows": bytes([0, 1]), "transparent": b"\0",
          "palette": [1, 2, 3, 4, 5, 6]}, (4, 5, 6)),
    ],
    ids=["L", "I;16", "RGB", "P"],
)  # fmt: skip
def test_a_value_that_stands_for_transparency_is_white(options, second, tmp_path):
    png(tmp_path / "a.png", **options)
    got = read_image(tmp_path / "a.png")
    assert [got.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), second]


# the kinds of PNG: the number of each, and the bits that its samples may have
PNGS = {
    "grey": (0, (1, 2, 4, 8, 16)), "RGB": (2, (8, 16)), "palette": (3, (1, 2, 4, 8)),
    "grey and alpha": (4, (8, 16)), "RGBA": (6, (8, 16)),
}  # fmt: skip
PALETTE = [[10, 20, 30], [40, 50, 60]]


def packed(samples, depth):
    """Samples as a row of a PNG has them: the first in the highest bits, filled up to a byte."""
    number = 0
    for sample in samples:
        number = number << depth | sample
    bits = depth * len(samples)
    return (number << -bits % 8).to_bytes(-(-bits // 8), "big")


def png_of(kind, depth, transparent):
    """The arguments of `png` for two pixels, one of them transparent or None, and their colours."""
    number, _ = PNGS[kind]
    largest = 2**depth - 1
    low, high = largest // 3, (2 * largest + 2) // 3  # a third and two thirds, where there are bits
    dark, light = (0, 255) if depth == 1 else (85, 170)
    options = {"colour": number, "depth": depth}
    alpha = [0 if i == transparent else largest for i in (0, 1)]
    if kind == "palette":
        pixels, colours = [[0], [1]], PALETTE
        options["palette"] = [*PALETTE[0], *PALETTE[1]]
    elif kind.startswith("grey"):
        pixels, colours = [[low], [high]], [[dark] * 3, [light] * 3]
    else:  # pixels that differ in one channel only
        pixels, colours = [[low, high, high], [low, low, high]], [[85, 170, 170], [85, 85, 170]]
    colours = [[255] * 3 if i == transparent else colours[i] for i in (0, 1)]
    if kind in ("grey and alpha", "RGBA"):
        pixels = [[*pixels[i], alpha[i]] for i in (0, 1)]
    elif transparent is not None and kind == "palette":
        options["transparent"] = bytes([255] * transparent + [0])
    elif transparent is not None:
        options["transparent"] = packed(pixels[transparent], 16)
    return options | {"rows": packed([*pixels[0], *pixels[1]], depth)}, colours


EACH_PNG = pytest.mark.parametrize(
    ("kind", "depth"), [(kind, depth) for kind, (_, depths) in PNGS.items() for depth in depths]
)


@EACH_PNG
@pytest.mark.parametrize("transparent", [None, 0, 1])
def test_every_kind_of_png(kind, depth, transparent, tmp_path):
    options, colours = png_of(kind, depth, transparent)
    png(tmp_path / "a.png", **options)
    if (kind, depth) == ("RGB", 16) and transparent is not None:  # of which PIL reads 8 bits
        with pytest.raises(ValueError, match=r"a\.png: .* \(tRNS\); .*; save it with .* \(RGBA\)"):
            read_image(tmp_path / "a.png")
        return
    assert np.asarray(read_image(tmp_path / "a.png")).tolist() == [colours]


@pytest.mark.parametrize("kind", ["grey", "RGB"])
def test_a_transparent_value_that_is_cut_off_is_named(kind, tmp_path):
    png(tmp_path / "a.png", **png_of(kind, 8, None)[0], transparent=b"\0")
    with pytest.raises(ValueError, match=r"a\.png: is no image that can be read"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_files_of_16_bits_are_scaled(name, tmp_path):
    values = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    if name == "a.pgm":  # of which PIL makes mode "I"
        header = b"P5 6 1 65535\n"
        (tmp_path / name).write_bytes(header + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(tmp_path / name)
    assert np.asarray(read_image(tmp_path / name))[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_images_are_turned_as_their_exif_data_says(dtype, tmp_path):
    numbers = np.array([[0, 51, 102], [153, 204, 255]], dtype)
    image = Image.fromarray(numbers * (257 if dtype == np.uint16 else 1))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    image.save(tmp_path / "a.png", exif=exif)
    got = np.asarray(read_image(tmp_path / "a.png"))[..., 0]
    assert got.tolist() == np.rot90(numbers, -1).tolist()


def test_images_are_prepared_for_the_model(tmp_path):
    processor = ViTImageProcessor(size={"height": 2, "width": 2}, do_normalize=False)
    processor.save_pretrained(tmp_path)
    Image.fromarray(np.full((2, 2), 65535, np.uint16)).save(tmp_path / "a.png")
    [x] = read_images(str(tmp_path), [tmp_path / "a.png"])
    torch.testing.assert_close(x["pixel_values"], torch.ones(1, 3, 2, 2))


def test_broken_images_are_named(tmp_path):
    path, whole = tmp_path / "a.png", tmp_path / "b.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (99, 99), np.uint8)).save(whole)
    for content in (b"", b"no", whole.read_bytes()[:5000], b"P5 x 1 255\n"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.png: is no image that can be read"):
            read_image(path)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        read_image(tmp_path / "nowhere.png")


def riff(kind, bits, data, channels=1, rate=100, order="<"):
    block = channels * ((bits + 7) // 8)
    form = struct.pack(order + "HHIIHH", kind, channels, rate, rate * block, block, bits)
    body = b"fmt " + struct.pack(order + "I", len(form)) + form
    body += b"data" + struct.pack(order + "I", len(data)) + data
    name = b"RIFF" if order == "<" else b"RIFX"
    return name + struct.pack(order + "I", 4 + len(body)) + b"WAVE" + body


# a half, minus a quarter, 0, of each width
SOUNDS = {
    "8 bits": riff(1, 8, bytes([192, 96, 128])),
    "12 bits": riff(1, 12, struct.pack("<3h", 2**14, -(2**13), 0)),
    "16 bits": riff(1, 16, struct.pack("<3h", 2**14, -(2**13), 0)),
    "16 bits, big-endian": riff(1, 16, struct.pack(">3h", 2**14, -(2**13), 0), order=">"),
    "24 bits": riff(1, 24, bytes([0, 0, 0x40, 0, 0, 0xE0, 0, 0, 0])),
    "32 bits": riff(1, 32, struct.pack("<3i", 2**30, -(2**29), 0)),
    "64 bits": riff(1, 64, struct.pack("<3q", 2**62, -(2**61), 0)),
    "float32": riff(3, 32, struct.pack("<3f", 0.5, -0.25, 0)),
    "float32, big-endian": riff(3, 32, struct.pack(">3f", 0.5, -0.25, 0), order=">"),
    "float64": riff(3, 64, struct.pack("<3d", 0.5, -0.25, 0)),
    "stereo": riff(1, 16, struct.pack("<6h", 2**15 - 1, 1, -(2**14), 0, 5, -5), channels=2),
}


@pytest.fixture(scope="module")
def listener(tmp_path_factory):
    """A feature extractor that gives the sound itself."""
    from transformers import Wav2Vec2FeatureExtractor

    folder = tmp_path_factory.mktemp("wav2vec2")
    Wav2Vec2FeatureExtractor(sampling_rate=100, do_normalize=False).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("content", SOUNDS.values(), ids=SOUNDS)
def test_sounds_of_every_width(content, listener, tmp_path):
    (tmp_path / "a.wav").write_bytes(content)
    [x] = read_sounds(listener, [tmp_path / "a.wav"])
    torch.testing.assert_close(x["input_values"], torch.tensor([[0.5, -0.25, 0.0]]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no .wav that can be read"),
        (b"RIFF\0\0", "is no .wav that can be read"),
        (riff(1, 16, b"")[:20], "is no .wav that can be read"),
        (riff(1, 16, b"abcd", channels=0), "is no .wav that can be read"),
        (riff(7, 8, b"abcd"), "is no .wav that can be read: .*MULAW"),
        (riff(1, 16, b""), "holds no sound: 0 samples, 100 a second"),
        (riff(1, 16, b"abcd", rate=0), "holds no sound: 2 samples, 0 a second"),
        (riff(3, 32, struct.pack("<f", float("nan"))), "holds NaN or infinity"),
    ],
)
def test_broken_sounds_are_named(content, message, tmp_path):
    WhisperFeatureExtractor().save_pretrained(tmp_path)
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.wav: {message}"):
        read_sounds(str(tmp_path), [tmp_path / "a.wav"])


def test_a_sound_of_scipy_is_read(listener, tmp_path):
    wavfile.write(tmp_path / "a.wav", 100, np.array([0.5, -0.5], np.float32))
    [x] = read_sounds(listener, [tmp_path / "a.wav"])
    torch.testing.assert_close(x["input_values"], torch.tensor([[0.5, -0.5]]))
