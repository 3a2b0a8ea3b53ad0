"""What the C library does with freed memory."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, torch
from cnnlab.runtime.memory import keep_freed_memory
if not keep_freed_memory():
    sys.exit(3)
def faults():
    for _ in range(20):
        first, second = torch.ones(1 << 22), torch.ones(1 << 22)
        del first, second
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before = faults()
print(faults() - before)
"""


def test_kept_memory_is_taken_again_without_page_faults() -> None:
    """Forty blocks of 16 MB, each of 4,096 pages, once as many came and went before."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    if done.returncode == 3:
        pytest.skip("the C library is not glibc")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 4096
