"""The command ``wsgi-isr``: a file for each command of more than a few lines; :mod:`.main` has the others."""
