"""The meaning of ``sample``: row by row, with a row's distribution and noise as :mod:`tokcore.reference.sampling`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokcore.reference.sampling import SETTINGS, Row, allowed_tokens, make_row

_OPTIONS = (*SETTINGS[:5], "repetition_penalty", "presence_penalty", "frequency_penalty")


def of_request(value: Any, request: int) -> Any:
    """A number for all requests, or that of one."""
    return value[request].item() if isinstance(value, Tensor) else value


def settings_of(options: dict[str, Any], request: int) -> dict[str, float]:
    """Options of a public function, of one request."""
    given = zip(SETTINGS, _OPTIONS, strict=True)
    return {name: float(of_request(options[option], request)) for name, option in given if option in options}


def rows_of(logits: Tensor, **options: Any) -> list[Row]:
    """The distribution of each row of logits [B, V]."""
    counts, words = options.get("token_counts"), options.get("allowed_bits")
    return [
        make_row(
            row,
            settings_of(options, b),
            None if counts is None else counts[b],
            None if words is None else allowed_tokens(words[b], len(row)),
        )
        for b, row in enumerate(logits)
    ]


def sample(logits: Tensor, *, seed: Any, position: Any, return_entropy: bool = False, **options: Any) -> dict[str, Any]:
    """As :func:`tokcore.sample`, with the names of its result."""
    rows = rows_of(logits, **options)
    tokens = [row.coupled_token(of_request(seed, b), of_request(position, b)) for b, row in enumerate(rows)]
    result = {
        "token": torch.tensor(tokens, dtype=torch.int64),
        "logprob": torch.tensor([row.logprob(token) for row, token in zip(rows, tokens, strict=True)]),
    }
    if return_entropy:
        result["entropy"] = torch.tensor([row.entropy() for row in rows])
        result["varentropy"] = torch.tensor([row.varentropy() for row in rows])
    return result
