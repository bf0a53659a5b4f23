"""What type checkers say of calls as users write them."""

import inspect
import re
import subprocess
import sys
from typing import get_type_hints

import pytest

pytest.importorskip("torch")

from thinformer import thinformer_attention
from thinformer.torch.functional import Options

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
}  # fmt: skip
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
}
HEAD = """
from typing import Any, assert_type

import numpy as np
import torch
from thinformer import attention, compress_kv, kh_compress, mmd, thin, thinformer_attention

q, a, asked = torch.zeros(1, 9, 1, 2), np.zeros((1, 9, 1, 2)), bool(input())
"""


@pytest.fixture(scope="module")
def messages(tmp_path_factory):
    """What mypy says of each line."""
    path = tmp_path_factory.mktemp("types") / "calls.py"
    lines = [f"assert_type({call}, {expected})" for call, expected in TYPES.items()]
    lines += WRONG
    path.write_text(HEAD + "\n".join(lines) + "\n")
    # bare options: the package's own settings do not reach its users
    command = [sys.executable, "-m", "mypy", "--config-file=", "--no-error-summary", path.name]
    done = subprocess.run(command, cwd=path.parent, capture_output=True, text=True)
    assert not done.stderr, done.stderr
    said: dict[int, str] = {}
    for line, text in re.findall(r"^calls\.py:(\d+): (.*)$", done.stdout, re.M):
        said[int(line)] = said.get(int(line), "") + text
    first = HEAD.count("\n") + 1
    return {call: said.get(first + i, "") for i, call in enumerate([*TYPES, *WRONG])}


@pytest.mark.slow
@pytest.mark.parametrize("call", TYPES)
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
