"""``kv_saliency``: how much attention cached tokens get from a few probe rows, without the matrix."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tokcore import _library as _library  # the operators must exist before their fakes are registered
from tokcore.ops import _checks as checks
from tokcore.ops import _kv_checks as kv

REDUCTIONS = ("normalized_sum", "sum", "max", "decayed")


def _check_saliency(
    require: checks.Require,
    q_probe: Tensor,
    k: Tensor,
    probe_positions: Tensor,
    lse: Tensor | None,
    scale: float,
    reduce: str,
    decay: float,
    temperature: float,
) -> None:
    """What wrapper, fake and kernel check alike."""
    kv.check_real(require, "q_probe", q_probe.dtype)
    checks._dtype(require, "k", k, (q_probe.dtype,), " of q_probe")
    checks._dtype(require, "probe_positions", probe_positions, (torch.int32,))
    others = {"k": k, "probe_positions": probe_positions}
    if lse is not None:
        checks._dtype(require, "lse", lse, (torch.float32,))
        others["lse"] = lse
    for name, value in others.items():
        kv.check_same_device(require, name, value, q_probe, "q_probe")
    checks._rank(require, "q_probe", q_probe, 4)
    checks._rank(require, "k", k, 4)
    B, T, H, D = q_probe.shape
    N, Hkv = k.size(1), k.size(2)
    checks._shape(require, "k", k, (B, N, Hkv, D), "[B, N, Hkv, D], B and D of q_probe")
    grouped = Hkv > 0 and H > 0 and H % Hkv == 0
    require(grouped, "q_probe", lambda: f"H a positive multiple of {Hkv} (Hkv)", lambda: f"{H}")
    checks._shape(require, "probe_positions", probe_positions, (B, T), "[B, T] of q_probe")
    if lse is not None:
        checks._shape(require, "lse", lse, (B, H, T), "[B, H, T] of q_probe")
    require(D >= 1, "q_probe", lambda: "D >= 1", lambda: f"{D}")
    require(math.isfinite(scale), "scale", lambda: "a finite value", lambda: f"{scale}")
    checks.check_choice(require, "reduce", reduce, REDUCTIONS)
    require(0.0 < decay <= 1.0, "decay", lambda: "a value in (0, 1]", lambda: f"{decay}")
    warm = 0.0 < temperature < math.inf
    require(warm, "temperature", lambda: "a finite value > 0", lambda: f"{temperature}")


@torch.library.register_fake("tokcore::kv_saliency")  # type: ignore[untyped-decorator]
def _saliency_fake(
    q_probe: Tensor,
    k: Tensor,
    probe_positions: Tensor,
    lse: Tensor | None = None,
    *,
    scale: float,
    reduce: str = "normalized_sum",
    decay: float = 1.0,
    temperature: float = 1.0,
    gumbel_seed: int | None = None,
) -> Tensor:
    require = checks.fake_require("kv_saliency")
    _check_saliency(require, q_probe, k, probe_positions, lse, scale, reduce, decay, temperature)
    kv.check_unit_stride(require, "q_probe", q_probe)
    kv.check_unit_stride(require, "k", k)
    return q_probe.new_empty((q_probe.size(0), k.size(2), k.size(1)), dtype=torch.float32)


def kv_saliency(
    q_probe: Tensor,
    k: Tensor,
    probe_positions: Tensor,
    *,
    scale: float | None = None,
    reduce: str = "normalized_sum",
    lse: Tensor | None = None,
    decay: float = 1.0,
    temperature: float = 1.0,
    gumbel_seed: int | None = None,
) -> Tensor:
    """Reduces the columns of probe rows of an attention matrix: what each cached token gets.

    p_tn = softmax over n <= position_t of z_tn, z = (scale·q·k + noise)/temperature, for every probe t and query head;
    scores over the probes and the G = H/Hkv heads that share a head of keys:
    ``"sum"`` Σ p, ``"normalized_sum"`` Σ p over the number of (probe, head) that see the token (0 where none does),
    ``"max"``, ``"decayed"`` Σ decay^(P - position_t)·p with P the last position of any probe.

    Args:
        q_probe: [B, T, H, D], the rows that probe: recent or random ones, or a [CLS] row.
        k: keys [B, N, Hkv, D], dtype of ``q_probe``.
        probe_positions: [B, T] integers: the last position that a probe sees (its own where attention is causal, N - 1
            for all tokens); below 0 leaves a probe out.
        scale: None is D^(-1/2).
        reduce: see above.
        lse: float32 [B, H, T], log Σ exp z of each row where a forward pass left it; None computes it.
        decay: forgetting factor a position, in (0, 1].
        temperature: positive divisor of the logits.
        gumbel_seed: adds Gumbel noise to the logits, one number a token and head of keys, from this seed.

    Returns:
        float32 [B, Hkv, N].

    Raises:
        TypeError: a wrong type or dtype. ValueError: a wrong device, shape or value. NotImplementedError: a device
            without kernels.

    4·B·T·H·N·D FLOPs, half of it with ``lse``; the matrix is never held. Bitwise repeatable whatever the thread count;
    the noise is the same on every backend up to rounding of the logarithm.

    Sources: ZipCache (arXiv 2405.14256, exact counts), ZipVL (2410.08584), Scissorhands (2305.17118), A2SF (2407.20485,
    decayed), Keyformer (2403.09054, Gumbel noise and temperature).
    """
    require = checks.wrapper_require("kv_saliency")
    for name, value in {"q_probe": q_probe, "k": k, "probe_positions": probe_positions}.items():
        checks._tensor(require, name, value)
    if lse is not None:
        checks._tensor(require, "lse", lse)
    integers = not (probe_positions.is_floating_point() or probe_positions.dtype == torch.bool)
    require(
        integers,
        "probe_positions",
        lambda: "an integer dtype",
        lambda: checks.dtype_name(probe_positions.dtype),
        TypeError,
    )
    kv.check_device(require, "q_probe", q_probe)
    for name, number in {"decay": decay, "temperature": temperature}.items():
        checks._number(require, name, number)
    if scale is not None:
        checks._number(require, "scale", scale, " or None")
    if gumbel_seed is not None:
        checks.check_count(require, "gumbel_seed", gumbel_seed, 0, 2**63 - 1, "seed")
        alone = lse is None
        require(alone, "lse", lambda: "None with gumbel_seed", lambda: "a Tensor")
    positions = probe_positions.to(torch.int32)
    factor = scale if scale is not None else (q_probe.size(-1) ** -0.5 if q_probe.dim() and q_probe.size(-1) else 1.0)
    _check_saliency(require, q_probe, k, positions, lse, factor, reduce, decay, temperature)
    return torch.ops.tokcore.kv_saliency(  # type: ignore[no-any-return]
        q_probe if q_probe.stride(-1) == 1 else q_probe.contiguous(),
        k if k.stride(-1) == 1 else k.contiguous(),
        positions,
        lse,
        scale=factor,
        reduce=reduce,
        decay=decay,
        temperature=temperature,
        gumbel_seed=gumbel_seed,
    )
