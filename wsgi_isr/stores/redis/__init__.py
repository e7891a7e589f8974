"""The store on Redis and Valkey servers. It needs redis-py: the extra ``redis``."""
