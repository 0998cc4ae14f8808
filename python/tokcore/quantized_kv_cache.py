"""``QuantizedKVCache``: keys and values of all layers in pages of one or two precisions, a window and sinks."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tokcore.kv_presets import find_preset
from tokcore.ops import _checks as checks
from tokcore.ops import _kv_checks as kv
from tokcore.ops.kv_append import call_append

PAGE_SIZES = (16, 32, 64, 128)
_CODES = {"int8": 8, "int4": 4, "int2": 2}
_NUMBERS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_CLASS = "QuantizedKVCache"
_require_append = checks.wrapper_require(f"{_CLASS}.append")

Operands = tuple[Tensor, Tensor, list[Tensor], list[Tensor], list[Tensor], Tensor | None, Tensor | None]


@dataclass(frozen=True)
class Tier:
    """One layer's pages of one precision, as the operators take them.

    P pages of ``page_size`` tokens for every head; a coded page holds its bytes in the layout of the kernels.
    """

    k_pages: Tensor  # [P, Hkv, page_size, D], or uint8 [P, Hkv, page_size, D·bits/8]
    v_pages: Tensor
    k_scale: Tensor  # bfloat16 [P, Hkv, D/group, page_size], or [P, Hkv, page_size/group, D] by channel
    k_zero: Tensor  # as k_scale; empty: symmetric
    v_scale: Tensor
    v_zero: Tensor
    page_table: Tensor  # int32 [B, width]
    page_counts: Tensor  # int32 [B]
    positions: Tensor  # uint16 or int32 [P, Hkv, page_size]; empty: pages hold positions in order

    def tensors(self) -> list[Tensor]:
        """In the operators' order."""
        return [getattr(self, name) for name in self.__dataclass_fields__]


@dataclass(frozen=True)
class Layer:
    """One layer of a cache as the operators take it."""

    lengths: Tensor  # int32 [B] tokens
    window_starts: Tensor  # int32 [B] first position of the window
    window_k: Tensor  # [B, Hkv, W, D]; position p in slot p % W
    window_v: Tensor
    sink_k: Tensor  # [B, Hkv, S, D]
    sink_v: Tensor
    high: Tier | None
    low: Tier | None
    k_channel_scale: Tensor | None  # float32 [Hkv, D]
    v_channel_scale: Tensor | None

    def operands(self) -> Operands:
        """In the operators' order; made once."""
        return self._operands

    @cached_property
    def _operands(self) -> Operands:
        recent = [self.window_k, self.window_v, self.sink_k, self.sink_v]
        high, low = ([] if tier is None else tier.tensors() for tier in (self.high, self.low))
        return self.lengths, self.window_starts, recent, high, low, self.k_channel_scale, self.v_channel_scale


class _Slots:
    """A slot mapping of one token a sequence on the CPU, kept: making a tensor takes longer than appending a token."""

    def __init__(self, batch: int) -> None:
        self._values = array("q", [-1]) * batch
        self.tensor = torch.frombuffer(self._values, dtype=torch.int64)

    def __reduce__(self) -> tuple[type[_Slots], tuple[int]]:
        return _Slots, (len(self._values),)  # a copy has memory of its own

    def set(self, values: Sequence[int]) -> Tensor:
        self._values[:] = array("q", values)
        return self.tensor


class QuantizedKVCache:
    """Owns the tensors of a cache; :func:`tokcore.kv_append`, :func:`tokcore.decode_attention` and others work on them.

    A sequence's first ``sinks`` tokens and its last ``residual`` (to ``residual + page_size - 1``) stay in ``dtype``.
    What leaves the window is written a page at a time, to the high tier while that has room and then to the low one;
    :func:`tokcore.kv_retier` sorts tokens between the two later. Without a tier it is dropped (StreamingLLM).

    Args:
        layers, batch, kv_heads, head_dim: sizes; head_dim is a multiple of 32 in [32, 256].
        capacity: most tokens of a sequence.
        page_size: 16, 32, 64 or 128 tokens.
        high: precision of the high tier: ``"int8"``, ``"int4"``, ``"int2"``, the name of ``dtype`` (``"bf16"``,
            ``"fp16"``, ``"fp32"``), or a pair of codes for keys and values; None for no tier.
        low: likewise for the low tier.
        high_ratio: share of the pages that the high tier has room for; 1 without a low tier.
        k_axis, v_axis: ``"token"`` or ``"channel"``: what shares a scale, neighbouring channels of a token or a channel
            of neighbouring tokens; for keys and for values.
        group, v_group: channels (axis token) or tokens of a page (axis channel) that share a scale; None is D or the
            page. 16, 32, 64, 128 or all; never more tokens than a page holds.
        symmetric: codes without zeros, for both.
        residual: tokens that stay in the window at least.
        sinks: first tokens that stay as they are.
        rotate: coded keys and values are rotated by a Hadamard matrix; head_dim is a power of two.
        k_channel_scale, v_channel_scale: float32 [layers, Hkv, D], finite values > 0 that are divided out before
            coding; :meth:`set_channel_scales` sets them later.
        dtype, device: of what is not coded; float32, bfloat16 or float16.

    Raises:
        TypeError, ValueError: a wrong type or value. NotImplementedError: what no kernel supports.

    Everything is allocated at once: ``nbytes`` counts every tensor, scales and tables too.
    """

    def __init__(
        self,
        layers: int,
        batch: int,
        kv_heads: int,
        head_dim: int,
        capacity: int,
        *,
        page_size: int = 64,
        high: str | tuple[str, str] | None = "int8",
        low: str | tuple[str, str] | None = "int4",
        high_ratio: float = 0.5,
        k_axis: str = "token",
        v_axis: str = "token",
        group: int | None = None,
        v_group: int | None = None,
        symmetric: bool = False,
        residual: int = 128,
        sinks: int = 4,
        rotate: bool = False,
        k_channel_scale: Tensor | None = None,
        v_channel_scale: Tensor | None = None,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
    ) -> None:
        require = checks.wrapper_require(_CLASS)
        counts = {"layers": layers, "batch": batch, "kv_heads": kv_heads, "capacity": capacity}
        for name, value in counts.items():
            checks.check_count(require, name, value, 1, 2**30, "size")
        checks.check_count(require, "residual", residual, 0, 2**30, "tokens")
        checks.check_count(require, "sinks", sinks, 0, 2**30, "tokens")
        known = 32 <= head_dim <= 256 and head_dim % 32 == 0
        require(known, "head_dim", lambda: "a multiple of 32 in [32, 256]", lambda: f"{head_dim}", NotImplementedError)
        require(page_size in PAGE_SIZES, "page_size", lambda: "16, 32, 64 or 128", lambda: f"{page_size}")
        kv.check_axis(require, k_axis, "k_axis")
        kv.check_axis(require, v_axis, "v_axis")
        kv.check_real(require, "dtype", dtype)
        if rotate:
            power = kv.power_of_two(head_dim)
            require(power, "rotate", lambda: "False unless D is a power of two", lambda: f"D = {head_dim}")
        if high is None and low is not None:
            high, low = low, None
        both = high is not None and low is not None
        checks._number(require, "high_ratio", high_ratio)
        fits = 0.0 < high_ratio < 1.0 or not both
        require(fits, "high_ratio", lambda: "a value in (0, 1) with two tiers", lambda: f"{high_ratio}")

        self.layers, self.batch, self.kv_heads, self.head_dim = layers, batch, kv_heads, head_dim
        self.capacity, self.page_size, self.residual, self.sinks = capacity, page_size, residual, sinks
        self.high, self.low, self.rotate, self.dtype = high, low, rotate, dtype
        self.k_axis, self.v_axis = k_axis, v_axis
        self.device = torch.device(device)
        pages = max(0, capacity - sinks - residual) // page_size
        high_pages = math.ceil(pages * high_ratio) if both else pages
        self.max_pages = {"high": high_pages if high is not None else 0, "low": pages - high_pages if both else 0}
        groups = self._groups(require, group, v_group)
        self._tiers = {
            name: None if kinds is None else self._make_tier(require, name, kinds, groups, symmetric, both)
            for name, kinds in (("high", high), ("low", low))
        }
        slots = {"window": residual + page_size, "sink": sinks}
        self._recent = {
            f"{place}_{kind}": self._empty((layers, batch, kv_heads, count, head_dim), dtype)
            for place, count in slots.items()
            for kind in "kv"
        }
        self._lengths = self._zeros((layers, batch))
        self._window_starts = self._zeros((layers, batch)) + sinks
        self._slots = [_Slots(batch) for _ in range(layers)]
        self._owners: dict[int, set[int]] = {}  # of sequences that share pages, those they come from
        self._own_tables: dict[int, dict[str, Tensor]] = {}  # and the pages they had, by tier
        self._channel_scales: dict[str, Tensor | None] = {"k": None, "v": None}
        self.set_channel_scales(k_channel_scale, v_channel_scale)

    @classmethod
    def from_preset(
        cls, preset: str, layers: int, batch: int, kv_heads: int, head_dim: int, capacity: int, **options: Any
    ) -> QuantizedKVCache:
        """A cache by the name of its scheme (:data:`tokcore.KV_PRESETS`); ``options`` override the scheme's own."""
        chosen = {**find_preset(f"{_CLASS}.from_preset", preset).options, **options}
        return cls(layers, batch, kv_heads, head_dim, capacity, **chosen)

    # ---- state -------------------------------------------------------------------------------------------------------

    @property
    def lengths(self) -> Tensor:
        """Tokens of every sequence, int32 [B]; those of the first layer (layers are appended one by one)."""
        return self._lengths[0].clone()

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors that the cache holds."""
        tensors = [*self._recent.values(), self._lengths, self._window_starts, *self._channel_scales.values()]
        tensors += [slots.tensor for slots in self._slots]
        for tier in self._tiers.values():
            tensors += [] if tier is None else tier.tensors()
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    def layer(self, layer: int) -> Layer:
        """One layer's tensors: views, not copies."""
        if layer not in range(self.layers):
            checks.check_count(checks.wrapper_require(_CLASS), "layer", layer, 0, self.layers - 1, "layers - 1")
        return self._layers[layer]

    def _make_layer(self, layer: int) -> Layer:
        tiers = {
            name: None if tier is None else Tier(*(part[layer] for part in tier.tensors()))
            for name, tier in self._tiers.items()
        }
        scales = {name: None if scale is None else scale[layer] for name, scale in self._channel_scales.items()}
        return Layer(
            lengths=self._lengths[layer],
            window_starts=self._window_starts[layer],
            window_k=self._recent["window_k"][layer],
            window_v=self._recent["window_v"][layer],
            sink_k=self._recent["sink_k"][layer],
            sink_v=self._recent["sink_v"][layer],
            high=tiers["high"],
            low=tiers["low"],
            k_channel_scale=scales["k"],
            v_channel_scale=scales["v"],
        )

    def stacked_operands(self) -> Operands:
        """All layers at once, in the operators' order: the tensors of :meth:`layer` with a leading dimension."""
        recent = [self._recent[name] for name in ("window_k", "window_v", "sink_k", "sink_v")]
        tiers = [[] if tier is None else tier.tensors() for tier in (self._tiers["high"], self._tiers["low"])]
        scales = self._channel_scales
        return self._lengths, self._window_starts, recent, tiers[0], tiers[1], scales["k"], scales["v"]

    def append(
        self,
        layer: int,
        k: Tensor,
        v: Tensor,
        lengths: Tensor | Sequence[int] | None = None,
        *,
        validate: bool = True,
    ) -> None:
        """Appends k, v [B, T, Hkv, D] to a layer; of row b only the first ``lengths[b]`` tokens where that is given.

        A failed append leaves the cache as it was. ``validate=False`` spares the wait for a GPU: what is wrong with
        values (lengths out of range, more tokens than the capacity) does not raise then, but is refused on the device
        as a whole; on the CPU it raises all the same.
        """
        if not self._takes(k, v):
            self._check_new_tokens(k, v)
        state, T = self.layer(layer), k.size(1)
        if not validate:
            slots = self._slots_on_device(state.lengths, lengths, T)
            call_append(self, state, k.flatten(0, 1), v.flatten(0, 1), slots)
            return
        new = [T] * self.batch if lengths is None else self._new_lengths(lengths, T)
        before = state.lengths.tolist()
        most = max(map(int.__add__, before, new))
        if most > self.capacity:
            room = f"at most {self.capacity} tokens a sequence (capacity)"
            _require_append(False, "k", lambda: room, lambda: f"{most}")
        if T == 1:
            slots = self._next_slots(layer, before, new)
        else:
            steps = torch.arange(T, device=self.device)
            starts = torch.tensor([b * self.capacity + have for b, have in enumerate(before)], device=self.device)
            given = torch.tensor(new, device=self.device).unsqueeze(1)
            slots = torch.where(steps < given, starts.unsqueeze(1) + steps, -1).flatten()
        call_append(self, state, k.flatten(0, 1), v.flatten(0, 1), slots)

    def _takes(self, k: object, v: object) -> bool:
        """Whether new tokens are good in every respect: what is true of all but the calls that raise, in one look."""
        if not (isinstance(k, Tensor) and isinstance(v, Tensor)):
            return False
        shape = k.shape
        return (
            len(shape) == 4
            and shape == v.shape == (self.batch, shape[1], self.kv_heads, self.head_dim)
            and k.dtype is v.dtype is self.dtype
            and k.device == v.device == self.device
        )

    def _check_new_tokens(self, k: Tensor, v: Tensor) -> None:
        """One respect after the other; raises for the first that is not good."""
        named = {"k": k, "v": v}
        for name, value in named.items():
            checks._tensor(_require_append, name, value)
            checks._rank(_require_append, name, value, 4)
        shape = (self.batch, k.size(1), self.kv_heads, self.head_dim)
        expected = f"device {self.device} of the cache"
        for name, value in named.items():
            checks._shape(_require_append, name, value, shape, "[B, T, Hkv, D] of the cache")
            checks._dtype(_require_append, name, value, (self.dtype,), " of the cache")
            device = value.device
            same = device == self.device
            _require_append(same, name, lambda: expected, lambda device=device: f"{device}")  # type: ignore[misc]

    def _next_slots(self, layer: int, lengths: Sequence[int], new: Sequence[int]) -> Tensor:
        """Where one more token of each sequence goes, or -1."""
        ends = [b * self.capacity + have if new[b] else -1 for b, have in enumerate(lengths)]
        if self.device.type != "cpu":
            return torch.tensor(ends, device=self.device)
        return self._slots[layer].set(ends)

    def _slots_on_device(self, before: Tensor, lengths: Tensor | Sequence[int] | None, most: int) -> Tensor:
        """Slots of the tokens, from values that nobody looks at: what does not fit is -2, which the op refuses."""
        if lengths is None:
            new = before.new_full((self.batch,), most)
        elif isinstance(lengths, Tensor):
            checks._shape(_require_append, "lengths", lengths, (self.batch,), "B of the cache")
            new = lengths.to(self.device)
        else:
            new = torch.tensor(self._new_lengths(lengths, most), device=self.device)
        steps = torch.arange(most, device=self.device)
        rows = torch.arange(self.batch, device=self.device).unsqueeze(1)
        positions = before.to(torch.int64).unsqueeze(1) + steps
        wrong = ((new < 0) | (new > most)).unsqueeze(1)
        slots = torch.where(wrong | (positions >= self.capacity), -2, rows * self.capacity + positions)
        return torch.where(wrong | (steps < new.unsqueeze(1)), slots, -1).flatten()

    def _new_lengths(self, lengths: Tensor | Sequence[int], most: int) -> list[int]:
        """Tokens that each sequence gets."""
        found = lengths.tolist() if isinstance(lengths, Tensor) else list(lengths)
        valid = len(found) == self.batch and all(isinstance(n, int) and 0 <= n <= most for n in found)
        _require_append(valid, "lengths", lambda: f"{self.batch} values in [0, {most}]", lambda: f"{lengths}")
        return found

    def fork(self, source: int, rows: Sequence[int]) -> None:
        """Lets the empty sequences ``rows`` go on from where ``source`` is, in every layer.

        They share the pages of ``source``, which :func:`tokcore.decode_attention` then reads once for all of them; its
        window and sinks are copied. Each goes on in pages of its own. A sequence whose pages others share can be freed
        only together with those, and :func:`tokcore.kv_retier` refuses a cache with shared pages.
        """
        require = checks.wrapper_require(f"{_CLASS}.fork")
        checks.check_count(require, "source", source, 0, self.batch - 1, "batch - 1")
        chosen = list(rows)
        valid = len({*chosen, source}) == len(chosen) + 1 and all(row in range(self.batch) for row in chosen)
        require(valid, "rows", lambda: f"different rows in [0, {self.batch}) without {source}", lambda: f"{chosen}")
        full = [row for row in chosen if bool(self._lengths[:, row].any())]
        require(not full, "rows", lambda: "empty sequences", lambda: f"{full}")
        for row in chosen:
            self._owners[row] = {source, *self._owners.get(source, ())}
            self._own_tables[row] = {}
            for part in (self._lengths, self._window_starts, *self._recent.values()):
                part[:, row] = part[:, source]
            for name, tier in self._tiers.items():
                if tier is None:
                    continue
                self._own_tables[row][name] = tier.page_table[:, row].clone()
                used = torch.arange(tier.page_table.size(2), device=self.device) < tier.page_counts[:, source, None]
                tier.page_table[:, row] = torch.where(used, tier.page_table[:, source], tier.page_table[:, row])
                tier.page_counts[:, row] = tier.page_counts[:, source]

    def _return_pages(self, require: checks.Require, freed: set[int]) -> None:
        """Gives sequences that share pages their own ones back; nobody may still share those of a freed one."""
        for row, owners in self._owners.items():
            lost = sorted(owners & freed)
            kept = not lost or row in freed
            require(kept, "rows", lambda: f"the rows that share pages of {lost[0]} too", lambda: f"{sorted(freed)}")  # noqa: B023
        for row in freed & self._owners.keys():
            del self._owners[row]
            for name, table in self._own_tables.pop(row).items():
                tier = self._tiers[name]
                assert tier is not None
                tier.page_table[:, row] = table

    def free(self, rows: Sequence[int] | Tensor) -> None:
        """Empties the given sequences in every layer; their room can be filled again."""
        index = torch.as_tensor(rows, dtype=torch.int64).flatten()
        require = checks.wrapper_require(f"{_CLASS}.free")
        inside = bool(((index >= 0) & (index < self.batch)).all())
        require(inside, "rows", lambda: f"values in [0, {self.batch})", lambda: f"{index.tolist()}")
        self._return_pages(require, set(index.tolist()))
        index = index.to(self.device)
        self._lengths[:, index] = 0
        self._window_starts[:, index] = self.sinks
        for tier in self._tiers.values():
            if tier is not None:
                tier.page_counts[:, index] = 0

    def reset(self) -> None:
        """Empties every sequence."""
        self.free(range(self.batch))

    def set_channel_scales(self, k: Tensor | None, v: Tensor | None) -> None:
        """Sets what coded keys and values are divided by, float32 [layers, Hkv, D]; the cache must be empty."""
        require = checks.wrapper_require(_CLASS)
        shape = (self.layers, self.kv_heads, self.head_dim)
        empty = not bool(self._lengths.any())
        for name, value in {"k_channel_scale": k, "v_channel_scale": v}.items():
            if value is None:
                continue
            checks._tensor(require, name, value)
            checks._dtype(require, name, value, (torch.float32,))
            checks._shape(require, name, value, shape, "[layers, Hkv, D]")
            good = bool((value.isfinite() & (value > 0)).all())
            require(good, name, lambda: "finite values > 0", lambda: "others")
            require(empty, name, lambda: "an empty cache", lambda: "a cache with tokens")
        self._channel_scales = {
            name: None if scale is None else scale.to(self.device).contiguous() for name, scale in (("k", k), ("v", v))
        }
        self._layers = [self._make_layer(layer) for layer in range(self.layers)]  # views: made once, not in every call

    # ---- allocation --------------------------------------------------------------------------------------------------

    def _empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        made = torch.empty(shape, dtype=dtype, device=self.device)
        if self.device.type == "cpu":
            torch.ops.tokcore.expect_large_writes(made)
        return made

    def _zeros(self, shape: tuple[int, ...]) -> Tensor:
        return torch.zeros(shape, dtype=torch.int32, device=self.device)

    def _groups(self, require: checks.Require, group: int | None, v_group: int | None) -> tuple[int, int]:
        """Groups of keys and of values: channels, or tokens of a page."""
        extents = [self.head_dim if axis == "token" else self.page_size for axis in (self.k_axis, self.v_axis)]
        found: list[int] = []
        for name, value, extent in zip(("group", "v_group"), (group, v_group), extents, strict=True):
            chosen = extent if value is None else value
            known = chosen == extent or (chosen in (16, 32, 64, 128) and extent % chosen == 0)
            require(
                known,
                name,
                lambda extent=extent: f"16, 32, 64 or 128 dividing {extent}, or None for all of it",  # type: ignore[misc]
                lambda chosen=chosen: f"{chosen}",  # type: ignore[misc]
                NotImplementedError,
            )
            found.append(chosen)
        return found[0], found[1]

    def _make_tier(
        self,
        require: checks.Require,
        name: str,
        kinds: str | tuple[str, str],
        groups: tuple[int, int],
        symmetric: bool,
        listed: bool,
    ) -> Tier:
        """All layers' pages of a tier, with leading dimension [layers]."""
        k_kind, v_kind = (kinds, kinds) if isinstance(kinds, str) else kinds
        number = next(kind for kind, dtype in _NUMBERS.items() if dtype == self.dtype)
        known = all(kind in (*_CODES, number) for kind in (k_kind, v_kind)) and (k_kind == number) == (v_kind == number)
        require(
            known,
            name,
            lambda: f"'int8', 'int4', 'int2', {number!r} of dtype, or a pair of codes",
            lambda: f"{kinds!r}",
            NotImplementedError,
        )
        width = self.max_pages[name]
        count = self.batch * width
        leading = (self.layers, count, self.kv_heads)

        def pages(kind: str) -> Tensor:
            if kind == number:
                return self._empty((*leading, self.page_size, self.head_dim), self.dtype)
            return self._empty((*leading, self.page_size, self.head_dim * _CODES[kind] // 8), torch.uint8)

        def scales(kind: str, axis: str, group: int) -> tuple[Tensor, Tensor]:
            by_token, by_channel = (self.head_dim // group, self.page_size), (self.page_size // group, self.head_dim)
            shape = by_token if axis == "token" else by_channel
            none = self._empty((self.layers, 0), torch.bfloat16)
            if kind == number:
                return none, none.clone()
            return self._empty((*leading, *shape), torch.bfloat16), (
                none if symmetric else self._empty((*leading, *shape), torch.bfloat16)
            )

        k_scale, k_zero = scales(k_kind, self.k_axis, groups[0])
        v_scale, v_zero = scales(v_kind, self.v_axis, groups[1])
        table = torch.arange(count, dtype=torch.int32, device=self.device).reshape(self.batch, width)
        short = self.capacity <= 65536
        positions = (*leading, self.page_size) if listed else (self.layers, 0)
        return Tier(
            k_pages=pages(k_kind),
            v_pages=pages(v_kind),
            k_scale=k_scale,
            k_zero=k_zero,
            v_scale=v_scale,
            v_zero=v_zero,
            page_table=table.repeat(self.layers, 1, 1),
            page_counts=self._zeros((self.layers, self.batch)),
            positions=self._empty(positions, torch.uint16 if short else torch.int32),
        )
