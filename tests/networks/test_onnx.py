"""Each small network as an ONNX file: ONNX Runtime gives its output, or the file is refused by name; never a third."""

from __future__ import annotations

import pytest

from fxptq.errors import InputError
from fxptq.export.onnx_file import to_onnx
from fxptq.export.runtime import compare
from fxptq.export.subject import subject_of
from fxptq.graph import Program
from fxptq.sizes import Sizes
from tests.networks.zoo import NETWORKS, WHITE, build, pictures

pytest.importorskip("onnx", reason="onnx is not installed (extra `export`)")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra `export`)")
pytestmark = pytest.mark.networks

REFUSED = {
    "multi-scale features": "avg_pool2d",
    "shifted windows": "setitem",
    "in-place operations": "setitem",
    "overlapping windows": "unfold",
    "kernel prediction": "unfold",
    "unfold and fold": "unfold",
    "top-k attention": "topk",
    "dynamic convolution": "conv2d",
    "fixed kernels": "conv2d",
    "output nested": "returns int",
    "Fourier branch": "fft_rfft2",
    "loop over sizes": "empty_like",
    "wavelet": "new_zeros",
}
"""The networks with a call that has no ONNX form, and the word by which the message names it."""


@pytest.mark.parametrize("name", NETWORKS)
def test_the_runtime_gives_the_output_or_the_file_is_refused(name: str) -> None:
    example, white = pictures(name, seed=0), WHITE.get(name, 1.0)
    program = Program(build(name), example)
    subject = subject_of(program, example, Sizes(), size=None, white=white)
    if name in REFUSED:
        with pytest.raises(InputError, match=REFUSED[name]):
            to_onnx(program, subject, {})
        return
    for one in compare(to_onnx(program, subject, {}).data, subject.trials, white):
        assert one.largest < 1e-3, one
