"""The parts of a cluster: real processes, each with a port of its own."""
