"""The layer between the kernels and torch's C interface: errors inside threads, threads, and layouts of memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fxptq.kernels import compiler

pytestmark = pytest.mark.slow

SOURCE = """
#include "ops/common.h"

namespace fxptq {
namespace {

// How many parts were made of 0 .. size; fails in the part that has `at`.
int64_t parts(int64_t size, int64_t grain, int64_t at) {
  std::atomic<int64_t> count = 0;
  parallel_for(size, grain, [&](int64_t begin, int64_t end) {
    ++count;
    FXPTQ_CHECK(at < begin || end <= at, "the element ", at, " of ", size);
  });
  return count;
}

// The same inside a thread.
int64_t nested(int64_t size) {
  std::atomic<int64_t> most = 0;
  parallel_for(2, 1, [&](int64_t, int64_t) { most = std::max<int64_t>(most, parts(size, 1, -1)); });
  return most;
}

STABLE_TORCH_LIBRARY_FRAGMENT(fxptq_test, m) {
  m.def("parts(int size, int grain, int at) -> int");
  m.def("nested(int size) -> int");
}

STABLE_TORCH_LIBRARY_IMPL(fxptq_test, CompositeExplicitAutograd, m) {
  m.impl("parts", TORCH_BOX(&parts));
  m.impl("nested", TORCH_BOX(&nested));
}

}  // namespace
}  // namespace fxptq
"""

PROGRAM = """
import sys, torch
torch.ops.load_library(sys.argv[1])
parts, nested = torch.ops.fxptq_test.parts, torch.ops.fxptq_test.nested
for threads in (1, 2):
    torch.set_num_threads(threads)
    print(parts(1000, 1, -1), parts(1000, 5000, -1), parts(0, 1, -1), nested(1000))
    for at in (0, 999):
        try:
            print(parts(1000, 1, at))
        except RuntimeError as error:
            print(error)
"""


def test_errors_in_threads_and_the_number_of_threads(tmp_path: Path) -> None:
    try:
        cxx = compiler.find()
    except compiler.UnavailableError as error:
        pytest.skip(str(error))
    source, library = tmp_path / "parts.cpp", tmp_path / "parts.so"
    source.write_text(SOURCE)
    inside = f"-I{compiler.SOURCES}"
    command = [cxx, *compiler.options(("-O0",)), inside, "-shared", str(source), "-o", str(library)]
    compiler.run([*command, *compiler.link_options()])
    # This very interpreter, on the project's own code.
    ran = subprocess.run(  # noqa: S603
        [sys.executable, "-c", PROGRAM, str(library)],
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        check=True,
    )
    errors = ["the element 0 of 1000", "the element 999 of 1000"]
    assert ran.stdout.splitlines() == ["1 1 0 1", *errors, "2 1 0 1", *errors]
    assert ran.stderr == ""
