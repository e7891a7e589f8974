"""Running many: nodes, instances, a balancer, load, faults; deploying them, and what comes of thousands."""

from __future__ import annotations
