"""The fixtures of the behaviour tests: an attacker meets the same sites."""

from __future__ import annotations

from tests.behaviour.conftest import clock, jobs, make_site, no_options_from_outside, only_these_apps, origin

__all__ = ["clock", "jobs", "make_site", "no_options_from_outside", "only_these_apps", "origin"]
