"""Configuration of Sphinx: pages in MyST Markdown, the theme furo. `make docs` builds them."""

import configparser
import pathlib

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_setup = configparser.ConfigParser()
_setup.read(_ROOT / "setup.cfg")

project = "bertgpt"
version = release = _setup["metadata"]["version"]
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"bertgpt {version}"
myst_heading_anchors = 3  # Links to a heading are checked like links to a page.
