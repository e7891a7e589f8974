"""Start and end the parts in order, and carry out orders meanwhile."""
