"""What type checkers say of calls as users write them."""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest

pytest.importorskip("transformers")

import tabpfn_stub

import thinformer
from thinformer import ThinformerAttention, thinformer_attention
from thinformer.torch import KeySelection, LayerOptions, convert
from thinformer.torch.functional import Options
from thinformer.torch.transformers import configure, register

# each call, and its type
TYPES = {
    "thinformer_attention(q, q, q)": "torch.Tensor",
    "thinformer_attention(q, q, q).shape": "torch.Size",
    "thinformer_attention(q, q, q, g=1, layout='bhsd', correction='queries', temperature='auto')":
        "torch.Tensor",
    "thinformer_attention(q, q, q, fallback='exact', error_threshold=0.1)": "torch.Tensor",
    "thinformer_attention(q, q, q, return_weights=False, return_error_estimate=False)":
        "torch.Tensor",
    "thinformer_attention(q, q, q, return_weights=True).output": "torch.Tensor",
    "thinformer_attention(q, q, q, return_indices=True).weights": "torch.Tensor | None",
    "thinformer_attention(q, q, q, size=4, return_weights=True, return_indices=True).indices":
        "torch.Tensor | None",
    "thinformer_attention(q, q, q, return_weights=asked, return_indices=True).output":
        "torch.Tensor",
    "thinformer_attention(q, q, q, return_error_estimate=True).error_estimate":
        "torch.Tensor | None",
    "thinformer_attention(q, q, q, return_weights=True, return_error_estimate=True).output":
        "torch.Tensor",
    "attention(a, a, a, correction='nystrom', pre_thin='stride', device='cpu').output.shape":
        "tuple[Any, ...]",
    "thin(a, 3, method='kh-compress', target='sample').shape": "tuple[Any, ...]",
    "thin(a, 3, return_weights=True)[1].shape": "tuple[Any, ...]",
    "thin(a, 3, return_weights='affine', rng=0)[0].shape": "tuple[Any, ...]",
    "convert(model, correction=None, min_length='auto', fallback=None)": "Conversion",
    "convert(model, correction='nystrom', temperature='auto', unsupported='exact')": "Conversion",
    "ThinformerAttention(correction='queries', temperature=0.5, fallback='exact')":
        "ThinformerAttention",
    "KeySelection(pre_thin='stride', correction=None, min_length=9).min_length":
        "int | Literal['auto']",
    "LayerOptions(fallback=None, unsupported='exact').fallback": "Literal['exact'] | None",
}  # fmt: skip
# calls that have no result, and are right
WITHOUT_RESULT = [
    "register(correction=None, min_length='auto')",
    "register('mine', correction='nystrom', temperature=0.5, fallback=None, unsupported='exact')",
    "configure(model, correction='queries', temperature='auto', fallback='exact', min_length=9)",
    "tabpfn.register(correction=None, temperature='auto', min_length='auto', fallback=None)",
]
# calls with a word that is not among the choices, and the argument that mypy names
WRONG = {
    "thinformer_attention(q, q, q, layout='sbhd')": "layout",
    "thinformer_attention(q, q, q, correction='nystroem')": "correction",
    "thinformer_attention(q, q, q, temperature='high')": "temperature",
    "thinformer_attention(q, q, q, fallback='sdpa')": "fallback",
    "attention(a, a, a, correction='nystroem')": "correction",
    "attention(a, a, a, temperature='high')": "temperature",
    "attention(a, a, a, pre_thin='odd')": "pre_thin",
    "compress_kv(a, a, device='gpu')": "device",
    "kh_compress(a, device='gpu')": "device",
    "thin(a, 3, method='best')": "method",
    "mmd(a, a, target='mean')": "target",
    "KeySelection(pre_thin='odd')": "pre_thin",
    "KeySelection(correction='nystrm')": "correction",
    "KeySelection(temperature='high')": "temperature",
    "KeySelection(min_length='short')": "min_length",
    "LayerOptions(fallback='sdpa')": "fallback",
    "LayerOptions(unsupported='warn')": "unsupported",
    "ThinformerAttention(pre_thin='odd')": "pre_thin",
    **{
        f"{call}{name}={word!r})": name
        for call in ("register(", "configure(model, ", "convert(model, ", "tabpfn.register(")
        for name, word in {
            "correction": "nystrm", "temperature": "high", "min_length": "short",
            "fallback": "sdpa", "unsupported": "warn",
        }.items()
        if (call, name) != ("tabpfn.register(", "unsupported")  # which it does not have
    },
    **{
        f"ThinformerAttention({name}={word!r})": name
        for name, word in {
            "correction": "nystrm", "temperature": "high", "fallback": "sdpa",
        }.items()
    },
}  # fmt: skip
HEAD = """
from typing import Any, Literal, assert_type

import numpy as np
import torch
from thinformer import ThinformerAttention, attention, compress_kv, kh_compress, mmd, thin
from thinformer import thinformer_attention
from thinformer.torch import Conversion, KeySelection, LayerOptions, convert, tabpfn
from thinformer.torch.transformers import configure, register

q, a, asked = torch.zeros(1, 9, 1, 2), np.zeros((1, 9, 1, 2)), bool(input())
model = torch.nn.Identity()
"""


@pytest.fixture(scope="module")
def messages(tmp_path_factory):
    """What mypy says of each line."""
    path = tmp_path_factory.mktemp("types") / "calls.py"
    lines = [f"assert_type({call}, {expected})" for call, expected in TYPES.items()]
    lines += [*WITHOUT_RESULT, *WRONG]
    path.write_text(HEAD + "\n".join(lines) + "\n")
    # bare options, as the package's own settings do not reach its users; to read all of other
    # packages takes most of the time, and signatures have types of these modules alone
    settings = path.with_name("mypy.ini")
    settings.write_text(
        "[mypy]\n"
        "[mypy-transformers.*,numba.*,torch.*]\n"
        "follow_imports = skip\n"
        "[mypy-torch,torch._C.*,torch.nn.*,torch._tensor,torch.types]\n"
        "follow_imports = normal\n"
    )
    command = [sys.executable, "-m", "mypy", "--no-error-summary", path.name]
    root = Path(thinformer.__file__).parents[1]
    # mypy cannot follow an editable installation, and takes no folder of installed packages here
    found = {} if root.name == "site-packages" else {"MYPYPATH": str(root)}
    done = subprocess.run(
        command, cwd=path.parent, capture_output=True, text=True, env=os.environ | found
    )
    assert not done.stderr, done.stderr
    said: dict[int, str] = {}
    for line, text in re.findall(r"^calls\.py:(\d+): (.*)$", done.stdout, re.M):
        said[int(line)] = said.get(int(line), "") + text
    first = HEAD.count("\n") + 1
    return {
        call: said.get(first + i, "") for i, call in enumerate([*TYPES, *WITHOUT_RESULT, *WRONG])
    }


@pytest.mark.slow
@pytest.mark.parametrize("call", [*TYPES, *WITHOUT_RESULT])
def test_results_have_one_type(call, messages):
    assert messages[call] == ""


@pytest.mark.slow
@pytest.mark.parametrize(("call", "argument"), WRONG.items(), ids=WRONG)
def test_choices_are_known(call, argument, messages):
    assert re.search(rf'error: (Argument "{argument}" to|No overload variant)', messages[call])


def test_overloads_have_all_keywords():
    """Those of the function, but for the ones on which the type of the result depends."""
    parameters = inspect.signature(thinformer_attention).parameters.values()
    keywords = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    assert list(Options.__annotations__) == [k for k in keywords if not k.startswith("return_")]
    of_function, of_overloads = get_type_hints(thinformer_attention), get_type_hints(Options)
    assert {name: of_function[name] for name in of_overloads} == of_overloads


def test_settings_have_the_types_of_their_fields(monkeypatch):
    """In every function that takes settings of a layer as keywords."""
    fields = get_type_hints(KeySelection) | get_type_hints(LayerOptions)
    of_tabpfn = tabpfn_stub.adapter(monkeypatch).register
    functions = (register, configure, convert, of_tabpfn, ThinformerAttention.__init__)
    for function in (*functions, thinformer_attention):
        hints = get_type_hints(function)
        shared = hints.keys() & fields.keys()
        assert shared >= {"g", "size", "correction", "temperature", "fallback", "error_threshold"}
        assert {name: hints[name] for name in shared} == {name: fields[name] for name in shared}
