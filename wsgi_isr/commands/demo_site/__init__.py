"""A small news site and its story, for the command ``wsgi-isr demo``."""
