"""A bounded load on a site, and a report of it."""
