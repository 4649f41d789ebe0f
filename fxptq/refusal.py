"""Refusal: the answer of whatever cannot serve a site or give a grid, with the reason in words for a person."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Refusal:
    """Why something cannot be done; no error, for the caller goes on without it and lists the reason.

    Attributes:
        reason: a clause that can stand behind the name of a site: "its sums do not fit 32 bits".
    """

    reason: str
