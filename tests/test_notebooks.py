"""Quantized networks as people look at them: one line, a table in notebooks, no graph kept, a task, a file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

import fxptq
from fxptq.errors import InputError
from fxptq.graph.summary import as_html, in_one_line
from fxptq.kernels.lower import lower
from tests.tiny import inputs, settings, swinir


@pytest.fixture(scope="module")
def quantized() -> fxptq.QuantizedModel:
    return fxptq.quantize(
        swinir(), inputs(1), fxptq.Bits(3, 5), inputs(), settings(), sites={"upsample.0": "float"}, scale=2
    )


def test_one_line_says_what_it_is(quantized: fxptq.QuantizedModel) -> None:
    line = repr(quantized)
    assert line.startswith("QuantizedModel(mine, W3A5, bicubic x2: ")
    assert line.endswith(", 1 in float)")
    assert "\n" not in line
    assert sum(map(int, re.findall(r"(\d+)(?: sites?)? (?:at|in) ", line))) == len(quantized.sites)


def test_counts_in_words(quantized: fxptq.QuantizedModel) -> None:
    (left,) = [site for site in quantized.sites if site.reason]
    (low, *_) = [site for site in quantized.sites if site.bits == (3, 5)]
    assert in_one_line([]) == "no sites"
    assert in_one_line([left]) == "1 site in float"
    assert in_one_line([left, low, low]) == "2 sites at W3A5, 1 in float"


def test_the_table_in_a_notebook_has_every_site(quantized: fxptq.QuantizedModel) -> None:
    html = quantized._repr_html_()
    assert html.count("<tr>") == 1 + len(quantized.sites)
    for site in quantized.sites:
        assert f"<code>{site.name}</code>" in html
    assert "title='left out by the pattern &#x27;upsample.0&#x27;'>float" in html
    assert "<script" not in html
    assert "a&lt;b&gt;" in as_html("a<b>", quantized.sites)


def test_a_call_keeps_no_graph_outside_training(quantized: fxptq.QuantizedModel) -> None:
    x = inputs(1)
    assert not quantized.training
    assert quantized(x).grad_fn is None
    asking = x.clone().requires_grad_()
    quantized(asking).mean().backward()
    assert asking.grad is not None
    assert asking.grad.abs().sum() > 0
    try:
        quantized.train()
        trained = quantized(x)
        assert trained.grad_fn is not None
        with torch.no_grad():
            assert quantized(x).grad_fn is None
    finally:
        quantized.eval()
    assert torch.equal(trained.detach(), quantized(x))


def test_integers_know_their_task_and_can_be_saved(quantized: fxptq.QuantizedModel, tmp_path: Path) -> None:
    integer = quantized.to_integer(compile=False, compare=False)
    assert integer.task == quantized.task
    assert repr(integer).startswith("IntegerModel(mine, bicubic x2: ")
    assert fxptq.restore(integer, Image.new("RGB", (20, 12))).size == (40, 24)
    quantized.save(tmp_path / "a.safetensors")
    integer.save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    with pytest.raises(InputError, match="save the QuantizedModel it came from"):
        lower(quantized.program, compile=False).save(tmp_path / "c.safetensors")
