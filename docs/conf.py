"""How `make docs` builds the pages: Sphinx reads the Markdown of this folder with MyST and dresses it with furo."""

import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parent))  # generated.py, beside this file

project = "fledge"
author = "the fledge authors"
extensions = ["myst_parser", "generated"]
exclude_patterns = ["conf.py", "generated.py"]

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = "fledge"
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
# The pages ask no other host for anything: furo takes the fonts of the reader's system.
html_theme_options = {"navigation_with_keys": True}
highlight_language = "none"
