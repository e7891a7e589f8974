"""The command ``wsgi-isr``: a file for each command that takes more than a few lines; :mod:`.main` has the others."""
