"""What ``wsgi-isr`` can do, as far as it takes more than a few lines; :mod:`wsgi_isr.cli` puts it together."""
