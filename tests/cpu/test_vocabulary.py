"""The CPU vocabulary (include/tokcore/cpu) at every instruction-set level of this machine, against float64."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "build" / "tests" / "cpp"))
vocabulary = importlib.import_module("tokcore_testing")
LEVELS = vocabulary.isa_levels()
F32 = np.float32
NORMAL = 2.0**-126


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Fresh numbers every run; the seed is in the failure report."""
    seed = np.random.SeedSequence().entropy
    request.node.user_properties.append(("seed", seed))
    print("seed", seed)
    return np.random.default_rng(seed)


def bf16(x: np.ndarray) -> np.ndarray:
    bits = x.astype(F32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).astype(np.uint32).view(F32)


@pytest.mark.parametrize("level", LEVELS)
def test_exp_stays_within_its_stated_error(level: str, rng: np.random.Generator) -> None:
    x = np.concatenate([rng.uniform(-87, 88, 1 << 16), rng.normal(0, 1e-3, 1 << 12), np.linspace(-1, 1, 4096)]).astype(
        F32
    )
    expected = np.exp(x.astype(np.float64))
    error = np.abs(vocabulary.exp(level, x) - expected) / expected
    assert (error <= 3e-7 + 1e-7 * np.abs(x)).all()


@pytest.mark.parametrize("level", LEVELS)
def test_exp_of_special_values(level: str) -> None:
    x = np.array([0, -0.0, -np.inf, np.inf, np.nan, -1e30, 1e30, -200, 200, -88.5, *[0.0] * 6], dtype=F32)
    y = vocabulary.exp(level, x)
    assert y[0] == 1.0
    assert y[1] == 1.0
    assert y[2] == 0.0
    assert y[3] == np.inf
    assert np.isnan(y[4])
    assert y[5] == 0.0
    assert y[6] == np.inf
    assert y[7] == 0.0
    assert y[8] == np.inf
    assert 0.0 <= y[9] < NORMAL


@pytest.mark.parametrize("level", LEVELS)
def test_tanh(level: str, rng: np.random.Generator) -> None:
    x = np.concatenate([rng.normal(0, 3, 1 << 15), rng.normal(0, 1e-4, 4096), rng.uniform(-0.3, 0.3, 4096)]).astype(F32)
    expected = np.tanh(x.astype(np.float64))
    y = vocabulary.tanh(level, x)
    assert np.abs(y - expected).max() <= 2e-7
    assert (np.abs(y - expected) <= 1e-6 * np.abs(expected) + 1e-45).all()
    special = vocabulary.tanh(level, np.array([np.inf, -np.inf, np.nan, 0, *[0.0] * 12], dtype=F32))
    assert special[0] == 1
    assert special[1] == -1
    assert np.isnan(special[2])
    assert special[3] == 0


@pytest.mark.parametrize("level", LEVELS)
def test_narrow_types_round_to_nearest_even(level: str, rng: np.random.Generator) -> None:
    x = (rng.normal(size=1 << 15) * np.exp(rng.uniform(-20, 20, 1 << 15))).astype(F32)
    ties = ((np.arange(1024, dtype=np.uint32) << 16) + 0x3F808000).view(F32)
    for values in (x, ties):
        assert (vocabulary.round_trip(level, "bfloat16", values) == bf16(values)).all()
    fp16_ties = (np.arange(4096, dtype=np.uint32) * 0x1000 + 0x38000000).view(F32)  # subnormals included
    with np.errstate(over="ignore"):
        for values in (x, fp16_ties, np.array([65504, 65519, 65520, 1e6, -1e6, 2**-25, 2**-24, 0] * 2, dtype=F32)):
            expected = values.astype(np.float16).astype(F32)
            assert (vocabulary.round_trip(level, "float16", values) == expected).all()
    for dtype in ("bfloat16", "float16"):
        special = vocabulary.round_trip(level, dtype, np.array([np.inf, -np.inf, np.nan, *[1.0] * 13], dtype=F32))
        assert special[0] == np.inf
        assert special[1] == -np.inf
        assert np.isnan(special[2])


@pytest.mark.parametrize("level", LEVELS)
def test_upper_bound_is_the_least_bf16_from_above(level: str, rng: np.random.Generator) -> None:
    x = np.concatenate([rng.normal(size=4080) * 30, [np.inf, -np.inf, 0, -0.0, 3e38, -3e38, 1, -1, *[2.5] * 8]]).astype(
        F32
    )
    y = vocabulary.upper_bound(level, x)
    assert (y >= x).all()
    finite = np.isfinite(x) & np.isfinite(y)
    assert (y[finite] - x[finite] <= np.abs(x[finite]) * 2.0**-7).all()
    exact = bf16(x[finite]) == x[finite]
    assert (y[finite][exact] == x[finite][exact]).all()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("size", [1, 31, 32, 33, 96, 513, 1100])
@pytest.mark.parametrize("through_columns", [False, True])
@pytest.mark.parametrize("engine", ["fma", "split", "bf16"])
def test_block_product(level: str, size: int, through_columns: bool, engine: str, rng: np.random.Generator) -> None:
    if engine != "fma" and level != "amx":
        with pytest.raises(ValueError, match="no bf16 unit"):
            vocabulary.multiply(
                level, engine, np.ones((32, 1)), np.ones((32, 1)), np.zeros((32, 32)), None, False, False
            )
        return
    a, b = (rng.normal(size=(32, size)).astype(F32) for _ in range(2))
    initial = rng.normal(size=(32, 32)).astype(F32)
    narrow = bf16 if engine == "bf16" else lambda x: x
    exact = initial + narrow(a).astype(np.float64) @ narrow(b).astype(np.float64).T
    magnitude = np.abs(initial) + np.abs(a).astype(np.float64) @ np.abs(b).astype(np.float64).T
    for backwards in (False, True):
        out = vocabulary.multiply(level, engine, a, b, initial, None, backwards, through_columns)
        assert (np.abs(out - exact) <= 2.0**-22 * np.sqrt(size + 8) * magnitude).all()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("engine", ["fma", "split", "bf16"])
def test_block_product_walks_only_the_listed_steps(level: str, engine: str, rng: np.random.Generator) -> None:
    if engine != "fma" and level != "amx":
        engine = "fma"
    size = 40 * 32
    a, b = (rng.integers(-4, 5, size=(32, size)).astype(F32) for _ in range(2))  # exact in every order
    steps = np.flatnonzero(rng.random(40) < 0.5).astype(np.int32)
    chosen = (steps[:, None] * 32 + np.arange(32)).ravel()
    out = vocabulary.multiply(level, engine, a, b, np.zeros((32, 32)), steps, False, False)
    assert (out == a[:, chosen] @ b[:, chosen].T).all()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("size", [1, 63, 64, 65, 300])
def test_int8_product_is_exact(level: str, size: int, rng: np.random.Generator) -> None:
    a, b = (rng.integers(-128, 128, size=(32, size)).astype(np.int8) for _ in range(2))
    initial = rng.integers(-1000, 1000, size=(32, 32)).astype(np.int32)
    expected = initial + a.astype(np.int32) @ b.astype(np.int32).T
    assert (vocabulary.multiply_int8(level, a, b, initial) == expected).all()


@pytest.mark.parametrize("level", LEVELS)
def test_transposed_block(level: str, rng: np.random.Generator) -> None:
    block = rng.normal(size=(32, 32)).astype(F32)
    assert (vocabulary.transpose_block(level, block) == block.T).all()


@pytest.mark.parametrize("level", LEVELS)
def test_online_softmax(level: str, rng: np.random.Generator) -> None:
    logits = (rng.normal(size=(700, 16)) * rng.uniform(0.1, 30, 16)).astype(F32)
    logits[:, 3] = -np.inf
    logits[5, 4] = np.inf
    logits[6, 5] = np.nan
    logits[:690, 6] = -np.inf
    lse, entropy = vocabulary.online_softmax(level, logits)
    assert lse[3] == -np.inf
    assert lse[4] == np.inf
    assert np.isnan(lse[5])
    ordinary = [i for i in range(16) if i not in (3, 4, 5)]
    z = logits[:, ordinary].astype(np.float64)
    top = z.max(0)
    expected = top + np.log(np.exp(z - top).sum(0))
    p = np.exp(z - expected)
    expected_entropy = expected - np.where(p > 0, p * np.where(p > 0, z, 0), 0).sum(0)
    assert np.abs(lse[ordinary] - expected).max() <= 2e-6 * np.abs(expected).max()
    assert np.abs(entropy[ordinary] - expected_entropy).max() <= 1e-5
