"""What setup.cfg cannot say: the recipes of configs/ are installed inside the package."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["bertgpt", "bertgpt.*"]), "bertgpt.configs"],
      package_dir={"bertgpt.configs": "configs"},
      package_data={"bertgpt": ["py.typed"],
                    "bertgpt.report": ["page.html", "references/*.json"]})
