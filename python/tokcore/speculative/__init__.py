"""Speculative generation: drafters, policies and the loop that verifies trees of drafted tokens."""

from __future__ import annotations

from tokcore.speculative.drafter import Draft, DraftContext, Drafter, DraftStart
from tokcore.speculative.generate import generate
from tokcore.speculative.model import CacheOptions, Session, SpeculativeModel
from tokcore.speculative.model_drafters import DySpec, Eagle, StaticTree
from tokcore.speculative.ngram import NGram
from tokcore.speculative.policies import EntropySwitch, LengthPolicy, ThroughputBudget
from tokcore.speculative.recycling import TokenRecycling
from tokcore.speculative.result import GenerationResult, GenerationStatistics, Step
from tokcore.speculative.templates import Template, greedy_template
from tokcore.speculative.trigram import TriGram

__all__ = [
    "CacheOptions",
    "Draft",
    "DraftContext",
    "DraftStart",
    "Drafter",
    "DySpec",
    "Eagle",
    "EntropySwitch",
    "GenerationResult",
    "GenerationStatistics",
    "LengthPolicy",
    "NGram",
    "Session",
    "SpeculativeModel",
    "StaticTree",
    "Step",
    "Template",
    "ThroughputBudget",
    "TokenRecycling",
    "TriGram",
    "generate",
    "greedy_template",
]
