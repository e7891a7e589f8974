"""CDNs: the headers that each reads, and a client for the purges of each."""
