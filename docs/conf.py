"""How Sphinx makes the pages: `make docs` writes them to build/docs, a warning is an error."""

from importlib.metadata import version as _version

project = "mtlstunnel"
author = "the mtlstunnel authors"
copyright = "2026, the mtlstunnel authors"
release = version = _version("mtlstunnel")

extensions = ["myst_parser", "sphinx.ext.autodoc"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}

# A link to a heading of the same page, [so](#as-here), as it works on the repository's pages.
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence", "deflist"]

# Types stand in the annotations only, so the pages take them from there.
autodoc_typehints = "description"
autodoc_member_order = "bysource"

html_theme = "furo"
html_title = f"mtlstunnel {release}"
html_show_copyright = False
