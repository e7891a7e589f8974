"""The options and rules of a site, and what is found out about its app: framework, source, name."""
