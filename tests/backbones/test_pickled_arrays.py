"""backbones/pickled_arrays.py: arrays come out as they went in; nothing else that a pickle can ask for happens."""

import builtins
import contextlib
import os
import pickle
import re
import struct
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from backbones import UserError
from backbones.pickled_arrays import load_pickled_arrays

EXAMPLES = settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])


def save(content, path, **options):
    path.write_bytes(pickle.dumps(content, **options))
    return path


@EXAMPLES
@given(
    arrays=st.dictionaries(
        st.text(max_size=9),
        st_numpy.arrays(
            st.sampled_from(["<f2", "<f4", ">f4", "<f8", "<i8", ">i2", "|u1", "|b1"]),
            st_numpy.array_shapes(min_dims=0, min_side=0),
        ),
    ),
    protocol=st.integers(0, pickle.HIGHEST_PROTOCOL),
    fortran=st.booleans(),
)  # fmt: skip
def test_arrays_become_equal_tensors(arrays, protocol, fortran, tmp_path):
    if fortran:
        arrays = {key: np.asfortranarray(array) for key, array in arrays.items()}
    loaded = load_pickled_arrays(save({"model": OrderedDict(arrays), "x": 3}, tmp_path / "a.pkl", protocol=protocol))
    assert loaded["x"] == 3
    assert list(loaded["model"]) == list(arrays)
    for key, array in arrays.items():
        np.testing.assert_array_equal(loaded["model"][key].numpy(), array)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_numbers_of_numpy_are_read(protocol, tmp_path):
    content = {"lr": np.float32(0.5), "iteration": np.int64(3), "name": "caffe2", "shape": (1, 2.5, None, True)}
    assert load_pickled_arrays(save(content, tmp_path / "a.pkl", protocol=protocol)) == content


def python2_pickle(arrays):
    """What Python 2's cPickle writes of a dictionary of float32 arrays with protocol 2: byte strings, no unicode."""

    def string(text):
        return b"U" + struct.pack("<B", len(text)) + text if len(text) < 256 else b"T" + struct.pack("<i", len(text)) + text

    def integer(number):
        return b"K" + struct.pack("<B", number)

    out = b"\x80\x02}("
    for key, array in arrays.items():
        shape = b"(" + b"".join(integer(size) for size in array.shape) + b"t"
        empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + integer(0) + b"\x85" + string(b"b") + b"\x87R"
        dtype = b"cnumpy\ndtype\n" + string(b"f4") + integer(0) + integer(1) + b"\x87R"
        dtype += b"(" + integer(3) + string(b"<") + b"NNN" + 2 * (b"J" + struct.pack("<i", -1)) + integer(0) + b"tb"
        state = b"(" + integer(1) + shape + dtype + b"\x89" + string(array.astype("<f4").tobytes()) + b"tb"
        out += string(key.encode()) + empty + state
    return out + b"u."


def test_files_of_python_2_are_read(tmp_path):
    arrays = {
        "conv1_w": np.random.default_rng(0).normal(size=(8, 3, 7, 7)).astype("f4"),
        "res_conv1_bn_s": np.float32([-1, 200]),
    }
    path = tmp_path / "R-50.pkl"
    path.write_bytes(python2_pickle(arrays))
    loaded = load_pickled_arrays(path)
    for key, array in arrays.items():
        np.testing.assert_array_equal(loaded[key].numpy(), array)


class Calls:
    """Unpickling one calls a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def functions_that_do_harm(trace):
    return [
        Calls(Path.touch, trace),
        Calls(os.system, f"touch {trace}"),
        Calls(builtins.eval, f"open({str(trace)!r}, 'w')"),
        Calls(builtins.open, str(trace), "w"),
        Calls(getattr, trace, "touch"),
        Calls(np.save, trace, 3),
        Calls(torch.save, 3, trace),
    ]


@pytest.mark.parametrize("i", range(7))
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_no_function_of_a_pickle_is_called(i, protocol, tmp_path):
    trace = tmp_path / "trace"
    harm = functions_that_do_harm(trace)[i]
    path = save({"conv1.weight": np.ones(3), "trap": harm}, tmp_path / "a.pkl", protocol=protocol)
    with pytest.raises(UserError, match=re.escape(f"{path} was not loaded") + r".*more than arrays \(.*could run code"):
        load_pickled_arrays(path)
    assert not trace.exists()


@pytest.mark.parametrize(
    "content",
    [
        np.array([1, "a", None], dtype=object),
        Calls(np.ndarray, (2,)),
        torch.ones(2),
        {1, 2},
        Path("a"),
        Calls(pickle.loads, b"N."),
        np.datetime64(3, "s"),
    ],
    ids=["objects", "ndarray-called", "tensor", "set", "path", "pickle-in-pickle", "date"],
)
def test_what_is_no_array_of_numbers_is_refused_or_left_as_it_is(content, tmp_path):
    path = save({"a": content}, tmp_path / "a.pkl")
    with contextlib.suppress(UserError):
        assert not isinstance(load_pickled_arrays(path)["a"], torch.Tensor)


def test_an_encoding_other_than_that_of_bytes_is_refused(tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(b"c_codecs\nencode\n(Vabc\nVrot13\ntR.")
    with pytest.raises(UserError, match="rot13"):
        load_pickled_arrays(path)


def test_the_readers_functions_do_not_keep_what_a_pickle_sets_on_them(tmp_path):
    arrays = save({"a": b"bytes"}, tmp_path / "a.pkl", protocol=2)
    path = tmp_path / "b.pkl"
    path.write_bytes(b"\x80\x02c_codecs\nencode\nN}X\x0c\x00\x00\x00__defaults__(K\x01tsX\x01\x00\x00\x00zs\x86b.")
    with pytest.raises(UserError, match="cannot be read"):
        load_pickled_arrays(path)
    path.write_bytes(b"\x80\x02c_codecs\nencode\nN}X\x0c\x00\x00\x00__defaults__(K\x01ts\x86b.")
    load_pickled_arrays(path)
    assert load_pickled_arrays(arrays) == {"a": b"bytes"}


def test_a_dictionary_within_itself_ends(tmp_path):
    content = {"conv1.weight": np.ones(3)}
    content["self"] = content
    loaded = load_pickled_arrays(save(content, tmp_path / "a.pkl"))
    assert torch.equal(loaded["self"]["conv1.weight"], torch.ones(3, dtype=torch.float64))


@EXAMPLES
@given(data=st.data())
def test_damaged_files_raise_no_other_error(data, tmp_path):
    content = pickle.dumps({"model": {"conv1.weight": np.arange(6.0).reshape(2, 3)}}, protocol=data.draw(st.integers(0, 4)))
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        position = data.draw(st.integers(0, len(content) - 1))
        content = content[:position] + data.draw(st.binary(min_size=1, max_size=2)) + content[position + 1 :]
    path = tmp_path / "a.pkl"
    path.write_bytes(content)
    with contextlib.suppress(UserError):  # some damage changes numbers alone
        load_pickled_arrays(path)
