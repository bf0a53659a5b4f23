"""The benchmark of whole models: what it runs, computes and stores; its times are not asserted."""

import json

import pytest
import torch
from checkout import ROOT

pytest.importorskip("transformers")

from thinformer.attending.options import KeySelection, LayerOptions
from thinformer.commands.main import main
from thinformer.measuring import models
from thinformer.torch import transformers as adapter
from thinformer.torch.attend import layer as attending
from thinformer.torch.evaluation import shapes
from thinformer.torch.evaluation.shapes import SHAPES, make_encoder
from thinformer.torch.transformers import attention_layers

SMALL = {"width": 32, "layers": 2, "heads": 2}
OPTIONS = LayerOptions(KeySelection(size=16, correction="queries", min_length=0), fallback=None)


@pytest.fixture
def small(monkeypatch):
    """All shapes with small models."""
    for name, (make, _) in SHAPES.items():
        monkeypatch.setitem(SHAPES, name, (make, SMALL))


@pytest.fixture
def attended(monkeypatch):
    """A list of the options of each call that was not left exact."""
    calls = []
    real = adapter.checked_attention

    def recording(query, key, value, options, *rest):
        calls.append(options)
        return real(query, key, value, options, *rest)

    monkeypatch.setattr(adapter, "checked_attention", recording)
    return calls


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "layers", "heads", "dims"),
    [("bert", 6, 12, 32), ("bert-base", 4, 12, 64), ("vit", 12, 6, 64), ("whisper", 4, 6, 64)],
)
def test_shapes(shape, layers, heads, dims):
    """Layers, heads and head sizes as the help says, seen by the attention itself."""
    seen = []

    def attend(module, query, key, value, attention_mask, **others):
        seen.append(tuple(key.shape))
        assert attention_mask is None
        return query.transpose(1, 2), None

    made = make_encoder(shape, 50)
    assert len(attention_layers(made.model)) == layers
    adapter.AttentionInterface.register("only-looks", attend)
    made.model.set_attn_implementation("only-looks")
    with torch.inference_mode():
        states = made.model(**made.inputs).last_hidden_state
    assert seen == [(1, heads, made.tokens, dims)] * layers
    assert states.shape == (1, made.tokens, heads * dims)
    assert not made.model.training


@pytest.mark.parametrize(
    ("asked", "nearest"), [(2, 2), (512, 530), (1024, 1025), (5477, 5477), (8192, 8282)]
)
def test_an_image_has_a_square_of_patches(small, asked, nearest):
    made = make_encoder("vit", asked)
    assert made.tokens == nearest
    side = shapes.PATCH * round((nearest - 1) ** 0.5)
    assert made.inputs["pixel_values"].shape == (1, 3, side, side)


@pytest.mark.parametrize("shape", ["bert", "bert-base", "whisper"])
def test_other_models_take_any_length(small, shape):
    assert make_encoder(shape, 77).tokens == 77


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_each_column_runs_what_it_says(small, attended, shape):
    """Two passes a column: exact attention thins nothing, "thinned" every layer at any length."""
    (row,) = models.measure([shape], [65], OPTIONS, rounds=1)
    assert attended == [OPTIONS] * 4  # the default leaves 65 tokens exact
    assert (row.shape, row.tokens, row.kept) == (shape, 65, 16)
    assert [len(row.seconds[column]) for column in models.COLUMNS] == [1, 1, 1]


@pytest.mark.slow
def test_the_default_is_that_of_register(small, attended):
    adapter.register("by-hand")
    made = make_encoder("bert", 2048)
    made.model.set_attn_implementation("by-hand")
    with torch.inference_mode():
        made.model(**made.inputs)
    by_hand = attended.copy()
    attended.clear()
    list(models.measure(["bert"], [2048], OPTIONS, rounds=1))
    assert sorted(map(str, attended)) == sorted(map(str, [OPTIONS] * 4 + by_hand * 2))


def test_implementations_are_timed_in_turn(monkeypatch):
    """After a pass of each, in both directions, so that none always follows the same other."""
    ran = []

    def seconds(encoder, implementation):
        ran.append(implementation)
        return float(len(ran))

    monkeypatch.setattr(models, "_seconds", seconds)
    found = models.times_in_turn(None, {"exact": "a", "thinned": "b", "default": "c"}, 3)
    assert "".join(ran) == "abc" + "abc" + "cba" + "abc"
    assert found == {"exact": [4.0, 9.0, 10.0], "thinned": [5.0, 8.0, 11.0],
                     "default": [6.0, 7.0, 12.0]}  # fmt: skip


@pytest.fixture
def estimates(monkeypatch):
    """A list of the estimated errors of each call, and whether a head fell back."""
    found = []
    real = attending.fall_back

    def recording(heads, output, above, *others):
        found[-1] = (found[-1], bool(above.any()))
        return real(heads, output, above, *others)

    def estimated(*arguments, **options):
        found.append(estimate(*arguments, **options))
        return found[-1]

    estimate = attending.estimate_error
    monkeypatch.setattr(attending, "estimate_error", estimated)
    monkeypatch.setattr(attending, "fall_back", recording)
    return found


def run_two_layers(monkeypatch, shape, options):
    make, sizes = SHAPES[shape]
    monkeypatch.setitem(SHAPES, shape, (make, sizes | {"layers": 2}))
    adapter.register("estimated", options=options)
    torch.manual_seed(0)
    made = make_encoder(shape, 1024)
    made.model.set_attn_implementation("estimated")
    with torch.inference_mode():
        made.model(**made.inputs)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_no_head_would_fall_back(monkeypatch, estimates, shape):
    """As the notes say of the default: the largest estimate was 0.15, of the ViT."""
    threshold = LayerOptions().threshold
    selection = KeySelection(g=2, correction="queries", min_length=0)
    run_two_layers(monkeypatch, shape, LayerOptions(selection, "exact", threshold))
    assert [fell for _, fell in estimates] == [False, False]
    assert all(0 < errors.max() < threshold for errors, _ in estimates)


@pytest.mark.slow
def test_no_head_falls_back_where_all_are_thinned(monkeypatch, estimates):
    """Without a correction the estimates of a ViT are above 1; they are computed all the same."""
    selection = KeySelection(g=2, correction=None, min_length=0)
    options = LayerOptions(selection, "exact", 0.3)
    run_two_layers(monkeypatch, "vit", options)
    assert any(fell for _, fell in estimates)
    estimates.clear()
    run_two_layers(monkeypatch, "vit", models.without_falling_back(options))
    assert [fell for _, fell in estimates] == [False, False]
    assert max(errors.max() for errors, _ in estimates) > 1


def test_a_layer_without_a_fallback_stays_so():
    assert models.without_falling_back(OPTIONS) is OPTIONS


def row(tokens=1024, thinned=(1.0, 2.0, 4.0), shape="bert"):
    seconds = {"exact": [2.0, 2.0, 6.0], "thinned": list(thinned), "default": [2.0, 1.0, 6.0]}
    return models.Row(shape, tokens, 128, seconds)


def test_a_ratio_is_the_median_over_rounds():
    """2, 1 and 1.5; the ratio of the medians would be 1."""
    assert row().ratio("thinned") == 1.5
    assert models.cells(row()) == [
        "BERT, width 384", "1,024", "128", "2,000.0", "2,000.0", "2,000.0", "1.50", "1.00",
    ]  # fmt: skip


def test_columns_of_a_line_stand_below_their_names():
    head, line = models.format_cells(models.HEAD), models.format_cells(models.cells(row()))
    assert len(head) == len(line) <= 100
    for name, cell in zip(models.HEAD[1:], models.cells(row())[1:], strict=True):
        end = head.index(f" {name}") + len(name) + 1
        assert line[:end].endswith(f" {cell}")


FAST, SLOW = (1.0, 1.0, 1.0), (9.0, 9.0, 9.0)


@pytest.mark.parametrize(
    ("thinned", "expected", "words"),
    [
        ({512: SLOW, 1024: FAST, 2048: FAST}, 1024, "from 1,024 tokens on"),
        ({2048: FAST, 512: SLOW, 1024: FAST}, 1024, "from 1,024 tokens on"),
        ({512: FAST, 1024: SLOW, 2048: FAST}, 2048, "from 2,048 tokens on"),
        ({512: FAST, 1024: FAST, 2048: SLOW}, None, "at no measured length"),
        ({512: FAST}, 512, "from 512 tokens on"),
    ],
)
def test_where_it_pays(thinned, expected, words):
    rows = [row(tokens, seconds, "vit") for tokens, seconds in thinned.items()]
    assert models.pays_from(rows) == {"vit": expected}
    assert models.format_pays_from(rows) == f"ViT, width 384: thinned attention is faster {words}"


@pytest.mark.slow
def test_command(small, tmp_path, capsys):
    path = tmp_path / "models.json"
    arguments = ["--tokens", "40,300", "--rounds", "2", "--shapes", "whisper,bert"]
    assert main(["bench-models", *arguments, "--g", "1", "--correction", "nystrom",
                 "--json", str(path)]) == 0  # fmt: skip
    printed = capsys.readouterr().out
    stored = json.loads(path.read_text())
    rows = [models.Row(**each) for each in stored["models"]]
    assert [(r.shape, r.tokens, r.kept) for r in rows] == [
        ("whisper", 40, 8), ("whisper", 300, 32), ("bert", 40, 8), ("bert", 300, 32),
    ]  # fmt: skip
    for each in rows:
        assert models.format_cells(models.cells(each)) in printed.splitlines()
    assert models.format_pays_from(rows) in printed
    assert models.NOTES in printed
    assert stored["pays_from"] == models.pays_from(rows)
    assert stored["machine"]["threads"] == str(torch.get_num_threads())
    assert stored["machine"]["transformers"]
    thinned = stored["thinned"]
    assert (thinned["g"], thinned["size"], thinned["correction"]) == (1, None, "nystrom")
    assert (thinned["min_length"], thinned["exact"]) == (0, False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], {"g": 2, "size": None, "correction": "queries", "temperature": None}),
        (["--size", "64"], {"size": 64, "correction": "queries"}),
        (["--correction", "none"], {"correction": None, "temperature": None}),
        (["--correction", "herding"], {"correction": None, "temperature": "auto"}),
    ],
)
def test_what_is_thinned(small, attended, arguments, expected):
    """What the arguments do not name is as in a layer by default, but nothing falls back."""
    assert main(["bench-models", "--shapes", "bert", "--tokens", "65", "--rounds", "1",
                 *arguments]) == 0  # fmt: skip
    assert len(attended) == 4
    defaults = LayerOptions().settings() | {"min_length": 0}
    if defaults["fallback"] is not None:
        defaults["error_threshold"] = models.NEVER
    for options in attended:
        assert options.settings() == defaults | expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shapes", "bart"], "--shapes must be one of 'bert', 'bert-base', 'vit', 'whisper'"),
        (["--tokens", "many"], "--tokens must be integers, as in 1,2; got many"),
        (["--tokens", "1"], "--tokens must be an integer of at least 2; got 1"),
        (["--tokens", ""], "--tokens must be integers, as in 1,2; got nothing"),
        (["--rounds", "0"], "--rounds must be an integer of at least 1; got 0"),
        (["--threads", "0"], "--threads must be an integer of at least 1; got 0"),
        (["--g", "-1"], "--g must be an integer of at least 0; got -1"),
        (["--size", "0"], "--size must be an integer of at least 1; got 0"),
        (["--correction", "best"], "--correction must be one of 'none', 'herding', 'nystrom'"),
        (["--dtype", "bfloat16"], "--dtype bfloat16 takes --device cuda"),
        (["--json", "/nowhere/x.json"], "there is no folder /nowhere"),
    ],
)
def test_errors_are_one_line(arguments, message, capsys):
    assert main(["bench-models", *arguments]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_the_stored_run():
    """All shapes at all lengths, by default; the page's tables are made from it."""
    stored = json.loads((ROOT / "docs" / "benchmarks" / "models.json").read_text())
    rows = [models.Row(**each) for each in stored["models"]]
    lengths = (512, 1024, 2048, 4096, 8192)
    assert [(r.shape, r.tokens) for r in rows if r.shape != "vit"] == [
        (shape, n) for shape in ("bert", "bert-base", "whisper") for n in lengths
    ]
    assert [r.tokens for r in rows if r.shape == "vit"] == [530, 1025, 2026, 4097, 8282]
    assert all(len(times) >= 3 for r in rows for times in r.seconds.values())
    assert stored["pays_from"] == models.pays_from(rows)
    assert stored["thinned"]["correction"] == "queries"
    assert (stored["thinned"]["g"], stored["thinned"]["size"]) == (2, None)
    printed = (ROOT / "docs" / "benchmarks" / "models.txt").read_text()
    for r in rows:
        assert models.format_cells(models.cells(r)) in printed.splitlines()
