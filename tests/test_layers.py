"""Who may know whom: data goes one way through the modules, and torch and CUDA stay in theirs."""

import ast
from pathlib import Path

import pytest

import reference
import thinformer

PACKAGE = Path(thinformer.__file__).parent
REFERENCE = Path(reference.__file__).parent

# each module may import those before it, and nothing else of the package
ORDER = [
    "_checks", "schedule", "draws", "kernels", "halving", "_exp", "_jit", "_simd", "_pool",
    "problem", "sequences", "cuda", "_device", "tiles", "cpu", "sums", "compress", "softmax",
    "centring", "herding", "sampled", "pivots", "nystrom", "landmarks", "points", "tables",
    "discrepancy", "thinning", "recursion", "estimator", "attention", "settings", "data", "torch",
    "validate", "_measure", "demo", "bench", "bench_cuda", "bench_points", "sources", "quality",
    "tune", "delimited", "files", "streaming", "thin_command", "_progress", "cli",
]  # fmt: skip
MAY_NOT = {("attention", "points"), ("attention", "thinning"), ("attention", "discrepancy"),
           ("cuda", "_jit"), ("cuda", "_pool"),
           ("cpu", "_pool"), ("cpu", "schedule"), ("cpu", "cuda"),
           ("kernels", "schedule"), ("halving", "kernels")}  # fmt: skip


TORCH = ("torch", "validate", "bench", "bench_cuda", "cli")
SPECIFICATION_IMPORTS = ("numpy", "scipy", "torch", "math", "typing", "itertools", "reference")


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_of(path):
    parts = path.relative_to(PACKAGE).parts
    return parts[0].removesuffix(".py")


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.name != "__main__.py"]


def test_every_module_has_a_place():
    assert {module_of(path) for path in FILES} - {"__init__"} == set(ORDER)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_arrows_point_one_way(path):
    module = module_of(path)
    if module == "__init__":
        return
    for name in imports(path):
        first, *rest = name.split(".")
        if first == "torch":
            assert module in TORCH, f"{module} imports torch"
        if first == "numba":
            allowed = module in ("_jit", "_simd") or path.name == "_numba.py"
            assert allowed, f"{module} imports numba"
        # bench compares with it where there is a checkout
        assert first != "reference" or module in ("bench", "bench_cuda"), f"{module} imports it"
        if first == "thinformer" and rest and rest[0] in ORDER and rest[0] != module:
            assert ORDER.index(rest[0]) < ORDER.index(module), f"{module} imports {rest[0]}"
            assert (module, rest[0]) not in MAY_NOT, f"{module} imports {rest[0]}"


@pytest.mark.parametrize("path", sorted(REFERENCE.glob("*.py")), ids=lambda path: path.name)
def test_the_specification_stands_alone(path):
    if path.name == "validate.py":  # the one that compares
        return
    for name in imports(path):
        assert name.split(".")[0] in SPECIFICATION_IMPORTS, name
        assert name.split(".")[0] != "torch" or path.name == "torch_version.py"
