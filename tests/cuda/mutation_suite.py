"""The mutation suite: a kernel with planted bugs is a victim; each bug must be caught, the unharmed kernel must pass.

A victim is a function run(mutation) that executes the kernel, "" being the unharmed one, and raises WrongResultError if
its result is not right. Caught means: that, or an error of the execution, under one policy at least.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from simt_support import POLICIES, Policy, simt


class WrongResultError(AssertionError):
    """The kernel ran and its result is wrong."""


Victim = Callable[[str], None]


def outcome(victim: Victim, mutation: str, policy: Policy) -> str:
    """What happened under the policy: "" if nothing was noticed."""
    policy.use()
    try:
        victim(mutation)
    except (WrongResultError, simt.Error) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def catches(victim: Victim, mutation: str, policies: Iterable[Policy] = POLICIES) -> dict[str, str]:
    """The policies that catch the bug, with what they say."""
    found = {str(policy): outcome(victim, mutation, policy) for policy in policies}
    return {policy: text for policy, text in found.items() if text}
