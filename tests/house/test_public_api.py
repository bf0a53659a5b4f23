"""What users may call: names, their arguments, and the command's options, each in a list."""

import doctest
import importlib
import inspect
import pkgutil
import re

import pytest

import thinformer
import thinformer.kernels
from thinformer.commands.main import main

PUBLIC = [getattr(thinformer, name) for name in thinformer.__all__]


def test_all_is_there_and_nothing_else_is_meant():
    assert sorted(thinformer.__all__) == [
        "Attended", "ColumnError", "Comparison", "Comparisons", "CompressedCache",
        "Coresets", "Draws",
        "ErrorCurve", "Kernel", "KernelResult", "KernelThinner", "Schedule", "ThinformerAttention",
        "ThinnedKernelRidge", "ThinnedNadarayaWatson", "TwoSampleResult", "WeightedRows",
        "attention", "causal_attention", "compare", "compress", "compress_cache", "compress_kv",
        "compress_schedule", "coreset", "coreset_size", "debias", "error_curve", "fit_weights",
        "get_num_threads", "kernel_halve", "kh_compress", "make_draws", "median_distance", "merge",
        "mmd", "mmd2_unbiased", "set_num_threads", "symmetrize",
        "take_draws", "thin", "thinformer_attention", "two_sample_test",
    ]  # fmt: skip
    with pytest.raises(AttributeError, match="'thinformer' has no attribute 'nonsense'"):
        thinformer.nonsense  # noqa: B018


def test_the_module_can_be_explored():
    assert set(thinformer.__all__) <= set(dir(thinformer))
    for name in thinformer.__all__:
        if name not in ("Attended", "Draws", "Kernel", "Schedule"):
            assert f"`{name}`" in thinformer.__doc__


def test_functions_are_not_shadowed_by_modules():
    """A module named like a public function would take its place once it is imported."""
    pytest.importorskip("torch")
    for module in pkgutil.iter_modules(thinformer.__path__):
        if module.name != "__main__":
            importlib.import_module(f"thinformer.{module.name}")
    for name in thinformer.__all__:
        assert not inspect.ismodule(getattr(thinformer, name)), name


def test_kernels():
    assert sorted(thinformer.kernels.__all__) == [
        "Kernel", "energy", "exponential", "gaussian", "gradient_free_stein",
        "inverse_multiquadric", "laplace", "linear", "matern", "of_products", "pairwise",
        "polynomial", "rational_quadratic", "sobolev", "stein", "with_labels",
    ]  # fmt: skip
    assert all(callable(getattr(thinformer.kernels, name)) for name in thinformer.kernels.__all__)


def test_plot():
    import thinformer.plot  # without matplotlib

    assert sorted(thinformer.plot.__all__) == ["coreset", "error_curve", "witness"]
    assert plain_signature(thinformer.plot.coreset) == "(points, rows)"
    assert plain_signature(thinformer.plot.error_curve) == "(curve)"
    assert plain_signature(thinformer.plot.witness) == (
        "(x, y, *, kernel='gaussian', bandwidth='median', standardize='auto', x_weights=None, "
        "y_weights=None, names=('x', 'y'), rng=0)"
    )


def test_dask():
    import thinformer.dask  # without Dask

    assert thinformer.dask.__all__ == ["SampledMMD", "compare", "mmd", "thin"]
    assert plain_signature(thinformer.dask.thin) == (
        "(x, size, *, weights=None, kernel='gaussian', bandwidth='median', standardize='auto', "
        "method='compress++', g=4, delta=0.5, seed=0)"
    )
    assert plain_signature(thinformer.dask.mmd) == (
        "(x, coreset, *, sample=20000, kernel='gaussian', bandwidth='median', standardize='auto', "
        "weights=None, coreset_weights=None, seed=0)"
    )
    assert plain_signature(thinformer.dask.compare) == (
        "(x, coresets, *, sample=20000, kernel='gaussian', bandwidth='median', "
        "standardize='auto', weights=None, seed=0)"
    )


def test_torch():
    pytest.importorskip("torch")
    import thinformer.torch

    assert sorted(thinformer.torch.__all__) == [
        "Calibration", "Conversion", "KeySelection", "LayerOptions", "PUBLISHED", "Report",
        "ThinformerAttention", "ThinnedOrder", "calibrate", "convert", "example_gradients",
        "last_layer_gradients", "load_settings", "report", "revert", "save_settings",
        "thinformer_attention",
    ]  # fmt: skip
    for name in ("ThinformerAttention", "thinformer_attention"):
        assert getattr(thinformer.torch, name) is getattr(thinformer, name)


def plain_signature(function):
    """The signature without annotations."""
    signature = inspect.signature(function)
    bare = [p.replace(annotation=inspect.Parameter.empty)
            for p in signature.parameters.values()]  # fmt: skip
    return str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))


def test_signatures():
    """As documented; a change here is a change that users notice."""
    expected = {
        "kernel_halve": "(K, *, delta=0.5, rng=None, draws=None, device='auto')",
        "kh_compress": "(points, *, g=2, size=None, delta=0.5, kernel='gaussian', rng=None, "
        "draws=None, device='auto')",
        "thin": "(points, size, *, ess=None, kernel='gaussian', bandwidth='median', "
        "standardize='auto', method='compress++', g=4, delta=0.5, refine=True, unique=True, "
        "weights=None, target='auto', return_weights=False, rng=None, device='auto', "
        "progress=None)",
        "fit_weights": "(points, coreset, *, kernel='gaussian', bandwidth='median', "
        "standardize='auto', weights=None, target='auto', constraint='simplex', rng=0, "
        "progress=None)",
        "error_curve": "(points, sizes=None, *, ess=None, kernel='gaussian', bandwidth='median', "
        "standardize='auto', method='compress++', g=4, delta=0.5, refine=True, unique=True, "
        "weights=None, target='auto', rng=0, device='auto', progress=None)",
        "mmd": "(points, coreset, *, kernel='gaussian', bandwidth='median', standardize='auto', "
        "weights=None, coreset_weights=None, target='auto', rng=0, progress=None)",
        "mmd2_unbiased": "(x, y, *, kernel='gaussian', bandwidth='median', standardize='auto', "
        "rng=0, progress=None)",
        "compare": "(points, coresets, *, kernel='gaussian', bandwidth='median', "
        "standardize='auto', weights=None, target='auto', rng=0, progress=None)",
        "debias": "(points, kernel, *, size=None, standardize='auto', rng=None, progress=None)",
        "median_distance": "(points, rng=None)",
        "coreset": "(points, size, *, part, first_row=0, weights=None, kernel='gaussian', "
        "bandwidth=None, method='compress++', g=4, delta=0.5, seed=0)",
        "merge": "(coresets)",
        "Coresets": "(settings, nodes=<factory>)",
        "take_draws": "(posterior, rows)",
        "compress": "(points, halve, thin=None, g=0)",
        "symmetrize": "(halve, rng=None)",
        "KernelThinner": "(n_samples=0.1, *, kernel='gaussian', bandwidth='median', "
        "standardize='auto', method='compress++', g=4, delta=0.5, refine=True, target='auto', "
        "weighted=False, random_state=None, progress=None)",
        "ThinnedKernelRidge": "(n_samples=0.1, *, alpha=0.1, kernel='gaussian', "
        "bandwidth='median', random_state=None)",
        "ThinnedNadarayaWatson": "(n_samples=0.1, *, kernel='gaussian', bandwidth='median', "
        "random_state=None)",
        "causal_attention": "(query, key, value, size=256, *, block=2048, recent=128, scale=None)",
        "compress_cache": "(query, key, value, size, *, recent=32, scale=None, log_mass=None)",
        "compress_kv": "(key, value, *, g=2, size=None, scale=None, delta=0.5, pre_thin='even', "
        "rng=None, draws=None, device='auto')",
        "attention": "(query, key, value, *, g=2, size=None, scale=None, delta=0.5, "
        "pre_thin='even', rng=None, draws=None, device='auto', correction=None, temperature=None, "
        "return_weights=False, return_indices=False)",
        "ThinformerAttention": "(g=2, scale=None, use_torch_spda=False, *, size=None, "
        "pre_thin='even', correction=None, temperature=None, generator=None, "
        "estimate_error=False, fallback=None, error_threshold=None, options=None)",
        "thinformer_attention": "(query, key, value, *, g=2, size=None, scale=None, "
        "key_padding_mask=None, attn_mask=None, is_causal=False, enable_gqa=False, dropout_p=0.0, "
        "layout='bshd', generator=None, correction=None, temperature=None, return_weights=False, "
        "return_indices=False, return_error_estimate=False, fallback=None, error_threshold=None)",
    }
    for name, text in expected.items():
        assert plain_signature(getattr(thinformer, name)) == text


def test_cache():
    cache = pytest.importorskip("thinformer.torch.cache", exc_type=ImportError)
    assert sorted(cache.__all__) == ["CacheReport", "CacheRow", "ThinnedCache"]
    signature = "(config, size=256, *, recent=32, growth=64)"
    assert plain_signature(cache.ThinnedCache) == signature


OF_A_LAYER = (
    "*, g=2, size=None, min_length='auto', correction='queries', temperature=None, "
    "fallback='exact', error_threshold=None, seed=0"
)
OF_AN_ADAPTER = f"{OF_A_LAYER}, unsupported='raise'"


def test_signatures_of_torch():
    pytest.importorskip("torch")
    from thinformer.torch import (
        Conversion,
        ThinnedOrder,
        calibrate,
        convert,
        example_gradients,
        last_layer_gradients,
        load_settings,
        report,
        revert,
        save_settings,
    )

    assert plain_signature(convert) == f"(model, settings=None, {OF_AN_ADAPTER}, options=None)"
    assert plain_signature(revert) == "(model)"
    assert plain_signature(report) == "(model)"
    assert plain_signature(load_settings) == "(path)"
    assert plain_signature(save_settings) == "(model, path)"
    assert plain_signature(calibrate) == "(model, inputs)"
    assert plain_signature(ThinnedOrder) == (
        "(dataset, *, epochs, seed=0, delta=0.5, num_replicas=1, rank=0)"
    )
    assert plain_signature(example_gradients) == "(model, loss, inputs, targets)"
    assert plain_signature(last_layer_gradients) == "(model, layer, loss, inputs, targets)"
    assert plain_signature(Conversion) == "(swapped, left)"


def test_signatures_of_transformers():
    pytest.importorskip("transformers")
    from thinformer.torch import transformers

    assert plain_signature(transformers.register) == (
        f"(name='thinformer', {OF_AN_ADAPTER}, options=None)"
    )
    assert plain_signature(transformers.configure) == (
        f"(layer, settings=None, {OF_AN_ADAPTER}, exact=False, options=None)"
    )


def test_signatures_of_tabpfn(monkeypatch):
    pytest.importorskip("torch")
    import tabpfn_stub

    adapter = tabpfn_stub.adapter(monkeypatch)
    assert plain_signature(adapter.register) == f"({OF_A_LAYER}, options=None)"
    assert plain_signature(adapter.unregister) == "()"


COMMANDS = {
    "thin": "-o --out --size --ess --columns --standardize --no-standardize --weights --kernel "
    "--bandwidth --method --g --delta --seed --row-numbers --plot --curve --report --chunk-rows "
    "--scheduler --format --delimiter --comment",
    "test": "--columns --standardize --no-standardize --weights --kernel --bandwidth --method "
    "--bins --permutations --level --seed --plot --report --delimiter --comment",
    "demo": "--plot",
    "bench": "--quality --sizes --shapes --g --dtype --threads --device --rounds --compiled --json "
    "--plot",
    "bench-points": "--largest --sizes --seeds --peers --json",
    "bench-models": "--shapes --tokens --g --size --correction --device --dtype --threads --rounds "
    "--json",
    "eval-model": "--text --image --audio --max-length --settings --g --size --correction "
    "--error-threshold --min-length --exact --rounds --seed --json --prompt --read --generate "
    "--facts",
    "tune": "--text --image --audio --max-length --error-target -o --output --sizes --correction "
    "--min-length --rounds --size --prompt --read",
    "info": "",
    "warm": "",
    "validate": "--upstream --device",
}


def help_of(*command, capsys):
    with pytest.raises(SystemExit) as end:
        main([*command, "--help"])
    assert end.value.code == 0
    return capsys.readouterr().out


def options_of(text):
    """The option strings that a help text lists, without those of the help itself."""
    lists = re.findall(r"^  (-.*?)(?:  |$)", text, re.MULTILINE)
    found = re.findall(r"(?<![\w-])--?[a-z][\w-]*", " ".join(lists))
    return set(found) - {"-h", "--help"}


def test_commands(capsys):
    text = help_of(capsys=capsys)
    assert re.findall(r"^    ([a-z][\w-]*)", text, re.MULTILINE) == list(COMMANDS)
    assert options_of(text) == {"--version"}


@pytest.mark.parametrize("command", COMMANDS)
def test_options_of_commands(command, capsys):
    assert options_of(help_of(command, capsys=capsys)) == set(COMMANDS[command].split())


@pytest.mark.parametrize("thing", PUBLIC, ids=thinformer.__all__)
def test_docstrings(thing):
    assert inspect.getdoc(thing)
    module = importlib.import_module(thing.__module__)
    finder = doctest.DocTestFinder(recurse=False)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for test in finder.find(thing, thing.__name__, module=module):
        runner.run(test)
    assert runner.failures == 0


def test_installed_package_is_what_is_tested(request):
    """In CI the wheel is; the option says so."""
    import os

    if os.environ.get("THINFORMER_TEST_WHEEL") == "1":
        assert "site-packages" in thinformer.__file__
    assert thinformer.__version__
