"""The store on memcached nodes."""
