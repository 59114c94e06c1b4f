"""A little DVC project with every kind of dependency, whose stages take no time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PARAMS = """\
seed: 7
train:
  alpha: 0.5
  steps: null
methods:
  a:
    kind: x
  b:
    kind: y
"""

PIPELINE = """\
vars:
  - names: [a, b]
stages:
  ingest:
    cmd: cat raw/*.csv > data.csv
    deps: [raw, src/ingest.py]
    params: [seed]
    outs: [data.csv]
  labels:
    cmd: cp labels.txt known.txt
    deps: [labels.txt, src/common]
    outs: [known.txt]
  train:
    matrix: {name: "${names}"}
    cmd: mkdir models/${item.name} && cp data.csv models/${item.name}/model
    deps: [data.csv, src/train.py, src/common]
    params: [train, "methods.${item.name}"]
    outs: ["models/${item.name}", "curves/${item.name}.csv"]
    meta: {gpu: true}
  evaluate:
    cmd: echo '{"accuracy":{"a":{"macro":0.5,"spread":1}},"words":3}' > metrics.json
    deps: [models, curves, models/a/model, known.txt]
    outs:
      - table.csv: {cache: false}
    metrics:
      - metrics.json: {cache: false}
  report:
    cmd: cp metrics.json report.txt
    deps: [params.yaml, metrics.json]
    outs: [report.txt]
"""
PIPELINE = PIPELINE.replace(
    "models/${item.name}/model\n", "models/${item.name}/model && echo 1 > curves/${item.name}.csv\n"
).replace("> metrics.json\n", "> metrics.json && echo 1 > table.csv\n")

FILES = {
    "params.yaml": PARAMS,
    "dvc.yaml": PIPELINE,
    "raw/one.csv": "1\n",
    "raw/two.csv": "2\n",
    "labels.txt": "good\n",
    "src/ingest.py": "one\n",
    "src/train.py": "two\n",
    "src/common/__init__.py": "",
    "src/common/files.py": "three\n",
    "src/common/inner/hashes.py": "four\n",
    ".dvcignore": "__pycache__/\n*.orig\n",
    "models/.gitignore": "",
    "curves/.gitignore": "",
}


class Little:
    """A clone of the little project, and what a test does to it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def write(self, name: str, text: str) -> None:
        path = self / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def replace(self, name: str, old: str, new: str) -> None:
        text = (self / name).read_text(encoding="utf-8")
        assert old in text
        self.write(name, text.replace(old, new))

    def git(self, *arguments: str) -> str:
        who = ("-c", "user.name=Someone", "-c", "user.email=someone@example.org")
        return run(self.path, "git", *who, *arguments)

    def commit(self) -> str:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "a change")
        return self.git("rev-parse", "HEAD").strip()

    def dvc(self, *arguments: str) -> str:
        return run(self.path, sys.executable, "-m", "dvc", *arguments)


def run(path: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout
