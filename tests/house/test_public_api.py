import doctest
import importlib
import inspect

import pytest

import thinformer

PUBLIC = [getattr(thinformer, name) for name in thinformer.__all__]


def test_all_is_there_and_nothing_else_is_meant():
    assert sorted(thinformer.__all__) == [
        "Attended", "Comparison", "Comparisons", "Draws", "Kernel", "KernelThinner", "Schedule",
        "ThinformerAttention", "attention", "compare", "compress", "compress_kv",
        "compress_schedule", "coreset_size", "get_num_threads", "kernel_halve", "kh_compress",
        "make_draws", "median_distance", "mmd", "mmd2_unbiased", "set_num_threads", "symmetrize",
        "thin", "thinformer_attention",
    ]  # fmt: skip
    with pytest.raises(AttributeError, match="'thinformer' has no attribute 'nonsense'"):
        thinformer.nonsense  # noqa: B018


def test_the_module_can_be_explored():
    assert set(thinformer.__all__) <= set(dir(thinformer))
    for name in thinformer.__all__:
        if name not in ("Attended", "Draws", "Kernel", "Schedule"):
            assert f"`{name}`" in thinformer.__doc__


def test_functions_are_not_shadowed_by_their_modules():
    for name in ("attention", "compress"):
        importlib.import_module(f"thinformer.{name}")
        assert inspect.isfunction(getattr(thinformer, name))


def test_signatures():
    """As documented; a change here is a change that users notice."""
    expected = {
        "kernel_halve": "(K, *, delta=0.5, rng=None, draws=None, device='auto')",
        "kh_compress": "(points, *, g=2, size=None, delta=0.5, kernel='gaussian', rng=None, "
        "draws=None, device='auto')",
        "thin": "(points, size, *, kernel='gaussian', bandwidth='median', method='compress++', "
        "g=4, "
        "delta=0.5, refine=True, unique=True, weights=None, target='sample', rng=None, "
        "device='auto')",
        "mmd": "(points, coreset, *, kernel='gaussian', bandwidth='median', weights=None, "
        "target='sample', rng=0)",
        "mmd2_unbiased": "(x, y, *, kernel='gaussian', bandwidth='median', rng=0)",
        "compare": "(points, coresets, *, kernel='gaussian', bandwidth='median', rng=0)",
        "median_distance": "(points, rng=None)",
        "compress": "(points, halve, thin=None, g=0)",
        "symmetrize": "(halve, rng=None)",
        "KernelThinner": "(n_samples=0.1, *, kernel='gaussian', bandwidth='median', "
        "method='compress++', g=4, delta=0.5, refine=True, target='sample', random_state=None)",
        "compress_kv": "(key, value, *, g=2, size=None, scale=None, delta=0.5, pre_thin='even', "
        "rng=None, draws=None, device='auto')",
        "attention": "(query, key, value, *, g=2, size=None, scale=None, delta=0.5, "
        "pre_thin='even', rng=None, draws=None, device='auto', correction=None, temperature=None, "
        "return_weights=False, return_indices=False)",
        "ThinformerAttention": "(g=2, scale=None, use_torch_spda=False, *, size=None, "
        "pre_thin='even', correction=None, temperature=None, generator=None, "
        "estimate_error=False, fallback=None, error_threshold=None)",
        "thinformer_attention": "(query, key, value, *, g=2, size=None, scale=None, "
        "key_padding_mask=None, attn_mask=None, is_causal=False, enable_gqa=False, dropout_p=0.0, "
        "layout='bshd', generator=None, correction=None, temperature=None, return_weights=False, "
        "return_indices=False, return_error_estimate=False, fallback=None, error_threshold=None)",
    }
    for name, text in expected.items():
        signature = inspect.signature(getattr(thinformer, name))
        bare = [p.replace(annotation=inspect.Parameter.empty)
                for p in signature.parameters.values()]  # fmt: skip
        plain = signature.replace(parameters=bare, return_annotation=inspect.Signature.empty)
        assert str(plain) == text


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
