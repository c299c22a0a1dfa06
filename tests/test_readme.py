"""The README's commands: there are two to begin with, and none promises what does not exist.

Those of the pages under docs/ promise nothing else either.
"""

import ast
import re
import shlex
import tomllib
from dataclasses import fields
from itertools import pairwise
from pathlib import Path

import pytest
import typer

from robench import cli
from robench.methods import registry

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
PAGES = [README, *(page.read_text("utf-8") for page in sorted((ROOT / "docs").glob("*.md")))]


def blocks(language: str, page: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """Every robench command of the README and the pages under docs/, as words."""
    text = "\n".join(block for page in PAGES for kind in ("bash", "console")
                     for block in blocks(kind, page))  # fmt: skip
    lines = [part.strip() for line in text.splitlines() for part in line.split("&&")]
    return [shlex.split(line)[1:] for line in lines if line.startswith("robench ")]


def test_the_first_block_runs_the_main_job_and_the_second_the_tests():
    main_job, tests = blocks("bash")
    assert main_job == "pip install -c constraints.txt . && robench run --matrix full\n"
    assert tests == 'pip install -c constraints.txt -e ".[test]" && pytest -n 2 --dist worksteal\n'
    assert README.index(tests) < len("\n".join(README.splitlines()[:30]))


def test_the_installation_has_what_the_commands_name():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "test" in project["optional-dependencies"]
    pinned = {line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text().split()}
    folded = {name.lower().replace("_", "-") for name in pinned}
    needed = project["dependencies"] + project["optional-dependencies"]["test"]
    assert {re.split("[<>=]", name)[0].lower() for name in needed} <= folded


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_the_options_of_every_command_exist(words):
    command = typer.main.get_command(cli.app)
    name, *arguments = cli.spread(words)
    with command.make_context("robench", [name]):
        command.commands[name].make_context(name, arguments)


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_the_methods_of_every_command_exist(words):
    kinds = {"--attacks": "attack", "--defenses": "defense", "--judges": "judge"}
    for option, reference in pairwise(cli.spread(words)):
        base, _ = registry.split(reference)
        if option in kinds and not registry.is_file(base):
            registry.resolve(kinds[option], reference)


def test_the_examples_are_python():
    assert blocks("python")
    for block in blocks("python"):
        ast.parse(block)


def test_the_example_attack_is_a_method(tmp_path):
    file = tmp_path / "mine.py"
    (example,) = [block for block in blocks("python") if "class RandomSuffix" in block]
    file.write_text(example)
    method = registry.resolve("attack", f"{file}:RandomSuffix", settings={"tries": "3"})
    assert method.instance.tries == 3


def test_every_folder_and_page_that_is_named_exists():
    for name in re.findall(r"`(\w+/)`", README) + re.findall(r"\]\((\S+?)\)", README):
        assert (ROOT / name).exists(), name


def test_every_option_that_a_page_speaks_of_exists():
    """Also those between the commands: `--samples`, `--set crl.checkpointing=true`."""
    command = typer.main.get_command(cli.app)
    known = {o for sub in command.commands.values() for p in sub.params for o in p.opts}
    for page in PAGES:
        spoken = set(re.findall(r"`(--[a-z-]+)", page))
        assert spoken <= known, spoken - known


def test_every_field_that_a_page_sets_exists():
    for page in PAGES:
        labelled = dict(re.findall(r" (\w+)=(\w+) ", page))  # NAME=METHOD after --defenses
        for given, field in set(re.findall(r"--set (\w+)\.(\w+)=", page)):
            name = labelled.get(given, given)
            kind = next(k for k in ("attack", "defense", "judge") if name in registry.names(k))
            assert field in {f.name for f in fields(registry.load_class(kind, name))}
