"""The configuration of Sphinx; ``make docs`` builds the documentation."""

from __future__ import annotations

import configparser
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(Path(__file__).parent / "_ext"))

_metadata = configparser.ConfigParser()
_metadata.read(ROOT / "setup.cfg", encoding="utf-8")

project = "wsgi_isr"
author = _metadata["metadata"]["author"]
copyright = author
version = release = _metadata["metadata"]["version"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_design", "command_line"]

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
# Files of the repository, as [text](repo:path/to/file). Their address is in setup.cfg alone.
myst_url_schemes = {
    "http": None,
    "https": None,
    "repo": {"url": _metadata["metadata"]["url"] + "/blob/main/{{path}}#{{fragment}}", "classes": ["repo"]},
}

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 100

html_theme = "furo"
html_title = "wsgi_isr"
html_show_sourcelink = False
html_show_copyright = False
