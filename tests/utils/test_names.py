import pytest
from candle_tf.utils.names import lookup, parse_spec

TABLE = {"resnet_e": 1, "ReActNet": 2, "densenet": 3}


@pytest.mark.parametrize("name", TABLE)
def test_lookup(name):
    assert lookup("student", name, TABLE) == TABLE[name]


@pytest.mark.parametrize(
    "name, meant",
    [("resnet", "resnet_e"), ("reactnet", "ReActNet"), ("RESNET_E", "resnet_e")],
)
def test_lookup_names_the_nearest(name, meant):
    with pytest.raises(ValueError) as refused:
        lookup("student", name, TABLE)
    assert str(refused.value) == f"Unknown student {name!r}: did you mean {meant!r}?"


@pytest.mark.parametrize("name", ["", "zzz"])
def test_lookup_lists_all_where_none_is_near(name):
    with pytest.raises(ValueError, match="choose from resnet_e, ReActNet, densenet"):
        lookup("student", name, TABLE)


@pytest.mark.parametrize(
    "spec, name, arguments",
    [
        ("resnet_e", "resnet_e", {}),
        ("resnet_e:", "resnet_e", {}),
        ("resnet_e:width=0.5", "resnet_e", {"width": 0.5}),
        (
            "resnet_e:blocks=(2,2,2),width=0.5",
            "resnet_e",
            {"blocks": (2, 2, 2), "width": 0.5},
        ),
        ("x: a = -1, b = None", "x", {"a": -1, "b": None}),
        ("keras:VGG16:a=1", "keras:VGG16", {"a": 1}),
        ("tfds:cifar10:imbalance_ratio=10", "tfds:cifar10", {"imbalance_ratio": 10}),
        ("x:a='b:c, d=e',f=[1]", "x", {"a": "b:c, d=e", "f": [1]}),
        ("folder:my/photos:profile='step'", "folder:my/photos", {"profile": "step"}),
        ("list:a.txt,b.txt", "list:a.txt,b.txt", {}),
    ],
)
def test_parse_spec(spec, name, arguments):
    assert parse_spec(spec) == (name, arguments)


@pytest.mark.parametrize(
    "spec",
    [
        "x:1",
        "x:a",
        "x:a=",
        "x:a=b",
        "x:a=1;b=2",
        "x:*[1]",
        'x:a=__import__("os")',
        "x:a=1+1",
        "x:a=1)+(2",
        "x:a=1)(b=2",
        "x:a=1).f(b=2",
        "x:**{'a':1}",
        "x:a=1)#",
        "x:a={[]:1}",
        "x:a=" + "-" * 5000 + "1",
    ],
    ids=lambda spec: spec[:20],
)
def test_parse_spec_refuses(spec):
    with pytest.raises(ValueError, match="is not NAME or NAME:ARGUMENT=VALUE"):
        parse_spec(spec)


def test_parse_spec_runs_nothing(tmp_path):
    marker = tmp_path / "pwned"
    with pytest.raises(ValueError):
        parse_spec(f"x:a=open({str(marker)!r}, 'w')")
    assert not marker.exists()
