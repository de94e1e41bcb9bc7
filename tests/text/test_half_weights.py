"""Weights in half precision: nearly the same numbers, and the same module in all else."""

from __future__ import annotations

import copy
from typing import cast

import numpy as np
import pytest
import torch
from torch import nn

from raysys.text.encoder import Encoder
from raysys.text.half_weights import LARGEST, HalfLinear, halve
from tests.text.precision import in_float32

pytestmark = pytest.mark.skipif(
    torch.backends.quantized.engine not in ("fbgemm", "x86"), reason="PyTorch for x86 only"
)


def layers(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(32, 48), nn.GELU(), nn.Linear(48, 8, bias=False)).eval()


def rounded(module: nn.Module) -> nn.Module:
    """The same with weights that float16 holds exactly, multiplied in float32."""
    found = copy.deepcopy(module)
    for each in found.modules():
        if isinstance(each, nn.Linear):
            each.__class__ = nn.Linear
            each.weight.data = each.weight.data.half().float()
    return found


@pytest.mark.parametrize("shape", [(1, 32), (7, 32), (3, 5, 32), (300, 32), (0, 32)])
def test_products_are_those_of_rounded_weights(shape: tuple[int, ...]) -> None:
    module = layers()
    plain = rounded(module)
    halve(module)
    x = torch.randn(shape, generator=torch.manual_seed(1))
    with torch.inference_mode():
        found = module(x)
        assert found.shape == (*shape[:-1], 8)
        torch.testing.assert_close(found, plain(x), rtol=1e-5, atol=1e-6)


def test_what_learns_does_so_in_full() -> None:
    module, plain = layers(), layers()
    halve(module)
    x = torch.randn(16, 32, generator=torch.manual_seed(1))
    for each in (module, plain):
        each(x).square().mean().backward()
    for got, wanted in zip(module.parameters(), plain.parameters(), strict=True):
        assert got.grad is not None and wanted.grad is not None
        assert torch.equal(got.grad, wanted.grad)


def test_changed_weights_are_packed_anew() -> None:
    module = layers()
    halve(module)
    x = torch.randn(16, 32, generator=torch.manual_seed(1))
    with torch.no_grad():
        before = module(x)
    module.load_state_dict(layers(seed=5).state_dict())
    with torch.no_grad():
        torch.testing.assert_close(module(x), rounded(layers(seed=5))(x), rtol=1e-5, atol=1e-6)
        assert not torch.allclose(module(x), before)


@pytest.mark.parametrize("fused", [False, True])
def test_what_learned_is_read_as_it_is_then(fused: bool) -> None:
    module = layers()
    halve(module)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, fused=fused)
    x = torch.randn(16, 32, generator=torch.manual_seed(1))
    with torch.no_grad():
        before = module(x)
    module(x).square().mean().backward()
    optimizer.step()
    with torch.no_grad():
        torch.testing.assert_close(module(x), rounded(module)(x), rtol=1e-3, atol=1e-3)
        assert not torch.allclose(module(x), before, atol=0.1)


def test_a_bias_alone_may_change() -> None:
    module = layers()
    halve(module)
    x = torch.randn(2, 32, generator=torch.manual_seed(1))
    with torch.no_grad():
        before = module[0](x)
        module[0].bias.add_(1.0)  # type: ignore[union-attr,operator]
        torch.testing.assert_close(module[0](x), before + 1)


def test_copies_and_files_know_nothing_of_it() -> None:
    module = layers()
    halve(module)
    twin = copy.deepcopy(module)
    with torch.no_grad():
        cast(nn.Linear, twin[0]).weight.zero_()
        twin[0].bias.zero_()  # type: ignore[union-attr,operator]
        x = torch.randn(4, 32)
        assert not twin(x).any()
        assert module(x).any()
    assert list(module.state_dict()) == list(layers().state_dict())
    assert all(
        torch.equal(a, b)
        for a, b in zip(module.state_dict().values(), layers().state_dict().values(), strict=True)
    )


def test_other_numbers_than_float32_take_the_usual_way() -> None:
    module = layers()
    halve(module)
    x = torch.randn(4, 32)
    with torch.inference_mode():
        with torch.autocast("cpu", torch.bfloat16):
            assert module(x).dtype == torch.bfloat16
        assert torch.equal(module.double()(x.double()), layers().double()(x.double()))


@pytest.mark.parametrize("value", [2 * LARGEST, float("nan"), float("inf")])
def test_weights_that_do_not_fit_stay_as_they_are(value: float) -> None:
    module = layers()
    with torch.no_grad():
        cast(nn.Linear, module[0]).weight[3, 3] = value
    halve(module)
    assert type(module[0]) is nn.Linear
    assert type(module[2]) is HalfLinear


def test_weights_of_inference_mode_are_taken() -> None:
    with torch.inference_mode():
        module = layers()
        halve(module)
        assert module(torch.randn(2, 32)).shape == (2, 8)


def test_vectors_of_texts_hardly_move(monkeypatch: pytest.MonkeyPatch) -> None:
    in_float32(monkeypatch)  # in bfloat16 weights are halved for each product anyway
    texts = ["milk", "frozen pizza, large", "Bohrhammer 800 W", "奶粉 900克", ""]
    whole = Encoder.open("all-MiniLM-L6-v2", 48, 1)
    wanted = whole.encode(texts)
    whole.settle()
    found = whole.encode(texts)
    assert np.einsum("nd,nd->n", wanted[:4], found[:4]).min() > 1 - 1e-5
    assert not found[4].any()
    assert not np.array_equal(wanted, found)  # it was read in halves
    kinds = [type(each) for each in whole.upper.modules() if isinstance(each, nn.Linear)]
    assert kinds
    assert set(kinds) == {HalfLinear}
