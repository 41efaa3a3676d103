"""How the book is built: from the committed notebooks, without executing or fetching anything."""

project = "smol_scratch"
author = "The smol_scratch authors"
language = "en"
extensions = [
    "myst_nb",
    "smol_scratch.course.book_pages",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
]
nb_execution_mode = "off"
myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "dollarmath"]
myst_heading_anchors = 3
mathjax_path = "mathjax/tex-chtml.js"  # book.py copies it
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings give shapes and units, which say more
napoleon_use_ivar = True  # the attributes of a class as one list
autodoc_inherit_docstrings = False  # torch's words about forward help nobody here
toc_object_entries = False  # each name has its own heading
html_theme = "sphinx_book_theme"
html_title = "smol_scratch"
html_favicon = "_static/favicon.svg"
html_static_path = ["_static"]
html_css_files = ["book.css"]
html_js_files = ["book.js"]
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
html_theme_options = {
    "logo": {"text": "smol_scratch", "image_light": "_static/favicon.svg",
             "image_dark": "_static/favicon.svg", "alt_text": ""},
    "home_page_in_toc": True,
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "navigation_with_keys": True,
    "search_bar_text": "Search the book",
    "extra_footer": "",
}  # fmt: skip
copybutton_selector = "div.cell_input div.highlight pre, div.highlight-text pre"
# What a docstring of torch's own classes refers to is not part of this book.
suppress_warnings = ["mystnb.unknown_mime_type", "docutils"]
