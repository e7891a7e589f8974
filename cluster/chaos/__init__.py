"""A cluster under faults drawn from a seed, and the check of its history."""
