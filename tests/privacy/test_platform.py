"""Platform inference: bits and number formats against NumPy, struct and torch; both methods on cases known in full."""

from __future__ import annotations

import struct
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score
from sklearn.multiclass import OneVsOneClassifier
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from torch import Tensor, nn

from assay.compress import Quantisation
from assay.nets import MLP, SmallCNN
from assay.privacy import BorderInputs, LogitFingerprint, float_bits, simulate_platform, split_float
from assay.privacy.platform.border_inputs import Border, BorderSearch, SideBySide
from assay.privacy.platform.number_formats import fp8_e3m4, fp8_e4m3, int8_affine, mxint8
from assay.runtime.errors import InputError
from assay.runtime.random import derive, seeded, torch_rng


def drawn(*shape: int, stream: str = "x", scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch_rng(0, stream)) * scale


# ---- bits ----


@settings(max_examples=100)
@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=20))
def test_bits_are_numpys_for_every_pattern(words: list[int]) -> None:
    raw = np.array(words, dtype=np.uint32)
    values = torch.from_numpy(raw.view(np.float32))
    expected = np.unpackbits(raw.astype(">u4").view(np.uint8).reshape(-1, 4), axis=1)
    assert (float_bits(values).numpy() == expected).all()
    sign, exponent, fraction = (part.numpy().astype(np.int64) for part in split_float(values))
    assert (((sign << 31) | (exponent << 23) | fraction) == raw).all()


@settings(max_examples=100)
@given(st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=False))
def test_bits_are_structs_and_the_three_parts_give_the_number_back(value: float) -> None:
    (word,) = struct.unpack("!I", struct.pack("!f", value))
    assert "".join(map(str, float_bits(torch.tensor([[value]]))[0, 0].tolist())) == f"{word:032b}"
    sign, exponent, fraction = (int(part) for part in split_float(torch.tensor(value)))
    if exponent:
        assert (-1.0) ** sign * 2.0 ** (exponent - 127) * (1 + fraction / 2**23) == value
    else:
        assert value == 0 == fraction


def test_half_precision_leaves_zeros_at_the_end() -> None:
    x = drawn(200, 7, scale=30)
    assert not float_bits(x.bfloat16().float())[..., 16:].any()
    assert not float_bits(x.half().float())[..., 19:].any()
    assert float_bits(x)[..., 19:].any(-1).all()
    assert float_bits(x.half().float())[..., 16:19].any()
    assert float_bits(torch.tensor([2.0**-20 * (1 + 2.0**-4)]).half().float())[..., 19:].any() == 0


@pytest.mark.parametrize("values", [torch.zeros(2, 2, dtype=torch.float64), torch.zeros(2, dtype=torch.int32), [1.0]])
@pytest.mark.parametrize("function", [float_bits, split_float])
def test_bits_of_another_type_are_refused(function: Any, values: Any) -> None:
    with pytest.raises(InputError, match="expected a float32 tensor"):
        function(values)


# ---- number formats ----


def test_e4m3_is_torchs_cast_and_keeps_every_code() -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    codes = codes[codes.isfinite()]
    x = torch.cat((codes, *(drawn(2000, stream=f"{s}", scale=s).clamp(-448, 448) for s in (1e-3, 0.02, 1.0, 150.0))))
    assert fp8_e4m3(x).equal(x.to(torch.float8_e4m3fn).float())
    middle = (codes.sort().values[1:] + codes.sort().values[:-1]) / 2
    assert fp8_e4m3(middle).equal(middle.to(torch.float8_e4m3fn).float())
    assert fp8_e4m3(torch.tensor([1e4, -1e4])).tolist() == [448.0, -448.0]


def test_e3m4_is_the_nearest_of_its_numbers() -> None:
    positive = [2.0 ** max(e, 1) / 8 * ((e > 0) + m / 16) for e, m in product(range(7), range(16))]
    grid = torch.tensor(sorted({s * v for s, v in product((1, -1), positive)}))
    assert grid.max() == 15.5
    x = torch.cat((grid, drawn(1000, scale=0.1), drawn(1000, scale=6.0)))
    assert (fp8_e3m4(x) - x).abs().equal((x[:, None] - grid).abs().amin(1))
    assert torch.isin(fp8_e3m4(x), grid).all()


def test_mxint8_has_one_power_of_two_a_block() -> None:
    x = torch.cat((drawn(5, 70) * 10.0 ** drawn(5, 70, stream="e"), torch.zeros(1, 70)))
    rounded = mxint8(x.reshape(6, 7, 10)).reshape(6, 70)
    for start in (0, 32, 64):
        block, given_ = rounded[:, start : start + 32].double(), x[:, start : start + 32].double()
        step = 2.0 ** (given_.abs().amax(1, keepdim=True).clamp_min(1e-30).log2().floor() - 6)
        level = block / step
        assert level.equal(level.round())
        assert level.abs().max() <= 127
        free = (given_ / step).abs() <= 127
        assert ((block - given_).abs() / step)[free].max() <= 0.5
    assert mxint8(rounded).equal(rounded)


def test_int8_has_256_levels_between_the_ends_of_each_sample() -> None:
    x = torch.cat((drawn(6, 3, 400), torch.ones(1, 3, 400)))
    rounded = int8_affine(x)
    for row, given_ in zip(rounded, x, strict=True):
        scale = float(given_.max() - given_.min()) / 255
        assert len(row.unique()) <= 256
        assert float((row - given_).abs().max()) <= scale * 1.01 or scale == 0
    assert int8_affine(x[2:3]).equal(rounded[2:3])


# ---- simulated platforms ----


@pytest.fixture(scope="module")
def net() -> nn.Module:
    with seeded(0, "net"):
        return SmallCNN((1, 8, 8), 10, (4, 8), 16)


IMAGES = torch.rand(9, 1, 8, 8, generator=torch_rng(0, "images"))
TAGS = (
    *("fp32", "fp64", "bf16", "fp16", "int8-weights", "int8-dynamic", "fp8-e4m3", "fp8-e3m4", "mxint8"),
    *("channels_last", "batch=4", "threads=1"),
)


@pytest.mark.parametrize("tag", TAGS)
def test_a_platform_is_close_gives_float32_and_leaves_the_model(net: nn.Module, tag: str) -> None:
    net.train()
    before, threads = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_num_threads()
    platform = simulate_platform(net, tag)
    x = IMAGES.clone().requires_grad_()
    out, plain = platform(x), net(IMAGES)
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert out.dtype == torch.float32
    assert torch.allclose(out, plain, atol=0.05)
    assert torch.isfinite(grad).all()
    assert grad.any()
    assert not platform.training
    assert net.training
    assert torch.get_num_threads() == threads
    assert all(v.equal(before[k]) for k, v in net.state_dict().items())
    assert not any(m._forward_pre_hooks for m in net.modules())
    if tag not in ("fp32", "batch=4", "threads=1", "channels_last"):
        assert not out.equal(plain)
    else:
        assert torch.allclose(out, plain, atol=1e-5)
    assert torch.allclose(platform(IMAGES[:3]), out[:3], atol=1e-5)  # no output depends on the rest of its batch


def test_native_formats_are_casts(net: nn.Module) -> None:
    reference = SmallCNN((1, 8, 8), 10, (4, 8), 16)
    for tag, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp64", torch.float64)):
        reference.float().load_state_dict(net.state_dict())
        assert simulate_platform(net, tag)(IMAGES).equal(reference.to(dtype)(IMAGES.to(dtype)).float())


def test_weights_are_those_of_quantisation(net: nn.Module) -> None:
    expected = Quantisation(bits=8).compress(net, None, seed=0)
    assert simulate_platform(net, "int8-weights")(IMAGES).equal(expected(IMAGES))


@pytest.mark.parametrize(("tag", "of_x", "of_w"), [("fp8-e4m3", fp8_e4m3, fp8_e4m3), ("fp8-e3m4", fp8_e3m4, fp8_e4m3)])
def test_an_emulated_layer_rounds_both_and_passes_the_gradient(tag: str, of_x: Any, of_w: Any) -> None:
    layer = nn.Linear(6, 3)
    x = drawn(4, 6).requires_grad_()
    platform = simulate_platform(layer, tag)
    out = platform(x)
    assert out.equal(F.linear(of_x(x.detach()), of_w(layer.weight.detach()), layer.bias.detach()))
    (grad,) = torch.autograd.grad(out[:, 1].sum(), x)
    assert grad.equal(of_w(layer.weight.detach())[1].expand(4, 6))


def test_batches_have_exactly_as_many_rows() -> None:
    class Counting(nn.Flatten):
        def forward(self, x: Tensor) -> Tensor:
            assert len(x) == 4
            return super().forward(x)

    assert simulate_platform(Counting(), "batch=4")(IMAGES).equal(IMAGES.flatten(1))


def test_kernels_change_the_last_bits_only(net: nn.Module) -> None:
    a, b = (simulate_platform(net, tag)(IMAGES) for tag in ("fp32", "fp64"))
    assert torch.allclose(a, b, atol=1e-5)
    assert (float_bits(a) != float_bits(b)).any(-1).float().mean() > 0.3


@pytest.mark.parametrize("tag", ["fp7", "fp32=2", "batch", "batch=0", "threads=x", ""])
def test_unknown_platforms(net: nn.Module, tag: str) -> None:
    with pytest.raises(InputError):
        simulate_platform(net, tag)


@pytest.mark.parametrize("tag", ["cuda", "tf32"])
def test_gpus(net: nn.Module, tag: str) -> None:
    if torch.cuda.is_available():
        assert torch.allclose(simulate_platform(net, tag)(IMAGES), net(IMAGES), atol=1e-2)
    else:
        with pytest.raises(InputError, match="no CUDA device"):
            simulate_platform(net, tag)


# ---- HSPI-LD ----


def logits(n: int, stream: str) -> dict[str, Tensor]:
    full = drawn(n, 5, stream=stream, scale=4.0)
    return {"fp32": full, "bf16": full.bfloat16().float(), "fp16": full.half().float()}


def by_struct(values: Tensor, group: int) -> np.ndarray:
    rows = ["".join(f"{struct.unpack('!I', struct.pack('!f', v))[0]:032b}" for v in row) for row in values.tolist()]
    bits = np.array([[int(bit) for bit in row] for row in rows], float)
    return bits.reshape(len(values) // group, -1)


def test_predictions_are_those_of_scikit_learn_on_struct_bits() -> None:
    train, test = logits(80, "train"), logits(60, "test")
    fitted = LogitFingerprint(group=4).fit(train, seed=3)
    x = np.concatenate([by_struct(v, 4) for v in train.values()])
    scaler = StandardScaler().fit(x)
    machine = OneVsOneClassifier(LinearSVC(max_iter=10_000, dual="auto", random_state=derive(3, "svc") % 2**31))
    machine.fit(scaler.transform(x), np.repeat(list(train), 20))
    found: list[str] = []
    truth: list[str] = []
    for name, value in test.items():
        assert fitted.predict(value) == machine.predict(scaler.transform(by_struct(value, 4))).tolist()
        found, truth = found + fitted.predict(value), truth + [name] * 15
    assert fitted.score(test) == np.mean(np.array(found) == truth) >= 0.95
    assert list(fitted.f1(test).values()) == pytest.approx(f1_score(truth, found, labels=list(test), average=None))
    assert fitted.confusion(test).sum(1).tolist() == [15, 15, 15]


def test_integers_tell_bf16_and_a_rest_of_a_group_is_left_out() -> None:
    fitted = LogitFingerprint(group=3, features="ints").fit(logits(300, "train"))
    assert fitted.method.examples(logits(300, "train")["fp32"]).shape == (100, 3 * 5 * 3)
    assert len(fitted.predict(logits(29, "test")["bf16"])) == 9
    assert sum(fitted.identify(logits(29, "test")["bf16"]).values()) == 9


def test_two_copies_cannot_be_told_apart() -> None:
    one, other = logits(80, "train")["fp32"], logits(40, "test")["fp32"]
    fitted = LogitFingerprint(group=2).fit({"a": one, "b": one.clone()})
    assert fitted.score({"a": other, "b": other.clone()}) == 0.5


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"a": torch.zeros(20, 3)}, "at least two"),
        ({"a": torch.zeros(20, 3), "b": torch.zeros(20, 4)}, "widths"),
        ({"a": torch.zeros(20, 3), "b": torch.zeros(9, 3)}, "group of 10"),
        ({"a": torch.zeros(20, 3), "b": torch.zeros(20, 3).double()}, "float32"),
        ({"a": torch.zeros(20, 3), "b": torch.full((20, 3), torch.nan)}, "finite"),
        ([torch.zeros(20, 3)], "mapping"),
    ],
)
def test_unusable_logits(given_: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        LogitFingerprint().fit(given_)


def test_a_fitted_fingerprint_refuses_what_it_does_not_know() -> None:
    fitted = LogitFingerprint(group=2).fit(logits(40, "train"))
    with pytest.raises(InputError, match="expected 5"):
        fitted.predict(torch.zeros(4, 6))
    with pytest.raises(InputError, match="did you mean 'bf16'"):
        fitted.score({"bf61": torch.zeros(4, 5)})
    for options in ({"features": "values"}, {"group": 0}, {"C": 0.0}):
        with pytest.raises(InputError):
            LogitFingerprint(**options)


# ---- HSPI-BI ----


class Threshold(nn.Module):
    """Two classes by the mean of the pixels: class 1 above ``at``."""

    def __init__(self, at: float) -> None:
        super().__init__()
        self.at = nn.Parameter(torch.tensor(at))

    def forward(self, x: Tensor) -> Tensor:
        level = 8 * (x.flatten(1).mean(1) - self.at)
        return torch.stack((-level, level), 1)


GREY = torch.rand(12, 1, 2, 2, generator=torch_rng(1, "grey")) * 0.4 + 0.3
METHOD = BorderInputs(steps=120, lr=(2e-2, 1e-4), check_every=1)


def test_border_inputs_of_two_thresholds_lie_between_them() -> None:
    before, models = GREY.clone(), {"low": Threshold(0.5), "high": Threshold(0.51)}
    fitted = METHOD.fit(models, GREY, seed=1)
    images = fitted.images_["low", "high"]
    mean = images.flatten(1).mean(1)
    assert fitted.share("low", "high") > 0.9
    assert ((mean > 0.5) & (mean < 0.51)).all()
    assert torch.allclose(images * 255, (images * 255).round(), atol=1e-4)
    assert (fitted.labels_["low", "high"] == torch.tensor([1, 0])).all()
    assert fitted.identify(models["low"]) == {"low": 1, "high": 0}
    assert fitted.name(lambda x: models["high"](x).argmax(1)) == "high"
    assert fitted.name(lambda x: torch.full((len(x),), 7)) is None  # an answer that is neither's
    assert GREY.equal(before)


def test_the_lower_the_gap_gain_the_nearer_too() -> None:
    fitted = BorderInputs(steps=120, lr=(2e-2, 1e-4), check_every=1, gain="gap").fit(
        {"low": Threshold(0.5), "high": Threshold(0.51)}, GREY
    )
    assert fitted.share("low", "high") > 0.5


def test_against_the_rest_every_platform_has_inputs_of_its_own() -> None:
    models = {"a": Threshold(0.49), "b": Threshold(0.5), "c": Threshold(0.51)}
    with pytest.warns(RuntimeWarning, match="b and a and c"):  # b lies between: where it differs, a and c do not agree
        fitted = BorderInputs(steps=120, lr=(2e-2, 1e-4), check_every=1, against="rest").fit(models, GREY)
    assert set(fitted.images_) == {("a", "b", "c"), ("c", "a", "b")}
    assert fitted.identify(models["a"]) == {"a": 1, "b": 0, "c": 0}
    assert fitted.name(models["b"]) is None


def test_a_platform_and_its_copy_have_no_border() -> None:
    with pytest.warns(RuntimeWarning, match="no border input of a and b"):
        fitted = METHOD.fit({"a": Threshold(0.5), "b": Threshold(0.5)}, GREY)
    assert fitted.images_ == {}
    assert fitted.share("a", "b") == 0
    assert fitted.name(Threshold(0.5)) is None


def test_what_changes_with_the_batch_is_not_kept() -> None:
    class Fickle(Threshold):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * (-1.0 if len(x) > 8 else 1.0)

    models = {"a": Threshold(0.5), "b": Fickle(0.5)}
    once = BorderInputs(steps=30, lr=(2e-2, 1e-4), check_every=1, repeats=0)
    assert len(once.fit(models, GREY).images_["a", "b"]) == len(GREY)
    with pytest.warns(RuntimeWarning, match="no border input"):
        assert BorderInputs(steps=30, lr=(2e-2, 1e-4), check_every=1, repeats=1).fit(models, GREY).images_ == {}


def test_the_gain_is_that_of_the_official_code() -> None:
    a, b = drawn(6, 4, stream="a"), drawn(6, 4, stream="b")
    goal, both = Border(torch.arange(6), 2), torch.cat((a, b), 1)
    expected = F.cross_entropy(a, b.argmax(1), reduction="none") + F.cross_entropy(b, a.argmax(1), reduction="none")
    assert torch.allclose(BorderSearch().objective(both, goal), expected)
    assert goal.met(both).equal(a.argmax(1) != b.argmax(1))
    gaps = [-(z.topk(2, 1).values @ torch.tensor([1.0, -1.0])) for z in (a, b)]
    assert torch.allclose(BorderSearch(gain="gap").objective(both, goal), gaps[0] + gaps[1])
    three = Border(torch.arange(6), 3)
    triple = BorderSearch().objective(torch.cat((a, b, b), 1), three)
    assert torch.allclose(triple, 2 * expected)


def test_the_border_against_the_rest_by_enumeration() -> None:
    labels = torch.tensor([*product(range(3), repeat=3)])
    met = Border(torch.arange(27), 3).met(F.one_hot(labels, 3).float().flatten(1))
    assert met.tolist() == [a != b and b == c for a, b, c in labels.tolist()]


def test_steps_fall_linearly_and_images_have_eight_bits() -> None:
    search = BorderSearch(steps=10, lr=(1e-2, 1e-3), bounds=(-1.0, 1.0))
    lengths = [search.length(k) for k in range(11)]
    assert lengths[0] == 1e-2
    assert lengths[-1] == pytest.approx(1e-3)
    assert np.allclose([b - a for a, b in pairwise(lengths)], -9e-4)
    x = torch.rand(500, generator=torch_rng(0, "shown")) * 2 - 1
    levels = (search.shown(x) + 1) * 127.5
    assert torch.allclose(levels, levels.round(), atol=1e-3)
    assert (search.shown(x) - x).abs().max() <= 1 / 255 + 1e-6
    assert BorderSearch(quantize=False).shown(x).equal(x)


def test_logits_lie_side_by_side() -> None:
    with seeded(0, "side"):
        a, b = MLP((1, 2, 2), 3, (4,)), MLP((1, 2, 2), 3, (4,))
    assert SideBySide([a, b])(GREY).equal(torch.cat((a(GREY), b(GREY)), 1))


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 0},
        {"check_every": 0},
        {"lr": (-1.0, 1.0)},
        {"noise": 2.0},
        {"gain": "x"},
        {"against": "x"},
        {"repeats": -1},
    ],
)
def test_unusable_options(options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        BorderInputs(**options)


def test_unusable_platforms_and_services() -> None:
    models = {"a": Threshold(0.5), "b": Threshold(0.51)}
    with pytest.raises(InputError, match="at least two"):
        METHOD.fit({"a": Threshold(0.5)}, GREY)
    with pytest.raises(InputError, match="classes"):
        METHOD.fit({"a": Threshold(0.5), "b": MLP((1, 2, 2), 3)}, GREY)
    with pytest.raises(InputError, match=r"\[0.0, 1.0\]"):
        METHOD.fit(models, GREY + 1)
    fitted = METHOD.fit(models, GREY)
    with pytest.raises(InputError, match="the service gives"):
        fitted.identify(lambda x: torch.zeros(3, dtype=torch.int64))
