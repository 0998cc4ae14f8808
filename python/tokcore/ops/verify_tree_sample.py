"""``verify_tree_sample``: which drafted tokens a sampled continuation keeps, without changing what is sampled."""

from __future__ import annotations

import torch
from torch import Tensor

from tokcore import _library as _library  # the operators must exist before their fakes are registered
from tokcore.ops import _checks as checks
from tokcore.ops import _kv_checks as kv
from tokcore.ops import _sampling_checks as sampling
from tokcore.ops import _tree_checks as trees
from tokcore.ops._sampling_checks import Number
from tokcore.token_tree import TokenTree
from tokcore.verdict import Verdict

# How siblings were chosen -> the rules that are lossless for them.
CHILDREN = {
    "fixed": ("coupled", "target_only"),
    "iid": ("coupled", "iid", "target_only"),
    "without_replacement": ("coupled", "without_replacement", "target_only"),
    "coupled": ("coupled",),
}


@torch.library.register_fake("tokcore::verify_tree_sample")  # type: ignore[untyped-decorator]
def _verify_tree_sample_fake(
    logits: Tensor,
    tokens: Tensor,
    parents: Tensor,
    counts: Tensor,
    first_child: Tensor,
    next_sibling: Tensor,
    seeds: Tensor,
    positions: Tensor,
    draft_probs: Tensor | None = None,
    *,
    rule: str = "coupled",
    lossless: bool = True,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    typical_mass: float = 1.0,
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    per_request: Tensor | None = None,
    token_counts: Tensor | None = None,
    allowed_bits: Tensor | None = None,
    typical_epsilon: float = 0.3,
    typical_alpha: float = 0.09,
    rows: str = "auto",
    validate: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    require = checks.fake_require("verify_tree_sample")
    values = (temperature, top_k, top_p, min_p, typical_mass, repetition_penalty, presence_penalty, frequency_penalty)
    settings = dict(zip(sampling.SETTINGS, values, strict=True))
    sampling.check_rows(
        require, logits, seeds, positions, settings, per_request, token_counts, allowed_bits, with_nodes=True
    )
    sampling.check_unit_stride(require, "logits", logits)
    links = {"first_child": first_child, "next_sibling": next_sibling}
    trees.check_tree(require, {"tokens": tokens, "parents": parents, "counts": counts, **links}, logits, "logits")
    trees.check_rule(require, rule, lossless, draft_probs, logits, typical_epsilon, typical_alpha)
    trees.check_rows_option(require, rows)
    return trees.outputs_like(logits)


def _check_children(require: checks.Require, children: str | None, rule: str, lossless: bool) -> None:
    if children is None:
        return
    checks.check_choice(require, "children", children, tuple(CHILDREN))
    fits = not lossless or rule in CHILDREN[children]
    names = " or ".join(f"'{name}'" for name in CHILDREN if rule in CHILDREN[name])
    require(fits, "children", lambda: f"{names} for rule '{rule}' (or lossless=False)", lambda: f"'{children}'")


def verify_tree_sample(
    logits: Tensor,
    tree: TokenTree,
    *,
    rule: str = "coupled",
    seed: int | Tensor,
    position: int | Tensor,
    draft_probs: Tensor | None = None,
    children: str | None = None,
    lossless: bool = True,
    temperature: Number = 1.0,
    top_k: Number = 0,
    top_p: Number = 1.0,
    min_p: Number = 0.0,
    typical_mass: Number = 1.0,
    repetition_penalty: Number = 1.0,
    presence_penalty: Number = 0.0,
    frequency_penalty: Number = 0.0,
    token_counts: Tensor | None = None,
    allowed_bits: Tensor | None = None,
    typical_epsilon: float = 0.3,
    typical_alpha: float = 0.09,
    rows: str = "auto",
    validate: bool | None = None,
) -> Verdict:
    """Walks down a tree of drafted tokens as far as the target model goes along, and draws the token after.

    p is the distribution of a node's row, exactly that which :func:`tokcore.sample` draws from with the same options; q
    is what the node's children were drawn from. The rules, child by child in the order of their numbers:

    - ``"coupled"``: t = argmax ln p + g with the noise g(seed, position, token) of :func:`tokcore.sample`; the child
      with token t is accepted, else t is the token after the path. Any tree is lossless, and the output is that of
      ordinary seeded sampling, token by token, wherever logits agree bitwise.
    - ``"without_replacement"``: accept if r < p/q; else p becomes norm(relu(p - q)), q loses the child and is
      normalised; after the last child, draw from p. For children drawn one after the other from q without those before.
    - ``"iid"``: the same, with q as it is. For children drawn independently from q.
    - ``"target_only"``: accept if r < p; else p loses the child and is normalised. For children that were chosen
      without this call's random numbers, such as the top-k of a drafter.
    - ``"typical"``: accept the likeliest child with p > min(typical_epsilon, typical_alpha * e^-entropy). Not lossless.

    Lossless: the tokens of the path and the one after them are distributed as if each had been sampled from p.

    Args:
        logits: [B, N, V], float32, bfloat16 or float16, of every node of ``tree``; the last dimension dense.
        tree: B trees of up to N nodes.
        rule: see above.
        seed, position: as in :func:`tokcore.sample`, an int or int64 [B]; the position of the token after the root. A
            node at depth d decides the token at position + d.
        draft_probs: float32 [B, N, V], q of each node with children; for the rules that test against it.
        children: how the drafter chose siblings: ``"fixed"``, ``"iid"``, ``"without_replacement"`` or ``"coupled"`` (by
            the noise that the target uses); None does not say. What is said is held against the rule.
        lossless: refuse what the rule is not lossless for: rule ``"typical"``, ``children`` of another kind, equal
            siblings without replacement, a child that its q cannot draw. False computes the rule all the same.
        token_counts: int32 [B, V], counts up to and with the root; nodes on a path count by themselves.
        allowed_bits: int32 [B, N, ceil(V/32)], by node.
        typical_epsilon, typical_alpha: of rule ``"typical"``, in [0, 1].
        rows: ``"path"`` reads rows as the walk reaches them, ``"all"`` reads all first, ``"auto"`` chooses by size. The
            results are the same bit for bit.
        validate: whether what is wrong with values raises; None: on the CPU. On a GPU it waits for the GPU, and
            ``Verdict.status`` says the same.
        temperature, top_k, top_p, min_p, typical_mass, repetition_penalty, presence_penalty, frequency_penalty: as in
            :func:`tokcore.sample`.

    Returns:
        :class:`tokcore.Verdict`; a request without nodes has none.

    Raises:
        TypeError: a wrong type or dtype. ValueError: a wrong device, shape or value; with ``validate`` also, with node
            and request, a NaN or +inf in a row on the path, a row or a grammar that allows nothing, draft probabilities
            that do not sum to 1 within 1e-3, and what ``lossless`` refuses. NotImplementedError: a device without
            kernels.

    One pass over a row of the path to find its maximum and one to draw; for the rules with q one more each for the sum
    of weights, the sum of q and every rejection. 26 KB of memory a thread; no [N, V] tensor is made. Bitwise repeatable
    whatever the thread count, instruction-set level and backend.

    Sources: SpecInfer (arXiv 2305.09781, iid), Sequoia (2402.12374) and DySpec (2410.11744, without replacement),
    Medusa (2401.10774, typical); coupling by shared noise: Daliri et al. (2408.07978).
    """
    require = checks.wrapper_require("verify_tree_sample")
    checks._tensor(require, "logits", logits)
    optional = {"draft_probs": draft_probs, "token_counts": token_counts, "allowed_bits": allowed_bits}
    sampling.check_optional(require, optional)
    parts = trees.tensors_of(require, tree)
    kv.check_device(require, "logits", logits)
    checks._rank(require, "logits", logits, 3)
    for name, number in {"typical_epsilon": typical_epsilon, "typical_alpha": typical_alpha}.items():
        checks._number(require, name, number)
    options: dict[str, Number] = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "typical_mass": typical_mass,
        "repetition_penalty": repetition_penalty,
        "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty,
    }
    settings, per_request = sampling.split_settings(require, logits, options, token_counts)
    seeds = sampling.as_integers(require, "seed", seed, logits)
    positions = sampling.as_integers(require, "position", position, logits)
    defaults = {name: value for name, (value, _, _) in sampling.SETTINGS.items()}
    every = {**defaults, **settings}
    sampling.check_rows(
        require, logits, seeds, positions, every, per_request, token_counts, allowed_bits, with_nodes=True
    )
    trees.check_tree(require, parts, logits, "logits")
    dense = draft_probs if draft_probs is None or draft_probs.stride(-1) == 1 else draft_probs.contiguous()
    trees.check_rule(require, rule, lossless, dense, logits, typical_epsilon, typical_alpha)
    trees.check_rows_option(require, rows)
    _check_children(require, children, rule, lossless)
    outputs = sampling.call(
        torch.ops.tokcore.verify_tree_sample,
        logits if logits.stride(-1) == 1 else logits.contiguous(),
        *parts.values(),
        seeds,
        positions,
        dense,
        rule=rule,
        lossless=lossless,
        **settings,
        per_request=per_request,
        token_counts=token_counts,
        allowed_bits=allowed_bits,
        typical_epsilon=float(typical_epsilon),
        typical_alpha=float(typical_alpha),
        rows=rows,
        validate=sampling.resolve_validate(require, validate, logits),
    )
    return trees.to_verdict(outputs)
