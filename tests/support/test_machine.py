"""What is told of the machine and of the memory of this process."""

import sys

import pytest
from processes import run

from thinformer.support import machine


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have no /proc")
def test_the_peak_is_that_of_this_process():
    """Not of the one that started it, whose memory a child has for a moment."""
    told = run(
        """
        import subprocess, sys
        import numpy as np
        code = "from thinformer.support.machine import peak_resident_megabytes as p; print(p())"
        held = np.ones(2**26)
        print(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout)
        """
    )
    assert 5 < float(told) < 400  # held has 537 MB


def test_the_peak_has_this_process_in_it():
    assert machine.peak_resident_megabytes() > 20


def test_a_name_that_is_not_there():
    assert machine.status_of_memory("VmNone") is None
