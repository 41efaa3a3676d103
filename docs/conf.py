"""How the book is built: from the committed notebooks, without executing or fetching anything."""

project = "smol_scratch"
author = "The smol_scratch authors"
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx-mathjax-offline",
]
nb_execution_mode = "off"
nb_code_prompt_show = "Show code"
nb_code_prompt_hide = "Hide code"
myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "dollarmath"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings give shapes and units, which say more
html_theme = "sphinx_book_theme"
html_title = "smol_scratch"
html_static_path = ["_static"]
html_css_files = ["book.css"]
html_js_files = ["book.js"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "home_page_in_toc": True,
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "navigation_with_keys": True,
}
copybutton_selector = "div.cell_input div.highlight pre, div.highlight-text pre"
# What a docstring of torch's own classes refers to is not part of this book.
suppress_warnings = ["mystnb.unknown_mime_type", "docutils"]
