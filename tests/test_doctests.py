"""The examples in docstrings: each public name has one, and every one does what it shows."""

import doctest
import importlib
import inspect
import pkgutil
import shutil

import candle_tf as ct
import numpy as np
import pytest
import tensorflow as tf

MODULES = [module.name for module in pkgutil.walk_packages(ct.__path__, "candle_tf.")]
KINDS = (property, classmethod, staticmethod)
PUBLIC = [ct, ct.classifiers, ct.data, ct.export, ct.losses, ct.methods, ct.metrics]
PUBLIC += [ct.students, ct.zoo]
GIVEN = {"ct": ct, "np": np, "tf": tf}
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def public_names(module) -> list[str]:
    """The names of `__all__`, or else those of what is defined in the module itself."""
    own = [n for n, x in vars(module).items() if getattr(x, "__module__", "") == module.__name__]
    return [name for name in getattr(module, "__all__", own) if not name.startswith("_")]


def public_classes(module) -> list[type]:
    """The classes in a module whose names have no leading underscore."""
    return [x for n, x in vars(module).items() if inspect.isclass(x) and not n.startswith("_")]


def public_methods(cls: type) -> list[str]:
    """The methods and properties in the body of a class, without the fields of a dataclass."""
    fields = getattr(cls, "__dataclass_fields__", {})
    own = [n for n, x in vars(cls).items() if isinstance(x, KINDS) or inspect.isfunction(x)]
    return [name for name in own if not name.startswith("_") and name not in fields]


@pytest.mark.parametrize("name", ["candle_tf", *MODULES])
def test_examples_do_what_they_show(name, tmp_path, monkeypatch):
    if name == "candle_tf.export.c_library" and not shutil.which("cc"):
        pytest.skip("needs cc: apt-get install gcc")
    monkeypatch.chdir(tmp_path)
    runner, said = doctest.DocTestRunner(optionflags=OPTIONS), []
    for example in doctest.DocTestFinder().find(importlib.import_module(name), extraglobs=GIVEN):
        runner.run(example, out=said.append)
    assert not runner.failures, "".join(said)


@pytest.mark.parametrize("module", PUBLIC, ids=lambda module: module.__name__)
def test_public_classes_and_functions_have_an_example(module):
    values = {name: getattr(module, name) for name in public_names(module)}
    kinds = {n: x for n, x in values.items() if inspect.isclass(x) or inspect.isroutine(x)}
    assert [name for name, x in kinds.items() if ">>>" not in (x.__doc__ or "")] == []


@pytest.mark.parametrize("name", MODULES)
def test_public_methods_have_a_docstring_of_their_own_or_an_inherited_one(name):
    module = importlib.import_module(name)
    classes = [each for each in public_classes(module) if each.__module__ == name]
    methods = [(each, method) for each in classes for method in public_methods(each)]
    assert [pair for pair in methods if not inspect.getdoc(getattr(*pair))] == []
