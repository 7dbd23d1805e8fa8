"""benchmarks/two_hosts.py: a job on two hosts, one of them killed, ends as one that was left alone."""

from contextlib import nullcontext

import pytest
import torch

from benchmarks.two_hosts import HOSTS, _equal, can_have_namespaces, compare, namespaces, run_job


@pytest.mark.minutes
@pytest.mark.parametrize("where", ["namespaces", "loopback"])
def test_a_host_that_was_killed_comes_back_to_the_same_weights(tmp_path, where):
    if where == "namespaces" and not can_have_namespaces():
        pytest.skip("needs root, iproute2 and unshare")
    with namespaces(tmp_path) if where == "namespaces" else nullcontext({name: [] for name in HOSTS}) as prefixes:
        run_job(tmp_path / "whole", prefixes, kill=None, worker_only=False, at_step=0)
        killed = run_job(tmp_path / "killed", prefixes, kill="beta", worker_only=False, at_step=45)
    assert killed["steps"] == 90
    assert [line.rpartition(" of ")[0] for line in killed["resumed"]] == ["resumed at step 40"]
    same = compare(tmp_path / "whole" / "run", tmp_path / "killed" / "run")
    assert all(same.values()), same


def test_what_is_nested_is_compared_to_the_bit():
    first = {"a": [torch.ones(2), {"b": 1}]}
    assert _equal(first, {"a": [torch.ones(2), {"b": 1}]})
    assert not _equal(first, {"a": [torch.tensor([1.0, 1.0 + 2**-23]), {"b": 1}]})
    assert not _equal(first, {"a": [torch.ones(2)]})
    assert not _equal(first, {"a": [torch.ones(2), {"b": 2}]})
