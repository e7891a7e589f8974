"""Stores on nodes of the network: addresses, connections, failures, and the choice of a node."""
