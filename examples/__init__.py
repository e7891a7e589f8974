"""Complete applications that are wrapped by ``wsgi_isr``; each has a README with steps to follow."""
