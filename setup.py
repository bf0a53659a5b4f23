"""What setup.cfg cannot say: the addresses that begin with that of the repository."""

import re
import tomllib
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
ADDRESS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["thinformer"]["repository"]


def absolute(link: re.Match) -> str:
    """Return a relative link of the README as one that leads to the repository."""
    image, words, target = link.groups()
    return f"{image}[{words}]({ADDRESS}/{'raw' if image else 'blob'}/HEAD/{target})"


readme = (ROOT / "README.md").read_text(encoding="utf-8")
if ADDRESS:
    readme = re.sub(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)]+)\)", absolute, readme)

setup(
    long_description=readme,
    long_description_content_type="text/markdown",
    project_urls={
        "Source": ADDRESS,
        "Changelog": f"{ADDRESS}/blob/HEAD/CHANGELOG.md",
        "Issues": f"{ADDRESS}/issues",
    }
    if ADDRESS
    else {},
)
