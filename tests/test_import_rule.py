"""Imports go one way: schemas <- transforms <- models <- beam_pipelines; schemas, transforms, models.inference <- serving."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = ("schemas", "transforms", "models", "beam_pipelines", "serving", "benchmarks", "tests")
HEAVY = ("apache_beam", "tensorflow", "tf_keras", "tensorflow_transform", "tensorflow_recommenders", "tfx_bsl")

# What a module, by its longest matching prefix, may import of ours.
MAY = {
    "schemas": ("schemas",),
    "transforms": ("schemas", "transforms"),
    "models": ("schemas", "transforms", "models"),
    "models.inference": ("schemas", "transforms", "models.inference"),
    "serving": ("schemas", "transforms", "models.inference", "serving"),
    "beam_pipelines": ("schemas", "transforms", "models", "beam_pipelines", "serving"),
    "beam_pipelines.cli.bench": ("schemas", "transforms", "models", "beam_pipelines", "serving", "benchmarks"),
}
MAY_NOT = {
    "beam_pipelines": ("serving.api",),
    "serving": ("transforms.beam",),
    "models.inference": ("transforms.beam",),
}
# Where neither Beam nor TensorFlow may be imported; transforms.beam is where Beam belongs.
LIGHT = ("schemas", "transforms", "models.inference", "serving")
HEAVY_ALLOWED = {"transforms.beam": HEAVY, "transforms.tf_runtime": ("tensorflow", "tensorflow_transform")}


def modules():
    """(dotted name, imports of it as dotted names) of every module of ours."""
    for top in OURS[:5]:
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            yield name, set(imports(ast.parse(path.read_text()), name, parts[-1] == "__init__"))


def imports(tree, name, is_package):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = name.split(".")
                parents = parents[: len(parents) - node.level + is_package]
                base = ".".join([*parents, *([base] if base else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def within(name, prefixes):
    return any(name == p or name.startswith(p + ".") for p in prefixes)


def rule(table, name):
    """The entry of the longest prefix of a name, () without one."""
    found = [prefix for prefix in table if within(name, (prefix,))]
    return table[max(found, key=len)] if found else ()


def test_imports_go_one_way():
    wrong = []
    for name, imported in modules():
        for other in sorted(imported):
            if not within(other, OURS):
                continue
            # "from models import inference" also reads as an import of "models", whose __init__ is empty
            parent_only = any(o.startswith(other + ".") and within(o, rule(MAY, name)) for o in imported)
            if (not within(other, rule(MAY, name)) and not parent_only) or within(other, rule(MAY_NOT, name)):
                wrong.append(f"{name} imports {other}")
    assert wrong == []


def test_light_modules_import_neither_beam_nor_tensorflow():
    wrong = [f"{name} imports {other}" for name, imported in modules() if within(name, LIGHT)
             for other in sorted(imported) if within(other, HEAVY) and not within(other, rule(HEAVY_ALLOWED, name))]
    assert wrong == []


def test_the_rule_sees_every_kind_of_import():
    tree = ast.parse("import a.b\nfrom c import d\nfrom . import e\nfrom ..f import g\ndef h():\n    import i")
    assert set(imports(tree, "top.sub.module", False)) == {"a.b", "c", "c.d", "top.sub", "top.sub.e", "top.f", "top.f.g", "i"}
    assert "top.sub.e" in set(imports(tree, "top.sub", True))
    assert len(list(modules())) > 30


def light_modules():
    return [name for name, _ in modules() if within(name, ("serving", "models.inference"))]


@pytest.mark.parametrize("module", ["serving.api", "beam_pipelines.cli.serve", "beam_pipelines.cli.show"])
def test_it_loads_neither_beam_nor_tensorflow(module):
    loads([module])


def test_no_module_of_serving_and_inference_loads_beam_or_tensorflow():
    loads(light_modules())


def loads(names):
    script = (f"import importlib, sys\nfor name in {names!r}: importlib.import_module(name)\n"
              f"print([m for m in {HEAVY!r} if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
