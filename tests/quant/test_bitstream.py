"""Packing against a bit-by-bit reference in plain Python."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxptq.errors import InputError
from fxptq.quant.bitstream import pack, packed_size, unpack

BITS = range(1, 9)


@st.composite
def codes_and_bits(draw: st.DrawFn) -> tuple[list[int], int]:
    bits = draw(st.integers(1, 8))
    return draw(st.lists(st.integers(0, 2**bits - 1), max_size=70)), bits


def stream(codes: list[int], bits: int) -> bytes:
    """The documented layout: one little-endian integer, code i at bit i * bits."""
    word = sum(code << (bits * i) for i, code in enumerate(codes))
    return word.to_bytes((len(codes) * bits + 7) // 8, "little")


@given(codes_and_bits())
def test_pack_matches_bit_stream_and_round_trips(case: tuple[list[int], int]) -> None:
    codes, bits = case
    tensor = torch.tensor(codes, dtype=torch.uint8)
    packed = pack(tensor, bits)
    assert bytes(packed.tolist()) == stream(codes, bits)
    assert torch.equal(unpack(packed, bits, tensor.shape), tensor)


@pytest.mark.parametrize("bits", BITS)
def test_shape_is_restored(bits: int) -> None:
    codes = torch.randint(0, 2**bits, (5, 3, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(bits))
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (packed_size(105, bits),)
    assert torch.equal(unpack(packed, bits, (5, 3, 7)), codes)


@pytest.mark.parametrize("bits", BITS)
def test_extreme_codes(bits: int) -> None:
    top = torch.full((64,), 2**bits - 1, dtype=torch.uint8)
    packed = pack(top, bits)
    assert bool((packed == 255).all())
    assert torch.equal(unpack(packed, bits, (64,)), top)


def test_three_bits_are_three_bits() -> None:
    assert pack(torch.zeros(8, dtype=torch.uint8), 3).numel() == 3
    assert pack(torch.zeros(9, dtype=torch.uint8), 3).numel() == 4


def test_empty_and_scalar() -> None:
    assert pack(torch.zeros(0, 4, dtype=torch.uint8), 3).numel() == 0
    assert unpack(torch.zeros(0, dtype=torch.uint8), 3, (0, 4)).shape == (0, 4)
    assert unpack(pack(torch.tensor(5, dtype=torch.uint8), 3), 3, ()).item() == 5


def test_non_contiguous_codes_are_packed_in_row_major_order() -> None:
    codes = torch.arange(12, dtype=torch.uint8).reshape(3, 4).t()
    assert torch.equal(unpack(pack(codes, 4), 4, (4, 3)), codes)


def test_packed_owns_its_memory() -> None:
    assert pack(torch.zeros(9, dtype=torch.uint8), 3).untyped_storage().nbytes() == 4


@pytest.mark.parametrize("bits", range(1, 8))
def test_code_out_of_range_is_an_error(bits: int) -> None:
    with pytest.raises(InputError, match=f"does not fit in {bits} bits"):
        pack(torch.tensor([0, 2**bits], dtype=torch.uint8), bits)


@pytest.mark.parametrize("bits", [0, 9, -1])
def test_bits_out_of_range_are_an_error(bits: int) -> None:
    with pytest.raises(InputError, match="expected 1 to 8"):
        pack(torch.zeros(1, dtype=torch.uint8), bits)
    with pytest.raises(InputError, match="expected 1 to 8"):
        unpack(torch.zeros(1, dtype=torch.uint8), bits, (1,))


def test_other_dtypes_are_an_error() -> None:
    with pytest.raises(InputError, match=r"torch\.uint8"):
        pack(torch.zeros(3, dtype=torch.int64), 4)


@pytest.mark.parametrize("length", [2, 4])
def test_wrong_length_is_an_error(length: int) -> None:
    with pytest.raises(InputError, match=r"expected torch\.uint8 \[3\]"):
        unpack(torch.zeros(length, dtype=torch.uint8), 3, (8,))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("bits", BITS)
def test_cuda_packs_the_same_bytes(bits: int) -> None:
    codes = torch.randint(0, 2**bits, (1001,), dtype=torch.uint8)
    packed = pack(codes.cuda(), bits)
    assert torch.equal(packed.cpu(), pack(codes, bits))
    assert torch.equal(unpack(packed, bits, (1001,)).cpu(), codes)
