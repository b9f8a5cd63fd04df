# SPDX-License-Identifier: GPL-3.0-or-later
"""Make the notebook from its source, which is easier to read and to compare.

    python experiments/notebooks/make_notebook.py

The source is Python in cells, each begun by a line `# %%`, or `# %% [markdown]` for text. Outputs
are not kept: `tests/test_api.py` runs the cells.
"""

import json
import re
from pathlib import Path

HERE = Path(__file__).parent


def notebook(source: str) -> str:
    """The notebook (nbformat 4.5) of a Python file in cells."""
    cells = []
    parts = re.split(r"^# %%(.*)\n", source, flags=re.MULTILINE)[1:]
    for number, (kind, text) in enumerate(zip(parts[::2], parts[1::2], strict=True)):
        is_text = "[markdown]" in kind
        text = text.strip("\n")
        text = re.sub(r"^# ?", "", text, flags=re.MULTILINE) if is_text else text
        cell = {"cell_type": "markdown" if is_text else "code", "id": f"cell-{number}"}
        cell |= {"metadata": {}, "source": text.splitlines(keepends=True)}
        cells.append(cell if is_text else cell | {"execution_count": None, "outputs": []})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    content = {
        "cells": cells,
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    source = (HERE / "first_map.py").read_text()
    (HERE / "first_map.ipynb").write_text(notebook(source))
