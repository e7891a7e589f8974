"""Pages over HTTP: from a request to a key, from an answer to an entry, and back."""
