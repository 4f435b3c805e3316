"""Fixtures of the tests that try what an attacker, or a broken peer, may send."""

from __future__ import annotations

from tests.integration.conftest import protocol, stage

__all__ = ["protocol", "stage"]
