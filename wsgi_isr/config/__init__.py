"""The options and rules of a site, and facts about its app: framework, source, name."""
