"""What the C library does with freed memory."""

import subprocess
import sys

import pytest

# takes and frees 16 MB again and again, with a small block behind each so that the heap's end is in use, too
PROGRAM = """
import resource, sys, torch
from cnnlab.runtime.memory import keep_freed_memory
if sys.argv[1] == "kept" and not keep_freed_memory():
    sys.exit(3)
def faults():
    for _ in range(20):
        first, second = torch.ones(1 << 22), torch.ones(1 << 22)
        del first, second
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before = faults()
print(faults() - before)
"""


def faults(how: str) -> int:
    """Page faults of 40 blocks of 16 MB, each of 4,096 pages, once as many came and went before."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=False)
    if done.returncode == 3:
        pytest.skip("the C library is not glibc")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_kept_memory_is_taken_again_without_page_faults() -> None:
    assert faults("kept") < 4096


def test_by_itself_the_library_gives_it_back() -> None:
    """If this fails, glibc has learned to keep it, and `keep_freed_memory` may go."""
    assert faults("as it is") > 40 * 4096 / 2
