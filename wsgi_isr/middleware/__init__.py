"""The middleware: from the request of a client to its answer, and an app's life in a process."""
