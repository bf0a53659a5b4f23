"""The house: who may know whom, read from the folders, and how large a file or function may be."""

import ast
import graphlib
from pathlib import Path

import pytest

import reference
import thinformer
import thinformer.kernels

PACKAGE = Path(thinformer.__file__).parent
REFERENCE = Path(reference.__file__).parent

# what each folder may know; data goes one way, and rooms side by side do not meet
KNOWS = {
    "support": (),
    "data": (),
    "kernels": ("support",),
    "halving": ("kernels", "support"),
    "cpu": ("halving", "kernels", "support"),
    "cuda": ("halving", "kernels", "support"),
    "bodies": ("cpu", "cuda", "halving", "kernels", "support"),
    "thinning": ("bodies", "cpu", "cuda", "halving", "kernels", "support"),
    "attending": ("bodies", "cpu", "cuda", "halving", "kernels", "support"),
    "plot": ("thinning", "support"),
    "dask": ("thinning", "cpu", "halving", "kernels", "support"),
    "files": ("plot", "dask", "thinning", "cpu", "halving", "kernels", "support"),
    "torch": ("attending", "bodies", "cpu", "cuda", "halving", "kernels", "support"),
    "arrays": ("torch", "attending", "bodies", "halving", "support"),
    "measuring": ("arrays", "files", "torch", "thinning", "attending", "halving", "kernels",
                  "support", "data"),
    "commands": ("measuring", "files", "torch", "attending", "cpu", "cuda", "support", "data"),
}  # fmt: skip
# and inside torch/
INSIDE_TORCH = {
    "choose": (),
    "attend": ("choose",),
    "": ("attend", "choose"),
    "evaluation": ("", "attend", "choose"),
}
# who may import another library, by folder or file
ONLY = {
    "torch": ("torch", "measuring", "commands"),
    "numba": ("cpu/jit.py", "cpu/simd.py", "cpu/subnormals.py", "cuda/jit.py", "cuda/mma.py"),
    "llvmlite": ("cpu/simd.py", "cpu/subnormals.py", "cuda/mma.py"),
    "sklearn": ("thinning/estimator.py", "thinning/regression.py", "measuring/points.py"),
    "transformers": ("torch/transformers.py", "torch/cache", "torch/evaluation"),
    "tabpfn": ("torch/tabpfn.py",),
    "dask": ("dask",),
    "distributed": ("dask",),
    "reference": ("measuring/speed.py", "measuring/speed_cuda.py"),  # where there is a checkout
}
SPECIFICATION_IMPORTS = ("numpy", "scipy", "torch", "math", "typing", "itertools", "reference")
LINES, COMPILED_LINES, CODE_LINES, PARAMETERS = 400, 500, 60, 10

FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.name != "__main__.py"]
EACH_FILE = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))


def module_name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def imports(path):
    """Modules that a file imports, anywhere in it; of this package those that it names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else node.module


def own_imports(path):
    return {name for name in imports(path) if name in MODULES}


def folder(name):
    """The folder of a module, "" for the package itself."""
    return f"{name}.".split(".")[1]


def test_every_folder_has_a_place():
    assert {folder(name) for name in MODULES} - {""} == set(KNOWS)


@EACH_FILE
def test_arrows_point_one_way(path):
    own = folder(module_name(path))
    if own:
        for name in own_imports(path):
            known = folder(name) in (own, *KNOWS[own])
            assert known, f"{own}/ may not know {name}"


def test_folders_of_torch():
    def part(name):
        inner = f"{name}..".split(".")[2]
        return inner if inner in INSIDE_TORCH else ""

    for name, path in MODULES.items():
        if folder(name) == "torch":
            for other in own_imports(path):
                if folder(other) == "torch" and part(other) != part(name):
                    assert part(other) in INSIDE_TORCH[part(name)], f"{name} imports {other}"


def test_no_circle():
    """Also none inside a folder: a package takes names from its modules, never they from it."""
    graph = {name: own_imports(path) - {name} for name, path in MODULES.items()}
    list(graphlib.TopologicalSorter(graph).static_order())  # a CycleError names the circle


@EACH_FILE
def test_other_libraries_stay_in_their_place(path):
    place = path.relative_to(PACKAGE).as_posix()
    for name in imports(path):
        library = name.split(".")[0]
        if library in ONLY:
            assert place.startswith(ONLY[library]), f"{place} imports {library}"


def test_numba_is_loaded_when_needed():
    """`numba` where something is computed: in the bodies, which no file imports at its top."""
    for name, path in MODULES.items():
        if folder(name) in ("cpu", "cuda", "torch", "measuring"):
            continue
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ImportFrom) and folder(node.module) in ("cpu", "cuda"):
                names = {f"{node.module}.{alias.name}" for alias in node.names}
                light = ("thinformer.cpu.run", "thinformer.cpu.points")
                assert node.module in light or names <= set(light)


@pytest.mark.parametrize("path", sorted(REFERENCE.glob("*.py")), ids=lambda path: path.name)
def test_the_specification_stands_alone(path):
    if path.name == "validate.py":  # the one that compares
        return
    for name in imports(path):
        assert name.split(".")[0] in SPECIFICATION_IMPORTS, name
        assert name.split(".")[0] != "torch" or path.name == "torch_version.py"


@EACH_FILE
def test_lines_end_with_newlines_alone(path):
    """`str.splitlines` also cuts at form feeds and at the separators of ASCII and Unicode."""
    attributes = [x for x in ast.walk(ast.parse(path.read_text())) if isinstance(x, ast.Attribute)]
    assert "splitlines" not in {attribute.attr for attribute in attributes}


def public(name):
    spaces = (thinformer, thinformer.kernels)
    return any(name in space.__all__ for space in spaces) or name in ("register", "configure",
                                                                       "convert")  # fmt: skip


@EACH_FILE
def test_files_and_functions_fit_a_head(path):
    """No long file, no long function, and no long list of parameters but where they are flat."""
    text = path.read_text()
    compiled = folder(module_name(path)) in ("cpu", "cuda")
    kernels = compiled and path.stem not in ("run", "launches", "arrays", "points")
    assert len(text.splitlines()) <= (COMPILED_LINES if kernels else LINES)
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef):
            continue
        first = node.body[0]
        documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
        of_docstring = first.end_lineno - first.lineno + 1 if documented else 0
        lines = node.end_lineno - node.lineno + 1 - of_docstring
        assert lines <= CODE_LINES, f"{node.name} has {lines} lines"
        arguments = node.args
        count = len(arguments.posonlyargs) + len(arguments.args) + len(arguments.kwonlyargs)
        flat = compiled or path.name == "operators.py" or public(node.name)
        # a class that users make may take as many as its function
        made = node.name == "__init__" and path.name in ("module.py", "estimator.py")
        assert count <= PARAMETERS or flat or made, f"{node.name} has {count} parameters"
